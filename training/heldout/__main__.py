# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Makes held-out clips and questions: python -m training.heldout build/heldout

Writes one MCAP bag a clip and one question of every family about each, twice: questions.json with
open answers, choices.json with four options and answers held to them. Needs espeak-ng beside
environment/requirements.txt.

    python -m training.heldout demo/clips --clips 24 --seed 24

makes the clips that ship; the default makes 1,800 questions of each sort. `--families verify` asks
for yes and no where much is hidden or faint, `--families command` ends each clip with a spoken
question word and asks nothing in words; with `--across` that word begins in the second before.
"""

import argparse
import shutil
from pathlib import Path

from training.heldout.clips import make_set
from training.questions import FAMILIES, TEXT_FAMILIES


def main():
    """Read the arguments, write the files."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('folder', type=Path)
    parser.add_argument('--clips', type=int, default=300)
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--families', nargs='+', choices=FAMILIES, default=TEXT_FAMILIES)
    parser.add_argument('--across', action='store_true', help='for commands: see above')
    options = parser.parse_args()
    if options.across and options.families != ['command']:
        parser.error('--across is for --families command')
    if shutil.which('espeak-ng') is None:
        parser.error('espeak-ng is missing: sudo apt install espeak-ng')
    families = tuple(options.families)
    make_set(options.folder, options.clips, options.seed, families, across=options.across)


if __name__ == '__main__':
    main()
