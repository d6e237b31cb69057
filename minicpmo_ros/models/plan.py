# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What a model directory will take of the memory, part by part, before anything is loaded.

    plan = forecast(ModelDirectory.open(path), PlanOptions(n_ctx=8192, kv_type='q8_0'))
    plan.host_mib, plan.device_mib

Read are the headers alone. The encoders' parts are those that ggml's allocators plan for the very
graphs that will run; the language model's follow llama.cpp's formulas; what Python, ROS and the
vocabulary take is measured (docs/memory.md). It is the memory of one process with all three
modules that has been in use, the most that it comes to, not what it has at its start.
"""

import math
from dataclasses import dataclass

from minicpmo_ros.encoders.forecast import EncoderMemory, audio_memory, vision_memory
from minicpmo_ros.ggml.forecast import AsGpu
from minicpmo_ros.ggml.header import Header
from minicpmo_ros.ggml.runtime import Backend, gpu_name
from minicpmo_ros.ggml.types import block_size, type_size
from minicpmo_ros.language.context import check_n_ctx
from minicpmo_ros.models import llm_forecast, llm_memory
from minicpmo_ros.models.directory import ModelDirectory
from minicpmo_ros.models.llm_memory import LlmFacts
from minicpmo_ros.models.quantize_rules import chosen_types, type_named

MIB = 2**20
N_SEQUENCES = 2  # of a session: the window and a question
# Measured with models whose own parts are small, on x86-64 with Python 3.11 and ROS 2 Kilted.
PROCESS_MIB = 146.0  # Python, NumPy, rclpy, DDS, llama.cpp's code, messages on their way
BYTES_PER_TOKEN = 440  # of the vocabulary, in llama.cpp's tables and in Python
TOKEN_ROWS_MIB = 4.0  # pages of the token table that prompts touch, where the rest is elsewhere
# Not measured by us: what CUDA takes for itself, kernels and libraries.
GPU_RUNTIME_MIB = 512.0
FOLDED = 'resampler.attn.q.weight'  # of the vision file, but never on the device
MODULES = ('llm', 'vision', 'audio', 'process')
OPTIONS_OF = {
    'vision': ('max_tiles', 'vision_device', 'vision_precision'),
    'audio': ('isolated', 'overlap_s', 'audio_device', 'audio_precision'),
}
WHAT = ('weights', 'repacked weights', 'keys and values', 'computing', 'output', 'vocabulary',
        'Python and ROS', 'GPU runtime (assumed)')  # fmt: skip


@dataclass(frozen=True)
class PlanOptions:
    """The nodes' parameters that memory depends on; the defaults are the nodes'."""

    n_ctx: int = 4096
    kv_type: str = 'f16'
    n_ubatch: int = 128
    gpu_layers: int = -1
    use_mmap: bool = True
    repack: bool = False
    max_tiles: int = 1
    isolated: bool = False
    device: str = 'auto'  # of the language model
    vision_device: str = 'auto'
    audio_device: str = 'auto'
    overlap_s: int = 5  # of the audio encoder's second stream; 0: none
    # What `minicpmo quantize` would make of the files; '': as they are.
    llm_precision: str = ''
    vision_precision: str = ''
    audio_precision: str = ''
    modules: tuple = MODULES  # that are planned; of a process with a part of the model, its own


@dataclass(frozen=True)
class Part:
    """Bytes of one thing that one module takes."""

    module: str  # of MODULES
    what: str  # of WHAT
    host: int  # bytes of the machine's memory
    device: int = 0  # bytes of the GPU's


@dataclass(frozen=True)
class Plan:
    """A forecast."""

    options: PlanOptions
    parts: tuple

    @property
    def host_mib(self) -> float:
        """MiB of the machine's memory."""
        return sum(part.host for part in self.parts) / MIB

    @property
    def device_mib(self) -> float:
        """MiB of the GPU's memory; on a board the same memory."""
        return sum(part.device for part in self.parts) / MIB

    @property
    def total_mib(self) -> float:
        """Both: what counts where the GPU computes in the machine's memory."""
        return self.host_mib + self.device_mib

    def parts_text(self) -> str:
        """Give the MiB by module, or of a single one by what they are for, in words."""
        sums = {}
        for part in self.parts:
            name = part.module if len(self.options.modules) > 1 else part.what
            sums[name] = sums.get(name, 0) + (part.host + part.device) / MIB
        return ', '.join(f'{name} {mib:.0f}' for name, mib in sums.items() if mib >= 0.5)

    def part(self, module: str, what: str) -> Part:
        """Give one part; of zero bytes where there is none."""
        for part in self.parts:
            if (part.module, part.what) == (module, what):
                return part
        return Part(module, what, 0)


