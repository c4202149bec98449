// The grid: a row exists only while it is on screen or near, so fifty thousand photos scroll like fifty.

import { thumbnailUrl } from "./api.js";
import { captionText, editor } from "./caption.js";
import { $, flagName, h, meter, number, percent, verdictBadge } from "./dom.js";
import { decide } from "./outbox.js";
import { card, emit, need, on, store } from "./store.js";

const TEXT = 92; // pixels of a card below its photo
const SPARE = 2; // rows beyond the screen

const rows = new Map();
const unreadable = new Set(); // URLs of thumbnails that are not asked for again
let columns = 1;
let height = 300;
let width = 0;

const scroller = $("grid-scroll");
const grid = $("grid");

const gap = () => (innerWidth <= 760 ? 8 : 14);

function measure() {
  const style = getComputedStyle(scroller);
  const room = scroller.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
  const before = [columns, height, width].join();
  columns = Math.max(innerWidth <= 760 ? 2 : 1, Math.floor((room + gap()) / (252 + gap())));
  width = (room - gap() * (columns - 1)) / columns;
  height = Math.round(width * 0.7) + TEXT + gap();
  if (before !== [columns, height, width].join()) redraw();
}

/** Draw anew, as for another list. */
export function redraw() {
  rows.forEach((row) => row.remove());
  rows.clear();
  const count = Math.ceil(store.ids.length / columns);
  grid.style.height = `${count * height}px`;
  grid.setAttribute("aria-rowcount", count);
  grid.setAttribute("aria-colcount", columns);
  grid.hidden = !count;
  $("grid-empty")?.remove();
  if (!count && store.session) scroller.append(emptyNote());
  draw();
}

function emptyNote() {
  const isDone = store.filter.state === "todo" && !Object.entries(store.filter).some(([key, value]) => value && !["state", "sort"].includes(key));
  const lines = isDone ? ["All reviewed", "There is nothing left to check."] : ["No photos here", "Another filter shows more."];
  return h("p", { class: "empty", id: "grid-empty" }, h("strong", {}, lines[0]), lines[1]);
}

function draw() {
  if (!store.ids.length || !scroller.clientHeight) return;
  const first = Math.max(0, Math.floor(scroller.scrollTop / height) - SPARE);
  const last = Math.min(Math.ceil(store.ids.length / columns) - 1, Math.ceil((scroller.scrollTop + scroller.clientHeight) / height) + SPARE);
  for (const [number, row] of rows) {
    if (number < first || number > last) {
      if (row.contains(document.activeElement) && document.activeElement.tagName === "TEXTAREA") continue;
      row.remove();
      rows.delete(number);
    }
  }
  for (let number = first; number <= last; number++) if (!rows.has(number)) addRow(number);
  need(store.ids.slice(first * columns, (last + 1) * columns));
}

function addRow(number) {
  const places = store.ids.slice(number * columns, (number + 1) * columns).map((_, column) => number * columns + column);
  const row = h("div", { class: "row", role: "row", "aria-rowindex": number + 1 }, places.map(cell));
  Object.assign(row.style, { top: `${number * height}px`, height: `${height - gap()}px`, gridTemplateColumns: `repeat(${columns}, ${width}px)` });
  rows.set(number, row);
  const later = [...rows.keys()].filter((other) => other > number).sort((a, b) => a - b)[0];
  grid.insertBefore(row, later === undefined ? null : rows.get(later)); // reading order
}

function cell(place) {
  const id = store.ids[place];
  const element = h("div", {
    class: "cell", role: "gridcell", "aria-colindex": (place % columns) + 1, tabindex: place === store.current ? 0 : -1,
    "data-id": id, "data-place": place, onclick: (event) => clicked(event, place), onfocus: () => (store.current = place),
  });
  fill(element, card(id));
  return element;
}

function fill(element, shown) {
  const id = Number(element.dataset.id);
  const isSelected = store.selected.has(id);
  element.setAttribute("aria-selected", isSelected);
  if (!shown) {
    element.replaceChildren(h("div", { class: "picture" }), h("div", { class: "words" }));
    element.setAttribute("aria-label", "loading");
    return;
  }
  element.setAttribute("aria-label", describe(shown));
  if (element.classList.contains("editing")) return;
  const flags = Object.keys(shown.flags);
  const picture = element.querySelector(`img[src="${thumbnailUrl(shown)}"]`)?.parentElement ?? pictureOf(shown);
  element.replaceChildren(
    picture,
    h("div", { class: "words" },
      h("div", { class: shown.verdict === "rejected" ? "caption struck" : "caption", dir: "auto" }, ...captionText(shown).childNodes),
      h("div", { class: "meta" },
        meter(shown.confidence),
        flags.length ? h("span", { class: "badge flag", title: flags.map(flagName).join(", ") }, `⚑ ${flags.length}`) : null,
        shown.near !== null && store.filter.near === "" ? h("span", { title: "has look-alikes" }, "≈") : null,
        h("span", { class: "name", title: shown.name }, h("bdi", {}, shown.name.split("/").pop()))),
    ),
    h("button", { class: "pick", tabindex: -1, "aria-label": isSelected ? "Unselect" : "Select", title: "Select (x)" }, isSelected ? "✓" : ""),
  );
  const badge = verdictBadge(shown);
  if (badge) {
    badge.classList.add("verdict");
    element.append(badge);
  }
}

