// Copyright 2026 the minicpmo_ros authors
// SPDX-License-Identifier: Apache-2.0

/** Connects to the server, and shows what it sends. */

import { Answers } from './answers.js';
import { Media } from './media.js';
import { Plot, Strip, element } from './views.js';
import { WORDS, clockTime, fixed } from './words.js';

const IMAGE = 2, RETRY_MS = 1000, READ_MS = 10000, SILENT_MS = 10000, KEPT_EVENTS = 50, HISTORY = 30;
const at = (id) => document.getElementById(id);
const token = new URLSearchParams(location.search).get('t') || '';
const history = [];
const values = {}; // of the settings
let socket = null, asked = 0, refusal = 0, heardAt = 0, described = '';

const send = (message) => {
  if (!socket || socket.readyState !== WebSocket.OPEN) return false;
  socket.send(message instanceof ArrayBuffer ? message : JSON.stringify(message));
  return true;
};
const strip = new Strip();
const answers = new Answers(send, strip);
const media = new Media(send, () => endSenses(WORDS.ended));
const plots = Object.fromEntries(['image', 'audio', 'prefill', 'memory'].map(
  (name) => [name, new Plot(at('plots'), WORDS.plots[name], name === 'memory' ? 'MiB' : 'ms')],
));

function connect() {
  socket = new WebSocket(`${location.protocol === 'https:' ? 'wss' : 'ws'}://${location.host}/ws?t=${encodeURIComponent(token)}`);
  socket.binaryType = 'arraybuffer';
  let wasOpen = false;
  socket.onopen = () => {
    wasOpen = true;
    notice('');
  };
  socket.onclose = () => {
    setState('away', '');
    notice(WORDS.lost);
    answers.lose();
    if (!wasOpen) tellWhy();
    setTimeout(connect, RETRY_MS);
  };
  socket.onmessage = (event) => {
    if (typeof event.data === 'string') take(JSON.parse(event.data)); else takeBinary(event.data);
  };
}

/** Tell why the page may not connect: a WebSocket does not say it, the page's own address does. */
async function tellWhy() {
  const reply = await fetch(location.href).catch(() => null); // null: nobody listens
  if (!reply || socket.readyState === WebSocket.OPEN) return;
  notice(reply.ok ? WORDS.notTaken : await reply.text());
}

/** Write only what is new: a screen reader reads aloud whatever is written in these places. */
function write(where, text) {
  if (where.textContent !== text) where.textContent = text;
}

function notice(text, id = 'notice') {
  const words = (one) => one.replace(/\d+/g, '');
  const isNew = words(text) !== words(at(id).textContent); // not just another count of seconds
  at(id).setAttribute('aria-live', isNew ? 'assertive' : 'off');
  at(id).hidden = !text;
  write(at(id), text);
}

function setState(state, more) {
  at('state').className = `pill ${state}`;
  write(at('state'), `${WORDS.states[state] || state}${more}`);
}

