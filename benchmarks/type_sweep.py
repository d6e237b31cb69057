# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What types of weights cost a language model: reading a unit, and one token after the other.

`python -m benchmarks.quantization --sweep` runs it. The model has random weights and the shape
'0.5b', but rows of 1024 instead of 896, which K-quants fit. All its matrices are of one type. CPU
time of one thread: types are measured in pairs with f16, one unit of each in turn, so that a busy
machine slows both; ratios are medians of the pairs. Weights are those of llama.cpp in the layout
it takes by default ('repacked' where it has one on this machine), and 'plain'.
"""

import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from minicpmo_ros.ggml.gguf_file import read_header
from minicpmo_ros.llm.context import Context, ContextOptions
from minicpmo_ros.llm.model import LanguageModel, ModelOptions
from minicpmo_ros.modelset.gguf_layouts import HALF_B
from minicpmo_ros.quantize.quantizer import QuantizeOptions, quantize_file
from minicpmo_ros.quantize.rules import Rule
from minicpmo_ros.synthetic.model import write_llm

SHAPE = replace(HALF_B, name='0.5b-1024', width=1024, llm_heads=16)
UNIT_ROWS = 96  # about what a second of MiniCPM-o 2.6 is
TOKENS = 12
KINDS = (  # type, whether llama.cpp may reorder it
    ('bf16', True),
    ('q8_0', True),
    ('q4_0', True),
    ('q4_0', False),
    ('q4_K', True),
    ('q4_K', False),
)


@dataclass(frozen=True)
class Cost:
    """CPU seconds."""

    prefill_s: float  # a unit
    decode_s: float  # a token


class Timed:
    """A model of which units are read and tokens generated against the clock."""

    def __init__(self, path: Path, repack: bool):
        self.model = LanguageModel.load(path, ModelOptions(repack=repack))
        options = ContextOptions(n_ctx=256, n_batch=UNIT_ROWS, n_sequences=1, threads=1)
        self.context = Context(self.model, options)
        rng = np.random.default_rng(1)
        self.rows = rng.standard_normal((UNIT_ROWS, self.model.width)).astype(np.float32)

    def measure(self) -> Cost:
        """Read one unit into an empty context, then token after token."""
        self.context.clear()
        started_s = time.process_time()
        self.context.read(self.rows, 0)
        read_s = time.process_time()
        for i in range(TOKENS):
            self.context.read(self.rows[i : i + 1], 0, want_logits=True)
        return Cost(read_s - started_s, (time.process_time() - read_s) / TOKENS)

    def close(self) -> None:
        """Free everything."""
        self.context.close()
        self.model.close()


def sweep(folder: Path, pairs: int) -> list:
    """Measure every kind against f16; give a row each, f16 first. Models are kept in folder."""
    folder.mkdir(parents=True, exist_ok=True)
    base = folder / 'f16.gguf'
    if not base.exists():
        write_llm(base, SHAPE)
    first, rows = Timed(base, True), []
    first.measure()
    for kind, repack in KINDS:
        path = folder / f'{kind}.gguf'
        if not path.exists():
            quantize_file(base, path, 'keep', QuantizeOptions([Rule.parse(f'*={kind}')]))
        other = Timed(path, repack)
        other.measure()
        costs = [(first.measure(), other.measure()) for _ in range(pairs)]
        other.close()
        if not rows:
            rows.append(_row('f16', base, [(a, a) for a, _ in costs]))
        rows.append(_row(kind + ('' if repack else ' plain'), path, costs))
        print(rows[-1], flush=True)
    first.close()
    return rows


def _row(name: str, path: Path, costs: list) -> dict:
    """One row: what is moved and computed, in what time."""
    embedding = read_header(path).tensors['token_embd.weight']
    layers = [info for name, info in read_header(path).tensors.items() if name.startswith('blk.')]
    values = sum(np.prod(info.shape) for info in layers if len(info.shape) > 1)
    n_bytes = sum(info.n_bytes for info in layers)
    prefill_s, decode_s = (
        statistics.median(getattr(cost, field) for _, cost in costs)
        for field in ('prefill_s', 'decode_s')
    )
    # The output matrix, which is the embedding's, is needed for a token and not for a unit.
    moved = {'prefill': n_bytes, 'decode': n_bytes + embedding.n_bytes}
    done = {
        'prefill': 2 * UNIT_ROWS * int(values),
        'decode': 2 * (int(values) + int(np.prod(embedding.shape))),
    }
    return {
        'type': name,
        'moved_mib': {way: round(n / 2**20, 1) for way, n in moved.items()},
        'operations_g': {way: round(n / 1e9, 2) for way, n in done.items()},
        'prefill_ms': round(1e3 * prefill_s, 1),
        'decode_ms': round(1e3 * decode_s, 1),
        'prefill_gop_s': round(done['prefill'] / prefill_s / 1e9, 1),
        'decode_gb_s': round(moved['decode'] / decode_s / 1e9, 2),
        'prefill_over_f16': _ratio(costs, 'prefill_s'),
        'decode_over_f16': _ratio(costs, 'decode_s'),
    }


def _ratio(costs: list, field: str) -> float:
    return round(statistics.median(getattr(b, field) / getattr(a, field) for a, b in costs), 3)


def markdown(rows: list) -> str:
    """Print the rows as a table."""
    lines = [
        '| type | MiB read a token | Gop a token | ms a token | GB/s | over f16 '
        '| MiB read a unit | Gop a unit | ms a unit | Gop/s | over f16 |',
        '|---|' + '---:|' * 10,
    ]
    for row in rows:
        moved, done = row['moved_mib'], row['operations_g']
        lines.append(
            f'| {row["type"]} | {moved["decode"]:.0f} | {done["decode"]:.2f} '
            f'| {row["decode_ms"]:.1f} | {row["decode_gb_s"]:.1f} | {row["decode_over_f16"]:.2f} '
            f'| {moved["prefill"]:.0f} | {done["prefill"]:.0f} | {row["prefill_ms"]:.0f} '
            f'| {row["prefill_gop_s"]:.0f} | {row["prefill_over_f16"]:.2f} |'
        )
    return '\n'.join(lines)
