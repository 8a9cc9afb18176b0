// The live tab: microphone -> /ws/predict -> bars, and a mel spectrogram that is computed in the browser.

import { bar, fillBar, showCard, showProblem } from "./answer.js";
import { ApiError, currentKey, emojiOf, newKey, streamAddress } from "./api.js";
import { byId, percent, showLevel, spoken } from "./dom.js";
import { missingReason, openMicrophone } from "./microphone.js";
import { LOUDNESS, colourAt, showScale, showTicks } from "./plots.js";

const SECONDS = 10, LOW_DB = -100, HIGH_DB = -20, HOP_SECONDS = 0.5, NUM_BARS = 6;
const HZ_TICKS = [100, 500, 1000, 2000, 4000, 8000, 16_000];

// Slaney's mel scale, as in audiocnn/model/frontend.py
const toMel = (hz) => (hz < 1000 ? (hz * 3) / 200 : 15 + Math.log(hz / 1000) / (Math.log(6.4) / 27));
const toHz = (mel) => (mel < 15 ? (mel * 200) / 3 : 1000 * Math.exp(((mel - 15) * Math.log(6.4)) / 27));
const TOP_MEL = toMel(22_050);

const panel = byId("panel-live"), card = byId("live-answer"), button = byId("listen"), list = byId("live-bars");
const plot = byId("live-mel").querySelector(".plot"), canvas = plot.querySelector(".inside canvas");
const pen = canvas.getContext("2d");

let session = null;

const say = (kind, emoji, title, text) => showCard(card, kind, emoji, title, text, list);

function drawAxes() {
  showTicks(plot.querySelector(":scope > .ticks.x"), "x", [[0, "−10"], [0.5, "−5"], [1, "now"]]);
  showTicks(plot.querySelector(":scope > .ticks.y"), "y",
    HZ_TICKS.map((hz) => [toMel(hz) / TOP_MEL, hz >= 1000 ? `${hz / 1000}k` : String(hz)]));
  showScale(plot.querySelector(".scale"), LOUDNESS, [[0, "−100"], [0.5, "−60"], [1, "−20"]]);
  pen.fillStyle = `rgb(${LOUDNESS[0].slice(0, 3)})`;
  pen.fillRect(0, 0, canvas.width, canvas.height);
}

function showStreamAnswer(answer) {
  const best = answer.predictions[0], name = spoken(best.class);
  if (answer.is_silent) say("silent", "🤫", "Silence", "There is nothing to hear.");
  else if (answer.is_unknown) say("unknown", "🤷", "I don't know this sound", `The nearest that I know is ${name}.`);
  else say("known", emojiOf(best.class), name, `${percent(best.confidence)} sure`);
  list.hidden = answer.is_silent || answer.is_unknown;
  answer.predictions.forEach((prediction, i) => {
    if (list.children[i]) fillBar(list.children[i], prediction);
    else list.append(bar(prediction));
  });
  panel.dataset.answers = Number(panel.dataset.answers) + 1;
}

/** The first and last FFT bin of each band. */
function bandsOf({ analyser, rate }) {
  const hzPerBin = rate / analyser.fftSize, last = analyser.frequencyBinCount - 1;
  return Array.from({ length: canvas.height }, (_, i) => {
    const [low, high] = [i, i + 1].map((edge) => toHz((edge / canvas.height) * TOP_MEL) / hzPerBin);
    return [Math.min(last, Math.floor(low)), Math.min(last, Math.max(Math.floor(low), Math.ceil(high) - 1))];
  });
}

/** One column for every 20 ms that passed; a browser that was busy repeats the newest. */
function drawColumns({ microphone, bins, bands }, from) {
  const perColumn = SECONDS / canvas.width;
  const count = Math.min(canvas.width, Math.floor((microphone.context.currentTime - from) / perColumn));
  if (count <= 0) return from;
  microphone.analyser.getFloatFrequencyData(bins);
  pen.drawImage(canvas, -count, 0);
  const column = pen.createImageData(1, canvas.height);
  bands.forEach(([low, high], band) => {
    let loudest = -200;
    for (let bin = low; bin <= high; bin++) loudest = Math.max(loudest, bins[bin]);
    const colour = colourAt(LOUDNESS, (loudest - LOW_DB) / (HIGH_DB - LOW_DB));
    column.data.set(colour, 4 * (canvas.height - 1 - band));
  });
  for (let i = 1; i <= count; i++) pen.putImageData(column, canvas.width - i, 0);
  return from + count * perColumn;
}

function connect(rate) {
  const socket = new WebSocket(streamAddress());
  const key = currentKey();
  let problem = new ApiError("connection_lost", "The stream ended.");
  socket.onopen = () => socket.send(JSON.stringify(
    { sample_rate: rate, hop_seconds: HOP_SECONDS, top_k: NUM_BARS, ...(key && { api_key: key }) }));
  socket.onmessage = ({ data }) => {
    if (session?.socket !== socket) return;
    const message = JSON.parse(data);
    if (message.type === "answer") showStreamAnswer(message);
    else if (message.type === "error") {
      problem = new ApiError(message.error.code, message.error.message);
      showProblem(card, problem); // the stream may go on: its next answer takes this away
    }
  };
  socket.onclose = () => { if (session?.socket === socket) fail(problem); };
  return socket;
}

function fail(error) {
  stop();
  showProblem(card, error);
  if (error.code === "unauthorized") newKey(Boolean(currentKey())).then((key) => key && start());
}

async function start() {
  button.disabled = true;
  say("busy", "👂", "Listening …", "The first answer comes in a second.");
  try {
    let socket = null;
    const microphone = await openMicrophone((samples) => {
      if (socket?.readyState === WebSocket.OPEN) socket.send(samples);
    });
    socket = connect(microphone.rate);
    session = { microphone, socket, bins: new Float32Array(microphone.analyser.frequencyBinCount), bands: bandsOf(microphone) };
    button.textContent = "Stop";
    run(session);
  } catch (error) {
    fail(error);
  } finally {
    button.disabled = Boolean(missingReason());
  }
}

function run(mine) {
  let drawnUntil = mine.microphone.context.currentTime;
  const frame = () => {
    if (session !== mine) return;
    drawnUntil = drawColumns(mine, drawnUntil);
    showLevel(byId("live-level"), mine.microphone.level());
    requestAnimationFrame(frame);
  };
  frame();
}

/** Stop listening, if it runs. */
export function stop() {
  const old = session;
  session = null;
  button.textContent = "Start listening";
  showLevel(byId("live-level"), -60);
  if (!old) return;
  old.microphone.close();
  old.socket.close();
  say("idle", "🎙️", "Live", "The microphone is off.");
}

button.addEventListener("click", () => (session ? stop() : start()));
drawAxes();
