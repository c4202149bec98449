// The single view: a photo, its caption with the model's doubts, and everything else that is known of it.

import { get, photoUrl, thumbnailUrl } from "./api.js";
import { captionText, draftOf, editor } from "./caption.js";
import { $, announce, flagName, h, meter, number, percent, toast, verdictBadge } from "./dom.js";
import { drawHeat, heatOf, mapOf } from "./heat.js";
import { decide, pending, step } from "./outbox.js";
import { card, currentId, emit, loadList, need, nextPlace, on, store } from "./store.js";

const AHEAD = 3; // photos that are fetched and decoded before their turn

const view = $("single");
const photos = new Map(); // id -> a decoded <img>, or one that is on its way
let shownId = null;
let active = -1; // the word whose heat map is shown

export const isOpen = () => !view.hidden;
export const shownPhoto = () => shownId;

const stage = h("div", { class: "stage" });
const panel = h("section", { class: "panel", tabindex: -1, "aria-label": "Caption and facts" });
view.append(stage, panel, actions());

function actions() {
  const button = (act, key, label, kind) => h("button", { class: kind, onclick: () => perform(act) }, h("span", {}, label), h("kbd", { "aria-hidden": "true" }, key));
  return h("div", { class: "actions", role: "group", "aria-label": "Decide" },
    button("reject", "r", "Reject"), button("skip", "s", "Skip"), button("edit", "e", "Edit"), button("accept", "a", "Accept", "primary"));
}

/** Show a photo. Its thumbnail is there at once if it was seen before; the photo itself mostly is too. */
export async function open(id) {
  shownId = id;
  active = -1;
  view.hidden = false;
  document.body.classList.add("single-open");
  if (store.places.has(id)) store.current = store.places.get(id);
  emit("shown", id);
  if (!card(id)) await need([id]);
  if (shownId !== id) return;
  if (!card(id)) {
    stage.replaceChildren(h("p", { class: "unreadable" }, "There is no such photo."));
    return;
  }
  showPhoto(card(id));
  showPanel(card(id));
  panel.scrollTop = 0;
  announce(`Photo ${store.current + 1} of ${store.ids.length}. ${card(id).text ?? "no caption"}`);
  fetchAhead();
}

export function close() {
  view.hidden = true;
  document.body.classList.remove("single-open");
  shownId = null;
  emit("closed");
}

function showPhoto(shown) {
  const full = photoOf(shown);
  const note = h("p", { class: "heat-note", hidden: true });
  const canvas = h("canvas", { hidden: true, "aria-hidden": "true" });
  full.alt = shown.name;
  if (full.complete && full.naturalWidth) stage.replaceChildren(full, canvas, note);
  else {
    const preview = h("img", { src: thumbnailUrl(shown), alt: shown.name });
    stage.replaceChildren(preview, canvas, note);
    full.decode().then(() => shownId === shown.id && preview.replaceWith(full), () => shownId === shown.id && showUnreadable(shown));
  }
}

function showUnreadable(shown) {
  stage.replaceChildren(h("p", { class: "unreadable" }, shown.error ? `${shown.name}: ${shown.error}` : `${shown.name} cannot be shown`));
}

function photoOf(shown) {
  let image = photos.get(shown.id);
  if (!image) {
    image = h("img", { src: photoUrl(shown), decoding: "sync" });
    image.decode().catch(() => {});
    photos.set(shown.id, image);
    if (photos.size > 4 * AHEAD) photos.delete(photos.keys().next().value);
  }
  return image;
}

async function fetchAhead() {
  const coming = [];
  for (let place = store.current; coming.length < AHEAD && (place = nextPlace(place)) >= 0; ) coming.push(store.ids[place]);
  if (store.current > 0) coming.push(store.ids[store.current - 1]);
  await need(coming);
  if (isOpen()) for (const id of coming) if (card(id)) photoOf(card(id));
}

