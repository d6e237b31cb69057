# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The path of BlueLM-V-3B (arXiv 2411.10640) through this package, in its shape.

    python -m benchmarks.bluelm                  # the path: 2.5 GB of disk, minutes
    python -m benchmarks.bluelm --one-in 9       # with one in nine of the layers
    python -m benchmarks.bluelm --sweep          # how many rows at once, and the type of the keys

The path: an image of 768x1536 is cut by the relaxed rule into an overview and 2 x 4 tiles of 384,
which are encoded four at a time, and 2 x 2 patches are joined to one embedding; the 1764
embeddings are read, 128 rows at a time; the encoder's weights are released; a question is asked.
Weights are random (`minicpmo synthetic --shape bluelm-v-3b`): the vision encoder in f16, the
language model in q4_0, keys and values in q8_0.

Times are CPU time, as ratios within a run. The sweep reads the same rows into two layers of the
language model at its true width: they are all alike.
"""

import argparse
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from minicpmo_ros.process import prepare

prepare()

import numpy as np  # noqa: E402

from benchmarks.bench import BUILD, synthetic  # noqa: E402
from benchmarks.tiles import table  # noqa: E402
from minicpmo_ros.encoders.siglip.encoder import VisionEncoder  # noqa: E402
from minicpmo_ros.families.minicpm_o_2_6 import ENGLISH  # noqa: E402
from minicpmo_ros.ggml.runtime import Backend  # noqa: E402
from minicpmo_ros.live.question import Finish, Question  # noqa: E402
from minicpmo_ros.live.session import Session  # noqa: E402
from minicpmo_ros.live.session_options import SessionOptions  # noqa: E402
from minicpmo_ros.llm.context_options import ContextOptions  # noqa: E402
from minicpmo_ros.media.image.tiling import TileRule  # noqa: E402
from minicpmo_ros.modelset.directory import ModelDirectory  # noqa: E402
from minicpmo_ros.modelset.gguf_layouts import SHAPES  # noqa: E402
from minicpmo_ros.streams.image import ImagePipeline  # noqa: E402
from minicpmo_ros.streams.on_demand import VisionOnDemand  # noqa: E402
from minicpmo_ros.streams.pairing import Unit  # noqa: E402
from minicpmo_ros.synthetic.model import write_llm, write_model  # noqa: E402

SHAPE = SHAPES['bluelm-v-3b']
WIDTH, HEIGHT = 768, 1536
MAX_TILES, BATCH = 16, 4
TOKENS = 8  # of the answer
# What the paper reports of a phone (Dimensity 9300): seconds for the image, to read 2048 tokens,
# and for one token.
PAPER = {'image': 2.06, 'prefill': 2.7, 'token': 1 / 24.4}
ROWS_AT_ONCE = (32, 64, 128, 256, 512)


@dataclass
class Followed:
    """What happened on the path."""

    grid: tuple = (0, 0)
    runs: list = field(default_factory=list)  # tiles of each run of the encoder
    embeddings: int = 0
    positions: int = 0  # that the unit takes
    was_released: bool = False  # before the first token
    seconds: dict = field(default_factory=dict)  # CPU time of image, prefill, token


class Watched:
    """A VisionEncoder that notes how many tiles each run has."""

    def __init__(self, encoder: VisionEncoder, runs: list):
        self._encoder, self._runs = encoder, runs

    def __getattr__(self, name: str):
        """Be the encoder in all else."""
        return getattr(self._encoder, name)

    def encode(self, tiles, between=None) -> np.ndarray:
        """Encode."""
        self._runs.append(len(tiles))
        return self._encoder.encode(tiles, between)


def timed(work) -> tuple:
    """Return what a call returns, and its CPU seconds."""
    begun_s = time.process_time()
    result = work()
    return result, time.process_time() - begun_s


def follow(directory: Path, threads: int = 1, kv_type: str = 'q8_0') -> Followed:
    """Go the whole path with a model directory of this shape."""
    found, model = Followed(), ModelDirectory.open(directory)
    backend = Backend('cpu', threads=threads)

    def load(between) -> Watched:
        encoder = VisionEncoder.load(model.vision_path, backend, BATCH, between=between)
        return Watched(encoder, found.runs)

    vision = VisionOnDemand(load, release_after_s=1e-9)
    rule = TileRule('relaxed')
    pipeline = ImagePipeline(vision, MAX_TILES, unchanged_threshold=0, tile_rule=rule)
    context = ContextOptions(2560, 128, kv_type=kv_type, threads=threads)
    session = Session.load(model.llm_path, ENGLISH, None, context, SessionOptions(max_tokens=64))
    try:
        image = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        pipeline.offer(0, lambda: image)
        (seen,), found.seconds['image'] = timed(lambda: pipeline.close(0))
        found.grid = seen.tiles_wide, seen.tiles_high
        found.embeddings = len(seen.rows)
        unit = Unit(0, seen.rows, found.grid)
        report, found.seconds['prefill'] = timed(lambda: session.append(unit))
        found.positions = report.rows
        vision.release_when_idle()
        found.was_released = not vision.is_loaded
        answering = session.ask(Question('what is shown?'))
        while not answering.ids:
            answering.step()
        _, spent_s = timed(lambda: [answering.step() for _ in range(TOKENS)])
        found.seconds['token'] = spent_s / TOKENS
        answering.end(Finish.CANCELLED)
    finally:
        session.close()
        backend.close()
    return found


def shortened(one_in: int) -> Path:
    """Return a model of the true widths with a part of the layers, and few words for as little."""
    shape = replace(
        SHAPE,
        name=f'{SHAPE.name}-1-in-{one_in}',
        vision_layers=round(SHAPE.vision_layers / one_in),
        llm_layers=round(SHAPE.llm_layers / one_in),
        vocabulary=2048,
    )
    directory = BUILD / shape.name
    if not (directory / 'manifest.yaml').exists():
        write_model(directory, shape, 1, 'q4_0', 'f16', 'f16', hashes=False)
    return directory


def show_path(threads: int, one_in: int) -> None:
    """Follow the path, and print it beside the paper's."""
    whole = partial(synthetic, SHAPE.name, 'q4_0', 'f16', 'f16')
    found = follow(whole() if one_in == 1 else shortened(one_in), threads)
    columns, rows = found.grid
    print(f'{WIDTH}x{HEIGHT}: {columns} x {rows} tiles and an overview in runs of {found.runs}, '
          f'{found.embeddings} embeddings, {found.positions} positions; the encoder is '
          f'{"released" if found.was_released else "in memory"} before the answer\n')  # fmt: skip
    shown = []
    for name, seconds in (('BlueLM-V-3B, phone', PAPER), ('here', found.seconds)):
        ratios = [seconds[part] / seconds['image'] for part in ('prefill', 'token')]
        shown.append((name, 1, *ratios))
    print(table(('time over the image', 'image', 'prefill', 'a token'), shown))
    print({part: round(seconds, 2) for part, seconds in found.seconds.items()})


