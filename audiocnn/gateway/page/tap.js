// AudioWorklet: hands the samples on, 2,048 at a time; a message for each 128 would be 345 a second.
registerProcessor("tap", class extends AudioWorkletProcessor {
  constructor() {
    super();
    this.kept = new Float32Array(2048);
    this.size = 0;
  }

  process([[channel]]) {
    if (!channel) return true;
    this.kept.set(channel, this.size);
    this.size += channel.length;
    if (this.size === this.kept.length) {
      this.port.postMessage(this.kept.slice());
      this.size = 0;
    }
    return true;
  }
});