function showPanel(shown) {
  const place = store.places.get(shown.id);
  const position = place === undefined ? "" : `${number(place + 1)} of ${number(store.ids.length)}`;
  panel.replaceChildren(
    h("div", { class: "where" },
      h("button", { class: "quiet", onclick: close, title: "Back to the grid (Escape)" }, "← Photos"),
      h("span", {}, position),
      h("button", { class: "quiet", "aria-label": "Previous photo", title: "Previous (k)", onclick: () => move(-1) }, "‹"),
      h("button", { class: "quiet", "aria-label": "Next photo", title: "Next (j)", onclick: () => move(1) }, "›")),
    h("h2", { dir: "auto" }, shown.name),
    h("div", { class: "caption-place" }, captionText(shown, pointAt)),
    h("div", { class: "facts" }, verdictBadge(shown), meter(shown.confidence), byline(shown)),
    ...flags(shown), ...alternatives(shown), ...tags(shown), h("div", { class: "near-place" }), h("div", { class: "history-place" }),
  );
  panel.querySelector(".text").addEventListener("click", () => perform("edit"));
  if (draftOf(shown.id)) edit();
  showGroup(shown);
  showHistory(shown);
}

function byline(shown) {
  if (!shown.author) return null;
  const { kind, name } = shown.author;
  const who = { model: `written by ${name}`, person: `written by ${name}`, sidecar: "from a text file beside the photo", embedded: "from the photo's metadata" }[kind];
  return h("span", {}, shown.decided_by && shown.verdict ? `${who}, decided by ${shown.decided_by}` : who);
}

const section = (title, ...content) => [h("h3", {}, title), ...content];

function flags(shown) {
  const entries = Object.entries(shown.flags);
  if (!entries.length) return [];
  const items = entries.map(([name, detail]) => h("li", {}, h("span", { class: "badge flag" }, `⚑ ${flagName(name)}`), h("span", { class: "detail" }, detail)));
  return section("Flags", h("ul", { class: "flags" }, items));
}

/** Other captions that one key takes: the model's first, where another is shown, then what it found next. */
function otherCaptions(shown) {
  const others = shown.alternatives.map(({ caption, confidence }) => ({ text: caption, confidence }));
  if (shown.suggestion && shown.suggestion !== shown.text) others.unshift({ text: shown.suggestion, confidence: null });
  return others.filter((other) => other.text !== shown.text).slice(0, 9);
}

function alternatives(shown) {
  const others = otherCaptions(shown);
  if (!others.length) return [];
  const items = others.map(({ text, confidence }, index) =>
    h("li", {}, h("button", { onclick: () => choose(index) }, h("kbd", {}, String(index + 1)), h("span", { dir: "auto" }, text), h("span", { class: "sure" }, percent(confidence)))));
  return section("Alternatives", h("ol", { class: "alternatives" }, items));
}

function tags(shown) {
  if (!shown.tags.length) return [];
  return section("Tags", h("ul", { class: "tags" }, shown.tags.map(({ tag, score }) => h("li", {}, tag, h("small", {}, percent(score))))));
}

async function showGroup(shown) {
  if (shown.near === null) return;
  const ids = await get("/api/list", { near: shown.near, state: "all", sort: "name" }).catch(() => []);
  await need(ids);
  if (shownId !== shown.id || ids.length < 2) return;
  const known = ids.map(card).filter(Boolean);
  const pictures = known.map((one) =>
    h("button", { "aria-label": `${one.name}: ${one.text}`, title: `${one.name}\n${one.text}`, "aria-current": one.id === shown.id, onclick: () => open(one.id) },
      h("img", { src: thumbnailUrl(one), alt: "" })));
  const bulk = (verdict, text) => emit("bulk", { verdict, text, images: known.map((one) => [one.id, one.version]), note: `${known.length} look-alikes` });
  panel.querySelector(".near-place").replaceChildren(...section(`${ids.length} look alike`,
    h("div", { class: "group" }, pictures),
    h("div", { class: "group-acts" },
      h("button", { onclick: () => bulk("accepted") }, "Accept all"),
      h("button", { onclick: () => bulk("edited", card(shown.id).text), disabled: !shown.text }, "This caption for all"),
      h("button", { onclick: () => bulk("rejected") }, "Reject all"))));
}

async function showHistory(shown) {
  if (!shown.decided) return;
  const acts = await get(`/api/photos/${shown.id}/history`).catch(() => []);
  if (shownId !== shown.id || pending()) return;
  const items = acts.toReversed().map((act) => {
    const what = act.action === "decide" ? act.verdict : `${act.action === "undo" ? "undone" : "redone"}${act.verdict ? `, now ${act.verdict}` : ""}`;
    const when = new Date(1000 * act.decided);
    return h("li", {}, `${act.reviewer}: ${what} `, h("time", { datetime: when.toISOString() }, when.toLocaleString()), act.text ? [h("br"), h("q", { dir: "auto" }, act.text)] : null);
  });
  panel.querySelector(".history-place").replaceChildren(...section("History", h("ol", { class: "history" }, items),
    h("div", { class: "history-acts" },
      h("button", { onclick: () => step("undo", shown.id) }, "Undo here"), h("button", { onclick: () => step("redo", shown.id) }, "Redo here"))));
}

