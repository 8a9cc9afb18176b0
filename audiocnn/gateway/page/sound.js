// The tab for one sound: a file, a recording or an example goes in, everything about it is drawn.

import { bars, isNamed, showAnswer, showCard, showProblem } from "./answer.js";
import { ApiError, curlLine, emojiOf, example, hasDetections, hasMaps, loadModel, model, predict } from "./api.js";
import { byId, clock, element, kept, save, showLevel, spoken, stem } from "./dom.js";
import { showMaps } from "./maps.js";
import { missingReason, openMicrophone, wavOf } from "./microphone.js";
import { clearSound, markWindow, play, setSound } from "./player.js";
import { showEvidence, showSpectrogram, shownSpan, spectrogramPng } from "./spectrogram.js";
import { audacityOf, csvOf, showTimeline, showTimelineNote } from "./timeline.js";
import { wordsFor } from "./words.js";

const SECTIONS = ["timeline", "wave", "mel", "classes", "maps", "keep"];
const MAX_RECORDING_SECONDS = 600;
const OVERLAY = "audiocnn-overlay", CLASSES = "audiocnn-classes";

const panel = byId("panel-sound"), card = byId("answer"), picker = byId("picker");
let current = null; // the sound that is shown: {blob, name, isRecording, answer, cancel}
let recording = null;

/** Options for the pictures that the served model gives. */
const pictures = () => ({ spectrogram: "png", ...(hasMaps() && { feature_maps: "png", evidence: true }) });

/** Ask about a sound, and show everything. A new sound takes the place of one that is under way. */
export async function analyse(blob, name, { isRecording = false } = {}) {
  current?.cancel.abort();
  const mine = (current = { blob, name, isRecording, answer: null, cancel: new AbortController() });
  clear(name);
  try {
    await check(blob);
    await loadModel();
    const began = performance.now();
    mine.answer = await predict(blob, { ...pictures(), top_k: 1_000_000, waveform: true }, mine.cancel.signal);
    if (mine !== current) return;
    await showAll(mine, Math.round(performance.now() - began));
  } catch (error) {
    if (error.name !== "AbortError" && mine === current) fail(name, error);
  }
}

function fail(name, error) {
  if (!(error instanceof ApiError)) console.error(error);
  clear(name);
  panel.dataset.state = "failed";
  showProblem(card, error);
}

async function check(blob) {
  const most = model.config?.limits.max_upload_mb;
  if (most && blob.size > most * 2 ** 20) {
    throw new ApiError("upload_too_large", `At most ${most} MiB in one request.`);
  }
  try {
    await blob.slice(0, 1).arrayBuffer();
  } catch (error) {
    throw new ApiError("unreadable_file", error.message);
  }
}

function clear(name) {
  clearSound();
  panel.dataset.state = "busy";
  for (const id of SECTIONS) byId(id).hidden = true;
  byId("file-name").hidden = false;
  byId("file-name").textContent = byId("file-name").title = name;
  showCard(card, "busy", "👂", "Listening …", "One moment.");
}

async function showAll(mine, milliseconds) {
  const { answer, blob, name, isRecording } = mine;
  const show = () => showAnswer(card, answer, milliseconds);
  show();
  panel.dataset.state = "answered";
  byId("wave").hidden = byId("mel").hidden = byId("keep").hidden = false;
  byId("maps").hidden = answer.is_silent || !answer.visualization;
  byId("classes").hidden = !isNamed(answer);
  byId("classes-title").textContent = `All ${answer.predictions.length} classes`;
  byId("classes").querySelector("ol").replaceWith(bars(answer.predictions, "all"));
  byId("curl").textContent = curlLine(name);
  byId("save-sound").hidden = !isRecording;
  picker.replaceChildren(...answer.predictions.map((row) =>
    element("option", { value: row.class }, `${emojiOf(row.class)} ${spoken(row.class)}`)));
  setSound(blob, answer);
  await showPictures(answer);
  await showEvents(mine);
  if (mine !== current) return;
  if (answer.is_unknown) show(); // the events may say more than the windows
  panel.dataset.state = "drawn";
}

/** The timeline of a long sound: its events take more windows than the answer, so they are asked for later. */
async function showEvents(mine) {
  const { answer, blob, cancel } = mine;
  if (mine !== current || answer.is_silent || !(answer.windows?.length > 1) || !hasDetections()) return;
  showTimelineNote("Looking for events …", { isBusy: true });
  try {
    answer.detections = (await predict(blob, { detections: true, top_k: 1 }, cancel.signal)).detections;
    if (mine === current) showTimeline(answer, playEvent);
  } catch (error) {
    if (error.name === "AbortError" || !(error instanceof ApiError)) throw error;
    if (mine === current) showTimelineNote(wordsFor(error.code).join(": "));
  }
}

/** Spectrogram, evidence and maps of the window that an answer was asked for. */
async function showPictures(answer) {
  const { evidence, input_spectrogram: spectrogram, representative_window: span, visualization } = answer;
  byId("mel").querySelector(":scope > .note").hidden = !hasMaps(); // else it is drawn for the eye
  await showSpectrogram(spectrogram, span.start, span.end, hasMaps() ? " σ" : "");
  showEvidence(current.answer.is_silent ? null : evidence);
  if (evidence) picker.value = evidence.class;
  showWindow();
  markWindow();
  if (visualization && !current.answer.is_silent) await showMaps(visualization);
}

