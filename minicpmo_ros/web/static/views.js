// Copyright 2026 the minicpmo_ros authors
// SPDX-License-Identifier: Apache-2.0

/** The strip of seconds, and the plots. */

import { WORDS, clockTime, fixed } from './words.js';

const KEPT_SECONDS = 240, BAR_PX = 9, PLOTTED = 120;

export function element(tag, classes = '', text = '') {
  const made = document.createElement(tag);
  if (classes) made.className = classes;
  if (text) made.textContent = text;
  return made;
}

/** One bar a second: what came, whether the model still has it, what an answer rests on. */
export class Strip {
  constructor() {
    this.box = document.getElementById('strip');
    this.seconds = new Map(); // second: {seen, heard, url}
    this.held = new Set(); // in the window
    this.span = [0, 0];
    this.lit = new Set();
    this.chosen = null;
    this.isDue = false;
    this.box.addEventListener('pointermove', (event) => this.point(event));
    this.box.addEventListener('click', (event) => this.point(event));
    this.box.addEventListener('keydown', (event) => this.move(event));
    addEventListener('resize', () => this.draw());
  }

  note(second, what) {
    const known = this.seconds.get(second) || {};
    if (what.url && known.url) URL.revokeObjectURL(known.url);
    this.seconds.set(second, { ...known, ...what });
    while (this.seconds.size > KEPT_SECONDS) {
      const oldest = Math.min(...this.seconds.keys());
      if (this.seconds.get(oldest).url) URL.revokeObjectURL(this.seconds.get(oldest).url);
      this.seconds.delete(oldest);
    }
    this.draw();
  }

  setWindow(status) {
    this.held = new Set(status.seconds);
    this.span = [status.window_start, status.window_end];
    this.draw();
  }

  light(seconds) {
    this.lit = new Set(seconds);
    this.draw();
  }

  place(second, noted) {
    if (this.held.has(second)) return 'kept';
    const [start, end] = this.span;
    if (end && second >= start && second < end) return noted.wasHeld ? 'thinned' : 'dropped';
    return end && second < start ? 'gone' : 'unread';
  }

  draw() { // once for each frame that the browser shows
    if (this.isDue) return;
    this.isDue = true;
    requestAnimationFrame(() => { this.isDue = false; this.drawNow(); });
  }

  drawNow() {
    const n = Math.max(10, Math.floor(this.box.clientWidth / BAR_PX));
    const shown = [...this.seconds.keys()].sort((a, b) => a - b).slice(-n);
    const tokens = (one) => (one ? one.tokens : 0);
    const most = Math.max(1, ...shown.map((s) => tokens(this.seconds.get(s).seen) + tokens(this.seconds.get(s).heard)));
    this.box.replaceChildren(...shown.map((second) => this.bar(second, most)));
    if (this.chosen !== null) this.describe();
  }

  bar(second, most) {
    const noted = this.seconds.get(second);
    if (this.held.has(second)) noted.wasHeld = true;
    const bar = element('div', `second ${this.place(second, noted)}`);
    bar.dataset.second = second;
    if (this.lit.has(second)) bar.classList.add('lit');
    if (second === this.chosen) bar.classList.add('chosen');
    for (const [one, name] of [[noted.seen, 'image'], [noted.heard, 'sound']]) {
      const part = element('i', one && one.tokens ? name : 'none');
      if (one && one.tokens) part.style.height = `${(74 * one.tokens) / most}%`;
      if (one && (one.status === 'lost' || one.status === 'overloaded')) bar.classList.add('lost');
      bar.append(part);
    }
    return bar;
  }

  point(event) {
    const bar = event.target.closest('.second');
    if (bar) this.choose(Number(bar.dataset.second));
  }

  move(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -1e6, End: 1e6 }[event.key];
    const all = [...this.seconds.keys()].sort((a, b) => a - b);
    if (!step || !all.length) return;
    event.preventDefault();
    const at = this.chosen === null ? all.length : all.indexOf(this.chosen);
    this.choose(all[Math.max(0, Math.min(all.length - 1, at + step))]);
  }

  choose(second) {
    this.chosen = second;
    for (const bar of this.box.children) bar.classList.toggle('chosen', Number(bar.dataset.second) === second);
    this.describe();
  }

  describe() {
    const noted = this.seconds.get(this.chosen) || {}; // it may be too long ago
    const image = document.getElementById('second-image');
    image.hidden = !noted.url;
    if (noted.url && image.src !== noted.url) image.src = noted.url;
    const text = `${clockTime(this.chosen)}: ${WORDS.places[this.place(this.chosen, noted)]}`
      + part(WORDS.image, noted.seen) + part(WORDS.sound, noted.heard);
    document.getElementById('second-facts').textContent = text;
    const all = [...this.seconds.keys()].sort((a, b) => a - b);
    for (const [name, value] of [['min', all[0]], ['max', all[all.length - 1]], ['now', this.chosen]]) {
      this.box.setAttribute(`aria-value${name}`, value);
    }
    this.box.setAttribute('aria-valuetext', text);
  }
}

function part(name, one) {
  if (!one) return '';
  if (one.status !== 'ok') return ` · ${name}: ${WORDS.inputs[one.status] || one.status}`;
  const how = one.reused ? WORDS.reused : `${fixed(one.encode_ms + one.preprocess_ms)} ms`;
  return ` · ${name}: ${one.tokens} ${WORDS.positions}, ${how}`;
}

/** A line of the newest values, with the newest as a number. */
export class Plot {
  constructor(box, name, unit) {
    this.values = [];
    this.unit = unit;
    const frame = element('div', 'plot'), head = element('div', 'name');
    this.value = element('span', 'number', '–');
    head.append(element('span', 'quiet', name), this.value);
    this.canvas = element('canvas');
    this.canvas.setAttribute('aria-hidden', 'true');
    frame.append(head, this.canvas);
    box.append(frame);
    addEventListener('resize', () => this.draw());
  }

  clear() { this.values = []; }

  add(value) {
    if (value === null) return;
    this.values.push(value);
    this.values.splice(0, this.values.length - PLOTTED);
    this.value.textContent = `${fixed(value, value < 10 ? 1 : 0)} ${this.unit}`;
    if (!this.isDue) {
      this.isDue = true;
      requestAnimationFrame(() => { this.isDue = false; this.draw(); });
    }
  }

  draw() {
    const scale = devicePixelRatio, width = this.canvas.clientWidth, height = this.canvas.clientHeight;
    const style = getComputedStyle(this.canvas), most = 1.15 * Math.max(...this.values, 1e-6);
    this.canvas.width = width * scale;
    this.canvas.height = height * scale;
    const pen = this.canvas.getContext('2d');
    pen.scale(scale, scale);
    pen.strokeStyle = style.getPropertyValue('--line');
    pen.beginPath(); pen.moveTo(0, height - 0.5); pen.lineTo(width, height - 0.5); pen.stroke();
    pen.beginPath();
    this.values.forEach((value, i) => {
      const x = width - (this.values.length - 1 - i) * (width / (PLOTTED - 1));
      const y = height - 1 - ((height - 4) * value) / most;
      if (i) pen.lineTo(x, y); else pen.moveTo(x, y);
    });
    pen.strokeStyle = style.getPropertyValue('--accent');
    pen.lineWidth = 1.6;
    pen.stroke();
  }
}
