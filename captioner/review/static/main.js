// Brings the parts together: the address, the filters, keys and messages.

import { get } from "./api.js";
import * as dialogs from "./dialogs.js";
import { $, announce, duration, flagName, h, number, toast } from "./dom.js";
import * as grid from "./grid.js";
import { actOf } from "./keys.js";
import { decide, step } from "./outbox.js";
import * as single from "./single.js";
import { DEFAULTS, asked, card, currentId, emit, keep, loadList, need, on, poll, startPolling, store } from "./store.js";

const STATES = { todo: "To review", accepted: "Accepted", edited: "Edited", rejected: "Rejected", uncaptioned: "No caption", all: "All" };

// The address: the filter and the photo that is open, so that a reload comes back to them.

function readAddress() {
  const parameters = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  const filter = Object.fromEntries(Object.keys(DEFAULTS).map((name) => [name, parameters[name] ?? DEFAULTS[name]]));
  return { filter, photo: Number(parameters.photo) || null };
}

function writeAddress(photo, replace) {
  const changed = Object.fromEntries(Object.entries(store.filter).filter(([name, value]) => value !== DEFAULTS[name]));
  const hash = `#${new URLSearchParams(photo ? { ...changed, photo } : changed)}`;
  if (hash !== location.hash) history[replace ? "replaceState" : "pushState"](null, "", hash);
}

async function followAddress() {
  const { filter, photo } = readAddress();
  if (JSON.stringify(filter) !== JSON.stringify(store.filter) || !store.ids.length) {
    store.filter = filter;
    showFilters();
    await loadList().catch(trouble);
  }
  if (photo) await single.open(photo);
  else if (single.isOpen()) single.close();
}

async function choose(changed) {
  store.filter = { ...store.filter, ...changed };
  showFilters();
  if (single.isOpen()) single.close();
  writeAddress(null, true);
  await loadList().catch(trouble);
  announce($("found").textContent);
}

// Filters

function showFilters() {
  for (const button of $("states").children) button.setAttribute("aria-pressed", button.dataset.state === store.filter.state);
  for (const name of ["text", "flag", "folder", "sort"]) if ($(name).value !== store.filter[name]) $(name).value = store.filter[name];
  for (const name of ["mine", "unseen"]) $(name).checked = store.filter[name] !== "";
}

function makeFilters({ flags, folders, has_share }) {
  $("states").replaceChildren(...Object.entries(STATES).map(([state, label]) =>
    h("button", { type: "button", "data-state": state, "aria-pressed": "false", onclick: () => choose({ state, near: "" }) }, label, h("span", { class: "count" }))));
  const option = (value, label) => h("option", { value }, label);
  $("flag").replaceChildren(option("", "any"), ...flags.map(({ name, count }) => option(name, `${flagName(name)} (${number(count)})`)));
  $("folder").replaceChildren(option("", "all"), ...folders.map(({ key, name, count }) => option(key, `${name} (${number(count)})`)));
  $("folder").parentElement.hidden = !folders.length;
  $("flag").parentElement.hidden = !flags.length;
  $("mine-label").hidden = !has_share;
  for (const name of ["flag", "folder", "sort"]) $(name).onchange = () => choose({ [name]: $(name).value });
  for (const name of ["mine", "unseen"]) $(name).onchange = () => choose({ [name]: $(name).checked ? "true" : "" });
  let typing = 0;
  $("text").oninput = () => (clearTimeout(typing), (typing = setTimeout(() => choose({ text: $("text").value }), 200)));
  $("text").onkeydown = (event) => {
    if (!["Enter", "Escape", "ArrowDown"].includes(event.key)) return;
    event.preventDefault();
    grid.focusPlace(0);
  };
  $("filters").onsubmit = (event) => event.preventDefault();
}

function showProgress() {
  const scope = store.session.has_share && store.filter.mine !== "" ? "mine" : "all";
  const counts = store.progress[scope];
  const done = (counts.accepted ?? 0) + (counts.edited ?? 0) + (counts.rejected ?? 0);
  const left = counts.todo ?? 0;
  $("bar").max = Math.max(1, done + left);
  $("bar").value = done;
  const time = store.progress.seconds !== null && left ? `, ${duration(store.progress.seconds)}` : "";
  $("left").textContent = left ? `${number(left)} left of ${number(done + left)}${time}` : `all ${number(done)} reviewed`;
  const whole = store.progress.all;
  const total = Object.values(whole).reduce((sum, count) => sum + count, 0);
  for (const button of $("states").children) {
    const state = button.dataset.state;
    const count = state === "all" ? total : (whole[state] ?? 0);
    button.querySelector(".count").textContent = number(count);
    if (state === "uncaptioned") button.hidden = !count;
  }
}

// What happens

function trouble(error) {
  const isShut = error.status === 401;
  $("notice").textContent = isShut
    ? "The server does not know this page any more: open the URL that it prints. What you have typed is kept here."
    : `The server does not answer; trying again. What you have decided is kept here. (${error.message})`;
  $("notice").hidden = false;
}

async function selectedVersions() {
  const ids = [...store.selected];
  for (let start = 0; start < ids.length; start += 400) await need(ids.slice(start, start + 400));
  return ids.map(card).filter(Boolean).map((one) => [one.id, one.version]);
}

async function onSelection(act) {
  if (act === "clear") return grid.clearSelection();
  if (act === "replace") return dialogs.replace();
  await dialogs.bulk({ verdict: act === "accept" ? "accepted" : "rejected", images: await selectedVersions() });
  grid.clearSelection();
}

