# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Which way to hold a language model's weights suits this CPU: as stored, or repacked.

The answer differs between CPUs, between types of weights, and between reading many rows (a live
second) and one (a token of an answer); so it is measured: t(rows) of one decode, for both.
"""

import numpy as np

from minicpmo_ros.evaluation.bench import BenchOptions
from minicpmo_ros.evaluation.timing import clock_for, spent_ms
from minicpmo_ros.language.context import Context, ContextOptions
from minicpmo_ros.language.model import LanguageModel, ModelOptions

ROWS = (1, 16, 32, 64, 96)  # one token; a unit of MiniCPM-o 2.6 is 94
UNIT_ROWS, TOKEN_ROWS = 96, 1


def calibrate(llm_path, options: BenchOptions) -> dict:
    """Give {'stored': {rows: ms}, 'repacked': {rows: ms}} of a CPU's decodes.

    One at a time is in memory, and once: repacked weights are read, not mapped.
    """
    return {
        name: _curve(llm_path, options, ModelOptions(use_mmap=not repack, repack=repack))
        for name, repack in (('stored', False), ('repacked', True))
    }


def better(curves: dict) -> dict:
    """Name the better way for 'prefill' of a second and for 'decode' of a token."""
    return {
        use: min(curves, key=lambda name: curves[name][rows])
        for use, rows in (('prefill', UNIT_ROWS), ('decode', TOKEN_ROWS))
    }


def _curve(llm_path, options: BenchOptions, how: ModelOptions) -> dict:
    model, clock = LanguageModel.load(llm_path, how), clock_for(True, options.threads)
    try:
        n_ctx = min(256, model.context_length)
        context = Context(model, ContextOptions(n_ctx, threads=options.threads, offload_kv=False))
        rows = np.random.default_rng(6).standard_normal((max(ROWS), model.width)) / 4
        rows = rows.astype(np.float32)

        def read(n: int) -> float:
            ms = spent_ms(lambda: context.decode(rows[:n], 0, True), clock)
            context.remove(0, 0, -1)
            return ms

        rounds = [[read(n) for n in ROWS] for _ in range(options.long_pairs + 1)]
        context.close()
    finally:
        model.close()
    return dict(zip(ROWS, (float(ms) for ms in np.median(rounds[1:], axis=0))))