const handlers = {
  hello(message) { // what came before is told again
    heardAt = performance.now();
    setState('waiting', '');
    at('events').replaceChildren();
    for (const plot of Object.values(plots)) plot.clear();
    at('senses').hidden = !message.senses;
    if (message.senses && !navigator.mediaDevices) {
      at('senses-start').disabled = true;
      at('senses-state').textContent = WORDS.noMedia;
    }
    describeParameters(message.parameters);
  },
  clock(message) {
    send({ type: 'clock', server_ms: message.server_ms, page_ms: performance.now() });
    if (performance.now() - heardAt < SILENT_MS) return;
    setState('silent', '');
    notice(WORDS.silentModel);
  },
  status(message) {
    heardAt = performance.now();
    setState(message.state, message.state === 'loading' ? ` ${fixed(100 * message.progress)} %` : '');
    const problem = [message.reason, message.remedy, message.stale, message.clocks].filter(Boolean).join(' ');
    notice(problem);
    at('model').textContent = message.model;
    strip.setWindow(message);
    at('window-facts').textContent = `${message.units} ${WORDS.seconds}, ${message.positions} of ${message.context_size} ${WORDS.positions}`;
    if (message.units_read !== plots.prefill.read) {
      plots.prefill.read = message.units_read;
      plots.prefill.add(message.prefill_ms);
    }
    plots.memory.add(message.memory_mib);
    at('counts').textContent = `${message.units_read} seconds read, ${message.units_dropped} dropped, `
      + `${message.late} late, ${message.refused} refused, ${message.evicted} evicted; `
      + `${message.waiting} questions wait, ${message.questions_dropped} dropped`;
  },
  seen(message) {
    strip.note(message.second, { seen: message });
    if (message.status === 'ok') plots.image.add(message.preprocess_ms + message.encode_ms);
    const size = `${message.source_width} × ${message.source_height}`;
    const part = message.area && message.area < 0.995 ? `, ${WORDS.overview} ${fixed(100 * message.area)} %` : '';
    const tiles = part + (message.tiles_wide ? `, ${message.tiles_wide} × ${message.tiles_high} ${WORDS.tiles}` : '');
    const what = message.status === 'ok' ? `${size}${tiles}${message.reused ? `, ${WORDS.reused}` : ''}` : WORDS.inputs[message.status];
    at('image-facts').textContent = `${clockTime(message.second)} · ${what}`;
    drawTiles(message);
  },
  heard(message) {
    strip.note(message.second, { heard: message });
    if (message.status === 'ok') plots.audio.add(message.preprocess_ms + message.encode_ms);
    const isHeard = message.status === 'ok', isSilent = message.level_dbfs === null;
    at('level').value = isHeard && !isSilent ? message.level_dbfs : -60;
    const level = isSilent ? WORDS.silent : `${fixed(message.level_dbfs)} dBFS`;
    at('level-value').textContent = isHeard ? level : WORDS.inputs[message.status];
  },
  delta(message) { answers.piece(message); },
  answered(message) { answers.answered(message); },
  answer(message) { setTimeout(() => answers.heard(message), asked ? 500 : 0); }, // our own may come first
  alert(message) {
    at('standing').hidden = false;
    const text = `${clockTime(message.at)} ${message.rule}: ${message.kind} ${message.text} ${message.reason}`;
    at('events').prepend(element('li', '', text));
    while (at('events').children.length > KEPT_EVENTS) at('events').lastChild.remove();
  },
  alert_states(message) { showRules(message.alerts); },
  speech(message) {
    at('speech').hidden = false;
    const why = message.reason ? `: ${message.reason}` : '';
    at('speech').textContent = `${clockTime(message.start)} ${WORDS.speech} ${message.kind}${why}`;
  },
  senses(message) { endSenses(message.reason); },
  parameters(message) {
    Object.assign(values, message.values);
    for (const [name, value] of Object.entries(message.values)) {
      const input = at(`parameter-${name}`);
      if (!input || input === document.activeElement) continue;
      if (input.type === 'checkbox') input.checked = value; else input.value = value;
    }
  },
  refused(message) {
    if (answers.open.has(message.number)) return answers.fail(message.number, message.reason);
    // For as long as it takes to read.
    notice(message.reason, 'refused');
    clearTimeout(refusal);
    refusal = setTimeout(() => notice('', 'refused'), READ_MS);
  },
};

function take(message) {
  if (handlers[message.type]) handlers[message.type](message);
}

function takeBinary(buffer) {
  const view = new DataView(buffer);
  if (view.getUint8(0) !== IMAGE) return;
  const second = view.getFloat64(1, true);
  const url = URL.createObjectURL(new Blob([new Uint8Array(buffer, 9)], { type: 'image/jpeg' }));
  strip.note(second, { url });
  at('image').src = url;
  at('image').alt = `${WORDS.image}, ${clockTime(second)}`;
  at('image').hidden = false;
  at('no-image').hidden = true;
}

/** Draw the grid of tiles over the image. */
function drawTiles(message) {
  const { source_width: w, source_height: h, tiles_wide: across, tiles_high: down } = message;
  at('area').toggleAttribute('hidden', !across);
  if (!across) return;
  at('area').setAttribute('viewBox', `0 0 ${w} ${h}`);
  const lines = [];
  for (let i = 1; i < across; i += 1) lines.push(`M${(w * i) / across} 0V${h}`);
  for (let i = 1; i < down; i += 1) lines.push(`M0 ${(h * i) / down}H${w}`);
  at('tiles').setAttribute('d', lines.join(''));
}

