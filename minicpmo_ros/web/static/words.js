// Copyright 2026 the minicpmo_ros authors
// SPDX-License-Identifier: Apache-2.0

/** All texts that the page writes by itself, in one place. */

export const WORDS = {
  states: {
    unloaded: 'No model', loading: 'Loading', ready: 'Ready', failed: 'Failed', away: 'Not connected',
  },
  inputs: { ok: '', empty: 'nothing came', lost: 'could not be used', overloaded: 'no time for it' },
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
  noMedia: 'A browser gives camera and microphone only to https, or to this machine (ssh -L).',
  plots: {
    image: 'image', audio: 'sound', prefill: 'reading into the window', memory: 'memory',
  },
  running: 'Your camera and microphone are the robot’s.', stopped: 'Stopped.',
};

export const clockTime = (seconds) => new Date(seconds * 1000).toLocaleTimeString([], { hour12: false });

export const fixed = (value, digits = 0) => (value === null || value === undefined ? '–' : value.toFixed(digits));
