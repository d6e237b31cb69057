# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What a model costs on this machine: a live second by its parts, a question, a token, memory.

The seconds are an image as a camera gives it (640x480 JPEG) and 48 kHz stereo in chunks; they go
the way live input goes, without ROS. Where only the language model is measured, random rows stand
for images and audio: it reads them at the same cost.

A machine under test is never idle, so two ways of doing the same work are measured in turn, pair
by pair, and their ratio is the median over the pairs. For one thread on a CPU the time is the CPU
time: the work. Several threads share that, and a GPU works beside the process: there it is the
wall time.
"""

import io
import math
import multiprocessing
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial

import llama_cpp.llama_cpp as llama
import numpy as np
from PIL import Image

from minicpmo_ros.errors import EngineError
from minicpmo_ros.evaluation.runner import Core, CoreOptions
from minicpmo_ros.ggml.runtime import Backend
from minicpmo_ros.live.question import Finish, Question
from minicpmo_ros.llm.context import Context, ContextOptions
from minicpmo_ros.llm.model import LanguageModel, ModelOptions
from minicpmo_ros.media.audio.format import AudioFormat
from minicpmo_ros.media.audio.stream import AudioDecoder
from minicpmo_ros.media.image.compressed import decode_compressed
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.streams.audio import AudioPipeline
from minicpmo_ros.streams.image import ImagePipeline
from minicpmo_ros.streams.pairing import Unit
from minicpmo_ros.units import NS

CLOCKS = {'cpu': time.process_time, 'wall': time.perf_counter}  # seconds
RATE_HZ, CHUNKS = 48_000, 10
WIDTH, HEIGHT = 640, 480  # pixels, what a camera gives
WARM_UP = 2  # seconds that are not counted
QUESTION = 'What is on the table now?'
PARTS = ('preprocessing', 'vision', 'audio', 'prefill')
ROWS = (1, 16, 32, 64, 96)  # one token; a unit of MiniCPM-o 2.6 is 94
UNIT_ROWS, TOKEN_ROWS = 96, 1


def clock_for(on_cpu: bool, threads: int) -> str:
    """Return the clock of CLOCKS that tells how long work takes there."""
    return 'cpu' if on_cpu and threads == 1 else 'wall'


def spent_ms(work: Callable[[], object], clock: str = 'cpu') -> float:
    """Return how long a call takes, ms."""
    now = CLOCKS[clock]
    started_s = now()
    work()
    return 1e3 * (now() - started_s)


@dataclass(frozen=True)
class Ratio:
    """How much of another way's time one way takes."""

    one: str  # what was measured
    other: str
    one_ms: float  # medians
    other_ms: float
    value: float  # median of the ratios of the pairs, one over other
    low: float  # quartiles of these ratios
    high: float
    pairs: int


def compare(
    one: Callable[[], float],
    other: Callable[[], float],
    names: tuple,
    n_pairs: int,
    warm_up: bool = True,
) -> Ratio:
    """Measure two ways in turn, `n_pairs` times; each call gives the ms it took.

    Who is first changes from pair to pair. warm_up: a first pair is not counted, because caches
    and graphs are made in it. Raises EngineError where a way took no time: then nothing was
    measured.
    """
    if n_pairs < 1:
        raise ValueError(f'{n_pairs} pairs; one at least is needed')
    pairs = []
    for i in range(n_pairs + warm_up):
        if i % 2:
            b, a = other(), one()
        else:
            a, b = one(), other()
        for name, ms in zip(names, (a, b)):
            if not (math.isfinite(ms) and ms > 0):
                raise EngineError(f'{name} took {ms} ms: nothing was measured')
        pairs.append((a, b))
    taken = np.array(pairs[warm_up:])  # (pairs, 2) ms
    ratios = taken[:, 0] / taken[:, 1]
    return Ratio(
        *names,
        *(float(ms) for ms in np.median(taken, axis=0)),
        *(float(x) for x in np.percentile(ratios, (50, 25, 75))),
        n_pairs,
    )


class Meter:
    """Time by what it is spent on; what is wrapped within what is wrapped counts once."""

    def __init__(self, clock: str = 'cpu'):
        self._now = CLOCKS[clock]
        self.ms = {}

    def reset(self) -> None:
        """Begin anew."""
        self.ms = dict.fromkeys(self.ms, 0.0)

    @contextmanager
    def wrapped(self, owner, name: str, part: str):
        """Let calls of owner.name count for `part`, as long as the context lasts."""
        call, own = getattr(owner, name), name in vars(owner)
        setattr(owner, name, self.timed(part, call))
        try:
            yield
        finally:
            if own:
                setattr(owner, name, call)
            else:
                delattr(owner, name)

    def timed(self, part: str, call: Callable) -> Callable:
        """Wrap a call so that its time counts for `part`, that of wrapped calls in it not."""
        self.ms.setdefault(part, 0.0)

        def measured(*arguments, **keywords):
            inside_ms, started_s = sum(self.ms.values()), self._now()
            try:
                return call(*arguments, **keywords)
            finally:
                ms = 1e3 * (self._now() - started_s)
                self.ms[part] += ms - (sum(self.ms.values()) - inside_ms)

        return measured


