# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What still scenes save, what a full window costs, and f16 vision against others' programs.

    make vision                                    # python -m benchmarks.still
    python -m benchmarks.still --only vision --layers 27

reused_still             share of the seconds of a still scene that use the embedding before: a
                         demo image at 640x480, noise of sigma 5, one second in 100 seconds
still_answers_same       share of answers that are the same with as without that reuse
still_right, plain_right share of right answers with window.still, and without, where each scene
                         stands still for ten seconds
still_reach              how far back the window of a still hour reaches, over that of one in which
                         every second is new: n_ctx 4096, units of 94 positions and 28
full_over_fresh          a unit read into a full window, over one into a fresh one: n_ctx 4096
first_token_over_before  a question's first token behind 30 s with attention as `auto` chooses it,
                         over fused attention
f16_over_mtmd, _torch    the vision encoder at its true width, in f16, over libmtmd's in f16, and
                         over PyTorch's in f32 (--torch: a Python that has it)
over_f16                 the encoder with weights of other types over that in f16, by type

Times are CPU times of one thread, and each ratio is of times taken by turns in the same run. The
models have random weights, but where answers are judged. Adds its figures to build/vision.json.
"""

import argparse
import json
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from minicpmo_ros.process import prepare

prepare()

import numpy as np  # noqa: E402
from llama_cpp import llama_print_system_info  # noqa: E402
from PIL import Image  # noqa: E402

from benchmarks.streams import question_file, read_seconds  # noqa: E402
from benchmarks.tiles import OUT, add_to, table  # noqa: E402
from minicpmo_ros.encoders.siglip.encoder import VisionEncoder  # noqa: E402
from minicpmo_ros.evaluation.bench.bench import (  # noqa: E402
    BenchOptions,
    capacity_s,
    fill,
    random_unit,
    spent_ms,
    token_times,
)
from minicpmo_ros.evaluation.runner import Core, CoreOptions  # noqa: E402
from minicpmo_ros.ggml.runtime import Backend  # noqa: E402
from minicpmo_ros.live.question import Question  # noqa: E402
from minicpmo_ros.live.window import Window  # noqa: E402
from minicpmo_ros.media.image.tiling import thumbnail, thumbnail_noise  # noqa: E402
from minicpmo_ros.modelset.directory import ModelDirectory  # noqa: E402
from minicpmo_ros.modelset.gguf_layouts import SHAPES  # noqa: E402
from minicpmo_ros.streams.audio import AudioPipeline  # noqa: E402
from minicpmo_ros.streams.image import ImagePipeline, ReuseCount  # noqa: E402
from minicpmo_ros.streams.pairing import Unit  # noqa: E402
from minicpmo_ros.synthetic.model import write_model, write_vision  # noqa: E402
from minicpmo_ros.units import NS  # noqa: E402

NANO, TORCH_SCRIPT = Path('models/nano'), Path(__file__).with_name('torch_siglip.py')
SIGMA, STILL_S, SCENE_S = 5, 100, 10
ROWS, AUDIO_ROWS, N_CTX = 94, 28, 4096  # positions of a second, and of one without its image
RESERVED = 660  # of n_ctx: the system prompt, and the longest question and answer
ASKED_S = 30
VISION_TYPES = ('f16', 'f32', 'q8_0', 'q4_0')
IMAGE = np.random.default_rng(7).integers(0, 255, (448, 448, 3), dtype=np.uint8)
KINDS = {'color': 'what color is the shape?', 'shape': 'what shape is shown?'}


def noisy(pixels: np.ndarray, rng) -> np.ndarray:
    """Return an image as a camera shows it again: (H, W, 3) uint8 with noise."""
    return (pixels + rng.normal(0, SIGMA, pixels.shape)).clip(0, 255).astype(np.uint8)


def show_reuse(scenes: list) -> dict:
    """Print how often each threshold reuses a still scene; return the figure."""
    rng, thresholds = np.random.default_rng(1), (2.0, 4.0, 8.0, 16.0)
    shares = {threshold: [] for threshold in thresholds}
    for scene in scenes:
        pixels = np.asarray(Image.fromarray(scene.rgb()).resize((640, 480), Image.BICUBIC))
        counts = [ReuseCount(threshold) for threshold in thresholds]
        for second in range(STILL_S):
            seen = noisy(pixels, rng)
            small, noise = thumbnail(seen), thumbnail_noise(seen)
            for count in counts:
                count.add(second, (640, 480), small, noise)
        for count in counts:
            shares[count.threshold].append(count.reused / (STILL_S - 1))
    worst = [min(of_scenes) for of_scenes in shares.values()]
    print(table(('vision.unchanged_threshold', *thresholds), [('worst share reused', *worst)]))
    return {'reused_still': round(worst[thresholds.index(8.0)], 4)}


def units_of(core: Core, scene, threshold: float, rng) -> list:
    """Return the units of a scene that stands still with noise, and the sound of its second."""
    images, audio = ImagePipeline(core.vision, 1, threshold), AudioPipeline(core.audio)
    for second in range(SCENE_S):
        images.offer(second * NS, lambda: noisy(scene.rgb(), rng))
    seen = images.close(SCENE_S - 1)
    heard = audio.push(0, np.tile(scene.samples, SCENE_S)) + audio.flush()
    return [Unit(i.second, i.rows, (0, 0), a.rows) for i, a in zip(seen, heard)]


def answers(core: Core, units: list) -> list:
    """Read units into an empty window; return the answers to the questions about them."""
    core.session.reset()
    for unit in units:
        core.session.append(unit)
    texts = []
    for text in KINDS.values():
        texts.append(core.session.ask(Question(text)).complete().text)
    return texts


def show_answers(scenes: list) -> dict:
    """Print how nano answers about still scenes; return the figures."""
    model = ModelDirectory.open(NANO)
    plain, still = (Core(model, CoreOptions(threads=1, still=is_on)) for is_on in (False, True))
    rows = []
    for number, scene in enumerate(scenes):
        true = [getattr(scene, kind) for kind in KINDS]
        every = units_of(plain, scene, 0.0, np.random.default_rng(number))
        reused = units_of(plain, scene, 8.0, np.random.default_rng(number))
        given = [answers(plain, every), answers(plain, reused), answers(still, reused)]
        rows += zip(true, *given)
        assert sum(span.is_still for span in still.session.window.spans) == SCENE_S - 1
    for core in (plain, still):
        core.close()
    true, every, reused, without = (np.array(column) for column in zip(*rows))
    figures = {
        'still_answers_same': float(np.mean(every == reused)),
        'plain_right': float(np.mean(reused == true)),
        'still_right': float(np.mean(without == true)),
    }
    head = (f'{len(rows)} questions to nano', *figures)
    print(table(head, [('share', *figures.values())]))
    return figures


def mean_reach_s(is_new, n_seconds: int = 3600) -> float:
    """Return how far a window of the true size reaches back, mean of the last ten minutes."""
    window = Window(0, N_CTX - RESERVED, still=True)
    shown, audio, reached = None, np.zeros((1, 1), np.float16), []
    for second in range(n_seconds):
        if is_new(second):
            shown = np.full((1, 1), second, np.float32)
        unit = Unit(second, shown, (0, 0), audio)
        is_still = window.is_still(unit)
        window.remove(window.spans_to_evict(AUDIO_ROWS if is_still else ROWS))
        is_still = window.is_still(unit)
        window.append_unit(unit, AUDIO_ROWS if is_still else ROWS, is_still)
        reached.append(second + 1 - window.seconds[0])
    return float(np.mean(reached[-600:]))


def show_reach() -> dict:
    """Print how far windows reach; return the figure."""
    every = {1: 'each second', 4: 'every 4 s', 16: 'every 16 s', 10**9: 'never'}
    reach = {n: mean_reach_s(lambda second, n=n: second % n == 0) for n in every}
    rows = [(name, reach[n], reach[n] / reach[1]) for n, name in every.items()]
    print(table(('the image changes', 'reach, s', 'over a changing one'), rows))
    return {'still_reach': round(reach[10**9] / reach[1], 3)}


def show_full(directory, name: str, pairs: int) -> dict:
    """Print what a full window costs one model; return {figure: ratio}."""
    found = {}
    for attention in ('auto', 'fused'):
        options = CoreOptions(threads=1, n_ctx=N_CTX, attention=attention, max_tokens=3)
        core = Core(ModelDirectory.open(directory), options)
        core.session.prompt.stop_ids = frozenset()
        read = {}
        for state, seconds in (('fresh', 1), (f'{ASKED_S} s', ASKED_S), ('full', 10**6)):
            if attention == 'fused' and state != f'{ASKED_S} s':
                continue
            fill(core, min(seconds, capacity_s(core) - 1))
            context, unit = core.session.context, random_unit(core, 10**6)
            rows, end = core.session.unit_rows(unit), core.session.window.end

            def unit_ms(rows=rows, end=end, context=context) -> float:
                ms = spent_ms(lambda: context.read(rows, 0), 'cpu')
                context.remove(0, end, -1)
                return ms

            read[state] = float(np.median([unit_ms() for _ in range(pairs + 1)][1:]))
            if state == f'{ASKED_S} s':
                first = [token_times(core, 2)[0] for _ in range(pairs + 1)]
                read['first token'] = float(np.median(first[1:]))
        found[attention] = read
        core.close()
    auto, fused = found['auto'], found['fused']
    rows = [
        (
            attention,
            *(read.get(key, '') for key in ('fresh', f'{ASKED_S} s', 'full', 'first token')),
        )
        for attention, read in found.items()
    ]
    head = (f'{name}: attention', 'unit, fresh ms', f'at {ASKED_S} s', 'full', 'first token ms')
    print(table(head, rows))
    return {
        'full_over_fresh': round(auto['full'] / auto['fresh'], 3),
        'first_token_over_before': round(auto['first token'] / fused['first token'], 3),
    }


def show_vision(python: Path, layers: int, pairs: int) -> dict:
    """Print the time of an image over that of libmtmd and PyTorch; return the figures."""
    from benchmarks import baselines

    shape = replace(SHAPES['2.6'], vision_layers=layers, llm_layers=1, audio_layers=1)
    options = BenchOptions(pairs=3 * pairs)
    with TemporaryDirectory() as folder:
        types_ms = times_by_type(Path(folder), shape, pairs)
        path = Path(folder) / 'f16.gguf'
        mtmd = baselines.vision_file(path, options)
        figures, rows = {'f16_over_mtmd': round(mtmd.value, 3)}, [('libmtmd, f16', mtmd.value)]
        if python.exists():
            torch = torch_ratio(path, python, shape, pairs)
            figures['f16_over_torch'] = round(torch, 3)
            rows.append(('PyTorch, f32', torch))
        else:
            print(f'{python} has no PyTorch: f16_over_torch is not measured', file=sys.stderr)
    print(table((f'448x448, {layers} of 27 layers: ours in f16 over', 'CPU time'), rows))
    over = {name: round(ms / types_ms['f16'], 3) for name, ms in types_ms.items()}
    rows = [(name, types_ms[name], ratio) for name, ratio in over.items()]
    print(table(('weights', 'CPU ms', 'over f16'), rows))
    print(llama_print_system_info().decode())  # with which instructions ggml was built
    return {**figures, 'over_f16': over}


def times_by_type(folder: Path, shape, pairs: int) -> dict:
    """Return the median ms of CPU time of an image by the type of the weights, by turns."""
    times = {name: [] for name in VISION_TYPES}
    with closing(Backend('cpu', threads=1)) as backend:
        encoders = {}
        for name in VISION_TYPES:
            write_vision(folder / f'{name}.gguf', shape, 1, name)
            encoders[name] = VisionEncoder.load(folder / f'{name}.gguf', backend)
        for _ in range(pairs + 1):
            for name, encoder in encoders.items():
                times[name].append(spent_ms(lambda e=encoder: e.encode([IMAGE]), 'cpu'))
    return {name: float(np.median(some[1:])) for name, some in times.items()}


def torch_ratio(path: Path, python: Path, shape, pairs: int) -> float:
    """Return the median ratio of our CPU time of an image to PyTorch's."""
    backend = Backend('cpu', threads=1)
    encoder = VisionEncoder.load(path, backend)
    sizes = (shape.vision_width, shape.vision_layers, shape.vision_heads, shape.vision_ffn,
             shape.width, shape.queries)  # fmt: skip
    process = subprocess.Popen(
        [str(python), str(TORCH_SCRIPT), *map(str, sizes)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        ratios = []
        for _ in range(pairs + 1):
            ours = spent_ms(lambda: encoder.encode([IMAGE]), 'cpu')
            print('go', file=process.stdin, flush=True)
            ratios.append(ours / float(process.stdout.readline()))
        return float(np.median(ratios[1:]))
    finally:
        process.stdin.close()
        process.wait()
        backend.close()


PARTS = ('reuse', 'answers', 'reach', 'full', 'vision')


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--only', choices=PARTS, nargs='*', default=PARTS)
    parser.add_argument('--scenes', type=int, default=12, help='of the demo')
    parser.add_argument('--layers', type=int, default=1, help='of the 27 of the vision encoder')
    parser.add_argument('--pairs', type=int, default=3, help='of what a ratio is the median')
    parser.add_argument('--shape', default='', help='of random weights, for `full`; else nano')
    parser.add_argument('--torch', type=Path, default=Path('build/nano-venv/bin/python'))
    given = parser.parse_args()
    figures = {}
    scenes = read_seconds(question_file(), given.scenes)[: given.scenes]
    if 'reuse' in given.only:
        figures |= show_reuse(scenes[:4])
    if 'answers' in given.only:
        figures |= show_answers(scenes)
    if 'reach' in given.only:
        figures |= show_reach()
    if 'full' in given.only and not given.shape:
        figures |= show_full(NANO, 'nano', given.pairs)
    elif 'full' in given.only:
        with TemporaryDirectory() as folder:
            write_model(folder, given.shape, llm_type='q4_0', hashes=False)
            of_shape = show_full(folder, given.shape, given.pairs)
            figures |= {f'{key}_{given.shape}': ratio for key, ratio in of_shape.items()}
    if 'vision' in given.only:
        figures |= show_vision(given.torch, given.layers, given.pairs)
    add_to(OUT, figures)
    print(json.dumps(figures))
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
