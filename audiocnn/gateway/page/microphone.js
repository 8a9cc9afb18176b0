// The microphone, for recordings and for the live stream: mono float samples at the browser's own rate.

import { ApiError } from "./api.js";

const CODES = { NotAllowedError: "microphone_refused", NotFoundError: "microphone_missing" };

/** Why there is no microphone on this page at all, or null. */
export const missingReason = () => (navigator.mediaDevices ? null : "microphone_insecure");

/** Open it; `onSamples(Float32Array)` is called until `close()`. Raises `ApiError`. */
export async function openMicrophone(onSamples) {
  if (missingReason()) throw new ApiError(missingReason(), "navigator.mediaDevices is not available.");
  const wanted = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false };
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: wanted });
  } catch (error) {
    throw new ApiError(CODES[error.name] ?? "internal_error", error.message);
  }
  const context = new AudioContext();
  const source = context.createMediaStreamSource(stream);
  const analyser = new AnalyserNode(context, { fftSize: 2048, smoothingTimeConstant: 0 });
  await context.audioWorklet.addModule(new URL("tap.js", import.meta.url));
  const tap = new AudioWorkletNode(context, "tap", { numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit" });
  source.connect(analyser);
  source.connect(tap);
  tap.port.onmessage = ({ data }) => onSamples(data);
  const samples = new Float32Array(analyser.fftSize);
  return {
    context,
    analyser,
    rate: context.sampleRate,
    /** RMS level in dB of full scale, now. */
    level() {
      analyser.getFloatTimeDomainData(samples);
      return 10 * Math.log10(samples.reduce((sum, x) => sum + x * x, 0) / samples.length + 1e-12);
    },
    close() {
      tap.port.onmessage = null;
      stream.getTracks().forEach((track) => track.stop());
      context.close();
    },
  };
}

/** A 16-bit mono WAV file. */
export function wavOf(parts, rate) {
  const count = parts.reduce((sum, part) => sum + part.length, 0);
  const view = new DataView(new ArrayBuffer(44 + 2 * count));
  const text = (at, characters) => [...characters].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + 2 * count, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); // bytes of this chunk
  view.setUint16(20, 1, true); // PCM
  view.setUint16(22, 1, true); // channels
  view.setUint32(24, rate, true);
  view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, 2 * count, true);
  let at = 44;
  for (const part of parts) {
    for (const sample of part) {
      view.setInt16(at, Math.round(32_767 * Math.max(-1, Math.min(1, sample))), true);
      at += 2;
    }
  }
  return new Blob([view], { type: "audio/wav" });
}
