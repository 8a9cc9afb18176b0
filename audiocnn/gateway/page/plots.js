// Colours, axes and tiles: what all pictures share. A tile has a pixel a cell; the browser stretches it.

import { clock, element } from "./dom.js";

const HZ_TICKS = [100, 500, 1000, 2000, 4000, 8000, 16_000];
const STEPS = [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300];

/** 256 colours, four numbers to 255 each, through equally spaced stops. */
function ramp(...stops) {
  return Array.from({ length: 256 }, (_, i) => {
    const place = (i / 255) * (stops.length - 1);
    const first = Math.min(stops.length - 2, Math.floor(place));
    const mixed = stops[first].map((low, c) => Math.round(low + (place - first) * (stops[first + 1][c] - low)));
    return [...mixed, 255];
  });
}

// matplotlib's magma at nine places: even steps to the eye, readable without colour
export const LOUDNESS = ramp([0, 0, 4], [28, 16, 68], [79, 18, 123], [129, 37, 129], [181, 54, 122],
  [229, 80, 100], [251, 135, 97], [254, 194, 135], [252, 253, 191]);
export const SIGNED = ramp([33, 102, 172], [146, 197, 222], [255, 255, 255], [253, 184, 99], [230, 97, 1]);

/** The colour of a place from 0 to 1. */
export const colourAt = (colours, place) => colours[Math.round(255 * Math.max(0, Math.min(1, place)))];

/** A map of an answer: `{rows, columns, values}`, row 0 (the lowest frequency) first. */
export async function decodeMap({ png, range: [low, high], shape: [rows, columns] }) {
  const bytes = Uint8Array.from(atob(png), (character) => character.charCodeAt(0));
  const bitmap = await createImageBitmap(new Blob([bytes], { type: "image/png" }), { colorSpaceConversion: "none" });
  const pen = new OffscreenCanvas(columns, rows).getContext("2d", { willReadFrequently: true });
  pen.drawImage(bitmap, 0, 0);
  const { data } = pen.getImageData(0, 0, columns, rows);
  const values = Float32Array.from({ length: rows * columns }, (_, i) => low + (data[4 * i] / 255) * (high - low));
  return { rows, columns, values };
}

/** Draw a map on a canvas, low frequencies at the bottom; `rgba(value)` gives four numbers to 255. */
export function drawTile(canvas, { rows, columns, values }, rgba) {
  canvas.width = columns;
  canvas.height = rows;
  const pen = canvas.getContext("2d");
  const image = pen.createImageData(columns, rows);
  for (let row = 0; row < rows; row++) {
    const line = (rows - 1 - row) * columns;
    for (let column = 0; column < columns; column++) {
      image.data.set(rgba(values[row * columns + column]), 4 * (line + column));
    }
  }
  pen.putImageData(image, 0, 0);
}

/** Labels along an axis; each mark is a place from 0 (left, bottom) to 1 and a text. */
export function showTicks(holder, axis, marks) {
  holder.replaceChildren(...marks.map(([place, label]) => {
    const tick = element("span", {}, label);
    tick.style[axis === "x" ? "left" : "bottom"] = `${100 * place}%`;
    return tick;
  }));
}

/** Round seconds from start to end; minutes and seconds past two minutes. */
export function secondTicks(start, end, most = 6) {
  const span = Math.max(end - start, 1e-6);
  const step = STEPS.find((each) => span / each <= most) ?? 600;
  const marks = [];
  for (let number = Math.ceil(start / step - 1e-6); number * step <= end + 1e-6; number++) {
    const second = number * step;
    marks.push([(second - start) / span, end > 120 ? clock(second) : String(Number(second.toFixed(2)))]);
  }
  return marks;
}

/** Round frequencies where they lie between the rows of a map. */
export function hzTicks(hz) {
  return HZ_TICKS.filter((each) => hz[0] <= each && each <= hz.at(-1)).map((each) => {
    const next = hz.findIndex((row) => row >= each);
    const row = next && next - 1 + (each - hz[next - 1]) / (hz[next] - hz[next - 1]);
    return [row / (hz.length - 1), each >= 1000 ? `${each / 1000}k` : String(each)];
  });
}

/** The colours of a scale from low to high, with ticks. */
export function showScale(scale, colours, marks) {
  const canvas = scale.querySelector("canvas");
  const values = Float32Array.from({ length: canvas.height }, (_, i) => i / (canvas.height - 1));
  drawTile(canvas, { rows: canvas.height, columns: 1, values }, (place) => colourAt(colours, place));
  showTicks(scale.querySelector(".ticks"), "y", marks);
}

/** One decimal, with a real minus. */
export const signed = (value) => value.toFixed(1).replace("-", "−");
