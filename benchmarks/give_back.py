# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What giving memory back gives, and what it costs: a smaller context, an idle vision encoder.

    python -m benchmarks.give_back models/nano
    python -m benchmarks.give_back build/vision.gguf      # an encoder alone

One row an event, in order, of one process: PSS (smaps_rollup) after it, and the time it took.
The picture is small, 112 pixels a side, as it is the return of the weights that is looked at.
Files are read from the page cache; the first read from a disk takes longer. Writes
build/give_back-<name>.json.
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path

from minicpmo_ros.process import prepare

prepare()

import numpy as np  # noqa: E402

from minicpmo_ros.encoders.siglip.encoder import VisionEncoder  # noqa: E402
from minicpmo_ros.families import FAMILIES  # noqa: E402
from minicpmo_ros.ggml.runtime import Backend  # noqa: E402
from minicpmo_ros.live.session import Session  # noqa: E402
from minicpmo_ros.llm.context import ContextOptions  # noqa: E402
from minicpmo_ros.llm.model import ModelOptions  # noqa: E402
from minicpmo_ros.memory.proc import give_back, pss_mib  # noqa: E402
from minicpmo_ros.modelset.directory import ModelDirectory  # noqa: E402
from minicpmo_ros.streams.on_demand import VisionOnDemand  # noqa: E402
from minicpmo_ros.streams.pairing import Unit  # noqa: E402

SIZES = (4096, 2048, 1024, 8192)
UNITS = 60


class Diary:
    """Events, each with the memory after it and the time it took."""

    def __init__(self):
        self.rows = []

    def do(self, name: str, work):
        """Do it, note it, give what it gave."""
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        result = work()
        wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
        self.rows.append([name, pss_mib(), 1e3 * cpu_s, 1e3 * wall_s])
        return result


def vision(path: Path, diary: Diary) -> None:
    """Encode, release, encode again."""
    backend, now = Backend('cpu', threads=1), [0.0]
    diary.do('before the encoder', lambda: None)
    read = partial(VisionEncoder.load, path, backend)

    def load(between):
        return diary.do('  its weights', lambda: read(between=between))

    encoder = diary.do('loaded', lambda: VisionOnDemand(load, 1.0, lambda: now[0]))
    tile = np.random.default_rng(1).integers(0, 255, (112, 112, 3), np.uint8)
    first = diary.do('a picture', lambda: encoder.encode([tile]))

    def release():
        now[0] += 1.0
        encoder.release_when_idle()
        give_back()

    for _ in range(3):
        diary.do('released', release)
        again = diary.do('the next picture, loaded for', lambda: encoder.encode([tile]))
        assert np.array_equal(first, again)
    backend.close()


def context(model: ModelDirectory, diary: Diary) -> None:
    """Fill a window, shrink and grow its context."""
    diary.do('before the language model', lambda: None)
    session = Session.load(
        model.llm_path,
        FAMILIES[model.family].layouts['en'],
        ModelOptions(repack=False),
        ContextOptions(n_ctx=8192, threads=1),
    )
    rows = np.random.default_rng(1).normal(size=(25, model.width)).astype(np.float16)
    for second in range(UNITS):
        session.append(Unit(second, audio_rows=rows))
    diary.do('8192 positions', lambda: None)
    for n_ctx in SIZES:
        diary.do(f'{n_ctx} positions', lambda n_ctx=n_ctx: (session.resize(n_ctx), give_back()))
        diary.rows[-1][0] += f', {len(session.window.seconds)} units of 27'
    session.close()


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('path', type=Path, help='a model directory, or a vision file')
    path = parser.parse_args().path
    measures = {'vision': partial(vision, path)}
    if path.is_dir():
        model = ModelDirectory.open(path)
        measures = {
            'vision': partial(vision, model.vision_path),
            'context': partial(context, model),
        }
    tables = {}
    for name, measure in measures.items():
        diary = Diary()
        measure(diary)
        tables[name] = diary.rows
        print(f'\n{path}, {name}\n\n| | PSS MiB | CPU ms | wall ms |\n|---|---:|---:|---:|')
        for event, *figures in diary.rows:
            print(f'| {event} | ' + ' | '.join(f'{figure:.0f}' for figure in figures) + ' |')
    out = Path('build') / f'give_back-{path.stem}.json'
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(tables, indent=1))


if __name__ == '__main__':
    main()
