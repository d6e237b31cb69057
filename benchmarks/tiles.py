# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What each tiling rule makes of real image sizes, and what tiles cost together and one by one.

    make vision                                  # python -m benchmarks.tiles
    python -m benchmarks.tiles --layers 27       # the whole encoder; an hour on two cores

tiles_by_rule  mean tiles of an image, over benchmarks/image_sizes.csv: width, height, count of 318
               images of COCO (train and val 2017), whose public annotations have their sizes
batch_ratio    nine tiles in the best batch over nine tiles one by one: the encoder at its true
               width, f16, one thread, CPU time

The rules of others are counted in squares of 384 pixels, as their papers have it, with at most
nine tiles; MiniCPM's in its 448. The encoder has random weights, and only a few of its 27 layers,
which are all alike. Adds its figures to build/vision.json, beside what else is there.
"""

import argparse
import csv
import json
import time
from pathlib import Path
from statistics import median

from minicpmo_ros.process import prepare

prepare()

import numpy as np  # noqa: E402

from minicpmo_ros.config import TILE_RULES  # noqa: E402
from minicpmo_ros.media.image.tiling import TileRule, choose_grid  # noqa: E402

OUT = Path('build/vision.json')
SIZES = Path(__file__).parent / 'image_sizes.csv'
MAX_TILES = 9
SIDE = {'minicpm': 448}  # of the others: 384
ALPHAS = (0.05, 0.1, 0.2, 0.3)
CAMERAS = (
    (320, 240),
    (640, 480),
    (848, 480),
    (1280, 720),
    (1280, 960),
    (1920, 1080),
    (2560, 720),  # a stereo pair
)
BATCHES = (1, 2, 4, 6, 9)


def read_sizes(path: Path = SIZES) -> list:
    """Return [(width, height, count)]."""
    with open(path, encoding='ascii', newline='') as file:
        return [tuple(map(int, row.values())) for row in csv.DictReader(file)]


def tiles_of(size: tuple, rule: TileRule, max_tiles: int = MAX_TILES) -> int:
    """Return how many tiles an image has beside its overview; MiniCPM has none where one would do.

    The others look at one tile twice, as the overview and as a tile, unless that is left out.
    """
    columns, rows = choose_grid(*size, max_tiles, SIDE.get(rule.name, 384), rule)
    return 0 if columns * rows == 1 and rule.name == 'minicpm' else columns * rows


def by_rule(sizes: list) -> dict:
    """Return, for each rule, means over images: tiles, images encoded, megapixels, enlargement."""
    found, total = {}, sum(count for *_, count in sizes)
    for name in TILE_RULES:
        side, sums = SIDE.get(name, 384), np.zeros(4)
        for width, height, count in sizes:
            tiles = tiles_of((width, height), TileRule(name))
            images = 1 + (tiles if tiles > 1 else 0)
            shown = max(tiles, 1) * side * side
            row = tiles, images, images * side * side / 1e6, shown / (width * height)
            sums += count * np.array(row)
        found[name] = [float(value) for value in sums / total]
    return found


def by_alpha(sizes: list) -> dict:
    """Return the mean tiles of the relaxed rule for each alpha."""
    total = sum(count for *_, count in sizes)
    return {
        alpha: sum(count * tiles_of(size, TileRule('relaxed', alpha)) for *size, count in sizes)
        / total
        for alpha in ALPHAS
    }


def relaxed_against(other: str, sizes: list) -> tuple:
    """Return for which share of images the relaxed rule has fewer tiles, and for which more."""
    total = sum(count for *_, count in sizes)
    fewer = more = 0
    for *size, count in sizes:
        difference = tiles_of(size, TileRule('relaxed')) - tiles_of(size, TileRule(other))
        fewer, more = fewer + count * (difference < 0), more + count * (difference > 0)
    return fewer / total, more / total


def by_camera() -> list:
    """Return a row for each size of a camera: tiles by rule, and of the relaxed rule up to 16."""
    return [
        (
            f'{width}x{height}',
            *(tiles_of((width, height), TileRule(name)) for name in TILE_RULES),
            tiles_of((width, height), TileRule('relaxed'), 16),
        )
        for width, height in CAMERAS
    ]


def table(head: tuple, rows: list) -> str:
    """Return a Markdown table."""
    lines = [head, ('---', *('---:' for _ in head[1:])), *rows]
    texts = [
        [f'{cell:.3g}' if isinstance(cell, float) else str(cell) for cell in line]
        for line in lines
    ]
    return '\n'.join(f'| {" | ".join(line)} |' for line in texts) + '\n'


def show_rules(sizes: list) -> dict:
    """Print the tables of the rules; return the figure."""
    rules = by_rule(sizes)
    head = ('rule', 'tiles', 'images encoded', 'megapixels encoded', 'enlargement')
    print(table(head, [(name, *row) for name, row in rules.items()]))
    print(table(('alpha of relaxed', *ALPHAS), [('tiles', *by_alpha(sizes).values())]))
    rows = [(name, *relaxed_against(name, sizes)) for name in ('llava_next', 'internvl')]
    print(table(('relaxed against', 'fewer tiles', 'more tiles'), rows))
    print(table(('camera', *TILE_RULES, 'relaxed of 16'), by_camera()))
    return {'tiles_by_rule': {name: round(row[0], 3) for name, row in rules.items()}}


def time_batches(encode, tiles: list, repeats: int) -> dict:
    """Return {batch: CPU seconds of all tiles}, the median of runs that are taken by turns."""
    times = {batch: [] for batch in BATCHES}
    for _ in range(repeats):
        for batch, seen in times.items():
            begun_s = time.process_time()
            for first in range(0, len(tiles), batch):
                encode(tiles[first : first + batch])
            seen.append(time.process_time() - begun_s)
    return {batch: median(seen) for batch, seen in times.items()}


def show_batches(layers: int, repeats: int) -> dict:
    """Print what nine tiles cost in each batch; return the figures."""
    from contextlib import closing
    from dataclasses import replace
    from tempfile import TemporaryDirectory

    from minicpmo_ros.encoders.siglip.encoder import VisionEncoder
    from minicpmo_ros.ggml.runtime import Backend
    from minicpmo_ros.modelset.gguf_layouts import SHAPES
    from minicpmo_ros.synthetic.model import write_vision

    shape = replace(SHAPES['2.6'], vision_layers=layers)
    rng = np.random.default_rng(1)
    tiles = list(rng.integers(0, 256, (MAX_TILES, 448, 448, 3), dtype=np.uint8))
    with TemporaryDirectory() as folder, closing(Backend('cpu', threads=1)) as backend:
        path = Path(folder) / 'vision.gguf'
        write_vision(path, shape)
        encoder = VisionEncoder.load(path, backend, max_tiles=MAX_TILES)
        encoder.encode(tiles[:1])
        times = time_batches(encoder.encode, tiles, repeats)
    ratios = {batch: seconds / times[1] for batch, seconds in times.items()}
    print(table(('tiles at once', *BATCHES), [('CPU time over one by one', *ratios.values())]))
    return {'batch_ratio': round(min(ratios[batch] for batch in BATCHES[1:]), 3)}


def add_to(path: Path, figures: dict) -> None:
    """Write figures into a JSON file, beside what else is there."""
    known = json.loads(path.read_text()) if path.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**known, **figures}, indent=1) + '\n')


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--layers', type=int, default=1, help='of the 27 of the encoder')
    parser.add_argument('--repeats', type=int, default=1)
    parser.add_argument('--only', choices=('rules', 'batches'))
    given = parser.parse_args()
    figures = {}
    if given.only != 'batches':
        figures |= show_rules(read_sizes())
    if given.only != 'rules':
        figures |= show_batches(given.layers, given.repeats)
    add_to(OUT, figures)
    print(json.dumps(figures))
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
