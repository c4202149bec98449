// What the page knows: the list of photos that the filters select, and what it has fetched of each.
//
// The list is a snapshot: photos stay in it when a decision takes them out of the filter, so that nothing moves under
// the reviewer. A new filter, or the end of the list, fetches it again.

import { get } from "./api.js";

export const DEFAULTS = { state: "todo", sort: "confidence", flag: "", folder: "", text: "", near: "", mine: "", unseen: "" };
const BATCH = 60;
const POLL = 2000;

const listeners = {};
export const on = (event, listener) => (listeners[event] ??= []).push(listener);
export const emit = (event, detail) => listeners[event]?.forEach((listener) => listener(detail));

export const store = {
  session: null,
  filter: { ...DEFAULTS },
  ids: [],
  places: new Map(),
  cards: new Map(),
  current: 0, // the place that has the focus, in both views
  selected: new Set(),
  progress: null,
};

export const card = (id) => store.cards.get(id);
export const currentId = () => store.ids[store.current];

/** The filter as parameters, without what is left open. */
export const asked = (filter = store.filter) => Object.fromEntries(Object.entries(filter).filter(([, value]) => value !== ""));

let listing = 0;
export async function loadList() {
  const mine = ++listing;
  const ids = await get("/api/list", asked());
  if (mine !== listing) return; // another filter was chosen meanwhile
  store.ids = ids;
  store.places = new Map(ids.map((id, place) => [id, place]));
  store.current = 0;
  store.selected.clear();
  emit("list");
  emit("selection");
}

/** Put cards that the server sent in place of older ones. */
export function keep(cards) {
  for (const one of cards) store.cards.set(one.id, one);
  emit("cards", cards.map((one) => one.id));
}

const wanted = new Set();
let fetching = null;

/** Fetch what is not known of these photos, and tell listeners when it is there. */
export function need(ids) {
  for (const id of ids) if (id !== undefined && !store.cards.has(id)) wanted.add(id);
  fetching ??= Promise.resolve().then(fetchWanted);
  return fetching;
}

async function fetchWanted() {
  try {
    while (wanted.size) {
      const batch = [...wanted].slice(-BATCH); // what was asked for last is on screen
      batch.forEach((id) => wanted.delete(id));
      keep(await get("/api/cards", { ids: batch.join(",") }));
    }
  } catch (error) {
    emit("trouble", error);
  } finally {
    fetching = null;
  }
}

let now = "";
let polling = null;

export function startPolling(session) {
  now = session.now;
  setInterval(() => document.hidden || poll(), POLL);
  document.addEventListener("visibilitychange", () => document.hidden || poll());
}

/** Ask what others, and this page itself, have changed. */
export function poll() {
  polling ??= askForChanges().finally(() => (polling = null));
  return polling;
}

async function askForChanges() {
  try {
    const answer = await get("/api/changes", { since: now });
    now = answer.now;
    store.progress = answer.progress;
    emit("progress");
    emit("answered");
    const stale = (answer.images ?? [...store.cards.keys()]).filter((id) => store.cards.has(id));
    for (let start = 0; start < stale.length; start += 400) {
      keep(await get("/api/cards", { ids: stale.slice(start, start + 400).join(",") }));
    }
  } catch (error) {
    emit("trouble", error);
  }
}

/** The next place from `place` on that is to be reviewed, or -1. Only the filter "to review" passes decided ones over. */
export function nextPlace(place, step = 1) {
  for (let next = place + step; next >= 0 && next < store.ids.length; next += step) {
    if (store.filter.state !== "todo" || !card(store.ids[next])?.verdict) return next;
  }
  return -1;
}