def show_sweep(threads: int, layers: int = 2) -> None:
    """Print what it takes to read the image's rows, by rows at once and type of the keys."""
    path = BUILD / f'bluelm-{layers}-layers.gguf'
    shape = replace(SHAPE, name='bluelm-swept', llm_layers=layers, vocabulary=2048)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_llm(path, shape, 1, 'q4_0')
    rows = np.random.default_rng(1).standard_normal((9 * SHAPE.queries, SHAPE.width)) / 4
    unit, found = Unit(0, rows.astype(np.float16), (2, 4)), {}
    for kv_type in ('f16', 'q8_0'):
        for n_batch in ROWS_AT_ONCE:
            context = ContextOptions(2560, n_batch, kv_type=kv_type, threads=threads)
            session = Session.load(path, ENGLISH, None, context, SessionOptions(max_tokens=64))
            session.append(Unit(0, rows[: SHAPE.queries].astype(np.float16)))
            session.reset()
            found[kv_type, n_batch] = timed(partial(session.append, unit))[1]
            session.close()
    path.unlink()
    one = found['f16', 128]
    shown = [
        (kv_type, *(found[kv_type, n_batch] / one for n_batch in ROWS_AT_ONCE))
        for kv_type in ('f16', 'q8_0')
    ]
    print(table(('keys and values', *(f't{n}' for n in ROWS_AT_ONCE)), shown))


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--sweep', action='store_true')
    parser.add_argument('--one-in', type=int, default=1, metavar='N', help='of the layers')
    given = parser.parse_args()
    if given.sweep:
        show_sweep(given.threads)
    else:
        show_path(given.threads, given.one_in)
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