def forecast(
    model: ModelDirectory, options: PlanOptions | None = None, known: Plan | None = None
) -> Plan:
    """Forecast a model with these parameters: 30 ms of CPU at the true size, hardly any memory.

    known: a plan of the same model; what the options do not change is taken from it.
    Raises ModelFileError for headers that do not tell what is needed, InputError for more
    positions than the language model was made for.
    """
    options = options or PlanOptions()
    if 'llm' in options.modules:
        check_n_ctx(options.n_ctx, LlmFacts.of(model.headers['llm']).context_length)
    on_gpu = {
        module: device == 'gpu' or (device == 'auto' and gpu_name())
        for module, device in (
            ('llm', options.device),
            ('vision', options.vision_device),
            ('audio', options.audio_device),
        )
    }
    with _Devices() as devices:
        parts = []
        if 'llm' in options.modules:
            parts += _llm_parts(model.headers['llm'], options, on_gpu['llm'], devices)
        for module, make in (('vision', _vision), ('audio', _audio)):
            if module not in options.modules:
                continue
            parts += _kept(module, options, known) or make(
                model.headers[module], options, devices.get(on_gpu[module])
            )
    if 'process' in options.modules:
        parts.append(Part('process', 'Python and ROS', int(PROCESS_MIB * MIB)))
        if any(on_gpu.values()):
            parts.append(Part('process', 'GPU runtime (assumed)', 0, int(GPU_RUNTIME_MIB * MIB)))
    return Plan(options, tuple(part for part in parts if part.host or part.device))


class _Devices:
    """A CPU and what stands for a GPU, made when they are asked for."""

    def __init__(self):
        self._made = {}

    def get(self, on_gpu: bool) -> Backend:
        if on_gpu not in self._made:
            self._made[on_gpu] = AsGpu() if on_gpu else Backend('cpu')
        return self._made[on_gpu]

    def __enter__(self) -> '_Devices':
        return self

    def __exit__(self, *_) -> None:
        for backend in self._made.values():
            backend.close()


def _kept(module: str, options: PlanOptions, known: Plan | None) -> list:
    if known is None or any(
        getattr(options, name) != getattr(known.options, name) for name in OPTIONS_OF[module]
    ):
        return []
    return [part for part in known.parts if part.module == module]


def _llm_parts(header: Header, options: PlanOptions, on_gpu: bool, devices: _Devices) -> list:
    facts = LlmFacts.of(header)
    n_gpu = llm_forecast.layers_on_gpu(facts, options.gpu_layers) if on_gpu else 0
    n_cpu = facts.layers + 1 - n_gpu
    weights = llm_forecast.weights(header, facts, n_gpu, options.use_mmap)
    if options.llm_precision:
        now = weights.host + weights.device
        share = 1 - quantized_savings(header, 'llm', options.llm_precision) / now
        weights = llm_forecast.Split(int(weights.host * share), int(weights.device * share))
    host_weights = weights.host
    if not options.use_mmap or n_gpu:
        host_weights += int(TOKEN_ROWS_MIB * MIB)
    repacked = 0
    if options.repack and options.use_mmap and n_cpu == facts.layers + 1:
        repacked = llm_forecast.repacked_bytes(header, devices.get(False))
    kv = llm_forecast.keys_and_values(facts, options.n_ctx, options.kv_type, n_gpu)
    n_outputs = min(options.n_ubatch, max(llm_memory.OUTPUTS, N_SEQUENCES))
    computing = llm_memory.compute(facts, options.n_ctx, options.n_ubatch, n_outputs)
    on_host = computing + llm_forecast.work(facts, options.n_ubatch) if n_cpu else 0
    if n_gpu:
        on_host += llm_forecast.gpu_inputs(facts, options.n_ctx, options.n_ubatch)
    return [
        Part('llm', 'weights', host_weights, weights.device),
        Part('llm', 'repacked weights', repacked),
        Part('llm', 'keys and values', kv.host, kv.device),
        Part('llm', 'computing', on_host, computing if n_gpu else 0),
        Part('llm', 'output', llm_memory.output(facts, N_SEQUENCES)),
        Part('llm', 'vocabulary', facts.vocabulary * BYTES_PER_TOKEN),
    ]


def _vision(header: Header, options: PlanOptions, backend: Backend) -> list:
    memory = vision_memory(header, backend, options.max_tiles)
    return _encoder_parts('vision', header, memory, options.vision_precision, backend.is_cpu)


def _audio(header: Header, options: PlanOptions, backend: Backend) -> list:
    # The second stream begins before the first is full (live/ears.py).
    streams = (None,) if options.isolated or not options.overlap_s else (None, options.overlap_s)
    memory = audio_memory(header, backend, streams)
    return _encoder_parts('audio', header, memory, options.audio_precision, backend.is_cpu)


def _encoder_parts(
    module: str, header: Header, memory: EncoderMemory, precision: str, on_cpu: bool
) -> list:
    """Say whose memory it is: the GPU's, whole, where the encoder runs there."""
    figures = (
        ('weights', memory.weights - quantized_savings(header, module, precision)),
        ('keys and values', memory.cache),
        ('computing', memory.compute + memory.work),
    )
    return [
        Part(module, what, n_bytes if on_cpu else 0, 0 if on_cpu else n_bytes)
        for what, n_bytes in figures
    ]


def quantized_savings(header: Header, module: str, precision: str) -> int:
    """Give by how many bytes the weights shrink under `minicpmo quantize --type`; '': by none."""
    if not precision:
        return 0
    saved = 0
    for name, ggml_type in chosen_types(header, module, type_named(precision), ()).items():
        info = header.tensors[name]
        if name != FOLDED:
            blocks = math.ceil(info.shape[-1] / block_size(ggml_type))  # rows are widened to fit
            stored = math.prod(info.shape[:-1]) * blocks * type_size(ggml_type)
            saved += max(0, info.n_bytes - stored)
    return saved
