// The live tab: microphone -> /ws/predict -> bars, and a mel spectrogram that is computed right here.
// Gradio runs this once, with `element` around the HTML of `page._live_html`.
const panel = element.querySelector(".live");
const words = JSON.parse(panel.dataset.words);
const button = panel.querySelector(".start");
const card = panel.querySelector(".card");
const rows = [...panel.querySelectorAll(".bars li")];
const level = panel.querySelector(".level b");
const [canvas, scale] = panel.querySelectorAll("canvas");
const pen = canvas.getContext("2d");

const SECONDS = 10, BANDS = canvas.height, LOW_DB = -100, HIGH_DB = -20, HOP_SECONDS = 0.5;
const HZ_TICKS = [100, 500, 1000, 2000, 4000, 8000, 16000];
const STOPS = [[0,0,4],[28,16,68],[79,18,123],[129,37,129],[181,54,122],[229,80,100],[251,135,97],[254,194,135],[252,253,191]];
const COLOURS = Array.from({length: 256}, (_, i) => {
  const place = i / 255 * (STOPS.length - 1), first = Math.min(STOPS.length - 2, Math.floor(place));
  return STOPS[first].map((low, c) => low + (place - first) * (STOPS[first + 1][c] - low));
});
// Sends 2048 samples at a time: a message for each 128 would be 345 a second.
const TAP = `registerProcessor("tap", class extends AudioWorkletProcessor {
  constructor() { super(); this.kept = new Float32Array(2048); this.size = 0; }
  process([[channel]]) {
    if (!channel) return true;
    this.kept.set(channel, this.size); this.size += channel.length;
    if (this.size === this.kept.length) { this.port.postMessage(this.kept.slice()); this.size = 0; }
    return true;
  }
});`;

// Slaney's mel scale, as in audiocnn/frontend.py
const toMel = hz => hz < 1000 ? hz * 3 / 200 : 15 + Math.log(hz / 1000) / (Math.log(6.4) / 27);
const toHz = mel => mel < 15 ? mel * 200 / 3 : 1000 * Math.exp((mel - 15) * Math.log(6.4) / 27);
const TOP_MEL = toMel(22050);

let session = null;

function say(kind, emoji, title, text) {
  card.className = "card " + kind;
  card.querySelector(".emoji").textContent = emoji;
  card.querySelector("h2").textContent = title;
  card.querySelector("p").textContent = text;
}

function fail(code) {
  const [title, advice] = words[code] || words.internal_error;
  stop();
  say("error", "😕", title, advice);
}

function percent(p) {
  return p >= 0.0995 ? `${Math.round(100 * p)} %` : p >= 0.0005 ? `${(100 * p).toFixed(1)} %` : "< 0.1 %";
}

function show(answer) {
  const [best] = answer.predictions, name = best.class.replaceAll("_", " ");
  if (answer.is_silent) say("silent", "🤫", "Silence", "There is nothing to hear.");
  else if (answer.is_unknown) say("unknown", "🤷", "I don't know this sound", `The nearest that I know is ${name}.`);
  else say("known", best.emoji, name, `${percent(best.confidence)} sure`);
  rows.forEach((row, i) => {
    const each = answer.predictions[i], [emoji, label, bar, share] = row.children;
    if (!each) return;
    emoji.textContent = each.emoji;
    label.textContent = each.class.replaceAll("_", " ");
    bar.firstElementChild.style.width = `${100 * each.confidence}%`;
    share.textContent = percent(each.confidence);
  });
  panel.dataset.answers = Number(panel.dataset.answers || 0) + 1;
}

function drawAxes() {
  panel.querySelector(".plot > .ticks.y").innerHTML = HZ_TICKS.map(hz =>
    `<span style="bottom:${100 * toMel(hz) / TOP_MEL}%">${hz >= 1000 ? hz / 1000 + "k" : hz}</span>`).join("");
  const bar = scale.getContext("2d");
  for (let y = 0; y < scale.height; y++) {
    bar.fillStyle = `rgb(${COLOURS[Math.round(255 * (1 - y / (scale.height - 1)))]})`;
    bar.fillRect(0, y, 1, 1);
  }
  pen.fillStyle = `rgb(${COLOURS[0]})`;
  pen.fillRect(0, 0, canvas.width, canvas.height);
}

