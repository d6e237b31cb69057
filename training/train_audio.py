# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Teaches the audio encoder to say, in the sound frame of the code book, what a second holds.

Seconds stand in streams of several, at any place of the encoder's 30 s of positions, mostly with
the streaming front end (features and convolutions run on over the edges of seconds), at times
with the official one (every second by itself), and with the clamp of a louder past.
"""

import numpy as np
import torch
import torch.nn.functional as F

from . import codes
from .rooms import P_PLAIN, somewhere
from .runs import Run, autocast, optimizers
from .sounds import make_stream
from .train_vision import choice_loss, slot_logits
from .world import BEGUN, P_ACROSS, SPOKEN, Sound, choose, is_begun, random_sound

# (until this share of the steps, lengths of streams in seconds, how often). An encoder that never
# heard a long stream hears words worse the more it remembers: trained on up to 8 s, 94 of 100 in
# the first seconds, 73 in the last of 30.
CURRICULUM = (
    (0.67, (1, 2, 4, 8, 16, 30), (0.1, 0.2, 0.2, 0.15, 0.15, 0.2)),
    (1.01, (2, 4, 8, 16, 30), (0.1, 0.1, 0.15, 0.25, 0.4)),
)

# Of seconds with a word that lack a part; of its 80 bands and 100 frames at most.
P_HIDDEN, WIDEST_HIDDEN, LONGEST_HIDDEN = 0.5, 14, 7


def random_events(seconds, rng, p_across=P_ACROSS):
    """A Sound a second, mostly words, some of which lie across the edge of two seconds."""
    made = []
    for i in range(seconds):
        is_word = rng.random() < 0.62
        new = Sound('speech', choose(rng, SPOKEN)) if is_word else random_sound(rng, p_speech=0.0)
        has_room = i and not (i > 1 and is_begun(made[i - 2]))
        if is_word and has_room and rng.random() < p_across:
            made[i - 1] = BEGUN
        made.append(new)
    return made


def make_batch(seconds, streams, words, rng, p_plain=P_PLAIN, p_across=P_ACROSS):
    """-> pcm (streams, seconds * 16000), list of streams * seconds Sounds; p_plain: share of the
    streams that are in no room, p_across: of the words that lie across the edge of two seconds.
    """
    made = [make_stream(random_events(seconds, rng, p_across), words, rng) for _ in range(streams)]
    pcm = somewhere(np.stack([pcm for pcm, _ in made]), rng, p_plain)
    pcm += np.stack([random_offset(rng) for _ in range(streams)])[:, None]
    return torch.from_numpy(pcm), [sound for _, sounds in made for sound in sounds]


def random_offset(rng):
    """A constant that cheap microphones add: -80 to -40 dBFS, or nothing. An encoder that never
    heard one loses its rows (cosine 0.45) to one of -50.
    """
    if rng.random() < 0.5:
        return np.float32(0)
    return np.float32(choose(rng, (-1, 1)) * 10 ** rng.uniform(-4, -2))


def slot_labels(sounds):
    """slot -> (n,) index into its pool, -100 where it has no value."""
    values = {
        slot: [getattr(sound, slot) for sound in sounds]
        for slot in ('word', 'kind', 'voice', 'pitch')
    }
    return {
        slot: torch.tensor([codes.POOLS[slot].index(v) if v else -100 for v in column])
        for slot, column in values.items()
    }


def hide_parts(mel, sounds, rng):
    """Return features (b, 80, frames) where half of the seconds with a word lack a band of
    frequencies and a moment (their mean stands there), so that no single part of a word tells it.
    """
    seconds = mel.transpose(0, 1).reshape(80, len(sounds), 100).clone()  # (80, seconds, 100)
    for i, sound in enumerate(sounds):
        if sound.word and rng.random() < P_HIDDEN:
            one = seconds[:, i]
            wide, long = (
                int(rng.integers(1, most + 1)) for most in (WIDEST_HIDDEN, LONGEST_HIDDEN)
            )
            low, begin = int(rng.integers(0, 81 - wide)), int(rng.integers(0, 101 - long))
            mean = one.mean()
            one[low : low + wide] = mean
            one[:, begin : begin + long] = mean
    return seconds.reshape(80, *mel.shape[::2]).transpose(0, 1)


def loss_of(audio, pcm, sounds, rng):
    seconds = pcm.shape[1] // 16000
    first = int(rng.integers(0, 30 - seconds + 1)) if rng.random() < 0.7 else 0
    louder = float(rng.uniform(0, 1.2)) if rng.random() < 0.4 else 0.0
    with autocast():
        isolated = bool(rng.random() < 0.2)
        rows = audio(pcm, first, isolated, louder, lambda mel: hide_parts(mel, sounds, rng))
    rows = rows.flatten(0, 1).float()  # (seconds of all streams, 25, 256)
    targets = torch.from_numpy(np.stack([codes.sound_rows(s) for s in sounds]))
    labels = slot_labels(sounds)
    return (
        30 * F.mse_loss(rows, targets)
        + choice_loss(rows, codes.SOUND_SLOTS, codes.SOUND, labels)
        + choice_loss(rows, codes.SOUND_SLOTS, codes.SOUND, {'word': labels['word']})
    )


@torch.no_grad()
def evaluate(audio, words, batches=8, seed=998, isolated=False, **how):
    """slot -> share of seconds whose value is told right; `how`: as make_batch takes it."""
    rng, right, seen = np.random.default_rng(seed), {}, {}
    for _ in range(batches):
        pcm, sounds = make_batch(8, 8, words, rng, **how)
        rows = audio(pcm, isolated=isolated).flatten(0, 1).float()
        for slot, label in slot_labels(sounds).items():
            told = slot_logits(rows, codes.SOUND_SLOTS, slot, codes.SOUND).argmax(-1)
            right[slot] = right.get(slot, 0) + (told == label)[label >= 0].sum().item()
            seen[slot] = seen.get(slot, 0) + (label >= 0).sum().item()
    return {slot: right[slot] / seen[slot] for slot in right}


def train(audio, words, others, run: Run, steps=2200, batch=40, peak=2.5e-3):
    """Train in place on `batch` seconds a step; resumes from the run's checkpoint. `others`: Words
    by name that are only listened to.
    """
    optimizer = optimizers(audio, peak, [audio.inside, audio.second])
    for step in run.steps(audio, optimizer, steps, peak):
        rng = np.random.default_rng((run.seed, 2, step))
        _, lengths, weights = next(row for row in CURRICULUM if run.fraction < row[0])
        seconds = choose(rng, lengths, weights)
        pcm, sounds = make_batch(seconds, batch // seconds, words, rng)
        run.update(loss_of(audio, pcm, sounds, rng), audio, optimizer)
        if run.due(step, 400):
            run.report(
                step,
                {
                    'seen': evaluate(audio, words),
                    **{name: evaluate(audio, other) for name, other in others.items()},
                },
            )
