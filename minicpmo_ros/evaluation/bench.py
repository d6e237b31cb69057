# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What a model costs on this machine: a live second by its parts, a question, a token, memory.

The seconds are a picture as a camera gives it (640x480 JPEG) and 48 kHz stereo in chunks; they go
the way live input goes, without ROS. Where only the language model is measured, random rows stand
for pictures and sound: it reads them at the same cost.
"""

import io
import multiprocessing
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial

import llama_cpp.llama_cpp as llama
import numpy as np
from PIL import Image

from minicpmo_ros.evaluation.runner import Core, CoreOptions
from minicpmo_ros.evaluation.timing import CLOCKS, Meter, clock_for, spent_ms
from minicpmo_ros.ggml.runtime import Backend
from minicpmo_ros.live.hearing import Hearing
from minicpmo_ros.live.question import Finish, Question
from minicpmo_ros.live.seeing import Seeing
from minicpmo_ros.live.units import Unit
from minicpmo_ros.media.pcm import to_float_mono
from minicpmo_ros.media.picture import decode_compressed
from minicpmo_ros.media.resample import Resampler
from minicpmo_ros.models.directory import ModelDirectory

NS, RATE_HZ, CHUNKS = 10**9, 48_000, 10
WIDTH, HEIGHT = 640, 480  # pixels, what a camera gives
WARM_UP = 2  # seconds that are not counted
QUESTION = 'What is on the table now?'
PARTS = ('preprocessing', 'vision', 'audio', 'prefill')


@dataclass(frozen=True)
class BenchOptions:
    """What is measured, and how often."""

    device: str = 'cpu'  # cpu, gpu, auto
    threads: int = 1  # with one on a CPU, its time is measured; else the time that passes
    n_ctx: int = 4096
    kv_type: str = 'f16'
    repack: bool = False  # of the language model
    pairs: int = 20  # of a ratio of short things; fewer of what takes longer
    units: int = 7  # seconds of picture and sound that are counted
    seconds: int = 30  # of stream before a question
    tokens: int = 16  # of an answer

    @property
    def long_pairs(self) -> int:
        """Pairs of a ratio whose parts take long: whole windows and clips."""
        return max(1, self.pairs // 7)

    @property
    def some_pairs(self) -> int:
        """Pairs of a ratio whose parts take a while: a unit, a picture."""
        return max(1, self.pairs // 3)


def open_bench(model: ModelDirectory, options: BenchOptions) -> Core:
    """Open a model to be measured; its answers do not end before they are asked to."""
    o = options
    known = model.headers['llm'].metadata
    limit = known[f'{known["general.architecture"]}.context_length']
    core = Core(
        model,
        CoreOptions(
            o.device,
            o.threads,
            n_ctx=min(o.n_ctx, limit),
            kv_type=o.kv_type,
            repack=o.repack,
            max_tokens=o.tokens + 1,
        ),
    )
    core.session.prompt.stop_ids = frozenset()
    return core


def clock_of(core: Core) -> str:
    """Name the clock that tells what this core's work takes."""
    return clock_for(core.is_cpu, core.options.threads)


def unit_times(core: Core, options: BenchOptions) -> dict:
    """Give the ms of a live second by its parts, 'whole', and 'compute': model compute alone.

    Medians over the seconds. The rest of 'whole' is Python: conversion, checks, copies.
    """
    clock = clock_of(core)
    parts, compute = Meter(clock), Meter(clock)
    seeing = Seeing(core.vision, core.options.max_tiles, unchanged_threshold=0)
    hearing, resampler = Hearing(core.audio), Resampler(RATE_HZ)
    convert = parts.timed(
        'preprocessing', lambda data: resampler.push(to_float_mono(data, 's16', 2))
    )
    rows = []
    with ExitStack() as wraps:
        for owner, name, part in (
            (seeing, 'close', 'preprocessing'),
            (hearing, 'push', 'preprocessing'),
            (core.vision, 'encode', 'vision'),
            (hearing._ears, 'step', 'audio'),
            (core.session, 'append', 'prefill'),
        ):
            wraps.enter_context(parts.wrapped(owner, name, part))
        wraps.enter_context(compute.wrapped(Backend, 'compute', 'compute'))
        wraps.enter_context(compute.wrapped(llama, 'llama_decode', 'compute'))
        inputs = [_input(i) for i in range(WARM_UP + options.units + 1)]
        for second, given in enumerate(inputs):
            parts.reset()
            compute.reset()
            read = partial(_live_second, core, seeing, hearing, convert, second, *given)
            rows.append({'whole': spent_ms(read, clock), **parts.ms, **compute.ms})
    counted = rows[WARM_UP + 1 :]  # a unit is read one second behind
    return {name: float(np.median([row[name] for row in counted])) for name in counted[0]}


