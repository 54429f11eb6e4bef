"use strict";

// What was asked, how far to trust the answer, and the hits as pictures.

/** Shows an answer; `open(hit)` is called for a hit that can be opened. */
function showAnswer(answer, source, open) {
  const { kind, words: asked, where } = answer.question;
  say("asked", kind === "text" ? `“${asked}”` : capital(asked));
  showNotes([...answer.notes, ...where.map((condition) => `only ${words(condition.replace("=", " "))}`)]);
  const title = { volume: "Volumes most alike", slice: "Nearest neighbours" }[kind] ?? "Nearest slices";
  const lists = [list(title, answer.results)];
  if (answer.same_place.length) {
    const other = list("Same place in other subjects", answer.same_place);
    const jump = make("button", { type: "button", class: "jump" }, "Same place in other subjects");
    jump.addEventListener("click", () => {
      other.scrollIntoView();
      other.querySelector("button")?.focus({ preventScroll: true });
    });
    lists.unshift(jump);
    lists.push(other);
  }
  byId("lists").replaceChildren(...lists);

  function list(title, hits) {
    if (!hits.length) return make("p", { class: "quiet" }, "Nothing was found.");
    const cards = make("ol", { class: "hits" }, ...hits.map((hit) => make("li", {}, card(hit))));
    return make("section", { "aria-label": title }, make("h3", {}, title), cards);
  }

  function card(hit) {
    const { volume, plane, slice, score, caption } = hit;
    const content = [
      make("img", { src: source.picture(hit), alt: "", loading: "lazy", width: 224, height: 224 }),
      make("span", { class: "score" }, signed(score, 3)),
      make("bdi", { class: "name" }, volume),
      make("span", { class: "place" }, `${plane} ${slice}`),
      make("span", { class: "caption", dir: "auto", title: caption }, caption),
    ];
    if (!source.has(volume)) return make("div", { class: "hit" }, ...content);
    const button = make("button", {
      type: "button", class: "hit", "data-hit": `${volume}/${plane}/${slice}`,
    }, ...content);
    button.addEventListener("click", () => open(hit));
    return button;
  }
}

function showNotes(notes) {
  byId("notes").replaceChildren(...notes.map((note) => make("li", {}, capital(plain(note)))));
}

/** Marks the hit that is open. */
function markHit({ volume, plane, slice }) {
  for (const button of document.querySelectorAll("button.hit")) {
    const isOpen = button.dataset.hit === `${volume}/${plane}/${slice}`;
    if (isOpen) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
}

/** Shows, before anything was asked, what could be. */
function showExamples(store, ask) {
  say("asked", "Ask for slices");
  showNotes(store.notes);
  const buttons = store.examples.map((example) => {
    const button = make("button", { type: "button", class: "example", dir: "auto" }, example);
    button.addEventListener("click", () => ask(example));
    return make("li", {}, button);
  });
  const intro = "In words, as captions have them; or open a volume, and ask for slices like the one you see.";
  byId("lists").replaceChildren(make("p", { class: "quiet" }, intro), make("ul", { class: "examples" }, ...buttons));
}
