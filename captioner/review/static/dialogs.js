// What opens over the page: help, the menu, bulk acceptance, find and replace, statistics, conflicts.

import { get, post } from "./api.js";
import { $, announce, h, number, percent, toast } from "./dom.js";
import { KEYS } from "./keys.js";
import { decide } from "./outbox.js";
import { asked, keep, poll, store } from "./store.js";

const dialog = $("dialog");
export const isOpen = () => dialog.open;

function show(title, ...content) {
  const heading = h("h2", { id: "dialog-title", tabindex: -1, autofocus: true }, title);
  dialog.setAttribute("aria-labelledby", "dialog-title");
  dialog.replaceChildren(h("div", {}, heading, ...content));
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
}

export const close = () => dialog.close();
dialog.addEventListener("click", (event) => event.target === dialog && close()); // beside it

const buttons = (...all) => h("div", { class: "buttons" }, all);
const cancel = () => h("button", { onclick: close }, "Cancel");

export function help() {
  const groups = [...new Set(KEYS.map((key) => key.group))];
  show("Keys",
    ...groups.flatMap((group) => [
      h("h3", {}, group),
      h("dl", { class: "keys" }, KEYS.filter((key) => key.group === group && key.help).map((key) =>
        h("div", {}, h("dt", {}, key.help), h("dd", {}, key.shown.flatMap((one, index) => (index ? [" ", h("kbd", {}, one)] : [h("kbd", {}, one)])))))),
    ]),
    buttons(h("button", { class: "primary", onclick: close }, "Close")));
}

export function menu(entries) {
  show("More", h("div", { class: "menu" }, entries.map(([label, key, act]) =>
    h("button", { onclick: () => (close(), act()) }, label, key ? h("kbd", {}, key) : null))), buttons(h("button", { onclick: close }, "Close")));
}

/** Send a bulk act and say what became of it. */
export async function bulk({ verdict, text, images, note }) {
  close();
  try {
    report(await post("/api/bulk", text === undefined ? { verdict, images } : { verdict, text, images }), verdict, note);
  } catch (error) {
    toast(error.message, true);
  }
}

function report({ cards, changed, left }, what, note = "") {
  keep(cards);
  const others = Object.values(left);
  const text = `${number(changed.length)} ${changed.length === 1 ? "photo" : "photos"} ${what}${note ? ` (${note})` : ""}`;
  toast(others.length ? `${text}; ${number(others.length)} left alone: ${others[0]}` : `${text}. Undo with u.`, others.length > 0 && !changed.length);
  announce(text);
  poll();
}

/** Accept all of the list above a confidence. */
export function acceptAbove() {
  const count = h("strong", { role: "status" }, "…");
  const value = h("output", {}, "");
  const slider = h("input", { type: "range", min: 0, max: 100, value: 80, "aria-label": "Least confidence in percent", oninput: () => update() });
  const go = h("button", { class: "primary", disabled: true, onclick: () => bulk({ verdict: "accepted", images: found, note: `confidence ${slider.value} % and above` }) }, "Accept them");
  let found = [];
  let asking = 0;
  const update = async () => {
    value.textContent = `${slider.value} %`;
    go.disabled = true;
    const mine = ++asking;
    await new Promise((resolve) => setTimeout(resolve, 150));
    if (mine !== asking) return;
    const answer = await get("/api/versions", { ...asked(), state: "todo", least: slider.value / 100 }).catch((error) => toast(error.message, true));
    if (mine !== asking || !answer) return;
    found = answer;
    count.textContent = `${number(found.length)} ${found.length === 1 ? "photo" : "photos"}`;
    go.disabled = !found.length;
  };
  slider.style.width = "100%";
  show("Accept what the model is sure of",
    h("p", {}, "Accepts every photo to review that the filter shows, whose caption has at least this confidence: ", value),
    slider, h("p", {}, count, " would be accepted."), buttons(cancel(), go));
  update();
}