/** Go to the next photo that is to be reviewed, or back. */
export function move(by) {
  const place = by > 0 ? nextPlace(store.current) : store.current - 1;
  if (place >= 0) {
    open(store.ids[place]);
    return;
  }
  if (by > 0) finish();
}

async function finish() {
  const before = store.ids.length;
  await loadList();
  const left = store.ids.length;
  close();
  toast(left && store.filter.state === "todo" ? `End of the list; ${number(left)} of ${number(before)} are still to review.` : "End of the list.");
}

/** What the keys and buttons of both views do with the photo at the current place. */
export function perform(act) {
  const id = isOpen() ? shownId : currentId();
  const shown = card(id);
  if (!shown) return;
  if (act === "accept" || act === "reject") {
    if (!shown.text) {
      toast("There is no caption yet: press e to write one.", true);
      return;
    }
    decide(id, act === "accept" ? "accepted" : "rejected");
    announce(act === "accept" ? "accepted" : "rejected");
  }
  if (act === "edit") edit();
  else if (isOpen()) move(1);
}

export function edit(text) {
  const shown = card(shownId);
  const place = panel.querySelector(".caption-place");
  const back = () => (showPanel(card(shown.id)), panel.focus());
  const save = (written) => {
    decide(shown.id, "edited", written);
    announce("saved");
    panel.focus();
    move(1);
  };
  const field = editor(shown, text, { save, cancel: back });
  place.replaceChildren(field, h("p", { class: "editing-help" }, h("kbd", {}, "Enter"), " saves and goes on, ", h("kbd", {}, "Esc"), " leaves"));
  field.focus();
  field.setSelectionRange(field.value.length, field.value.length);
}

/** Take the alternative with this number, from 0. */
export function choose(index) {
  const other = otherCaptions(card(shownId))[index];
  if (!other) return;
  decide(shownId, "edited", other.text);
  announce(`saved: ${other.text}`);
  move(1);
}

// Heat maps

async function pointAt(index) {
  active = index;
  const id = shownId;
  const shown = card(id);
  const canvas = stage.querySelector("canvas");
  const note = stage.querySelector(".heat-note");
  for (const word of panel.querySelectorAll(".word")) word.classList.toggle("active", Number(word.dataset.index) === index);
  if (!canvas) return;
  if (index < 0) {
    canvas.hidden = note.hidden = true;
    return;
  }
  const words = [...panel.querySelectorAll(".text .word")].map((word) => word.textContent);
  const say = (text) => {
    note.textContent = text;
    note.hidden = false;
  };
  const later = setTimeout(() => active === index && shownId === id && say("reading the model's attention…"), 250);
  try {
    const heat = await heatOf(id);
    if (active !== index || shownId !== id) return;
    const map = mapOf(heat, shown.text, words, index);
    canvas.hidden = true;
    if (map) drawHeat(canvas, stage.querySelector("img"), map, heat.window);
    const sure = shown.words[index]?.[1];
    say(map ? [words[index], sure === undefined ? "" : percent(sure)].filter(Boolean).join(" · ") : `${words[index]}: not the model's word`);
  } catch (error) {
    if (active === index && shownId === id) say(error.message);
  } finally {
    clearTimeout(later);
  }
}

/** Show the heat map of the next word, or of the one before; past the last word, none. */
export function nextWord(by) {
  const count = panel.querySelectorAll(".text .word").length;
  if (!count) return;
  const index = ((active + 1 + by + count + 1) % (count + 1)) - 1;
  pointAt(index);
  const word = panel.querySelector(`.text .word[data-index="${index}"]`);
  word?.scrollIntoView({ block: "nearest" });
  announce(word ? word.title || word.textContent : "no word");
}

on("cards", (ids) => {
  if (!isOpen() || !ids.includes(shownId) || panel.querySelector("textarea")) return;
  const scrolled = panel.scrollTop;
  showPanel(card(shownId));
  panel.scrollTop = scrolled;
});
addEventListener("resize", () => isOpen() && pointAt(-1));

