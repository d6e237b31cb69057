# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""How much of what one core can multiply and read our parts use.

    python -m benchmarks.machine_units

The core's units are measured beside: the multiply-adds of a product of f32 matrices by NumPy's
BLAS, and the bytes per second of reading an array that no cache holds. Then, with random weights,
in CPU seconds of one thread, by turns, the best of the rounds:

prefill_TYPE_units  512 rows of the language model of shape 0.5b over the multiply-adds, by weights
decode_TYPE_units   the weights that one row behind 64 reads over the bytes
vision_units        an image of 448x448 through three layers of MiniCPM-o 2.6's width and the
                    resampler over the multiply-adds, f16
audio_units         second 15 of a stream through three layers of its width, f16

Weights in 4 bits are repacked. Only arithmetic that the results need is counted: of attention what
is not masked, of activations and norms nothing. Writes build/vision.json, beside what else is
there.
"""

import argparse
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from minicpmo_ros.process import prepare

prepare()

import numpy as np  # noqa: E402

from benchmarks.tiles import OUT, add_to, table  # noqa: E402
from minicpmo_ros.encoders.siglip.encoder import VisionEncoder  # noqa: E402
from minicpmo_ros.encoders.whisper.encoder import AudioEncoder  # noqa: E402
from minicpmo_ros.evaluation.bench.bench import spent_ms  # noqa: E402
from minicpmo_ros.evaluation.bench.ratios import random_mel, step_ms  # noqa: E402
from minicpmo_ros.families.base import Shape  # noqa: E402
from minicpmo_ros.ggml.runtime import Backend  # noqa: E402
from minicpmo_ros.llm.context import Context  # noqa: E402
from minicpmo_ros.llm.context_options import ContextOptions  # noqa: E402
from minicpmo_ros.llm.model import LanguageModel, ModelOptions  # noqa: E402
from minicpmo_ros.modelset.gguf_layouts import SHAPES  # noqa: E402
from minicpmo_ros.synthetic.model import write_audio, write_llm, write_vision  # noqa: E402

SIDE, READ_BYTES = 1536, 256 << 20
PROMPT_ROWS, BEHIND_ROWS, SECOND = 512, 64, 15
LLM_WEIGHTS = ('f16', 'q4_0')
POSITIONS_PER_SECOND, FRAMES_PER_SECOND = 50, 100


def llm_weights(shape: Shape) -> int:
    """Return how many weights of its layers a row is multiplied with."""
    queries, keys = (
        heads * shape.llm_head_width for heads in (shape.llm_heads, shape.llm_kv_heads)
    )
    attention = 2 * shape.width * (queries + keys)
    return shape.llm_layers * (attention + 3 * shape.width * shape.llm_ffn)


def prefill_flop(shape: Shape, rows: int) -> int:
    """Return the arithmetic of reading rows into an empty context, without logits."""
    seen = rows * (rows + 1) // 2  # causal
    attention = 4 * shape.llm_layers * shape.llm_heads * shape.llm_head_width * seen
    return 2 * rows * llm_weights(shape) + attention


def vision_flop(shape: Shape) -> int:
    """Return the arithmetic of an image as large as the model was trained with."""
    patches = (shape.image_size // shape.patch_size) ** 2
    wide, out, queries = shape.vision_width, shape.width, shape.queries
    layer = patches * wide * (4 * wide + 2 * shape.vision_ffn) + 2 * patches**2 * wide
    stem = patches * wide * 3 * shape.patch_size**2
    resampler = patches * out * (wide + 2 * out) + 2 * queries * patches * out
    return 2 * (shape.vision_layers * layer + stem + resampler + 2 * queries * out**2)


def audio_flop(shape: Shape, second: int) -> int:
    """Return the arithmetic of one second of a stream behind those before it."""
    n, wide, out = POSITIONS_PER_SECOND, shape.audio_width, shape.width
    layer = 12 * n * wide**2 + 2 * n * n * second * wide
    stem = 3 * wide * (FRAMES_PER_SECOND * shape.mel_bins + n * wide)
    return 2 * (shape.audio_layers * layer + stem + n * out * (wide + out))


def core_units() -> tuple:
    """Return what measures (ms of a product of matrices, ms of reading READ_BYTES)."""
    rng = np.random.default_rng(7)
    one, other = rng.random((2, SIDE, SIDE), np.float32)
    product, read = np.empty_like(one), np.ones(READ_BYTES // 4, np.float32)
    return lambda: np.dot(one, other, out=product), lambda: np.dot(read, read)


def measure(folder: Path, rounds: int) -> tuple:
    """Return the best ms of all by name, and the bytes of the language models by weights."""
    llm, wide = SHAPES['0.5b'], true_width()
    write_vision(folder / 'vision.gguf', wide)
    write_audio(folder / 'audio.gguf', wide)
    multiply, read = core_units()
    image = np.random.default_rng(7).integers(0, 255, (wide.image_size,) * 2 + (3,), np.uint8)
    mel, times, sizes = random_mel(SECOND, wide.mel_bins), [], {}
    with ExitStack() as stack:
        backend = stack.enter_context(closing(Backend('cpu', threads=1)))
        vision = VisionEncoder.load(folder / 'vision.gguf', backend)
        stream = AudioEncoder.load(folder / 'audio.gguf', backend).stream()
        work = {
            'multiply': lambda: spent_ms(multiply),
            'read': lambda: spent_ms(read),
            'vision': lambda: spent_ms(lambda: vision.encode([image])),
            'audio': lambda: step_ms(stream, mel, SECOND, 'cpu'),
        }
        for weights in LLM_WEIGHTS:
            path = folder / f'{weights}.gguf'
            write_llm(path, llm, 1, weights)
            options = ModelOptions(repack=weights != 'f16')
            model = stack.enter_context(closing(LanguageModel.load(path, options)))
            sizes[weights] = model.size_bytes  # the output matrix is the token embedding
            options = ContextOptions(1024, PROMPT_ROWS, threads=1)
            context = stack.enter_context(closing(Context(model, options)))
            work[f'prefill {weights}'] = partial(reading_ms, context, PROMPT_ROWS, 0)
            work[f'decode {weights}'] = partial(reading_ms, context, 1, BEHIND_ROWS)
        for _ in range(rounds + 1):
            times.append({name: measured() for name, measured in work.items()})
    return {name: min(one[name] for one in times[1:]) for name in work}, sizes


def reading_ms(context: Context, n_rows: int, n_before: int) -> float:
    """Return the ms of reading rows behind the first `n_before` that were read before."""
    context.remove(0, n_before, -1)
    rows = np.full((n_rows, context.model.width), 0.01, np.float32)
    return spent_ms(lambda: context.read(rows, 0))


def true_width() -> Shape:
    """Return MiniCPM-o 2.6 with three of its layers of each encoder."""
    return replace(SHAPES['2.6'], vision_layers=3, audio_layers=3, llm_layers=1)


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--rounds', type=int, default=5)
    given = parser.parse_args()
    with TemporaryDirectory() as folder:
        times_ms, sizes = measure(Path(folder), given.rounds)
    llm, wide = SHAPES['0.5b'], true_width()
    flop = {'vision': vision_flop(wide), 'audio': audio_flop(wide, SECOND)}
    flop |= {f'prefill {weights}': prefill_flop(llm, PROMPT_ROWS) for weights in LLM_WEIGHTS}
    core_flop_s, core_byte_s = 2 * SIDE**3 / times_ms['multiply'], READ_BYTES / times_ms['read']
    rows = [
        (name, f'{count / times_ms[name] / 1e6:.0f} GFLOP/s', count / times_ms[name] / core_flop_s)
        for name, count in flop.items()
    ]
    for weights, size in sizes.items():
        byte_s = size / times_ms[f'decode {weights}']
        rows.append((f'decode {weights}', f'{byte_s / 1e6:.1f} GB/s', byte_s / core_byte_s))
    unit = f'of {core_flop_s / 1e6:.0f} GFLOP/s in f32 and {core_byte_s / 1e6:.1f} GB/s'
    print(table(('one core', unit, 'share'), rows))
    shares = {f'{name}_units'.replace(' ', '_'): round(share, 3) for name, _, share in rows}
    add_to(OUT, shares)
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