/** Find and replace in the selection, or in the whole list. */
export function replace() {
  const find = h("input", { type: "text", required: true, maxlength: 1000, autocomplete: "off", oninput: () => update() });
  const by = h("input", { type: "text", maxlength: 1000, autocomplete: "off", oninput: () => update() });
  const whole = h("input", { type: "checkbox", checked: true, onchange: () => update() });
  const exact = h("input", { type: "checkbox", onchange: () => update() });
  const preview = h("div", { class: "preview", tabindex: 0, "aria-label": "Preview" });
  const count = h("p", { role: "status" }, "");
  const where = store.selected.size ? `${number(store.selected.size)} selected` : `all ${number(store.ids.length)} that the filter shows`;
  const go = h("button", { class: "primary", disabled: true, onclick: () => apply() }, "Replace");
  let found = [];
  let asking = 0;
  const rule = () => ({ find: find.value, replace: by.value, whole_words: whole.checked, match_case: exact.checked });
  const update = async () => {
    const mine = ++asking;
    go.disabled = true;
    await new Promise((resolve) => setTimeout(resolve, 200));
    if (mine !== asking) return;
    found = [];
    if (find.value) {
      const selection = { ...asked(), mine: Boolean(store.filter.mine), unseen: Boolean(store.filter.unseen) };
      if (selection.near) selection.near = Number(selection.near);
      const answer = await post("/api/replace/preview", { ...rule(), selection }).catch((error) => toast(error.message, true));
      if (mine !== asking || !answer) return;
      found = store.selected.size ? answer.filter(({ id }) => store.selected.has(id)) : answer;
    }
    count.textContent = find.value ? `${number(found.length)} ${found.length === 1 ? "caption changes" : "captions change"}${found.length > 100 ? "; the first 100:" : ""}` : "";
    preview.replaceChildren(...found.slice(0, 100).map(({ before, after }) => h("p", { dir: "auto" }, h("del", {}, before), h("ins", {}, after || "(empty: this one stays)"))));
    preview.hidden = !found.length;
    go.disabled = !found.length;
  };
  const apply = async () => {
    close();
    const answer = await post("/api/replace", { ...rule(), images: found.map(({ id, version }) => [id, version]) }).catch((error) => toast(error.message, true));
    if (answer) report(answer, "edited");
  };
  show("Find and replace",
    h("p", {}, `In the captions of ${where}. Changed captions count as edited by you.`),
    h("label", { class: "block" }, "Find", find), h("label", { class: "block" }, "Replace with", by),
    h("p", {}, h("label", {}, whole, " whole words"), " ", h("label", {}, exact, " match case")), count, preview, buttons(cancel(), go));
  preview.hidden = true;
  find.focus();
}

export async function statistics() {
  const { verdicts, pairs } = await get("/api/statistics").catch((error) => (toast(error.message, true), { verdicts: {}, pairs: [] }));
  const table = (heads, rows) => h("table", {}, h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col" }, head)))), h("tbody", {}, rows.map((row) => h("tr", {}, row.map((one) => h("td", {}, one))))));
  const people = Object.entries(verdicts).map(([name, { accepted = 0, edited = 0, rejected = 0 }]) => [name, number(accepted), number(edited), number(rejected)]);
  const agreed = pairs.map((pair) => [pair.reviewers.join(", "), number(pair.photos), percent(pair.same_verdict), pair.kappa === null ? "–" : pair.kappa.toFixed(2), percent(pair.same_caption)]);
  show("Statistics", h("h3", {}, "Decisions"),
    people.length ? table(["reviewer", "accepted", "edited", "rejected"], people) : h("p", {}, "Nobody has decided anything yet."),
    h("h3", {}, "Agreement where two saw the same photo"),
    agreed.length ? table(["reviewers", "photos", "keep or reject alike", "kappa", "same caption"], agreed) : h("p", {}, "No photo has been decided by two people. The filter “Not decided by me” shows what others have decided."),
    buttons(h("button", { class: "primary", onclick: close }, "Close")));
}

/** Somebody else was faster: both texts, and the choice. */
export function conflict({ body, card }) {
  const theirs = card.verdict === "rejected" ? `rejected: ${card.text}` : card.text;
  const mine = body.text ?? body.verdict;
  const who = card.decided_by ?? "a new caption";
  show("Changed meanwhile",
    h("p", {}, `${card.name} was changed while you decided. Nothing is lost: both are in the project.`),
    h("div", { class: "versus" },
      h("div", {}, h("h3", {}, `Now there, by ${who}`), h("blockquote", { dir: "auto" }, theirs)),
      h("div", {}, h("h3", {}, "Yours"), h("blockquote", { dir: "auto" }, mine))),
    buttons(h("button", { onclick: close }, "Keep theirs"),
      h("button", { class: "primary", onclick: () => (close(), decide(card.id, body.verdict, body.text)) }, "Use mine")));
}
