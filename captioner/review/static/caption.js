// A caption as people read it, with the model's doubts in its words, and the editor that takes its place.

import { h, level, percent } from "./dom.js";

/** A caption's words, underlined where the model is unsure. `onword` is told which word the pointer is on; -1: none. */
export function captionText(card, onword) {
  if (!card.text) return h("p", { class: "text struck" }, "no caption yet");
  const parts = [];
  let end = 0;
  card.words.forEach(([word, confidence], index) => {
    const start = card.text.indexOf(word, end);
    if (start < 0) return;
    parts.push(card.text.slice(end, start), wordElement(word, confidence, index, onword));
    end = start + word.length;
  });
  if (!card.words.length && onword) parts.push(...plainWords(card.text, onword));
  else parts.push(card.text.slice(end));
  return h("p", { class: card.verdict === "rejected" ? "text struck" : "text", dir: "auto" }, parts);
}

function wordElement(word, confidence, index, onword) {
  const title = confidence === null ? null : `${word}: ${percent(confidence)}`;
  const attributes = { class: `word ${confidence === null ? "" : level(confidence)}`, "data-index": index, title };
  if (onword) Object.assign(attributes, { onmouseenter: () => onword(index), onmouseleave: () => onword(-1) });
  return h("span", attributes, word);
}

function plainWords(text, onword) {
  let index = 0;
  return text.split(/(\s+)/u).map((part) => (/^\s*$/u.test(part) ? part : wordElement(part, null, index++, onword)));
}

const key = (id) => `draft-${id}`;
export const draftOf = (id) => sessionStorage.getItem(key(id));
export const dropDraft = (id) => sessionStorage.removeItem(key(id));

/** A text field for a caption. Enter saves, Escape leaves; what is typed outlives a reload. */
export function editor(card, text, { save, cancel }) {
  const field = h("textarea", {
    class: "editor", rows: 2, maxlength: 10000, "aria-label": `Caption of ${card.name}`, spellcheck: "true", dir: "auto",
    oninput: () => sessionStorage.setItem(key(card.id), field.value),
    onkeydown: (event) => {
      if (event.isComposing) return;
      if (event.key === "Enter") {
        event.preventDefault();
        const written = field.value.trim().replace(/\s+/gu, " ");
        if (!written) return;
        dropDraft(card.id);
        save(written);
      } else if (event.key === "Escape") {
        event.preventDefault();
        dropDraft(card.id);
        cancel();
      } else return;
      event.stopPropagation();
    },
  });
  field.value = text ?? draftOf(card.id) ?? card.text ?? "";
  return field;
}
