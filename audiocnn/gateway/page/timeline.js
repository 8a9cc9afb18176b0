// The timeline of a long sound: a lane for each class, and the same as CSV and Audacity labels.

import { emojiOf } from "./api.js";
import { byId, element, percent, spoken } from "./dom.js";
import { secondTicks, showTicks } from "./plots.js";

const MAX_LANES = 8;

/** Windows overlap by half: each counts for the part nearest to its middle; equal neighbours are one segment. */
export function segments(windows) {
  const middles = windows.map((row) => (row.start + row.end) / 2);
  const edges = [windows[0].start, ...middles.slice(1).map((middle, i) => (middles[i] + middle) / 2), windows.at(-1).end];
  const runs = [];
  windows.forEach((row, i) => {
    const last = runs.at(-1);
    if (last?.class === row.class) {
      last.end = edges[i + 1];
      last.confidences.push(row.confidence);
    } else {
      runs.push({ start: edges[i], end: edges[i + 1], class: row.class, confidences: [row.confidence] });
    }
  });
  return runs.map(({ confidences, ...run }) => ({ ...run, confidence: confidences.reduce((a, b) => a + b) / confidences.length }));
}

/** Draw the lanes of an answer with several windows; `onPick(segment)` when a piece is chosen. */
export function showTimeline({ windows = [], duration }, onPick) {
  const holder = byId("timeline");
  holder.hidden = windows.length < 2;
  if (holder.hidden) return;
  const runs = segments(windows);
  const seconds = new Map(); // of each class, weighted by how sure
  for (const run of runs) seconds.set(run.class, (seconds.get(run.class) ?? 0) + (run.end - run.start) * run.confidence);
  const chosen = [...seconds.keys()].sort((a, b) => seconds.get(b) - seconds.get(a)).slice(0, MAX_LANES);
  const lanes = [...seconds.keys()].filter((name) => chosen.includes(name)); // in the order of the sound
  const axis = element("div", { class: "ticks x" });
  showTicks(axis, "x", secondTicks(0, duration));
  holder.querySelector(".lanes").replaceChildren(
    ...lanes.map((name) => lane(name, runs.filter((run) => run.class === name), duration, onPick)),
    element("div", { class: "lane axis" }, element("span"), axis));
  const more = seconds.size - lanes.length;
  holder.querySelector(".note").textContent =
    `The stronger the colour, the surer. Choose a piece to hear it.${more > 0 ? ` ${more} more classes are in the CSV.` : ""}`;
}

function lane(name, runs, duration, onPick) {
  const label = element("span", {}, element("span", { "aria-hidden": "true" }, emojiOf(name)), ` ${spoken(name)}`);
  const track = element("div", {}, ...runs.map((run) => {
    const text = `${spoken(name)}, ${run.start.toFixed(1)} to ${run.end.toFixed(1)} s, ${percent(run.confidence)} sure`;
    const piece = element("button", { class: "piece", title: text, "aria-label": text });
    piece.style.left = `${(100 * run.start) / duration}%`;
    piece.style.width = `${(100 * (run.end - run.start)) / duration}%`;
    piece.style.opacity = 0.3 + 0.7 * run.confidence;
    piece.addEventListener("click", () => onPick(run));
    return piece;
  }));
  return element("div", { class: "lane", "data-class": name }, label, track);
}

const cell = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

/** Every window: start, end, class, confidence. */
export const csvOf = (windows) => ["start,end,class,confidence",
  ...windows.map((row) => [row.start, row.end, cell(row.class), row.confidence].join(","))].join("\n") + "\n";

/** A label track for Audacity: File, Import, Labels. */
export const audacityOf = (windows) => segments(windows).map((run) =>
  `${run.start.toFixed(3)}\t${run.end.toFixed(3)}\t${spoken(run.class)} ${percent(run.confidence)}\n`).join("");
