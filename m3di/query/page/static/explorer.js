"use strict";

// The page: one question, one open volume, and what connects them.

const OPTIONS = ["top", "all", "against"]; // of the command line, for every question of the page
const page = { volume: null, curves: null, answer: null, question: "", options: {}, turn: 0, asking: 0 };
let source, store, planes, map;

start();

async function start() {
  const embedded = byId("data");
  source = embedded ? fileSource(JSON.parse(embedded.textContent)) : serverSource();
  // The token has become a cookie: it need not stay in the address.
  if (source.canAsk) history.replaceState(null, "", `/${location.hash}`);
  await attempt(async () => {
    store = await source.store();
    describeStore();
    planes = makePlanes(byId("planes"), store.planes, { moved, picture: sharpPicture });
    map = makeMap(store, openVolume);
    listen();
    if (source.canAsk) await fromAddress();
    else await showFiled();
  });
}

function describeStore() {
  const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
  say("store-name", store.name);
  say("store-facts", [
    count(store.volumes.length, "volume"), count(store.num_rows, "slice"), store.teacher && `teacher ${store.teacher}`,
  ].filter(Boolean).join(" · "));
  document.title = `${plain(store.name)} · m3di query`;
  byId("ask").hidden = byId("actions").hidden = !source.canAsk;
  const facts = Object.entries(store.facts).map(([fact, { values }]) => [fact, values]);
  const choices = [["plane", store.planes], ...facts.filter(([, values]) => values.length > 1)];
  byId("filters").replaceChildren(...choices.map(([fact, values]) => make("label", {},
    make("span", { class: "hidden" }, words(fact)),
    make("select", { name: fact }, make("option", { value: "" }, `any ${words(fact)}`),
      ...values.map((value, number) => make("option", { value: number }, value || "not known"))))));
}

function listen() {
  byId("ask").addEventListener("submit", (event) => { event.preventDefault(); askText(byId("text").value); });
  byId("filters").addEventListener("change", () => { if (page.question) askAgain(); });
  byId("near-slice").addEventListener("click", () => {
    const plane = planes.state.chosen;
    const slice = nearestSlice(plane, planes.state.at[plane]);
    ask({ volume: page.volume.volume, plane: store.planes[plane], slice });
  });
  byId("near-volume").addEventListener("click", () => ask({ volume: page.volume.volume }));
  byId("open").addEventListener("submit", (event) => { event.preventDefault(); openVolume(byId("open-name").value); });
  byId("open-name").addEventListener("input", suggest);
  window.addEventListener("popstate", () => attempt(fromAddress));
}

const filters = () => byId("filters").querySelectorAll("select");

/** The values of a filter as they are in the store; what its options show has been made harmless. */
const valuesOf = (fact) => (fact === "plane" ? store.planes : store.facts[fact].values);

// Questions

function askText(text) {
  if (text.trim()) ask({ text: text.trim() });
  else byId("text").focus();
}

/** Asks, with the filters as they are; the address keeps the question, so that one can go back to it. */
function ask(question) {
  const parameters = new URLSearchParams({ ...question, ...page.options });
  for (const select of filters()) {
    if (select.value) parameters.append("where", `${select.name}=${valuesOf(select.name)[select.value]}`);
  }
  history.pushState(null, "", `#${parameters}`);
  return attempt(() => answered(parameters));
}

function askAgain() {
  const old = new URLSearchParams(page.question);
  return ask(Object.fromEntries([...old].filter(([name]) => name !== "where")));
}

async function fromAddress() {
  const parameters = new URLSearchParams(location.hash.slice(1));
  page.options = Object.fromEntries([...parameters].filter(([name]) => OPTIONS.includes(name)));
  const conditions = parameters.getAll("where").map((condition) => condition.toLowerCase());
  for (const select of filters()) {
    const isNamed = (value) => conditions.includes(`${select.name}=${value}`.toLowerCase());
    const number = valuesOf(select.name).findIndex(isNamed);
    select.value = number < 0 ? "" : number;
  }
  if (parameters.has("text") || parameters.has("volume")) return answered(parameters);
  Object.assign(page, { question: "", answer: null, curves: null });
  byId("text").value = "";
  showExamples(store, (example) => { byId("text").value = example; askText(example); });
  map.mark([]);
  if (store.volumes.length) await open({ volume: page.volume?.volume ?? store.volumes[0] });
}

async function answered(parameters) {
  const asking = ++page.asking;
  say("status", "Searching");
  document.body.classList.add("busy");
  try {
    const answer = await source.answer(parameters);
    if (asking !== page.asking) return;
    Object.assign(page, { question: String(parameters), answer });
    byId("text").value = parameters.get("text") ?? "";
    await show(answer, Object.fromEntries(parameters));
  } finally {
    if (asking === page.asking) document.body.classList.remove("busy");
  }
}

async function showFiled() {
  page.answer = await source.answer();
  await show(page.answer, source.asked);
}

