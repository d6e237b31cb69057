# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The code book: what an embedding should say, and in which corner of the 256 dimensions.

Every content word owns one orthonormal direction in each of three frames: text, picture, sound.
Token embeddings start on the text frame, and the encoders are taught to answer in the picture and
the sound frame. So 'find the second in which this word is heard' and 'say the color that is seen'
are one linear map each, for all words at once, and the language model finds them from few
examples; from unaligned embeddings it must learn every word by itself. A fourth frame holds
flags: which slot a row is.
"""

import numpy as np

from .tokenizer import content_words
from .world import (
    COLORS,
    COLUMNS,
    COMMANDS,
    COUNTS,
    KINDS,
    PITCHES,
    QUESTION_WORDS,
    ROWS,
    SHAPES,
    SPOKEN,
    VOICES,
)

WIDTH = 256
FRAME = WIDTH // 4
TEXT, PICTURE, SOUND, FLAG = range(4)
NORM = 1.5  # length of a word's code in an embedding
FLAG_NORM = 0.75
WORDS = content_words()
FLAGS = (
    'cell',
    'color',
    'shape',
    'count',
    'column',
    'row',
    'word',
    'kind',
    'voice',
    'pitch',
    'number',
    'command',
    'picture',
    'sound',
    'spaced',
)
# Slot of each picture row (16) and each audio row (25).
PICTURE_SLOTS = ('cell',) * 9 + ('color', 'shape', 'count', 'column', 'row', 'color', 'shape')
SOUND_SLOTS = ('word',) * 10 + ('kind',) * 8 + ('voice',) * 4 + ('pitch',) * 3
POOLS = {
    'color': COLORS,
    'shape': SHAPES,
    'count': COUNTS,
    'column': COLUMNS,
    'row': ROWS,
    'word': SPOKEN,
    'kind': KINDS,
    'voice': VOICES,
    'pitch': PITCHES,
}
assert len(WORDS) <= FRAME and len(FLAGS) <= FRAME


def _basis():
    """(256, 256) orthonormal rows; row 64 f + i is word (or flag) i in frame f."""
    basis, _ = np.linalg.qr(np.random.default_rng(2026).normal(size=(WIDTH, WIDTH)))
    return basis.T.astype(np.float32)


BASIS = _basis()


def code(word, frame):
    """(256,) unit direction of a content word in a frame."""
    return BASIS[FRAME * frame + WORDS.index(word)]


def flag(name):
    return BASIS[FRAME * FLAG + FLAGS.index(name)]


def pool_codes(slot, frame):
    """(len(pool), 256) unit directions of all values of a slot."""
    return np.stack([code(word, frame) for word in POOLS[slot]])


def picture_rows(picture, cells):
    """(16, 256): what the vision encoder should say about one frame. `picture` None: only the
    cells.

    A slot that has no value (the column of three shapes) carries its flag alone.
    """
    rows = np.stack([FLAG_NORM * (flag(slot) + flag('picture')) for slot in PICTURE_SLOTS])
    for i, cell in enumerate(cells):
        if cell is not None:
            rows[i] += NORM * np.sqrt(0.5) * (code(cell[0], PICTURE) + code(cell[1], PICTURE))
    count = COUNTS[picture.count - 1] if 0 < picture.count <= len(COUNTS) else None
    values = {
        'color': picture.color,
        'shape': picture.shape,
        'column': picture.column,
        'row': picture.row,
        'count': count,
    }
    for i, slot in enumerate(PICTURE_SLOTS):
        if values.get(slot):
            rows[i] += NORM * code(values[slot], PICTURE)
    return rows


def sound_rows(sound):
    """(25, 256): what the audio encoder should say about one second."""
    values = {'word': sound.word, 'kind': sound.kind, 'voice': sound.voice, 'pitch': sound.pitch}
    rows = np.stack([FLAG_NORM * (flag(slot) + flag('sound')) for slot in SOUND_SLOTS])
    for i, slot in enumerate(SOUND_SLOTS):
        if values[slot]:
            rows[i] += NORM * code(values[slot], SOUND)
    return rows


def frame(number):
    """(64, 256) the directions of a frame."""
    return BASIS[FRAME * number : FRAME * (number + 1)]


def _category(word):
    groups = (
        ('color', COLORS),
        ('shape', SHAPES),
        ('kind', KINDS),
        ('voice', VOICES),
        ('pitch', PITCHES),
        ('column', COLUMNS),
        ('row', ROWS),
        ('command', COMMANDS + QUESTION_WORDS),
    )
    return next((name for name, words in groups if word in words), 'number')


def token_embeddings(tokenizer, seed=3):
    """(vocabulary, 256) to start from: content words on their codes, the rest at random."""
    rng = np.random.default_rng(seed)
    table = rng.normal(0, NORM / np.sqrt(WIDTH), (len(tokenizer.pieces), WIDTH))
    for word in WORDS:
        for text in (word, ' ' + word):
            (token,) = tokenizer.encode(text)
            own = 0.25 * table[token] + 0.9 * NORM * code(word, TEXT)
            own += 0.3 * NORM * flag(_category(word))
            table[token] = own + (0.3 * NORM * flag('spaced') if text[0] == ' ' else 0)
    return table.astype(np.float32)