const THEMES = ["", "dark", "light"];
function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  localStorage.setItem("theme", theme);
}

const ACTS = {
  accept: () => decideHere("accept"),
  reject: () => decideHere("reject"),
  edit: () => (single.isOpen() ? single.perform("edit") : grid.editHere()),
  skip: () => single.perform("skip"),
  choose: (event) => single.choose(Number(event.key) - 1),
  undo: () => step("undo"),
  redo: () => step("redo"),
  next: () => single.move(1),
  previous: () => single.move(-1),
  word: () => single.nextWord(1),
  wordBefore: () => single.nextWord(-1),
  group: () => openGroup(),
  close: () => single.close(),
  right: () => grid.focusPlace(store.current + 1),
  left: () => grid.focusPlace(store.current - 1),
  down: () => grid.focusPlace(store.current + grid.columnCount()),
  up: () => grid.focusPlace(store.current - grid.columnCount()),
  pageDown: () => grid.focusPlace(store.current + grid.columnCount() * grid.pageOfRows()),
  pageUp: () => grid.focusPlace(store.current - grid.columnCount() * grid.pageOfRows()),
  first: () => grid.focusPlace(0),
  last: () => grid.focusPlace(store.ids.length - 1),
  open: () => currentId() !== undefined && emit("open", currentId()),
  select: () => grid.toggle(store.current),
  selectTo: () => grid.selectTo(store.current),
  selectAll: () => grid.selectAll(),
  clear: () => grid.clearSelection(),
  search: () => {
    if (single.isOpen()) single.close();
    $("filters").classList.add("open");
    $("text").focus();
    $("text").select();
  },
  replace: () => dialogs.replace(),
  acceptAbove: () => dialogs.acceptAbove(),
  reload: () => loadList().catch(trouble),
  statistics: () => dialogs.statistics(),
  theme: () => setTheme(THEMES[(THEMES.indexOf(localStorage.getItem("theme") ?? "") + 1) % THEMES.length]),
  more: () => dialogs.menu([
    ["Accept above a confidence", "b", ACTS.acceptAbove],
    ["Find and replace", "f", ACTS.replace],
    ["Statistics and agreement", "i", ACTS.statistics],
    ["Load the list anew", "l", ACTS.reload],
    ["Dark, light, or as the system", "t", ACTS.theme],
    ["Keys", "?", ACTS.help],
  ]),
  help: () => dialogs.help(),
};

/** In the grid a verdict goes to the selection if there is one, else to the focused photo, and the focus moves on. */
function decideHere(act) {
  if (single.isOpen()) single.perform(act);
  else if (store.selected.size) onSelection(act);
  else {
    single.perform(act);
    grid.focusPlace(store.current + 1);
  }
}

function openGroup() {
  const { near } = card(single.shownPhoto()) ?? {};
  if (near === null || near === undefined) toast("No photo looks like this one.");
  else choose({ near: String(near), state: "all", sort: "name" }).then(() => grid.focusPlace(0));
}

addEventListener("keydown", (event) => {
  if (dialogs.isOpen()) return;
  const act = actOf(event, single.isOpen() ? "single" : "grid");
  if (!act) return;
  event.preventDefault();
  ACTS[act](event);
});
addEventListener("popstate", followAddress);
for (const id of ["undo", "redo", "more", "help"]) $(id).onclick = ACTS[id];
$("filters-open").onclick = () => $("filters-open").setAttribute("aria-expanded", $("filters").classList.toggle("open"));
for (const button of $("selection").querySelectorAll("button")) button.onclick = () => onSelection(button.dataset.act);

on("open", (id) => single.open(id));
on("shown", (id) => writeAddress(id, single.isOpen() && location.hash.includes("photo=")));
on("closed", () => {
  writeAddress(null, true);
  if (!dialogs.isOpen()) grid.focusPlace(store.current);
});
on("bulk", dialogs.bulk);
on("progress", showProgress);
on("trouble", trouble);
on("answered", () => ($("notice").hidden = true));
on("outbox", (count) => {
  $("saving").hidden = !count;
  $("saving").textContent = count > 1 ? `Saving ${count}…` : "Saving…";
});
on("refused", ({ error }) => toast(error.message, true));
on("conflict", dialogs.conflict);
on("selection", () => {
  $("selection").hidden = !store.selected.size;
  $("selected").textContent = `${number(store.selected.size)} selected`;
});
on("stepped", ({ path, changed }) => {
  const what = path.endsWith("undo") ? "Undone" : "Redone";
  toast(changed.length > 1 ? `${what}: ${number(changed.length)} photos` : what);
  const [id] = changed;
  if (single.isOpen()) single.open(id);
  else if (store.places.has(id)) grid.focusPlace(store.places.get(id));
});

async function start() {
  history.replaceState(null, "", location.pathname + location.hash); // the token need not stay in the address
  document.documentElement.dataset.theme = localStorage.getItem("theme") ?? "";
  store.session = await get("/api/session");
  store.progress = store.session.progress;
  document.title = `${store.session.project} · Review`;
  $("project").textContent = store.session.project;
  makeFilters(store.session);
  if (store.session.has_share && !location.hash) location.replace("#mine=true");
  await followAddress();
  showProgress();
  startPolling(store.session);
  emit("ready");
  if (!single.isOpen()) grid.focusPlace(0);
  document.body.dataset.ready = "true";
}

start().catch(trouble);
