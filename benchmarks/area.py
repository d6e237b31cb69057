# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What the area of the live images costs and saves: time by area, and what nano loses.

    make vision                              # python -m benchmarks.area
    python -m benchmarks.area --questions build/heldout/questions.json

time_by_area      CPU time of an image of this share of 448 x 448 over one of the whole: the
                  encoder at its true width, f16, one thread, a few of its 27 layers, all alike
vision_ms_ratio   the same at --area, of an image as a camera of 640 x 480 gives it
nano_newest_loss  points that nano loses on what the newest second shows, the window at --area
                  and the newest image read sharp on the question's fork (Ask.look)
nano_older_loss   points that it loses on older seconds, which are not looked at again

The questions are those of families that need the image, about one second each. Adds its figures to
build/vision.json, beside what else is there.
"""

import argparse
import json
import re
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from minicpmo_ros.process import prepare

prepare()

import numpy as np  # noqa: E402

from benchmarks.tiles import OUT, add_to, table  # noqa: E402
from minicpmo_ros.encoders.siglip.encoder import VisionEncoder  # noqa: E402
from minicpmo_ros.evaluation.bags.clip_reading import read_clip  # noqa: E402
from minicpmo_ros.evaluation.questions import QuestionSet  # noqa: E402
from minicpmo_ros.evaluation.runner import (  # noqa: E402
    Core,
    CoreOptions,
    Variant,
    answer_clip,
)
from minicpmo_ros.ggml.runtime import Backend  # noqa: E402
from minicpmo_ros.media.image.tiling import plan_tiles, slice_image  # noqa: E402
from minicpmo_ros.modelset.directory import ModelDirectory  # noqa: E402
from minicpmo_ros.modelset.gguf_layouts import SHAPES  # noqa: E402
from minicpmo_ros.synthetic.model import write_vision  # noqa: E402

SIDES = {1.0: 448, 0.56: 336, 0.39: 280, 0.25: 224}  # by area, pixels
CAMERA = 640, 480
OLDER = re.compile(r'\bago\b')
FAMILY = 'scene'  # needs the image of one second, and nothing else


def cpu_s(encode, images: dict, repeats: int) -> dict:
    """Return name -> CPU seconds of an image, the median of runs that are taken by turns."""
    times = {name: [] for name in images}
    for _ in range(repeats):
        for name, image in images.items():
            begun_s = time.process_time()
            encode([image])
            times[name].append(time.process_time() - begun_s)
    return {name: median(seen) for name, seen in times.items()}


def camera_image(area: float) -> np.ndarray:
    """Return an image of the camera as the encoder gets it at this area, (H, W, 3) uint8."""
    image = np.random.default_rng(1).integers(0, 256, (*CAMERA[::-1], 3), dtype=np.uint8)
    plan = plan_tiles(*CAMERA, area=area)
    return slice_image(image, plan)[0]


def show_times(area: float, layers: int, repeats: int) -> dict:
    """Print what an image costs by its area; return the figures."""
    shape = replace(SHAPES['2.6'], vision_layers=layers)
    rng = np.random.default_rng(1)
    images = {
        share: rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        for share, side in SIDES.items()
    }
    for share in (1.0, area):
        images['camera', share] = camera_image(share)
    with TemporaryDirectory() as folder, closing(Backend('cpu', threads=1)) as backend:
        path = Path(folder) / 'vision.gguf'
        write_vision(path, shape)
        encoder = VisionEncoder.load(path, backend)
        for image in images.values():
            encoder.encode([image])
        times = cpu_s(encoder.encode, images, repeats)
    ratios = {share: round(times[share] / times[1.0], 3) for share in SIDES}
    print(table(('area', *ratios), [('CPU time over the whole', *ratios.values())]))
    ratio = times['camera', area] / times['camera', 1.0]
    return {'time_by_area': ratios, 'vision_ms_ratio': round(ratio, 3)}


def right_by_age(
    model: ModelDirectory, questions: QuestionSet, area: float, is_sharp: bool
) -> dict:
    """Return age ('newest', 'older') -> whether nano was right, in the questions' order."""
    found = {'newest': [], 'older': []}
    look = 'sharp' if is_sharp else ''
    with closing(Core(model, CoreOptions(threads=1, area=area))) as core:
        for name, asked in questions.by_clip().items():
            asked = [replace(q, look=look) for q in asked if q.family == FAMILY]
            clip = read_clip(questions.path_of(name))
            for _, question, answer in answer_clip(core, clip, asked, [Variant()]):
                age = 'older' if OLDER.search(question.text) else 'newest'
                found[age].append(question.is_right(answer.text))
    return found


def show_losses(model: Path, questions: Path, area: float) -> dict:
    """Print what nano loses at a smaller area, sharp on demand; return the figures."""
    directory, asked = ModelDirectory.open(model), QuestionSet.read(questions)
    full = right_by_age(directory, asked, 1.0, False)
    plain, sharp = (right_by_age(directory, asked, area, is_on) for is_on in (False, True))
    rows = []
    for age in full:
        rights = [100 * float(np.mean(one[age])) for one in (full, plain, sharp)]
        rows.append((f'{age} second, {len(full[age])} questions', *rights))
    head = ('right, %', 'area 1', f'area {area:g}', f'area {area:g}, sharp on demand')
    print(table(head, rows))
    (_, newest, _, newest_sharp), (_, older, older_plain, _) = rows
    return {
        'nano_newest_loss': round(newest - newest_sharp, 2),
        'nano_older_loss': round(older - older_plain, 2),
    }


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--model', type=Path, default=Path('models/nano'))
    parser.add_argument('--questions', type=Path, default=Path('demo/clips/questions.json'))
    parser.add_argument('--area', type=float, default=0.4)
    parser.add_argument('--layers', type=int, default=2, help='of the 27 of the encoder')
    parser.add_argument('--repeats', type=int, default=3)
    given = parser.parse_args()
    figures = show_times(given.area, given.layers, given.repeats)
    figures |= show_losses(given.model, given.questions, given.area)
    add_to(OUT, figures)
    print(json.dumps(figures))
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
