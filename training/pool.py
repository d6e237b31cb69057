# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A store of encoded seconds from which clips are put together: new clips cost almost nothing.

Pictures and sounds are encoded once, in float16 (as the live graph rounds them), with what they
show; a clip draws for each of its seconds a stored picture and a stored sound that fit the
script. Sounds are encoded in streams of 16 seconds, so that each carries the little that a past
leaves in it.
"""

from collections import defaultdict

import numpy as np
import torch

from . import codes
from .questions import Clip
from .rooms import somewhere
from .runs import autocast
from .scenes import draw, random_size
from .sounds import make_stream
from .train_audio import random_events
from .world import asked_aloud, choose, is_begun, random_picture, random_sound, script

STREAM_SECONDS = 16


class Pool:
    """picture_rows (n, 16, 256) and sound_rows (m, 25, 256) float16, with their Picture and
    Sound.
    """

    def __init__(self, picture_rows, pictures, sound_rows, sounds):
        self.picture_rows, self.pictures = picture_rows, pictures
        self.sound_rows, self.sounds = sound_rows, sounds
        self.picture_at, self.sound_at = defaultdict(list), defaultdict(list)
        self.across_at = defaultdict(list)  # words that began in the second before, by word
        for i, p in enumerate(pictures):
            self.picture_at[p.shape, p.color, p.count].append(i)
        for i, s in enumerate(sounds):
            self.sound_at[s.kind, s.word, s.pitch].append(i)
            if i and is_begun(sounds[i - 1]):
                self.across_at[s.word].append(i)

    def clip(self, seconds, rng, p_independent, still=None, aloud=False):
        """-> Clip, picture indices, sound indices; `aloud`: it ends as asked_aloud says."""
        pictures, sounds, independent = script(seconds, rng, p_independent, still)
        sounds = asked_aloud(sounds, rng) if aloud else sounds
        p = [choose(rng, self.picture_at[w.shape, w.color, w.count]) for w in pictures]
        for i, stays in enumerate(still or ()):
            if stays:
                p[i] = p[i - 1]
        s = [choose(rng, self.sound_at[w.kind, w.word, w.pitch]) for w in sounds]
        for i, begun in enumerate(map(is_begun, sounds)):
            if begun:
                s[i + 1] = choose(rng, self.across_at[sounds[i + 1].word])
                s[i] = s[i + 1] - 1
        shown, heard = tuple(self.pictures[i] for i in p), tuple(self.sounds[i] for i in s)
        return Clip(shown, heard, independent), p, s

    def clips(self, number, seconds, rng, p_independent=0.78, still=None, aloud=False):
        """-> Clips, pictures (b, seconds, 16, 256), sounds (b, seconds, 25, 256)"""
        clips, p, s = zip(
            *(self.clip(seconds, rng, p_independent, still, aloud) for _ in range(number))
        )
        return clips, self.picture_rows[torch.tensor(p)], self.sound_rows[torch.tensor(s)]

    def save(self, path):
        torch.save(
            {
                'picture_rows': self.picture_rows,
                'sound_rows': self.sound_rows,
                'pictures': [tuple(vars(p).values()) for p in self.pictures],
                'sounds': [tuple(vars(s).values()) for s in self.sounds],
            },
            path,
        )

    @classmethod
    def load(cls, path):
        state = torch.load(path, weights_only=True)
        from .world import Picture, Sound

        return cls(
            state['picture_rows'],
            [Picture(*p) for p in state['pictures']],
            state['sound_rows'],
            [Sound(*s) for s in state['sounds']],
        )


def ideal(rng, number=24000):
    """A pool as perfect encoders would fill it; for trying the language model without them."""
    drawn = [draw(random_picture(rng), 112, 112, rng) for _ in range(number // 2)]
    sounds = [random_sound(rng) for _ in range(number)]
    pictures = np.stack([codes.picture_rows(d.picture, d.cells) for d in drawn])
    rows = np.stack([codes.sound_rows(s) for s in sounds])
    return Pool(
        torch.from_numpy(pictures).half(),
        [d.picture for d in drawn],
        torch.from_numpy(rows).half(),
        sounds,
    )


@torch.no_grad()
def encode(vision, audio, words, rng, pictures=16000, seconds=16000, progress=print):
    """Draw and encode; `words` decides whose voices are heard."""
    seen, shown = [], []
    for i in range(0, pictures, 64):
        size = random_size(rng)
        drawn = [draw(random_picture(rng), *size, rng) for _ in range(64)]
        with autocast():
            seen.append(vision(torch.from_numpy(np.stack([d.frame for d in drawn]))).half())
        shown += [d.picture for d in drawn]
        if i % 6400 == 0:
            progress(f'pool: {i} of {pictures} pictures')
    heard, made = [], []
    for i in range(0, seconds, STREAM_SECONDS * 4):
        streams = [make_stream(random_events(STREAM_SECONDS, rng), words, rng) for _ in range(4)]
        stream = torch.from_numpy(somewhere(np.stack([pcm for pcm, _ in streams]), rng))
        with autocast():
            rows = audio(stream, int(rng.integers(0, 15)), louder=float(rng.uniform(0, 0.5)))
        heard.append(rows.flatten(0, 1).half())
        made += [sound for _, sounds in streams for sound in sounds]
        if i % 6400 == 0:
            progress(f'pool: {i} of {seconds} seconds of sound')
    return Pool(torch.cat(seen), shown, torch.cat(heard), made)
