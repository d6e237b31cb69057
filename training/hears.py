# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""How many words the audio encoder of a nano tells by itself: python -m training.hears models/nano

A line for each synthesiser, for voices of espeak-ng that were not in training, and for a
synthesiser of which no training hears a word: percent of words that lie wholly inside their
second, clean and in rooms, and of words of which most lie across the edge of two seconds.
"""

import argparse
from pathlib import Path

import torch

from .model import Audio, Config
from .start import start_audio
from .train_audio import evaluate
from .voices import MAKERS, UNTRAINED, Words

BATCHES, SEED = 16, 31
ACROSS = 0.6  # as many as there can be, as each needs the second before it
WAYS = {
    'clean': {'p_plain': 1.0, 'p_across': 0.0},
    'in rooms': {'p_plain': 0.0, 'p_across': 0.0},
    'clean, across edges': {'p_plain': 1.0, 'p_across': ACROSS},
    'in rooms, across edges': {'p_plain': 0.0, 'p_across': ACROSS},
}


def shares(audio, words) -> list:
    """Return the percentage of words told right, for each of WAYS."""
    found = (evaluate(audio, words, BATCHES, SEED, **how) for how in WAYS.values())
    return [100 * each['word'] for each in found]


def main():
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('directory', type=Path)
    parser.add_argument('--words', type=Path, default=Path('build/words'), help='spoken words')
    options = parser.parse_args()
    torch.set_num_threads(1)
    audio = Audio(Config())
    start_audio(audio, options.directory)
    voices = {maker: Words(options.words, makers=(maker,)) for maker in MAKERS}
    voices['espeak, not in training'] = Words(options.words, unseen=True)
    voices[f'{UNTRAINED}, not in training'] = Words(options.words, makers=(UNTRAINED,))
    print(f'| voices | {" | ".join(WAYS)} |\n|---|{"---:|" * len(WAYS)}')
    for name, words in voices.items():
        print(
            f'| {name} | {" | ".join(f"{share:.1f}" for share in shares(audio.eval(), words))} |'
        )


if __name__ == '__main__':
    main()
