// The mel spectrogram of one window, and over it where the score of a class came from.

import { byId } from "./dom.js";
import { LOUDNESS, colourAt, decodeMap, drawTile, hzTicks, secondTicks, showScale, showTicks, signed } from "./plots.js";

const FOR = [0, 226, 140], AGAINST = [70, 140, 255]; // hues that LOUDNESS does not have
const OVERLAY = { rows: 32, columns: 64 }; // the browser smooths it, and evidence is coarser still
const OVERLAY_ALPHA = 0.6;

let shown = null; // what is drawn now: for the saved picture and the cursor

/** Seconds of the window that is drawn, or null. */
export const shownSpan = () => shown && { start: shown.start, end: shown.end };

function quantile(values, q) {
  const sorted = Float32Array.from(values).sort();
  return sorted[Math.round(q * (sorted.length - 1))];
}

/** Only the columns before `end`: beyond it a short clip repeats. */
function cut({ rows, values, columns }, real) {
  const part = new Float32Array(rows * real);
  for (let row = 0; row < rows; row++) part.set(values.subarray(row * columns, row * columns + real), row * real);
  return { rows, columns: real, values: part };
}

/** Draw `input_spectrogram` of an answer, from `start` to `end` in seconds, with its axes; `unit` is that of the scale. */
export async function showSpectrogram(spectrogram, start, end, unit) {
  const whole = await decodeMap(spectrogram);
  const real = Math.max(2, spectrogram.seconds.filter((second) => second <= end).length);
  const map = cut(whole, real);
  // The few loudest cells, such as bands above what was recorded, would take the colours from the rest.
  const low = quantile(map.values, 0.02);
  const high = Math.max(quantile(map.values, 0.97), low + 0.1);
  const plot = byId("mel").querySelector(".plot");
  const tile = plot.querySelector(".tile");
  drawTile(tile, map, (value) => colourAt(LOUDNESS, (value - low) / (high - low)));
  tile.setAttribute("aria-label",
    `Mel spectrogram from ${start.toFixed(1)} to ${end.toFixed(1)} seconds, 0 to ${Math.round(spectrogram.hz.at(-1) / 1000)} kHz`);
  const marks = {
    x: secondTicks(start, end),
    y: hzTicks(spectrogram.hz),
    scale: [[0, signed(low)], [0.5, signed((low + high) / 2)], [1, `${signed(high)}${unit}`]],
  };
  showTicks(plot.querySelector(":scope > .ticks.x"), "x", marks.x);
  showTicks(plot.querySelector(":scope > .ticks.y"), "y", marks.y);
  showScale(plot.querySelector(".scale"), LOUDNESS, marks.scale);
  shown = { start, end, marks, last: spectrogram.seconds[real - 1] };
}

/** Draw `evidence` of an answer over the spectrogram: green for the class, blue against it. */
export function showEvidence(evidence) {
  const overlay = byId("mel").querySelector(".overlay");
  overlay.hidden = !evidence;
  byId("legend").hidden = !evidence;
  if (!evidence) return;
  const largest = Math.max(...evidence.values.flat().map(Math.abs), 1e-9);
  drawTile(overlay, smoothed(evidence, shown.last), (value) => {
    const share = value / largest;
    return [...(share > 0 ? FOR : AGAINST), 255 * OVERLAY_ALPHA * Math.abs(share)];
  });
  overlay.dataset.class = evidence.class;
}

/** Between the cells: cell i is centred on its own second, and the last one lies before the end of the axis. */
function smoothed({ values, seconds, start }, last) {
  const { rows, columns } = OVERLAY;
  const fine = new Float32Array(rows * columns);
  for (let row = 0; row < rows; row++) {
    const y = (row / (rows - 1)) * (values.length - 1);
    for (let column = 0; column < columns; column++) {
      const x = placeIn(seconds, start + (column / (columns - 1)) * (last - start));
      fine[row * columns + column] = bilinear(values, y, x);
    }
  }
  return { rows, columns, values: fine };
}

function placeIn(seconds, second) {
  const next = seconds.findIndex((each) => each >= second);
  if (next <= 0) return next ? seconds.length - 1 : 0;
  return next - 1 + (second - seconds[next - 1]) / (seconds[next] - seconds[next - 1]);
}

function bilinear(values, y, x) {
  const top = Math.min(Math.floor(y) + 1, values.length - 1), right = Math.min(Math.floor(x) + 1, values[0].length - 1);
  const row = Math.floor(y), column = Math.floor(x), up = y - row, along = x - column;
  const low = values[row][column] * (1 - along) + values[row][right] * along;
  const high = values[top][column] * (1 - along) + values[top][right] * along;
  return low * (1 - up) + high * up;
}

/** The spectrogram with title and axes, as a PNG. */
export function spectrogramPng(title) {
  const width = 1200, height = 560, left = 80, top = 50, right = 110, bottom = 70;
  const canvas = new OffscreenCanvas(width, height), pen = canvas.getContext("2d");
  const w = width - left - right, h = height - top - bottom;
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, width, height);
  const mel = byId("mel");
  const overlay = mel.querySelector(".overlay");
  pen.drawImage(mel.querySelector(".tile"), left, top, w, h);
  if (!overlay.hidden && byId("overlay").checked) pen.drawImage(overlay, left, top, w, h);
  pen.drawImage(mel.querySelector(".scale canvas"), width - right + 20, top, 18, h);
  pen.fillStyle = "#222";
  pen.font = "600 20px system-ui, sans-serif";
  pen.fillText(title, left, 32, w);
  pen.font = "16px system-ui, sans-serif";
  pen.textAlign = "center";
  for (const [place, label] of shown.marks.x) pen.fillText(label, left + place * w, height - bottom + 24);
  pen.fillText("seconds", left + w / 2, height - 18);
  pen.textAlign = "right";
  for (const [place, label] of shown.marks.y) pen.fillText(label, left - 8, top + (1 - place) * h + 5);
  pen.fillText("Hz", left - 8, 32);
  pen.textAlign = "left";
  for (const [place, label] of shown.marks.scale) pen.fillText(label, width - right + 46, top + (1 - place) * h + 5);
  return canvas.convertToBlob({ type: "image/png" });
}