@dataclass(frozen=True)
class BenchOptions:
    """What is measured, and how often."""

    device: str = 'cpu'  # cpu, gpu, auto
    threads: int = 1  # with one on a CPU, its time is measured; else the time that passes
    n_ctx: int = 4096
    kv_type: str = 'f16'
    repack: bool = False  # of the language model
    pairs: int = 20  # of a ratio of short things; fewer of what takes longer
    units: int = 7  # seconds of image and audio that are counted
    seconds: int = 30  # of stream before a question
    tokens: int = 16  # of an answer

    @property
    def long_pairs(self) -> int:
        """Pairs of a ratio whose parts take long: whole windows and clips."""
        return max(1, self.pairs // 7)

    @property
    def some_pairs(self) -> int:
        """Pairs of a ratio whose parts take a while: a unit, an image."""
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
    """Return the clock that tells what this core's work takes."""
    return clock_for(core.is_cpu, core.options.threads)


def unit_times(core: Core, options: BenchOptions) -> dict:
    """Return the ms of a live second by its parts, 'whole', and 'compute': model compute alone.

    Medians over the seconds. The rest of 'whole' is Python: conversion, checks, copies.
    """
    clock = clock_of(core)
    parts, compute = Meter(clock), Meter(clock)
    image_pipeline = ImagePipeline(core.vision, core.options.max_tiles, unchanged_threshold=0)
    audio_pipeline, decoder = AudioPipeline(core.audio), AudioDecoder(AudioFormat(RATE_HZ, 2))
    pipelines = image_pipeline, audio_pipeline
    convert = parts.timed('preprocessing', decoder.push)
    rows = []
    with ExitStack() as wraps:
        for owner, name, part in (
            (image_pipeline, 'close', 'preprocessing'),
            (audio_pipeline, 'push', 'preprocessing'),
            (core.vision, 'encode', 'vision'),
            (audio_pipeline._encoder, 'step', 'audio'),
            (core.session, 'append', 'prefill'),
        ):
            wraps.enter_context(parts.wrapped(owner, name, part))
        wraps.enter_context(compute.wrapped(Backend, 'compute', 'compute'))
        wraps.enter_context(compute.wrapped(llama, 'llama_decode', 'compute'))
        inputs = [_input(i) for i in range(WARM_UP + options.units + 1)]
        for second, given in enumerate(inputs):
            parts.reset()
            compute.reset()
            read = partial(_live_second, core, pipelines, convert, second, *given)
            rows.append({'whole': spent_ms(read, clock), **parts.ms, **compute.ms})
    counted = rows[WARM_UP + 1 :]  # a unit is read one second behind
    return {name: float(np.median([row[name] for row in counted])) for name in counted[0]}


def _live_second(core, pipelines, convert, second: int, jpeg: bytes, chunks: list) -> None:
    """Take a second's input and read the unit that it completes."""
    image_pipeline, audio_pipeline = pipelines
    seen = image_pipeline.close(second - 1)
    image_pipeline.offer(second * NS, lambda: decode_compressed(jpeg))
    for k, chunk in enumerate(chunks):
        for heard in audio_pipeline.push(*convert(second * NS + k * NS // CHUNKS, chunk)):
            core.session.append(Unit(heard.second, seen[0].rows, (0, 0), heard.rows))


def _input(second: int) -> tuple:
    """Return a JPEG that differs from second to second, and a second of 16-bit stereo."""
    rng = np.random.default_rng(second)
    small = rng.integers(0, 255, (15, 20, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize((WIDTH, HEIGHT), Image.BICUBIC).save(file, 'JPEG', quality=90)
    audio = (rng.standard_normal((RATE_HZ, 2)) * 3000).astype('<i2')
    return file.getvalue(), [part.tobytes() for part in np.split(audio, CHUNKS)]


def random_unit(core: Core, second: int) -> Unit:
    """Return a second of random rows, as many as an image and a second of audio have."""
    rng, width = np.random.default_rng(second), core.session.model.width
    image = rng.standard_normal((core.vision.queries, width)) / 4
    audio = rng.standard_normal((core.audio.tokens_per_second, width)) / 4
    return Unit(second, image.astype(np.float16), (0, 0), audio.astype(np.float16))


def unit_rows(core: Core, second: int = 0) -> np.ndarray:
    """Return the rows of a random unit as they are read."""
    unit = random_unit(core, second)
    return core.session.prompt.unit(unit.image_rows, *unit.tiles, unit.audio_rows)


def capacity_s(core: Core) -> int:
    """Return how many seconds a window holds."""
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
    """Return first_token_ms and tokens_per_s behind a filled window, and its seconds."""
    seconds = fill(core, options.seconds)
    asked = [token_times(core, options.tokens) for _ in range(options.long_pairs + 1)][1:]
    return {
        'seconds': seconds,
        'first_token_ms': float(np.median([times[0] for times in asked])),
        'tokens_per_s': 1e3 / float(np.median([ms for times in asked for ms in times[1:]])),
    }


def memory(directory, options: BenchOptions, pss_mib: Callable[[], float]) -> dict:
    """Return the PSS of a process of its own, MiB: 'python', 'weights' loaded, and in 'inference'.

    Inference is an image and audio encoded and read, and a question answered, at n_ctx.
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


def calibrate(llm_path, options: BenchOptions) -> dict:
    """Return {'stored': {rows: ms}, 'repacked': {rows: ms}} of a CPU's decodes.

    One at a time is in memory, and once: repacked weights are read, not mapped.
    """
    return {
        name: _curve(llm_path, options, ModelOptions(use_mmap=not repack, repack=repack))
        for name, repack in (('stored', False), ('repacked', True))
    }


def better(curves: dict) -> dict:
    """Return the better way for 'prefill' of a second and for 'decode' of a token."""
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
            ms = spent_ms(lambda: context.read(rows[:n], 0, True), clock)
            context.remove(0, 0, -1)
            return ms

        rounds = [[read(n) for n in ROWS] for _ in range(options.long_pairs + 1)]
        context.close()
    finally:
        model.close()
    return dict(zip(ROWS, (float(ms) for ms in np.median(rounds[1:], axis=0))))
