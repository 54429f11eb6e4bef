"use strict";

// Where data come from: asked of the server, or kept in the file. Both have the same methods.

const KEPT = 8; // volumes whose cubes stay in memory

/** Remembers the last few results of a function of one text. */
function remembering(get, kept) {
  const known = new Map();
  return (key) => {
    if (!known.has(key)) {
      const found = get(key);
      found.catch(() => known.delete(key));
      known.set(key, found);
      if (known.size > kept) known.delete(known.keys().next().value);
    }
    return known.get(key);
  };
}

function serverSource() {
  async function get(path, parameters) {
    let reply;
    try {
      reply = await fetch(`${path}?${parameters}`, { credentials: "same-origin" });
    } catch {
      throw new Error("The server does not answer. Is m3di query --serve still running?");
    }
    if (reply.ok) return reply;
    const { error } = await reply.json();
    throw new Error([error.message, error.hint].filter(Boolean).join(". "));
  }
  const json = async (path, parameters = "") => (await get(path, parameters)).json();
  const of = (volume) => new URLSearchParams({ of: volume });
  return {
    canAsk: true,
    store: () => json("/store"),
    answer: (question) => json("/answer", question),
    curves: (volume, question) => json("/curves", `${of(volume)}&${question}`),
    volume: remembering((volume) => json("/volume", of(volume)), KEPT),
    cube: remembering(async (volume) => new Uint8Array(await (await get("/cube", of(volume))).arrayBuffer()), KEPT),
    has: () => true,
    picture: ({ volume, plane, slice }) => `/picture?${new URLSearchParams({ of: volume, plane, slice })}`,
  };
}

function fileSource(data) {
  async function unpacked(volume) {
    const packed = Uint8Array.from(atob(data.cubes[volume].bytes), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }
  return {
    canAsk: false,
    asked: data.asked,
    store: async () => data.store,
    answer: async () => data.answer,
    curves: async (volume) => data.curves[volume],
    volume: async (volume) => data.volumes[volume],
    cube: remembering(unpacked, KEPT),
    has: (volume) => Object.hasOwn(data.volumes, volume),
    picture: ({ volume, plane, slice }) => data.pictures[`${volume}/${plane}/${slice}`],
  };
}