function bandsOf(analyser, rate) {
  const hzPerBin = rate / analyser.fftSize, last = analyser.frequencyBinCount - 1;
  return Array.from({length: BANDS}, (_, i) => {
    const [low, high] = [i, i + 1].map(edge => toHz(edge / BANDS * TOP_MEL) / hzPerBin);
    return [Math.min(last, Math.floor(low)), Math.min(last, Math.max(Math.floor(low), Math.ceil(high) - 1))];
  });
}

// One column for every 20 ms that passed; a browser that was busy repeats the newest.
function drawColumns({analyser, bins, bands, context}, from) {
  const now = context.currentTime, perColumn = SECONDS / canvas.width;
  const count = Math.min(canvas.width, Math.floor((now - from) / perColumn));
  if (!count) return from;
  analyser.getFloatFrequencyData(bins);
  pen.drawImage(canvas, -count, 0);
  const column = pen.createImageData(1, BANDS);
  bands.forEach(([low, high], band) => {
    let loudest = -200;
    for (let bin = low; bin <= high; bin++) loudest = Math.max(loudest, bins[bin]);
    const place = Math.max(0, Math.min(1, (loudest - LOW_DB) / (HIGH_DB - LOW_DB)));
    column.data.set([...COLOURS[Math.round(255 * place)], 255], 4 * (BANDS - 1 - band));
  });
  for (let i = 1; i <= count; i++) pen.putImageData(column, canvas.width - i, 0);
  return from + count * perColumn;
}

function drawLevel({analyser, samples}) {
  analyser.getFloatTimeDomainData(samples);
  const power = samples.reduce((sum, x) => sum + x * x, 0) / samples.length;
  level.style.width = `${Math.max(0, Math.min(100, 100 + 10 * Math.log10(power + 1e-12) / 0.6))}%`;
}

function connect(rate) {
  const address = new URL(location.href.replace(/\/ui\/?([?#].*)?$/, "/ws/predict"));
  address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
  const socket = new WebSocket(address);
  socket.binaryType = "arraybuffer";
  socket.onopen = () => socket.send(JSON.stringify({sample_rate: rate, hop_seconds: HOP_SECONDS, top_k: rows.length}));
  let reason = "connection_lost";
  socket.onmessage = ({data}) => {
    const message = JSON.parse(data);
    if (message.type === "answer") show(message);
    else if (message.type === "error") {
      reason = message.error.code;
      const [title, advice] = words[reason] || words.internal_error;
      say("error", "😕", title, advice);  // the stream may go on: its next answer takes this away
    }
  };
  socket.onclose = () => { if (session && session.socket === socket) fail(reason); };
  return socket;
}

async function start() {
  if (!navigator.mediaDevices) return fail("microphone_insecure");
  button.disabled = true;
  say("busy", "👂", "Listening …", "The first answer comes in a second.");
  try {
    const stream = await navigator.mediaDevices.getUserMedia(
      {audio: {channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false}});
    const context = new AudioContext();
    const source = context.createMediaStreamSource(stream);
    const analyser = new AnalyserNode(context, {fftSize: 2048, smoothingTimeConstant: 0});
    source.connect(analyser);
    const script = URL.createObjectURL(new Blob([TAP], {type: "text/javascript"}));
    await context.audioWorklet.addModule(script);
    URL.revokeObjectURL(script);
    const tap = new AudioWorkletNode(context, "tap", {numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit"});
    source.connect(tap);
    const socket = connect(context.sampleRate);
    tap.port.onmessage = ({data}) => { if (socket.readyState === WebSocket.OPEN) socket.send(data); };
    session = {stream, context, socket, analyser, bins: new Float32Array(analyser.frequencyBinCount),
      samples: new Float32Array(analyser.fftSize), bands: bandsOf(analyser, context.sampleRate)};
    button.textContent = "⏹ Stop";
    run(session);
  } catch (error) {
    fail({NotAllowedError: "microphone_refused", NotFoundError: "microphone_missing"}[error.name] || "internal_error");
  } finally {
    button.disabled = false;
  }
}

function run(mine) {
  let drawnUntil = mine.context.currentTime;
  const frame = () => {
    if (session !== mine) return;
    drawnUntil = drawColumns(mine, drawnUntil);
    drawLevel(mine);
    requestAnimationFrame(frame);
  };
  frame();
}

function stop() {
  const old = session;
  session = null;
  button.textContent = "🎙️ Start listening";
  level.style.width = 0;
  if (!old) return;
  old.stream.getTracks().forEach(track => track.stop());
  old.context.close();
  old.socket.close();
  say("idle", "🎙️", "Live", "The microphone is off.");
}

button.onclick = () => session ? stop() : start();
drawAxes();