/** Shows an answer, and opens what was asked by if it is a slice of the store, else the best hit. */
async function show(answer, asked) {
  showAnswer(answer, source, open);
  say("status", `${answer.results.length} answers`);
  map.mark(answer.results.map((hit) => hit.volume));
  const own = answer.question.kind === "slice" && asked.volume;
  const first = own ? { ...asked, slice: Number(asked.slice) } : answer.results[0];
  if (first) await open(first);
}

// The open volume

function openVolume(volume) {
  if (source.has(volume)) return open({ volume });
  return say("map-at", `${volume} is not among the volumes of this file.`);
}

/** Opens a volume, at a slice if one is named, else in the middle. */
function open({ volume, plane, slice, score }) {
  return attempt(async () => {
    const turn = ++page.turn;
    const asked = page.answer ? source.curves(volume, page.question) : null;
    const [facts, cube, curves] = await Promise.all([source.volume(volume), source.cube(volume), asked]);
    if (turn !== page.turn) return;
    Object.assign(page, { volume: facts, curves });
    const chosen = plane === undefined ? planes.state.chosen : store.planes.indexOf(plane);
    const at = facts.slices.map((slices) => slices[slices.length >> 1] ?? store.edge >> 1);
    if (slice !== undefined) at[chosen] = slice;
    const ofVolumes = page.answer?.question.kind === "volume"; // then a score is not of a slice
    const label = score === undefined ? "asked" : ofVolumes ? "nearest slice" : `hit ${signed(score, 3)}`;
    const marked = slice === undefined ? null : { plane: chosen, slice, label };
    byId("viewer").hidden = false;
    describeVolume(facts, cube.length < store.edge ** 3);
    drawCurves(planes.views, facts, curves, store.edge, (number, index) => planes.move({ [number]: index }, number));
    planes.show(cube, store.edge, at, chosen, marked);
    map.show(volume);
    markHit({ volume, plane, slice });
  });
}

function describeVolume(facts, isHalved) {
  const { volume, subject, modality, dataset, body_part, sequence, shape, spacing_mm, thick } = facts;
  say("volume-name", volume);
  const size = `${shape.join(" × ")} voxels of ${spacing_mm.join(" × ")} mm`;
  const person = subject && subject !== volume && `subject ${plain(subject)}`;
  say("volume-facts", [
    modality, words(sequence), words(body_part), words(dataset), person, size,
    thick.length && `thick slices along the ${thick.join(" and ")} plane`,
    isHalved && "between hits shown at half the store's resolution",
  ].filter(Boolean).join(" · "));
  const asked = page.curves ? "Curves: similarity of each slice to the question; a click goes to the slice."
    : page.answer && "Whole volumes were compared: there is no similarity slice by slice.";
  say("curves-of", asked || "");
}

/** Called when the planes' positions change. */
function moved(plane) {
  const { volume, curves } = page;
  const index = planes.state.at[plane];
  if (curves) markCurves(planes.views, volume, curves, planes.state);
  const found = volume.slices[plane].indexOf(nearestSlice(plane, index));
  const isNear = found >= 0 && Math.abs(volume.slices[plane][found] - index) <= reach(plane);
  const caption = (isNear && volume.captions[plane][found]) || "";
  say("slice-name", `${capital(store.planes[plane])} slice ${index}`);
  say("caption", isNear ? caption : "Nothing to see here: a blank slice has no caption and no embedding.");
  say("slice-place", `Cross at ${place(planes.state.at)}`);
  const slider = planes.views[plane].slider;
  slider.setAttribute("aria-valuetext", plain(`${index} of ${store.edge - 1}. ${caption}`));
}

/** Half the distance between a plane's slices. */
function reach(plane) {
  const slices = page.volume.slices[plane];
  return Math.min(...slices.slice(1).map((slice, i) => slice - slices[i])) / 2;
}

function nearestSlice(plane, index) {
  const distance = (slice) => Math.abs(slice - index);
  return page.volume.slices[plane].reduce((a, b) => (distance(b) < distance(a) ? b : a), -Infinity);
}

/** Millimetres of the scanner, from the positions of the three planes. */
function place([axial, coronal, sagittal]) {
  const voxel = [sagittal, coronal, axial, 1];
  return page.volume.to_mm.map((row, axis) => {
    const mm = row.reduce((sum, value, i) => sum + value * voxel[i], 0);
    return `${["LR", "PA", "IS"][axis][mm < 0 ? 0 : 1]} ${Math.abs(mm).toFixed(0)}`;
  }).join(", ") + " mm";
}

function sharpPicture(plane, slice) {
  if (!page.volume.slices[plane].includes(slice)) return undefined;
  return source.picture({ volume: page.volume.volume, plane: store.planes[plane], slice });
}

function suggest() {
  const typed = byId("open-name").value.toLowerCase();
  const names = typed ? store.volumes.filter((volume) => volume.toLowerCase().includes(typed)) : [];
  byId("open-names").replaceChildren(...names.slice(0, 20).map((volume) => make("option", { value: volume })));
}

/** Does something, and says what went wrong if it does. */
async function attempt(work) {
  try {
    await work();
    byId("problem").hidden = true;
  } catch (error) {
    say("problem", error.message);
    byId("problem").hidden = false;
  }
}
