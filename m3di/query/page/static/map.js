"use strict";

// All volumes as points: near each other where their embeddings are. One canvas, however many there are.

const COLOURS = ["--s1", "--s2", "--s3", "--s4", "--s5", "--s6"];
const REACH_PX = 14; // how far from a point a click still means it
const MARGIN = 16;

/** Builds the map; `open(volume)` is called for a point. */
function makeMap(store, open) {
  const canvas = byId("map");
  const by = byId("map-by");
  const { places } = store.map;
  const state = { at: -1, shown: -1, hits: new Set(), ranks: [] };
  const facts = Object.keys(store.facts).filter((fact) => store.facts[fact].values.length > 1);
  let points = [];

  by.replaceChildren(...facts.map((fact) => make("option", { value: fact }, words(fact))));
  by.value = facts.includes("dataset") ? "dataset" : facts[0] ?? "";
  by.parentElement.hidden = facts.length < 2;
  by.addEventListener("change", () => { key(); paint(); });
  new ResizeObserver(paint).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
  canvas.addEventListener("pointermove", (event) => point(nearest(event)));
  canvas.addEventListener("pointerleave", () => point(-1));
  canvas.addEventListener("click", (event) => {
    const found = nearest(event);
    if (found >= 0) open(store.volumes[found]);
  });
  canvas.addEventListener("keydown", (event) => {
    const direction = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (direction) point(towards(direction));
    else if (event.key === "Enter" && state.at >= 0) open(store.volumes[state.at]);
    else return;
    event.preventDefault();
  });
  canvas.addEventListener("blur", () => point(-1));
  key();

  /** Which colour the values of the chosen fact have, the most frequent first; the last is of all that are left. */
  function key() {
    const { values, codes } = store.facts[by.value] ?? { values: [], codes: [] };
    const counts = values.map(() => 0);
    for (const code of codes) counts[code] += 1;
    const order = [...values.keys()].sort((a, b) => counts[b] - counts[a]);
    state.ranks = values.map((_, code) => Math.min(order.indexOf(code), COLOURS.length - 1));
    const last = COLOURS.length - 1;
    const shown = order.slice(0, COLOURS.length).map((code) => words(values[code]) || "not known");
    if (values.length > COLOURS.length) shown[last] = `${values.length - last} others`;
    byId("map-key").replaceChildren(...shown.map((name, rank) => make(
      "li", {}, make("span", { class: `dot c${rank}` }), make("bdi", {}, name))));
  }

  function colour(number) {
    return COLOURS[state.ranks[store.facts[by.value]?.codes[number]] ?? 0];
  }

  /** Where the points lie, for the size that the canvas has now. */
  function layOut(width, height) {
    const range = (axis) => {
      const values = places.map((place) => place[axis]);
      return [Math.min(...values), Math.max(...values)];
    };
    const [[left, right], [low, high]] = [range(0), range(1)];
    const scale = Math.min((width - 2 * MARGIN) / (right - left || 1), (height - 2 * MARGIN) / (high - low || 1));
    return places.map(([x, y]) => [
      width / 2 + (x - (left + right) / 2) * scale, height / 2 - (y - (low + high) / 2) * scale,
    ]);
  }

  function paint() {
    const { clientWidth: width, clientHeight: height } = canvas;
    if (!width) return;
    const ratio = window.devicePixelRatio || 1;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    points = layOut(width, height);
    const style = getComputedStyle(document.body);
    const ink = (name) => style.getPropertyValue(name);
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    const radius = points.length > 400 ? 2.5 : 4.5;
    const dot = (number, size) => {
      context.beginPath();
      context.arc(...points[number], size, 0, 2 * Math.PI);
    };
    points.forEach((_, number) => {
      dot(number, radius);
      context.globalAlpha = state.hits.size && !state.hits.has(number) ? 0.35 : 0.9;
      context.fillStyle = ink(colour(number));
      context.fill();
    });
    context.globalAlpha = 1;
    const ring = (number, size, name, width) => {
      dot(number, size);
      context.lineWidth = width;
      context.strokeStyle = ink(name);
      context.stroke();
    };
    for (const number of state.hits) ring(number, radius + 1.5, "--ink", 1);
    if (state.shown >= 0) ring(state.shown, radius + 5, "--accent", 2.5);
    if (state.at >= 0) ring(state.at, radius + 3, "--ink", 2);
  }

  function nearest({ offsetX, offsetY }) {
    let [found, least] = [-1, REACH_PX ** 2];
    points.forEach(([x, y], number) => {
      const distance = (x - offsetX) ** 2 + (y - offsetY) ** 2;
      if (distance < least) [found, least] = [number, distance];
    });
    return found;
  }

  /** The next point in a direction: near, and not far to the side. */
  function towards([right, down]) {
    const from = state.at >= 0 ? state.at : Math.max(state.shown, 0);
    if (state.at < 0) return from;
    let [found, least] = [from, Infinity];
    points.forEach(([x, y], number) => {
      const [across, along] = right ? [y - points[from][1], (x - points[from][0]) * right]
        : [x - points[from][0], (y - points[from][1]) * down];
      const cost = along + 2 * Math.abs(across);
      if (along > 0.01 && cost < least) [found, least] = [number, cost];
    });
    return found;
  }

  function point(number) {
    if (number === state.at) return;
    state.at = number;
    canvas.classList.toggle("pointing", number >= 0);
    describe();
    paint();
  }

  function describe() {
    const number = state.at;
    if (number < 0) {
      const [first, second] = store.map.spread.map((share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)}%`);
      say("map-at", `Mean embeddings; left to right ${first}, down to up ${second} of all differences.`);
      return;
    }
    const told = Object.values(store.facts).map(({ values, codes }) => words(values[codes[number]])).filter(Boolean);
    say("map-at", [store.volumes[number], ...told].join(" · "));
  }

  const numbers = new Map(store.volumes.map((volume, number) => [volume, number]));
  describe();
  return {
    show(volume) { state.shown = numbers.get(volume) ?? -1; paint(); },
    mark(volumes) {
      state.hits = new Set(volumes.map((volume) => numbers.get(volume)).filter((number) => number !== undefined));
      paint();
    },
  };
}