function pictureOf(shown) {
  const source = thumbnailUrl(shown);
  const note = () => h("span", { class: "unreadable" }, shown.error || "cannot be shown");
  if (unreadable.has(source)) return h("div", { class: "picture" }, note());
  const image = h("img", { alt: "", decoding: "async", draggable: "false", src: source });
  const picture = h("div", { class: "picture" }, image);
  image.onerror = () => {
    unreadable.add(source);
    picture.replaceChildren(note());
  };
  return picture;
}

function describe(shown) {
  const parts = [shown.name, shown.text || "no caption"];
  if (shown.confidence !== null) parts.push(`${percent(shown.confidence)} sure`);
  if (Object.keys(shown.flags).length) parts.push(`flags: ${Object.keys(shown.flags).map(flagName).join(", ")}`);
  if (shown.verdict) parts.push(shown.verdict);
  return parts.join(". ");
}

function clicked(event, place) {
  if (event.target.closest("textarea")) return;
  store.current = place;
  if (event.shiftKey) selectTo(place);
  else if (event.target.closest(".pick") || event.ctrlKey || event.metaKey) toggle(place);
  else emit("open", store.ids[place]);
}

let anchor = 0;
export function toggle(place) {
  const id = store.ids[place];
  if (!store.selected.delete(id)) store.selected.add(id);
  anchor = place;
  emit("selection");
}

export function selectTo(place) {
  const [from, to] = [Math.min(anchor, place), Math.max(anchor, place)];
  store.ids.slice(from, to + 1).forEach((id) => store.selected.add(id));
  emit("selection");
}

export function selectAll() {
  store.ids.forEach((id) => store.selected.add(id));
  emit("selection");
}

export function clearSelection() {
  store.selected.clear();
  emit("selection");
}

/** Give a place the focus, and scroll there. */
export function focusPlace(place) {
  if (!store.ids.length) return;
  grid.querySelector('.cell[tabindex="0"]')?.setAttribute("tabindex", "-1");
  store.current = Math.max(0, Math.min(store.ids.length - 1, place));
  const top = Math.floor(store.current / columns) * height;
  if (top < scroller.scrollTop) scroller.scrollTop = top;
  else if (top + height > scroller.scrollTop + scroller.clientHeight - 20) scroller.scrollTop = top + height - scroller.clientHeight + 30;
  draw();
  const target = cellAt(store.current);
  target?.setAttribute("tabindex", "0");
  target?.focus({ preventScroll: true });
}

const cellAt = (place) => grid.querySelector(`.cell[data-place="${place}"]`);
export const columnCount = () => columns;
export const pageOfRows = () => Math.max(1, Math.floor(scroller.clientHeight / height));

/** Edit the caption of the focused card in its place. */
export function editHere(place = store.current) {
  const element = cellAt(place);
  const shown = element && card(store.ids[place]);
  if (!shown) return;
  const close = () => {
    element.classList.remove("editing");
    fill(element, card(shown.id));
    focusPlace(place);
  };
  const field = editor(shown, undefined, { save: (text) => (decide(shown.id, "edited", text), close()), cancel: close });
  element.classList.add("editing");
  element.querySelector(".caption").replaceWith(field);
  field.focus();
  field.select();
}

on("list", () => {
  scroller.scrollTop = 0;
  $("found").textContent = `${number(store.ids.length)} ${store.ids.length === 1 ? "photo" : "photos"}`;
  measure();
  redraw();
});
on("cards", (ids) => {
  const changed = new Set(ids);
  for (const element of grid.querySelectorAll(".cell")) if (changed.has(Number(element.dataset.id))) fill(element, card(Number(element.dataset.id)));
});
on("selection", () => {
  for (const element of grid.querySelectorAll(".cell")) fill(element, card(Number(element.dataset.id)));
});
let frame = 0;
scroller.addEventListener("scroll", () => (frame ||= requestAnimationFrame(() => ((frame = 0), draw()))), { passive: true });
new ResizeObserver(() => (measure(), draw())).observe(scroller);
