// Copyright 2026 the minicpmo_ros authors
// SPDX-License-Identifier: Apache-2.0

/** All texts that the page writes by itself, in one place. */

export const WORDS = {
  states: {
    unloaded: 'No model', loading: 'Loading', ready: 'Ready', failed: 'Failed', away: 'Not connected',
    waiting: 'Waiting for llm', silent: 'llm is silent',
  },
  inputs: { ok: '', empty: 'nothing came', lost: 'could not be used', overloaded: 'no time for it', skipped: 'left out, to save time' },
  places: {
    kept: 'in the window', thinned: 'thinned out', gone: 'left the window', unread: 'not read yet',
    dropped: 'not read in time',
  },
  alerts: { unknown: 'not known', inactive: 'no', active: 'yes' },
  image: 'image', sound: 'sound', positions: 'positions', reused: 'as before, not encoded again',
  tiles: 'tiles', overview: 'overview at', silent: 'silence', waiting: 'waiting', cancel: 'Cancel', elsewhere: 'asked elsewhere',
  spoken: 'what was said', speech: 'speech', firstToken: 'first token', perSecond: 'tokens/s', seconds: 'seconds',
  likely: 'mean probability of a token', pause: 'Pause', goOn: 'Go on', paused: 'paused',
  lost: 'The connection is lost; trying again.', lostQuestion: 'The connection was lost before there was an answer; ask again.',
  notTaken: 'The node is there and did not take this page: as many as may be (max_pages) are open, or what is between passes no WebSocket. Trying again.',
  noToken: 'This address lacks its token. Open the one that the node has printed.',
  silentModel: 'Nothing has been heard of the node llm for 10 s: it has ended, hangs, or is in another namespace.',
  noMedia: 'A browser gives camera and microphone only to https, or to this machine (ssh -L).',
  plots: {
    image: 'image', audio: 'sound', prefill: 'reading into the window', memory: 'memory',
  },
  media: {
    NotAllowedError: 'Camera and microphone are not allowed to this page: allow both beside the address, and press again.',
    NotFoundError: 'This machine has no camera or no microphone; the page needs both.',
    NotReadableError: 'The camera or the microphone cannot be read: another program may have it.',
  },
  running: 'Your camera and microphone are the robot’s.', stopped: 'Stopped.',
  ended: 'Camera or microphone has ended: unplugged, or no longer allowed. Press again when it is there.',
};

export const clockTime = (seconds) => new Date(seconds * 1000).toLocaleTimeString([], { hourCycle: 'h23' });

export const fixed = (value, digits = 0) => (value === null || value === undefined ? '–' : value.toFixed(digits));
