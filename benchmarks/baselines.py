# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What others do in the same process, against which `benchmarks.bench` measures.

decode_over_llama    a token of an answer, over one of llama-cpp-python's own loop
vision_over_mtmd     a picture, over libmtmd's encoding of it, with the attention it chooses itself
audio_over_torch_Ns  the Nth second of sound, over PyTorch with a preallocated key/value cache
"""

import subprocess
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import llama_cpp
import numpy as np

from benchmarks import mtmd
from minicpmo_ros.encoders.siglip.encoder import VisionEncoder
from minicpmo_ros.encoders.whisper.encoder import AudioEncoder
from minicpmo_ros.errors import EngineError, InputError
from minicpmo_ros.evaluation.bench.bench import (
    BenchOptions,
    Ratio,
    clock_for,
    clock_of,
    compare,
    fill,
    open_bench,
    spent_ms,
    token_times,
)
from minicpmo_ros.evaluation.bench.ratios import random_mel, step_ms
from minicpmo_ros.ggml.runtime import Backend
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.modelset.gguf_layouts import TINY
from minicpmo_ros.synthetic.model import write_llm

WINDOW_S = 3  # of stream behind which tokens are decoded
TORCH_SCRIPT = Path(__file__).with_name('torch_whisper.py')


def decode(model: ModelDirectory, options: BenchOptions) -> Ratio:
    """Compare a token: of ours, sampled, checked and made text; of Llama.generate, an id.

    Both repack, as Llama does, and have flash attention and the same positions behind them.
    """
    core = open_bench(model, replace(options, repack=True))
    clock = clock_of(core)
    other = llama_cpp.Llama(
        str(model.llm_path),
        n_ctx=core.session.context.n_ctx,
        n_batch=128,
        n_threads=options.threads,
        n_threads_batch=options.threads,
        n_gpu_layers=0 if core.is_cpu else -1,
        flash_attn=True,
        verbose=False,
    )
    fill(core, WINDOW_S)
    prompt = [5] * core.session.window.end

    def ours() -> float:
        return float(np.mean(token_times(core, options.tokens)[1:]))

    def theirs() -> float:
        tokens = other.generate(prompt, temp=0.0, repeat_penalty=1.05)
        next(tokens)
        spent = [spent_ms(lambda: next(tokens), clock) for _ in range(options.tokens - 1)]
        tokens.close()
        return float(np.mean(spent))

    found = compare(ours, theirs, ('a token', 'a token of Llama.generate'), options.pairs)
    other.close()
    core.close()
    return found


def vision(model: ModelDirectory, options: BenchOptions) -> Ratio:
    """Compare the encoding, on the CPU, of a picture as large as the model was trained with."""
    return vision_file(model.vision_path, options)


def vision_file(path: Path, options: BenchOptions) -> Ratio:
    """Compare it for a vision file."""
    backend, clock = Backend('cpu', options.threads), clock_for(True, options.threads)
    encoder = VisionEncoder.load(path, backend)
    side, width = encoder.image_size, encoder.width
    picture = np.random.default_rng(7).integers(0, 255, (side, side, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        llm = Path(folder) / 'llm.gguf'  # libmtmd asks a language model for its width
        write_llm(llm, replace(TINY, width=width, llm_heads=width // 64, llm_layers=1))
        with (
            mtmd.loaded_mtmd(llm, path, mtmd.FLASH_AUTO, options.threads) as context,
            mtmd.overview(context, picture) as chunk,
        ):
            found = compare(
                lambda: spent_ms(lambda: encoder.encode([picture]), clock),
                lambda: spent_ms(lambda: mtmd.encode(context, chunk, width), clock),
                (f'a picture of {side}x{side} on the CPU', 'the same by libmtmd'),
                options.some_pairs,
            )
    backend.close()
    return found


def audio(model: ModelDirectory, options: BenchOptions, python: Path, second: int) -> Ratio:
    """Compare a second of a stream on the CPU; `python`: of an environment with PyTorch.

    InputError where it has none, or the encoder remembers no second as late.
    """
    if (
        not python.exists()
        or subprocess.run([python, '-c', 'import torch'], capture_output=True).returncode
    ):
        raise InputError(f'{python} has no PyTorch; give a python that has it (--torch)')
    backend = Backend('cpu', options.threads)
    encoder = AudioEncoder.load(model.audio_path, backend)
    stream, facts = encoder.stream(), encoder.facts
    if second > stream.max_seconds:
        raise InputError(f'the positions of this encoder end at {stream.max_seconds} s')
    mel = random_mel(second, facts.mel_bins)
    sizes = (facts.d_model, facts.layers, facts.heads, facts.width, facts.pool_step)
    process = subprocess.Popen(
        [str(python), str(TORCH_SCRIPT), *map(str, (*sizes, options.threads))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def theirs() -> float:
        print(second, file=process.stdin, flush=True)
        line = process.stdout.readline()
        if not line:
            raise EngineError(f'{python} {TORCH_SCRIPT} ended; its error is above')
        return float(line)

    try:
        names = (f'second {second} of a stream on the CPU', 'the same in PyTorch, f32')
        ours = partial(step_ms, stream, mel, second, clock_for(True, options.threads))
        return compare(ours, theirs, names, options.pairs)
    finally:
        process.stdin.close()
        process.wait()
        backend.close()