def _live_second(core, seeing, hearing, convert, second: int, jpeg: bytes, chunks: list) -> None:
    """Take a second's input and read the unit that it completes."""
    seen = seeing.close(second - 1)
    seeing.offer(second * NS, lambda: decode_compressed(jpeg))
    for k, chunk in enumerate(chunks):
        for heard in hearing.push(second * NS + k * NS // CHUNKS, convert(chunk)):
            core.session.append(Unit(heard.second, seen[0].rows, (0, 0), heard.rows))


def _input(second: int) -> tuple:
    """Give a JPEG that differs from second to second, and a second of 16-bit stereo."""
    rng = np.random.default_rng(second)
    small = rng.integers(0, 255, (15, 20, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize((WIDTH, HEIGHT), Image.BICUBIC).save(file, 'JPEG', quality=90)
    sound = (rng.standard_normal((RATE_HZ, 2)) * 3000).astype('<i2')
    return file.getvalue(), [part.tobytes() for part in np.split(sound, CHUNKS)]


def random_unit(core: Core, second: int) -> Unit:
    """Give a second of random rows, as many as a picture and a second of sound have."""
    rng, width = np.random.default_rng(second), core.session.model.width
    picture = rng.standard_normal((core.vision.queries, width)) / 4
    sound = rng.standard_normal((core.audio.tokens_per_second, width)) / 4
    return Unit(second, picture.astype(np.float16), (0, 0), sound.astype(np.float16))


def unit_rows(core: Core, second: int = 0) -> np.ndarray:
    """Give the rows of a random unit as they are read."""
    unit = random_unit(core, second)
    return core.session.prompt.unit(unit.picture_rows, *unit.tiles, unit.sound_rows)


def capacity_s(core: Core) -> int:
    """Give how many seconds a window holds."""
    window = core.session.window
    return (window.capacity - window.prefix) // len(unit_rows(core))


def fill(core: Core, seconds: int) -> int:
    """Read so many seconds into an empty window, fewer where it is smaller; give how many."""
    core.session.reset()
    seconds = min(seconds, capacity_s(core))
    for second in range(seconds):
        core.session.append(random_unit(core, second))
    return seconds


def token_times(core: Core, tokens: int) -> list:
    """Ask about the window; give the ms to the first token, and of each one after it."""
    now = CLOCKS[clock_of(core)]
    times_s = [now()]
    answering = core.session.ask(Question(QUESTION))
    try:
        while len(times_s) < tokens + 1:
            answering.step()
            if answering.ids:
                times_s.append(now())
    finally:
        answering.end(Finish.CANCELLED)
    return [1e3 * (b - a) for a, b in zip(times_s, times_s[1:])]


def question_times(core: Core, options: BenchOptions) -> dict:
    """Give first_token_ms and tokens_per_s behind a filled window, and its seconds."""
    seconds = fill(core, options.seconds)
    asked = [token_times(core, options.tokens) for _ in range(options.long_pairs + 1)][1:]
    return {
        'seconds': seconds,
        'first_token_ms': float(np.median([times[0] for times in asked])),
        'tokens_per_s': 1e3 / float(np.median([ms for times in asked for ms in times[1:]])),
    }


def memory(directory, options: BenchOptions, pss_mib: Callable[[], float]) -> dict:
    """Give the PSS of a process of its own, MiB: 'python', 'weights' loaded, and in 'inference'.

    Inference is a picture and sound encoded and read, and a question answered, at n_ctx.
    """
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        return pool.apply(_memory, (str(directory), asdict(options), pss_mib))


def _memory(directory: str, options: dict, pss_mib: Callable[[], float]) -> dict:
    options = BenchOptions(**{**options, 'units': 1})
    found = {'python': pss_mib()}
    core = open_bench(ModelDirectory.open(directory), options)
    found['weights'] = pss_mib()
    unit_times(core, options)
    token_times(core, 2)
    found['inference'] = pss_mib()
    core.close()
    return found
