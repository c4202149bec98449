// Elements from data. Text only ever becomes text nodes and attributes, so captions and file names cannot be markup.

export const $ = (id) => document.getElementById(id);

/** Make an element. Functions named on… become listeners, `class` its classes, false and null leave an attribute out. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== false && child !== undefined));
  return element;
}

/** Say something to people who use a screen reader. */
export function announce(text) {
  $("live").textContent = text;
}

/** Show a message for a few seconds; a click takes it away. */
export function toast(text, isBad = false) {
  const shown = h("div", { class: isBad ? "toast bad" : "toast", onclick: () => shown.remove() }, text);
  $("toasts").append(shown);
  while ($("toasts").children.length > 3) $("toasts").firstChild.remove();
  setTimeout(() => shown.remove(), isBad ? 9000 : 3500);
}

export const percent = (share) => (share === null || share === undefined ? "" : `${Math.round(100 * share)} %`);
export const number = (count) => count.toLocaleString("en");
export const level = (confidence) => (confidence < 0.2 ? "low" : confidence < 0.5 ? "mid" : "high");

/** "about 2 h", for a number of seconds. */
export function duration(seconds) {
  if (seconds < 90) return "about a minute";
  if (seconds < 5400) return `about ${Math.round(seconds / 60)} min`;
  if (seconds < 36 * 3600) return `about ${Math.round(seconds / 3600)} h`;
  return `about ${Math.round(seconds / 86400)} days`;
}

/** How sure the model is of a caption, as a small bar with its number. */
export function meter(confidence) {
  if (confidence === null || confidence === undefined) return null;
  const fill = h("i");
  fill.style.width = percent(confidence).replace(" ", "");
  return h("span", { title: "confidence" }, h("span", { class: `meter ${level(confidence)}`, "aria-hidden": "true" }, fill), ` ${percent(confidence)}`);
}

const VERDICTS = { accepted: "✓ accepted", edited: "✎ edited", rejected: "✕ rejected" };
export const verdictBadge = (card) => (card.verdict ? h("span", { class: `badge ${card.verdict}` }, VERDICTS[card.verdict]) : null);

export const flagName = (name) => name.replaceAll("_", " ");
