// Decisions on their way to the server, one after the other. They outlive a reload and a server that is down: what has
// not been acknowledged stays in the tab's storage and is sent again.

import { Refused, post } from "./api.js";
import { emit, keep, on, poll, store } from "./store.js";

const KEY = "outbox";
const waiting = JSON.parse(sessionStorage.getItem(KEY) ?? "[]");
let sending = false;
let pause = 0;

export const pending = () => waiting.length;

/** Send a decision; the page goes on meanwhile. `version` null: that which the photo has after the one before. */
export function decide(id, verdict, text) {
  const follows = waiting.some((act) => act.body.id === id);
  const version = follows ? null : store.cards.get(id).version;
  const body = text === undefined ? { id, version, verdict } : { id, version, verdict, text };
  const card = store.cards.get(id);
  keep([{ ...card, verdict, text: text ?? card.text }]); // at once; the server's answer replaces it
  send("/api/decide", body);
}

/** Undo or redo: this reviewer's latest act, or that of one photo. */
export const step = (action, id) => send(`/api/${action}`, id === undefined ? {} : { id, version: null });

function send(path, body) {
  waiting.push({ path, body });
  save();
  work();
}

function save() {
  sessionStorage.setItem(KEY, JSON.stringify(waiting));
  emit("outbox", waiting.length);
}

async function work() {
  if (sending) return;
  sending = true;
  while (waiting.length) {
    const { path, body } = waiting[0];
    try {
      if (body.version === null) body.version = store.cards.get(body.id)?.version ?? (await versionOf(body.id));
      const answer = await post(path, body);
      pause = 0;
      done();
      keep(answer.cards);
      emit("answered");
      if (path !== "/api/decide") emit("stepped", { path, changed: answer.changed });
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      if (error.status === 0 || error.status === 401 || error.status >= 500) {
        emit("trouble", error);
        pause = Math.min(8000, 2 * pause + 500);
        await new Promise((resolve) => setTimeout(resolve, pause));
        continue;
      }
      done();
      const cards = error.answer.cards ?? [];
      if (cards.length) keep(cards);
      else poll(); // the card shows what was not accepted
      if (error.status !== 409) emit("refused", { id: body.id, error });
      else if (!isAsWanted(cards[0], body)) emit("conflict", { body, card: cards[0], kept: error.answer.kept });
    }
  }
  sending = false;
  poll();
}

function done() {
  waiting.shift();
  save();
}

async function versionOf(id) {
  const { get } = await import("./api.js");
  const [card] = await get("/api/cards", { ids: id });
  return card.version;
}

/** The answer to an act may have been lost: then sending it again conflicts with itself. */
const isAsWanted = (card, body) =>
  card?.verdict === body.verdict && card.decided_by === store.session.reviewer && (body.text === undefined || card.text === body.text);

on("ready", work);
addEventListener("beforeunload", (event) => waiting.length && event.preventDefault());
