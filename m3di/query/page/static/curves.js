"use strict";

// How like the question each slice is, as a curve along each axis, just under the axis's slider.

const HEIGHT = 48;
const ROOM = 4; // above and below a curve

/** Draws the curves into the planes' boxes; `go(plane, slice)` is called by a click. */
function drawCurves(views, volume, curves, edge, go) {
  const all = curves ? curves.flat() : [];
  const [low, high] = [Math.min(...all), Math.max(...all)];
  views.forEach((view, plane) => {
    const known = all.length > 0 && curves[plane].length > 0;
    view.curve.replaceChildren(...(known ? curve(plane) : []));
  });

  function curve(plane) {
    const [slices, cosines] = [volume.slices[plane], curves[plane]];
    const y = (cosine) => HEIGHT - ROOM - ((cosine - low) / (high - low || 1)) * (HEIGHT - 2 * ROOM);
    const stride = Math.min(...slices.slice(1).map((slice, i) => slice - slices[i]));
    const path = slices.map((slice, i) => {
      const isNew = i === 0 || slice - slices[i - 1] > stride; // blank slices between
      return `${isNew ? "M" : "L"}${slice + 0.5} ${y(cosines[i]).toFixed(2)}`;
    }).join("");
    const best = cosines.indexOf(Math.max(...cosines));
    const line = (kind) => draw("path", { class: kind, "vector-effect": "non-scaling-stroke" });
    const drawing = draw("svg", {
      viewBox: `0 0 ${edge} ${HEIGHT}`, preserveAspectRatio: "none", class: "curve", role: "img",
      "aria-label": `Similarity along this axis: from ${signed(low, 2)} to ${signed(high, 2)} in the volume, `
        + `here highest at slice ${slices[best]} with ${signed(cosines[best], 3)}`,
    }, line("marked"), line("here"), draw("path", { class: "graph", d: path, "vector-effect": "non-scaling-stroke" }));
    drawing.addEventListener("click", (event) => {
      const frame = drawing.getBoundingClientRect();
      go(plane, Math.floor(((event.clientX - frame.left) / frame.width) * edge));
    });
    const told = `peak ${signed(cosines[best], 3)} at ${slices[best]}`;
    const peak = make("button", { type: "button", class: "peak" }, told);
    peak.addEventListener("click", () => go(plane, slices[best]));
    return [drawing, make("div", { class: "curve-foot" }, make("span", { class: "value" }), peak)];
  }
}

/** Moves the marks of the curves to the planes' positions. */
function markCurves(views, volume, curves, { at, marked }) {
  views.forEach((view, plane) => {
    const here = view.curve.querySelector(".here");
    if (!here) return;
    here.setAttribute("d", `M${at[plane] + 0.5} 0V${HEIGHT}`);
    const place = marked !== null && marked.plane === plane ? `M${marked.slice + 0.5} 0V${HEIGHT}` : "";
    view.curve.querySelector(".marked").setAttribute("d", place);
    const found = volume.slices[plane].indexOf(at[plane]);
    view.curve.querySelector(".value").textContent = found < 0 ? "" : signed(curves[plane][found], 3);
  });
}
