// The timeline of a long sound: a lane of events for each class, and the same as CSV and Audacity labels.

import { emojiOf, model } from "./api.js";
import { byId, element, percent, spoken } from "./dom.js";
import { secondTicks, showTicks } from "./plots.js";

const MAX_LANES = 8;
const holder = byId("timeline");

/** Without lanes: a text in place of what is not there yet, or not at all. */
export function showTimelineNote(text, { isBusy = false } = {}) {
  holder.hidden = false;
  holder.setAttribute("aria-busy", isBusy);
  holder.querySelector(".lanes").replaceChildren();
  holder.querySelector(".note").textContent = text;
  for (const button of holder.querySelectorAll("button")) button.hidden = true;
}

/** Draw the lanes of an answer's `detections`; `onPick(event)` when one is chosen. */
export function showTimeline({ detections, duration }, onPick) {
  if (!detections.length) return showTimelineNote("Nothing reached the confidence at which an event begins.");
  const seconds = new Map(); // of each class, weighted by how sure
  for (const { class: name, start, end, mean_confidence: sure } of detections) {
    seconds.set(name, (seconds.get(name) ?? 0) + (end - start) * sure);
  }
  const chosen = [...seconds.keys()].sort((a, b) => seconds.get(b) - seconds.get(a)).slice(0, MAX_LANES);
  const lanes = [...seconds.keys()].filter((name) => chosen.includes(name)); // in the order of the sound
  const more = seconds.size - lanes.length;
  showTimelineNote("An event begins at the confidence beside its class. The stronger the colour, the surer. " +
    `Choose one to hear it.${more > 0 ? ` ${more} more classes are in the CSV.` : ""}`);
  for (const button of holder.querySelectorAll("button")) button.hidden = false;
  const axis = element("div", { class: "ticks x" });
  showTicks(axis, "x", secondTicks(0, duration));
  holder.querySelector(".lanes").replaceChildren(
    ...lanes.map((name) => lane(name, detections.filter((one) => one.class === name), duration, onPick)),
    element("div", { class: "lane axis" }, element("span"), axis));
}

function lane(name, events, duration, onPick) {
  const label = element("span", {}, element("span", { "aria-hidden": "true" }, emojiOf(name)),
    element("span", { class: "name" }, spoken(name)), threshold(name));
  const track = element("div", {}, ...events.map((one) => {
    const text = `${spoken(name)}, ${one.start.toFixed(1)} to ${one.end.toFixed(1)} s, ${percent(one.peak_confidence)} sure`;
    const piece = element("button", { class: "piece", title: text, "aria-label": text });
    piece.style.left = `${(100 * one.start) / duration}%`;
    piece.style.width = `${(100 * (one.end - one.start)) / duration}%`;
    piece.style.opacity = 0.3 + 0.7 * one.mean_confidence;
    piece.addEventListener("click", () => onPick(one));
    return piece;
  }));
  return element("div", { class: "lane", "data-class": name }, label, track);
}

/** The confidence at which an event of a class begins, and what was measured there. */
function threshold(name) {
  const { on, off, precision, recall } = model.config?.thresholds?.[name] ?? {};
  if (on === undefined) return "";
  const measured = precision == null ? "" :
    ` In tests ${percent(precision)} of such events were right, and ${percent(recall ?? 0)} were found.`;
  const title = `An event begins at ${percent(on)} and ends below ${percent(off)}.${measured}`;
  return element("small", { class: "threshold", title }, `≥ ${percent(on)}`);
}

const cell = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
const COLUMNS = ["class", "start", "end", "peak_confidence", "mean_confidence"];

/** Every event, with the columns of `audiocnn detect --csv`. */
export const csvOf = (detections) => [COLUMNS.join(","),
  ...detections.map((one) => COLUMNS.map((name) => cell(String(one[name]))).join(","))].join("\n") + "\n";

/** A label track for Audacity: File, Import, Labels. */
export const audacityOf = (detections) => detections.map((one) =>
  `${one.start.toFixed(3)}\t${one.end.toFixed(3)}\t${spoken(one.class)} ${percent(one.peak_confidence)}\n`).join("");
