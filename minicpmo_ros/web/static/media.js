// Copyright 2026 the minicpmo_ros authors
// SPDX-License-Identifier: Apache-2.0

/** The visitor's camera and microphone, sent to the server as JPEG and samples. */

const IMAGES_HZ = 2, WIDEST = 640, QUALITY = 0.9, CHUNK_MS = 100;
const AUDIO = 1, IMAGE = 2;
const GAP_MS = 300; // of which sound has stood still: time is begun anew
const SLOWER = 0.0005; // the clock of sound may be that much slower than the page's

/** Calls send(ArrayBuffer): one byte of kind, a float64 of the page's time in ms, the content. */
export class Media {
  constructor(send, onEnded) {
    this.send = send;
    this.onEnded = onEnded; // called when the browser takes one of both away
    this.stream = null;
  }

  /** Return whether both run: they may have been stopped meanwhile. */
  async start() {
    const stream = await navigator.mediaDevices.getUserMedia({
      video: true,
      audio: { channelCount: 1, echoCancellation: true, noiseSuppression: false, autoGainControl: false },
    });
    this.stream = stream;
    for (const track of stream.getTracks()) track.addEventListener('ended', this.onEnded);
    try {
      await this.look();
      await this.listen();
    } catch (error) {
      if (this.stream === stream) throw error;
    }
    return this.stream === stream;
  }

  stop() {
    clearInterval(this.timer);
    if (this.context) this.context.close();
    if (this.video) this.video.srcObject = null; // whoever waits for it to play waits no more
    if (this.stream) this.stream.getTracks().forEach((track) => track.stop());
    this.stream = this.context = this.video = null;
  }

  async listen() {
    const source = (rate) => {
      this.context = new AudioContext(rate);
      return this.context.createMediaStreamSource(this.stream);
    };
    let from;
    try {
      from = source({ sampleRate: 16000 });
    } catch { // a browser that does not resample: the worklet does
      this.context.close();
      from = source({});
    }
    await this.context.audioWorklet.addModule('worklet.js');
    const samples = new AudioWorkletNode(this.context, 'samples');
    this.begin = null; // the page's time of sample 0
    this.chunks = 0;
    samples.port.onmessage = (event) => this.sendAudio(event.data);
    from.connect(samples);
    samples.connect(this.context.destination); // it gives silence; without, some do not run it
    await this.context.resume();
  }

  /** Chunks come late at times, never early: the earliest of them tells when sound began. */
  sendAudio(buffer) {
    const begin = performance.now() - CHUNK_MS * (this.chunks + 1);
    if (this.begin === null || begin - this.begin > GAP_MS) {
      this.begin = performance.now() - CHUNK_MS;
      this.chunks = 0;
    } else {
      this.begin = Math.min(begin, this.begin + SLOWER * CHUNK_MS);
    }
    this.send(message(AUDIO, this.begin + CHUNK_MS * this.chunks, new Uint8Array(buffer)));
    this.chunks += 1;
  }

  async look() {
    const video = this.video = document.createElement('video');
    video.srcObject = this.stream;
    video.muted = true;
    await video.play();
    const canvas = document.createElement('canvas'), pen = canvas.getContext('2d');
    this.timer = setInterval(() => {
      const scale = Math.min(1, WIDEST / Math.max(video.videoWidth, video.videoHeight));
      canvas.width = Math.round(video.videoWidth * scale);
      canvas.height = Math.round(video.videoHeight * scale);
      pen.drawImage(video, 0, 0, canvas.width, canvas.height);
      const time = performance.now();
      canvas.toBlob(async (blob) => {
        if (blob && this.stream) this.send(message(IMAGE, time, new Uint8Array(await blob.arrayBuffer())));
      }, 'image/jpeg', QUALITY);
    }, 1000 / IMAGES_HZ);
  }
}

function message(kind, time, content) {
  const bytes = new Uint8Array(9 + content.length);
  bytes[0] = kind;
  new DataView(bytes.buffer).setFloat64(1, time, true);
  bytes.set(content, 9);
  return bytes.buffer;
}
