// Copyright 2026 the minicpmo_ros authors
// SPDX-License-Identifier: Apache-2.0

/** Gives the microphone's samples as int16 of 16 kHz, 100 ms at a time. */

const RATE_HZ = 16000, CHUNK = RATE_HZ / 10;

class Samples extends AudioWorkletProcessor {
  constructor() {
    super();
    this.chunk = new Int16Array(CHUNK);
    this.filled = 0;
    this.phase = 0; // of a sample of 16 kHz, where the context has another rate
    this.sum = 0;
    this.count = 0;
  }

  process(inputs) {
    const samples = inputs[0][0];
    for (let i = 0; samples && i < samples.length; i += 1) {
      this.sum += samples[i]; // the mean over a sample of ours
      this.count += 1;
      this.phase += RATE_HZ;
      if (this.phase >= sampleRate) {
        this.phase -= sampleRate;
        this.put(this.sum / this.count);
        this.sum = this.count = 0;
      }
    }
    return true;
  }

  put(value) {
    this.chunk[this.filled] = 32767 * Math.max(-1, Math.min(1, value));
    this.filled += 1;
    if (this.filled === CHUNK) {
      this.port.postMessage(this.chunk.buffer, [this.chunk.buffer]);
      this.chunk = new Int16Array(CHUNK);
      this.filled = 0;
    }
  }
}

registerProcessor('samples', Samples);