/** Rows stay as long as the rules are the same: a button keeps the focus of the keyboard. */
function showRules(rules) {
  at('standing').hidden = !rules.length;
  const rows = at('rules').children, names = (all) => JSON.stringify(all);
  if (names([...rows].map((row) => row.dataset.rule)) !== names(rules.map((rule) => rule.rule))) {
    at('rules').replaceChildren(...rules.map(makeRow));
  }
  rules.forEach((rule, i) => {
    const [, state, button, bar, problem] = rows[i].children;
    rows[i].dataset.paused = rule.paused;
    state.className = rule.state;
    state.textContent = rule.paused ? WORDS.paused : rule.answer || WORDS.alerts[rule.state];
    write(button, rule.paused ? WORDS.goOn : WORDS.pause);
    button.setAttribute('aria-label', `${button.textContent}: ${rule.rule}`);
    bar.firstChild.style.width = `${100 * (rule.probability || 0)}%`;
    problem.textContent = rule.problem;
  });
}

function makeRow(rule) {
  const row = element('li'), button = element('button', 'plain'), bar = element('div', 'bar');
  row.dataset.rule = rule.rule;
  button.type = 'button';
  button.addEventListener('click', () => send({ type: 'pause', rule: rule.rule, paused: row.dataset.paused !== 'true' }));
  bar.append(element('i'));
  row.append(element('span', '', rule.rule), element('span'), button, bar, element('span', 'problem quiet'));
  return row;
}

function describeParameters(rows) {
  if (described === JSON.stringify(rows)) return; // what is being typed stays
  described = JSON.stringify(rows);
  at('parameters').replaceChildren(...rows.map((row) => {
    const box = element('div', 'parameter'), label = element('label', '', row.name);
    label.htmlFor = `parameter-${row.name}`;
    const input = element(row.choices.length ? 'select' : 'input');
    input.id = label.htmlFor;
    if (row.choices.length) input.append(...row.choices.map((choice) => new Option(choice)));
    else if (row.kind === 'bool') input.type = 'checkbox';
    else if (row.kind !== 'str') {
      Object.assign(input, { type: 'number', min: row.minimum, max: row.maximum, step: row.kind === 'int' ? 1 : 'any' });
    }
    input.addEventListener('change', () => {
      if (input.type === 'number' && input.value === '') { // emptied, which is no number
        input.value = values[row.name] ?? '';
        return;
      }
      const value = { bool: input.checked, str: input.value }[row.kind] ?? Number(input.value);
      send({ type: 'set', node: row.node, name: row.name, value });
    });
    box.append(label, input, element('span', 'quiet', row.what + (row.unit ? ` [${row.unit}]` : '')));
    return box;
  }));
}

at('ask').addEventListener('submit', (event) => {
  event.preventDefault();
  const question = at('question').value.trim();
  const choices = at('choices').value.split(',').map((choice) => choice.trim()).filter(Boolean);
  answers.ask(question, choices, at('remember').checked);
  history.unshift(question);
  history.splice(HISTORY);
  asked += 1;
  at('question').value = '';
});

let recalled = -1, typed = ''; // what was typed stands below the newest question
at('question').addEventListener('keydown', (event) => {
  const step = { ArrowUp: 1, ArrowDown: -1 }[event.key];
  if (event.isComposing) return; // the arrows choose among characters
  if (!step) { recalled = -1; return; }
  event.preventDefault();
  if (recalled < 0) typed = at('question').value;
  recalled = Math.max(-1, Math.min(history.length - 1, recalled + step));
  at('question').value = recalled < 0 ? typed : history[recalled];
});

function showSenses(areRunning, text) {
  at('senses-stop').hidden = !areRunning;
  at('senses-start').hidden = areRunning;
  write(at('senses-state'), text);
}

function endSenses(text) {
  media.stop();
  showSenses(false, text);
}

at('senses-start').addEventListener('click', async () => {
  at('senses-start').disabled = true;
  try {
    if (await media.start()) showSenses(true, WORDS.running);
  } catch (error) {
    endSenses(WORDS.media[error.name] || `${error.name}: ${error.message}`);
  }
  at('senses-start').disabled = false;
});
at('senses-stop').addEventListener('click', () => endSenses(WORDS.stopped));

if (token) connect(); else notice(WORDS.noToken);
