// Playback, the waveform, and the cursors over waveform and spectrogram.

import { byId, clock } from "./dom.js";
import { secondTicks, showTicks } from "./plots.js";
import { shownSpan } from "./spectrogram.js";

const audio = new Audio();
const slider = byId("position"), button = byId("play"), time = byId("time");
let duration = 0; // seconds, as the server decoded the sound
let stopAt = null; // seconds, when only a piece is played
let waveform = null;

/** A new sound: its file and its decoded `waveform` and duration. */
export function setSound(blob, answer) {
  clearSound();
  waveform = answer.waveform.values;
  duration = answer.duration;
  audio.src = URL.createObjectURL(blob);
  button.disabled = false;
  button.title = "";
  slider.setAttribute("aria-valuemax", duration.toFixed(2));
  const plot = byId("wave").querySelector(".plot");
  showTicks(plot.querySelector(".ticks.x"), "x", secondTicks(0, duration));
  const peak = peakOf(waveform);
  const text = peak.toPrecision(2).replace(/0+$/, "").replace(/\.$/, "");
  showTicks(plot.querySelector(".ticks.y"), "y", [[0.95, text], [0.5, "0"], [0.05, `−${text}`]]);
  drawWaveform();
  showPosition();
}

/** Stop, and forget the sound. */
export function clearSound() {
  audio.pause();
  if (audio.src) URL.revokeObjectURL(audio.src);
  audio.removeAttribute("src");
  waveform = null;
  duration = 0;
}

/** Play from a second on, or only until `end`. */
export function play(start = null, end = null) {
  if (start !== null) seek(start);
  stopAt = end;
  audio.play().catch(() => {}); // the error event says why
}

/** Mark the window that the spectrogram shows, if it is only a part. */
export function markWindow() {
  const mark = byId("wave").querySelector(".shown"), span = shownSpan();
  mark.hidden = !span || span.end - span.start > duration - 0.3;
  if (mark.hidden) return;
  mark.style.left = `${(100 * span.start) / duration}%`;
  mark.style.width = `${(100 * (span.end - span.start)) / duration}%`;
}

const peakOf = (values) => values.reduce((peak, value) => Math.max(peak, Math.abs(value)), 1e-3);

function drawWaveform() {
  const canvas = slider.querySelector("canvas");
  if (!waveform || !canvas.clientWidth) return;
  const scale = window.devicePixelRatio || 1;
  const width = (canvas.width = Math.round(canvas.clientWidth * scale));
  const height = (canvas.height = Math.round(canvas.clientHeight * scale));
  const pen = canvas.getContext("2d"), peak = peakOf(waveform), step = waveform.length / width;
  pen.fillStyle = getComputedStyle(canvas).color;
  for (let x = 0; x < width; x++) {
    const part = waveform.slice(Math.floor(x * step), Math.max(Math.floor((x + 1) * step), Math.floor(x * step) + 1));
    const high = Math.max(...part) / peak, low = Math.min(...part) / peak;
    const top = ((1 - 0.95 * high) / 2) * height;
    pen.fillRect(x, top, 1, Math.max(((0.95 * (high - low)) / 2) * height, scale)); // at least a line
  }
}

function showPosition() {
  const now = Math.min(audio.currentTime, duration);
  time.textContent = `${clock(now)} / ${clock(duration)}`;
  slider.setAttribute("aria-valuenow", now.toFixed(2));
  slider.setAttribute("aria-valuetext", `${now.toFixed(1)} of ${duration.toFixed(1)} seconds`);
  place(slider.querySelector(".cursor"), now / (duration || 1));
  const span = shownSpan();
  if (span) place(byId("mel").querySelector(".cursor"), (now - span.start) / (span.end - span.start));
}

function place(cursor, share) {
  cursor.hidden = !(share > 0 && share <= 1);
  cursor.style.left = `${100 * share}%`;
}

function seek(second) {
  stopAt = null;
  audio.currentTime = Math.max(0, Math.min(duration, second));
  showPosition();
}

function seekable(area, secondAt) {
  area.addEventListener("pointerdown", (event) => {
    if (!duration) return;
    const follow = (moved) => {
      const box = area.getBoundingClientRect();
      seek(secondAt(Math.max(0, Math.min(1, (moved.clientX - box.left) / box.width))));
    };
    follow(event);
    area.setPointerCapture(event.pointerId);
    area.addEventListener("pointermove", follow);
    area.addEventListener("lostpointercapture", () => area.removeEventListener("pointermove", follow), { once: true });
  });
}

seekable(slider, (share) => share * duration);
seekable(byId("mel").querySelector(".inside"), (share) => {
  const { start, end } = shownSpan();
  return start + share * (end - start);
});

slider.addEventListener("keydown", (event) => {
  const jumps = { ArrowRight: 0.25, ArrowUp: 0.25, ArrowLeft: -0.25, ArrowDown: -0.25, PageUp: 5, PageDown: -5, Home: -Infinity, End: Infinity };
  if (event.key in jumps) seek(audio.currentTime + jumps[event.key]);
  else if (event.key === " " || event.key === "Enter") button.click();
  else return;
  event.preventDefault();
});

button.addEventListener("click", () => (audio.paused ? play(audio.currentTime >= duration - 0.05 ? 0 : null) : audio.pause()));

audio.addEventListener("play", () => {
  button.textContent = "⏸";
  button.setAttribute("aria-label", "Pause");
  const frame = () => {
    if (stopAt !== null && audio.currentTime >= stopAt) audio.pause();
    showPosition();
    if (!audio.paused) requestAnimationFrame(frame);
  };
  frame();
});
audio.addEventListener("pause", () => {
  button.textContent = "▶";
  button.setAttribute("aria-label", "Play");
  showPosition();
});
audio.addEventListener("seeked", showPosition);
audio.addEventListener("error", () => {
  button.disabled = true;
  if (audio.src) button.title = "This browser cannot play this format.";
});

new ResizeObserver(drawWaveform).observe(slider);
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawWaveform);
