// Every key, once: what it does where, and what the help says of it.
//
// `view`: "grid", "single" or both; `key`: as KeyboardEvent.key; `act`: a name that main.js gives a meaning.

const both = "both";
const key = (group, view, keys, shown, help, act) => keys.map((one, index) => ({ group, view, key: one, shown, help: index ? "" : help, act }));

export const KEYS = [
  ...key("Review", both, ["a"], ["a"], "accept", "accept"),
  ...key("Review", both, ["r"], ["r"], "reject", "reject"),
  ...key("Review", both, ["e"], ["e"], "edit in place", "edit"),
  ...key("Review", "single", ["s"], ["s"], "skip", "skip"),
  ...key("Review", "single", ["1", "2", "3", "4", "5", "6", "7", "8", "9"], ["1", "…", "9"], "take an alternative", "choose"),
  ...key("Review", both, ["u"], ["u"], "undo your latest act", "undo"),
  ...key("Review", both, ["U"], ["Shift", "u"], "redo", "redo"),
  ...key("Single view", "single", ["j", "ArrowRight", " ", "n"], ["j", "→", "Space"], "next photo", "next"),
  ...key("Single view", "single", ["k", "ArrowLeft", "p"], ["k", "←"], "previous photo", "previous"),
  ...key("Single view", "single", ["w"], ["w"], "heat map of the next word", "word"),
  ...key("Single view", "single", ["W"], ["Shift", "w"], "of the word before", "wordBefore"),
  ...key("Single view", "single", ["g"], ["g"], "look-alikes as a group", "group"),
  ...key("Single view", "single", ["Escape"], ["Esc"], "back to the grid", "close"),
  ...key("Grid", "grid", ["ArrowRight"], ["←", "↑", "→", "↓"], "move", "right"),
  ...key("Grid", "grid", ["ArrowLeft"], [], "", "left"),
  ...key("Grid", "grid", ["ArrowDown"], [], "", "down"),
  ...key("Grid", "grid", ["ArrowUp"], [], "", "up"),
  ...key("Grid", "grid", ["PageDown"], ["PageUp", "PageDown"], "a screen on", "pageDown"),
  ...key("Grid", "grid", ["PageUp"], [], "", "pageUp"),
  ...key("Grid", "grid", ["Home"], ["Home", "End"], "first, last", "first"),
  ...key("Grid", "grid", ["End"], [], "", "last"),
  ...key("Grid", "grid", ["Enter", "o"], ["Enter"], "open the photo", "open"),
  ...key("Grid", "grid", ["x"], ["x"], "select", "select"),
  ...key("Grid", "grid", ["X"], ["Shift", "x"], "select up to here", "selectTo"),
  ...key("Grid", "grid", ["*"], ["*"], "select all", "selectAll"),
  ...key("Grid", "grid", ["Escape"], ["Esc"], "clear the selection", "clear"),
  ...key("Everywhere", both, ["/"], ["/"], "search", "search"),
  ...key("Everywhere", both, ["f"], ["f"], "find and replace", "replace"),
  ...key("Everywhere", both, ["b"], ["b"], "accept above a confidence", "acceptAbove"),
  ...key("Everywhere", both, ["l"], ["l"], "load the list anew", "reload"),
  ...key("Everywhere", both, ["i"], ["i"], "statistics and agreement", "statistics"),
  ...key("Everywhere", both, ["t"], ["t"], "dark, light, or as the system", "theme"),
  ...key("Everywhere", both, ["m"], ["m"], "menu", "more"),
  ...key("Everywhere", both, ["?"], ["?"], "this help", "help"),
].map((one) => ({ ...one, help: one.shown.length ? one.help : "" }));

const byView = (view) => new Map(KEYS.filter((one) => one.view === view || one.view === both).map((one) => [one.key, one.act]));
const tables = { grid: byView("grid"), single: byView("single") };

/** The act that a key press means in a view; undefined where it means nothing, or somebody is typing. */
export function actOf(event, view) {
  if (event.isComposing || event.altKey) return undefined;
  const inField = event.target.closest?.("input:not([type=checkbox]):not([type=range]), textarea, select, dialog");
  if (inField) return undefined;
  if (event.ctrlKey || event.metaKey) return { z: event.shiftKey ? "redo" : "undo", Z: "redo", y: "redo", a: view === "grid" ? "selectAll" : undefined }[event.key];
  if ([" ", "Enter"].includes(event.key) && event.target.closest?.("button, a")) return undefined; // presses it
  return tables[view].get(event.key);
}
