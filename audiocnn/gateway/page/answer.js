// The card with the answer, and bars for the classes.

import { emojiOf } from "./api.js";
import { element, percent, spoken } from "./dom.js";
import { wordsFor } from "./words.js";

const TOP = 5;
const SURE = 0.7; // of a window, to be named although the whole clip is unknown

/** Fill a card: its kind (a class of the style sheet), emoji, title, text, and what follows below. */
export function showCard(card, kind, emoji, title, text, ...more) {
  card.className = `card answer ${kind}`;
  card.setAttribute("aria-busy", kind === "busy");
  card.querySelector(".emoji").textContent = emoji;
  card.querySelector("h2").textContent = title;
  card.querySelector(".headline p").replaceChildren(...[text].flat());
  card.querySelector(".more").replaceChildren(...more);
}

/** An error in friendly words; the exact ones can be unfolded. */
export function showProblem(card, error) {
  const [title, advice] = wordsFor(error.code);
  const exact = element("details", {}, element("summary", {}, error.code), element("p", {}, error.message));
  showCard(card, "error", "😕", title, advice, exact);
}

/** A list of bars, in the order given. */
export function bars(predictions, kind = "") {
  return element("ol", { class: `bars ${kind}` }, ...predictions.map(bar));
}

export function bar(prediction) {
  const row = element("li", {}, element("span", { "aria-hidden": "true" }), element("span"),
    element("i", { "aria-hidden": "true" }, element("b")), element("span", { class: "numbers" }));
  return fillBar(row, prediction);
}

export function fillBar(row, { class: name, confidence }) {
  const [emoji, label, track, share] = row.children;
  row.dataset.class = name;
  emoji.textContent = emojiOf(name);
  label.textContent = label.title = spoken(name);
  track.firstElementChild.style.width = `${100 * confidence}%`;
  share.textContent = percent(confidence);
  return row;
}

/** Classes of the events of a long clip, in their order; until these are known, of windows that are sure. */
function confidentClasses({ detections, windows = [] }) {
  const rows = detections ?? windows.filter((row) => row.confidence >= SURE);
  return [...new Set(rows.map((row) => row.class))].slice(0, 8);
}

/** Kind, emoji, title and text of an answer. */
function headline(answer) {
  const best = answer.predictions[0];
  const seconds = `${answer.duration.toFixed(1)} s of sound`;
  if (answer.is_silent) return ["silent", "🤫", "Silence", `There is nothing to hear in ${seconds}.`];
  if (!answer.is_unknown) {
    const sure = element("b", { class: "sure", title: "Of 100 answers that are this sure, about so many are right." },
      percent(best.confidence));
    return ["known", emojiOf(best.class), spoken(best.class), [sure, ` sure, in ${seconds}`]];
  }
  const found = confidentClasses(answer);
  if (found.length > 1) {
    const names = found.map((name) => `${emojiOf(name)} ${spoken(name)}`.replaceAll(" ", "\u00a0")).join(", ");
    return ["unknown", "🎧", "Several sounds", `No class fits all of ${seconds}: ${names}.`];
  }
  return ["unknown", "🤷", "I don't know this sound",
    `The nearest that I know is ${spoken(best.class)}, ${percent(best.confidence)} sure.`];
}

/** The answer on its card; the classes only if one of them is the answer. */
export function showAnswer(card, answer, milliseconds) {
  const { name, version } = answer.model;
  const precision = answer.precision?.predictions === "int8" ? " · predicted in int8, pictures in float32" : "";
  const more = answer.warnings.map((each) => element("p", { class: "warning" }, `⚠️ ${each}`));
  if (!answer.is_silent && !answer.is_unknown) more.unshift(bars(answer.predictions.slice(0, TOP)));
  more.push(element("p", { class: "note" }, `${name} ${version} · ${milliseconds} ms${precision}`));
  showCard(card, ...headline(answer), ...more);
}

export const isNamed = (answer) => !answer.is_silent && !answer.is_unknown;
