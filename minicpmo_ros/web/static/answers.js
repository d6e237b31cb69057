// Copyright 2026 the minicpmo_ros authors
// SPDX-License-Identifier: Apache-2.0

/** The questions and their answers, newest first. */

import { WORDS, fixed } from './words.js';
import { element } from './views.js';

const KEPT = 50, KEPT_IDS = 500, THUMBS = 8, UNSURE = Math.log(0.5);

export class Answers {
  constructor(send, strip) {
    this.box = document.getElementById('answers');
    this.send = send;
    this.strip = strip;
    this.open = new Map(); // number: card
    this.known = new Map(); // id of an answer: card
    this.told = new Set(); // ids of answers, also of cards that are gone: they may be told again
    this.count = 0;
  }

  ask(question, choices, remember) {
    this.count += 1;
    const number = this.count, card = this.card(question || WORDS.spoken);
    card.box.classList.add('own');
    card.box.setAttribute('aria-busy', 'true'); // the whole answer is read aloud, not its pieces
    card.asked = performance.now();
    card.choices = choices;
    card.waiting = element('span', 'waiting', WORDS.waiting);
    card.text.append(card.waiting);
    const cancel = element('button', 'plain', WORDS.cancel);
    cancel.type = 'button';
    cancel.addEventListener('click', () => this.send({ type: 'cancel', number }));
    card.facts.append(cancel);
    this.open.set(number, card);
    if (!this.send({ type: 'ask', number, question, choices, remember })) this.fail(number, WORDS.lost);
  }

  card(question) {
    const card = { box: element('li', 'card'), text: element('div', 'text'), facts: element('div', 'facts') };
    card.box.tabIndex = 0;
    card.question = element('div', 'question', question);
    card.box.append(card.question, card.text, card.facts);
    for (const event of ['pointerenter', 'focus']) {
      card.box.addEventListener(event, () => card.seconds && this.show(card));
    }
    this.box.prepend(card.box);
    const ended = [...this.box.children].filter((box) => !box.hasAttribute('aria-busy'));
    for (const box of ended.slice(KEPT)) {
      this.known.delete(box.dataset.id);
      box.remove();
    }
    return card;
  }

  /** Light up the seconds that an answer rests on. */
  show(card) {
    for (const other of this.box.children) other.classList.toggle('chosen', other === card.box);
    this.strip.light(card.seconds);
  }

  /** A piece of the answer to a question of this page. */
  piece(message) {
    const card = this.open.get(message.number);
    if (!card) return;
    if (card.waiting) {
      card.waiting.remove();
      card.waiting = null;
      card.box.dataset.firstWordMs = performance.now() - card.asked;
    }
    const piece = element('span', '', message.text);
    piece.title = `${fixed(performance.now() - card.asked)} ms`;
    card.text.append(piece);
    card.pieces = (card.pieces || []).concat({ text: message.text, title: piece.title });
  }

  /** The end of a question of this page. */
  answered(message) {
    const card = this.open.get(message.number);
    if (!card) return;
    if (!message.answer) return this.fail(message.number, message.reason);
    this.open.delete(message.number);
    const other = this.known.get(message.answer.id);
    if (other) other.box.remove();
    this.finish(card, message.answer, message.reason);
    this.show(card);
  }

  /** An answer that somebody else asked for, or that this page did: then it is known by its id. */
  heard(answer) {
    if (this.told.has(answer.id)) return;
    const card = this.card(`${answer.question || WORDS.spoken} (${WORDS.elsewhere})`);
    this.finish(card, answer, answer.reason);
  }

  fail(number, reason) {
    const card = this.open.get(number);
    this.open.delete(number);
    card.box.removeAttribute('aria-busy');
    card.text.replaceChildren();
    card.facts.replaceChildren();
    card.box.classList.add('failed');
    card.box.insertBefore(element('div', 'reason', reason), card.facts);
  }

  /** The connection is lost, and the questions with it: nobody will answer them. */
  lose() {
    for (const number of [...this.open.keys()]) this.fail(number, WORDS.lostQuestion);
  }

  finish(card, answer, reason) {
    this.known.set(answer.id, card);
    this.told.add(answer.id);
    if (this.told.size > KEPT_IDS) this.told.delete(this.told.values().next().value);
    card.seconds = answer.seconds;
    card.box.dataset.id = answer.id;
    card.box.dataset.firstTokenMs = answer.first_token_ms;
    const told = card.text.textContent;
    card.text.replaceChildren(...words(answer, told === answer.text ? card.pieces : null));
    card.waiting = null;
    const why = answer.reason || reason;
    if (why) card.box.insertBefore(element('div', 'reason', why), card.facts);
    if (answer.probabilities.length) card.box.insertBefore(shares(card.choices, answer), card.facts);
    const facts = [
      `${WORDS.firstToken} ${fixed(answer.first_token_ms)} ms`,
      answer.tokens_per_second ? `${fixed(answer.tokens_per_second)} ${WORDS.perSecond}` : '',
      `${answer.units} ${WORDS.seconds}`,
      answer.mean_log_probability !== null ? `${WORDS.likely} ${fixed(100 * Math.exp(answer.mean_log_probability))} %` : '',
      ['stop', 'length'].includes(answer.finish) ? '' : answer.finish,
    ];
    card.facts.replaceChildren(facts.filter(Boolean).join(' · '));
    card.box.append(this.thumbs(answer.seconds));
    card.box.removeAttribute('aria-busy');
  }

  /** A few of the images that an answer rests on. */
  thumbs(seconds) {
    const row = element('div', 'thumbs');
    const withImage = seconds.filter((second) => (this.strip.seconds.get(second) || {}).url);
    const step = Math.max(1, withImage.length / THUMBS);
    for (let i = 0; i < withImage.length; i += step) {
      const second = withImage[Math.floor(i)], image = element('img');
      image.src = this.strip.seconds.get(second).url;
      image.alt = '';
      image.addEventListener('click', () => this.strip.choose(second));
      row.append(image);
    }
    return row;
  }
}

/** The text as spans, one for each token that the model chose: its probability, and when it came. */
function words(answer, pieces) {
  const text = Array.from(answer.text), spans = []; // characters as the message counts them
  const arrivals = (pieces || []).flatMap((piece) => Array.from(piece.text, () => piece.title));
  let told = 0;
  answer.token_begins.forEach((begin, i) => {
    const end = answer.token_ends[i], p = answer.token_log_probabilities[i];
    if (begin > told) spans.push(element('span', 'forced', text.slice(told, begin).join('')));
    if (end > begin) {
      const span = element('span', p < UNSURE ? 'unsure' : '', text.slice(begin, end).join(''));
      span.title = [`${fixed(100 * Math.exp(p))} %`, arrivals[begin]].filter(Boolean).join(', ');
      spans.push(span);
    }
    told = Math.max(told, end);
  });
  if (told < text.length) spans.push(element('span', 'forced', text.slice(told).join('')));
  return spans;
}

function shares(choices, answer) {
  const box = element('div', 'shares');
  answer.probabilities.forEach((p, i) => {
    const bar = element('div', 'bar'), fill = element('i');
    fill.style.width = `${100 * p}%`;
    bar.append(fill);
    box.append(element('span', '', choices ? choices[i] : `${i + 1}`), bar, element('span', 'number', `${fixed(100 * p)} %`));
  });
  return box;
}
