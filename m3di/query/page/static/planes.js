"use strict";

// Three linked planes of one cube, as a radiologist expects them: the patient's right is on the left, sagittal slices
// look to the left of the screen. Planes are numbered axial, coronal, sagittal; `at` has the slice of each.

// Of each plane: which planes' positions run along its columns and rows, both downwards, and what its edges are called.
const LAYOUT = [
  { columns: 2, rows: 1, edges: "RLAP" },
  { columns: 2, rows: 0, edges: "RLSI" },
  { columns: 1, rows: 0, edges: "APSI" },
];
const SETTLED_MS = 90; // after the last move, the slice is fetched as its teacher saw it
const GAP = 4; // per cent of the edge that the cross leaves open around its middle

/**
 * Builds the planes into an element.
 * `moved(plane)` is called when a position or the chosen plane changes; `picture(plane, slice)` gives an address or
 * nothing.
 */
function makePlanes(parent, names, { moved, picture }) {
  const state = { edge: 1, cube: null, cubeEdge: 1, at: [0, 0, 0], chosen: 0, marked: null };
  const views = names.map((name, plane) => makePlane(name, plane));
  let settling = 0;
  parent.replaceChildren(...views.map((view) => view.element));

  function makePlane(name, plane) {
    const canvas = make("canvas", { "aria-hidden": "true" });
    const sharp = make("img", { alt: "", hidden: "" });
    const cross = draw("svg", { viewBox: "0 0 100 100", "aria-hidden": "true", class: "cross" });
    const badge = make("span", { class: "badge", hidden: "" });
    const edges = [...LAYOUT[plane].edges].map((letter, side) => make("span", { class: `edge e${side}` }, letter));
    const slider = make("input", { type: "range", min: 0, step: 1, "aria-label": `${capital(name)} slice` });
    const position = make("output", { class: "position" });
    const box = make("div", { class: "picture" }, canvas, sharp, cross, ...edges, badge);
    const curve = make("div", { class: "curve-box" });
    const head = make("div", { class: "plane-head" }, make("h3", {}, capital(name)), position);
    const element = make("div", { class: `plane p${plane}`, role: "group", "aria-label": `${name} plane` }, head, box,
      slider, curve);
    slider.addEventListener("input", () => move({ [plane]: Number(slider.value) }, plane));
    slider.addEventListener("focus", () => choose(plane));
    box.addEventListener("pointerdown", (event) => {
      box.setPointerCapture(event.pointerId);
      follow(event);
      event.preventDefault();
    });
    box.addEventListener("pointermove", (event) => box.hasPointerCapture(event.pointerId) && follow(event));
    box.addEventListener("pointerup", () => slider.focus({ preventScroll: true }));
    box.addEventListener("wheel", (event) => {
      if (document.activeElement !== slider) return; // else the page could not be scrolled over a plane
      event.preventDefault();
      move({ [plane]: state.at[plane] + Math.sign(event.deltaY) }, plane);
    }, { passive: false });

    function follow(event) {
      const frame = box.getBoundingClientRect();
      const index = (offset, size) => Math.floor((1 - offset / size) * state.edge);
      const { columns, rows } = LAYOUT[plane];
      move({
        [columns]: index(event.clientX - frame.left, frame.width),
        [rows]: index(event.clientY - frame.top, frame.height),
      }, state.chosen);
    }
    return { element, canvas, sharp, cross, slider, position, badge, curve };
  }

  function choose(plane) {
    if (state.chosen === plane) return;
    state.chosen = plane;
    update();
  }

  function move(places, chosen) {
    for (const [plane, index] of Object.entries(places)) {
      state.at[plane] = Math.min(state.edge - 1, Math.max(0, index));
    }
    state.chosen = chosen;
    update();
  }

  function update() {
    views.forEach((view, plane) => {
      view.element.classList.toggle("chosen", plane === state.chosen);
      view.slider.value = state.at[plane];
      view.position.textContent = `${state.at[plane]} of ${state.edge - 1}`;
      const isMarked = state.marked !== null && state.marked.plane === plane && state.marked.slice === state.at[plane];
      view.badge.hidden = !isMarked;
      view.badge.textContent = isMarked ? plain(state.marked.label) : "";
      paint(view.canvas, plane);
      mark(view.cross, plane);
    });
    sharpen();
    moved(state.chosen);
  }

  /** A slice of the cube in its canvas; the cube may be coarser than positions are. */
  function paint(canvas, plane) {
    const edge = state.cubeEdge;
    const strides = [1, edge, edge * edge];
    const { columns, rows } = LAYOUT[plane];
    const index = Math.min(edge - 1, Math.floor(((state.at[plane] + 0.5) * edge) / state.edge));
    const image = new ImageData(edge, edge);
    const pixels = new Uint32Array(image.data.buffer);
    for (let row = 0, pixel = 0; row < edge; row++) {
      let voxel = index * strides[plane] + (edge - 1 - row) * strides[rows] + (edge - 1) * strides[columns];
      for (let column = 0; column < edge; column++, pixel++, voxel -= strides[columns]) {
        pixels[pixel] = 0xff000000 | (state.cube[voxel] * 0x010101);
      }
    }
    if (canvas.width !== edge) canvas.width = canvas.height = edge;
    canvas.getContext("2d").putImageData(image, 0, 0);
  }

  function mark(cross, plane) {
    const { columns, rows } = LAYOUT[plane];
    const percent = (other) => 100 * (1 - (state.at[other] + 0.5) / state.edge);
    const [x, y] = [percent(columns), percent(rows)];
    const line = (other, path) => draw("path", { class: `p${other}`, d: path, "vector-effect": "non-scaling-stroke" });
    cross.replaceChildren(
      line(columns, `M${x} 0V${Math.max(0, y - GAP)}M${x} ${Math.min(100, y + GAP)}V100`),
      line(rows, `M0 ${y}H${Math.max(0, x - GAP)}M${Math.min(100, x + GAP)} ${y}H100`),
    );
  }

  /** Lays the slices over the cube's as soon as nothing moves, where there are some. */
  function sharpen() {
    clearTimeout(settling);
    const isShown = (view) => Boolean(view.wanted) && view.wanted === view.loaded;
    views.forEach((view, plane) => {
      view.wanted = picture(plane, state.at[plane]);
      view.sharp.hidden = !isShown(view);
    });
    settling = setTimeout(() => views.forEach((view) => {
      const address = view.wanted;
      if (!address || isShown(view)) return;
      view.sharp.onload = () => {
        view.loaded = address;
        view.sharp.hidden = !isShown(view);
      };
      view.sharp.src = address;
    }), SETTLED_MS);
  }

  return {
    state,
    views,
    move,
    show(cube, edge, at, chosen, marked) {
      Object.assign(state, { cube, edge, cubeEdge: Math.round(Math.cbrt(cube.length)), marked });
      views.forEach((view) => { view.slider.max = edge - 1; });
      move({ ...at }, chosen);
    },
  };
}