/** Draw again: another class (of its surest window) or another window (a part of the sound). */
async function repaint(options) {
  const mine = current;
  byId("mel").setAttribute("aria-busy", "true");
  try {
    const answer = await predict(mine.blob, { ...pictures(), top_k: 1, ...options }, mine.cancel.signal);
    if (mine === current) await showPictures(answer);
  } catch (error) {
    if (error.name !== "AbortError" && mine === current) showProblem(card, error);
  } finally {
    byId("mel").removeAttribute("aria-busy");
  }
}

const middleOf = ({ start, end }) => (start + end) / 2;

/** Where the window that is drawn is among those of a long sound. */
function windowIndex() {
  const { windows = [] } = current.answer, middle = middleOf(shownSpan());
  return windows.findIndex((row) => Math.abs(middleOf(row) - middle) < 0.01);
}

function showWindow() {
  const { windows = [] } = current.answer, index = windowIndex(), span = shownSpan();
  byId("window").hidden = windows.length < 2;
  byId("window").querySelector(".numbers").textContent = `${span.start.toFixed(1)} to ${span.end.toFixed(1)} s`;
  byId("window-before").disabled = index <= 0;
  byId("window-after").disabled = index >= windows.length - 1;
}

function step(count) {
  const row = current.answer.windows[windowIndex() + count];
  if (row) showPart(row, picker.value);
}

function playEvent(event) {
  play(event.start, event.end);
  const distance = (row) => Math.abs(middleOf(row) - middleOf(event));
  showPart(current.answer.windows.reduce((a, b) => (distance(b) < distance(a) ? b : a)), event.class);
}

const showPart = ({ start, end }, name) => repaint({ start, end, class: name });

/** Buttons for the server's example sounds. */
export function showExamples(names) {
  byId("examples").hidden = !names.length;
  byId("examples").querySelector(".actions").replaceChildren(...names.map((name) => {
    const button = element("button", { class: "button small" }, `${emojiOf(name)} ${spoken(name)}`);
    button.addEventListener("click", async () => {
      const fileName = `${name}.wav`;
      try {
        analyse(await example(name), fileName);
      } catch (error) {
        fail(fileName, error);
      }
    });
    return button;
  }));
}

async function record() {
  const button = byId("record"), level = byId("record-level"), parts = [];
  if (recording) return recording.finish();
  button.disabled = true;
  try {
    const microphone = await openMicrophone((samples) => parts.push(samples));
    const bytes = (model.config?.limits.max_upload_mb ?? 40) * 2 ** 20 - 44;
    const most = Math.min(MAX_RECORDING_SECONDS, bytes / 2 / microphone.rate) - 0.5;
    const seconds = () => (parts.length * 2048) / microphone.rate;
    recording = { finish() {
      recording = null;
      microphone.close();
      level.hidden = true;
      button.textContent = "Record";
      analyse(wavOf(parts, microphone.rate), "recording.wav", { isRecording: true });
    } };
    level.hidden = false;
    const frame = () => {
      if (!recording) return;
      button.textContent = `Stop · ${clock(seconds())}`;
      showLevel(level, microphone.level());
      if (seconds() >= most) recording.finish();
      else requestAnimationFrame(frame);
    };
    frame();
  } catch (error) {
    fail("recording.wav", error);
  } finally {
    button.disabled = Boolean(missingReason());
  }
}

async function copy() {
  const code = byId("curl"), button = byId("copy");
  getSelection().selectAllChildren(code);
  try {
    await navigator.clipboard.writeText(code.textContent);
  } catch {
    document.execCommand("copy"); // without a secure context or a permission
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

function setOverlay(isOn) {
  byId("overlay").checked = isOn;
  byId("mel").classList.toggle("no-overlay", !isOn);
  kept("localStorage", OVERLAY, isOn ? "on" : "off");
}

byId("file").addEventListener("change", ({ target }) => {
  const [file] = target.files;
  if (file) analyse(file, file.name);
  target.value = ""; // the same file may be chosen again
});
byId("record").addEventListener("click", record);
picker.addEventListener("change", () => repaint({ class: picker.value }));
byId("overlay").addEventListener("change", ({ target }) => setOverlay(target.checked));
byId("window-before").addEventListener("click", () => step(-1));
byId("window-after").addEventListener("click", () => step(1));
byId("save-csv").addEventListener("click", () => save(`${stem(current.name)}.csv`, csvOf(current.answer.detections), "text/csv"));
byId("save-audacity").addEventListener("click", () =>
  save(`${stem(current.name)}-labels.txt`, audacityOf(current.answer.detections), "text/plain"));
byId("save-json").addEventListener("click", () =>
  save(`${stem(current.name)}.json`, JSON.stringify(current.answer, null, 1), "application/json"));
byId("save-png").addEventListener("click", async () =>
  save(`${stem(current.name)}.png`, await spectrogramPng(current.name)));
byId("save-sound").addEventListener("click", () => save(current.name, current.blob));
byId("copy").addEventListener("click", copy);
byId("classes").querySelector("details").open = kept("localStorage", CLASSES) !== "closed";
byId("classes").querySelector("details").addEventListener("toggle", ({ target }) =>
  kept("localStorage", CLASSES, target.open ? "open" : "closed"));
setOverlay(kept("localStorage", OVERLAY) !== "off");
