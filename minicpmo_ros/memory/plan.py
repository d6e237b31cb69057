# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Predict the memory of a model directory, part by part, before anything is loaded.

    plan = forecast(ModelDirectory.open(path), PlanOptions(n_ctx=8192, kv_type='q8_0'))
    plan.host_mib, plan.device_mib

Only headers are read. The memory of the encoders is what ggml's allocators plan for the very
graphs that will run; the memory of the language model follows llama.cpp's formulas; what Python,
ROS and the vocabulary take is measured (docs/memory.md). The result is the most that one process
with all three parts comes to, not what it takes at its start. `plan_options` reads the options
from a preset: a YAML file of node parameters, in which `/**` holds for every node.
"""

import math
from dataclasses import dataclass, fields

from minicpmo_ros.config import ALERTS_TOGETHER, AUDIO, COMPUTING, LLM, NODES, PARTS, VISION
from minicpmo_ros.documents import parse_yaml, read_bounded, told
from minicpmo_ros.encoders import EncoderMemory
from minicpmo_ros.encoders.siglip.encoder import vision_memory
from minicpmo_ros.encoders.siglip.model import read_facts as vision_facts
from minicpmo_ros.encoders.whisper.encoder import audio_memory
from minicpmo_ros.encoders.whisper.encoder import read_facts as audio_facts
from minicpmo_ros.errors import InputError, in_words
from minicpmo_ros.ggml.devices import gpu_name
from minicpmo_ros.ggml.gguf_file import Header
from minicpmo_ros.ggml.runtime import AsGpu, Backend
from minicpmo_ros.llm.context_options import ATTENTION, KV_TYPES, cells, check_n_ctx, is_fused
from minicpmo_ros.media.image.tiling import MIN_AREA, reserved_area
from minicpmo_ros.memory import llm_formulas
from minicpmo_ros.memory.llm_formulas import LlmSizes
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.quantize.rules import chosen_types, type_named
from minicpmo_ros.units import MIB

# Measured with models whose own parts are small, on x86-64 with Python 3.11 and ROS 2 Kilted.
PROCESS_MIB = 146.0  # Python, NumPy, rclpy, DDS, llama.cpp's code, messages on their way
BYTES_PER_TOKEN = 440  # of the vocabulary, in llama.cpp's tables and in Python
TOKEN_ROWS_MIB = 4.0  # pages of the token table that prompts touch, where the rest is elsewhere
# Not measured by us: what CUDA takes for itself, kernels and libraries.
GPU_RUNTIME_MIB = 512.0
FOLDED = 'resampler.attn.q.weight'  # of the vision file, but never on the device
AROUND, LABEL = 2, 4  # positions: of the marks around an image or audio, of a camera's name
PLANNED = (*PARTS, 'process')
OPTIONS_OF = {
    'vision': (
        'max_tiles',
        'batch',
        'area',
        'look_tiles',
        'vision_device',
        'vision_rpc_servers',
        'vision_precision',
    ),
    'audio': ('isolated', 'overlap_s', 'audio_device', 'audio_rpc_servers', 'audio_precision'),
}
WHAT = ('weights', 'repacked weights', 'keys and values', 'computing', 'output', 'vocabulary',
        'Python and ROS', 'GPU runtime (assumed)')  # fmt: skip
EVERYWHERE = '/**'
# Option of a plan: node and parameter, where they differ from `llm` and the option's own name.
SOURCES = {
    'max_tiles': ('vision_encoder', 'vision.max_tiles'),
    'batch': ('vision_encoder', 'vision.batch'),
    'area': ('vision_encoder', 'vision.area'),
    'look_tiles': ('vision_encoder', 'vision.look_tiles'),
    'max_rules': ('llm', 'alerts.max_rules'),
    'n_robots': ('llm', 'robots'),
    'n_cameras': ('vision_encoder', 'cameras'),
    'isolated': ('streaming_encoder', 'isolated'),
    'vision_device': ('vision_encoder', 'device'),
    'audio_device': ('streaming_encoder', 'device'),
    'vision_rpc_servers': ('vision_encoder', 'rpc_servers'),
    'audio_rpc_servers': ('streaming_encoder', 'rpc_servers'),
}
CHOICES = {'kv_type': tuple(KV_TYPES), 'attention': ATTENTION, 'device': ('auto', 'cpu', 'gpu')}
RANGES = {  # as the nodes have them
    'n_ctx': (256, 1_048_576), 'n_ubatch': (16, 4096), 'max_parallel': (1, 16),
    'gpu_layers': (-1, 1000), 'alerts.max_rules': (0, 64), 'vision.max_tiles': (1, 16),
    'vision.batch': (1, 16), 'vision.area': (MIN_AREA, 1.0), 'vision.look_tiles': (0, 16),
}  # fmt: skip


@dataclass(frozen=True)
class PlanOptions:
    """The nodes' parameters that memory depends on; the defaults are the nodes'."""

    n_ctx: int = LLM.n_ctx
    n_robots: int = 1  # that share one engine, each with a window of n_ctx positions
    kv_type: str = LLM.kv_type
    attention: str = LLM.attention
    n_ubatch: int = LLM.n_ubatch
    max_parallel: int = LLM.max_parallel
    max_rules: int = LLM.max_rules
    gpu_layers: int = LLM.gpu_layers
    use_mmap: bool = LLM.use_mmap
    repack: bool = LLM.repack
    n_cameras: int = 1  # of which each second has an image
    max_tiles: int = VISION.max_tiles
    batch: int = VISION.batch
    area: float = VISION.area
    look_tiles: int = VISION.look_tiles
    isolated: bool = AUDIO.isolated
    device: str = COMPUTING.device  # of the language model
    vision_device: str = COMPUTING.device
    audio_device: str = COMPUTING.device
    rpc_servers: str = COMPUTING.rpc_servers  # of the language model
    vision_rpc_servers: str = COMPUTING.rpc_servers
    audio_rpc_servers: str = COMPUTING.rpc_servers
    overlap_s: int = AUDIO.overlap_s  # of the audio encoder's second stream; 0: none
    # What `minicpmo quantize` would make of the files; '': as they are.
    llm_precision: str = ''
    vision_precision: str = ''
    audio_precision: str = ''
    parts: tuple = PLANNED  # of the model, and 'process': Python, ROS and a GPU's runtime

    @property
    def images_per_s(self) -> int:
        """How many images of a second are encoded, tiles among them, at most."""
        return self.n_cameras + (self.max_tiles if self.max_tiles > 1 else 0)

    def placed(self) -> dict:
        """Return (device, RPC servers) of each part."""
        return {
            'llm': (self.device, self.rpc_servers),
            'vision': (self.vision_device, self.vision_rpc_servers),
            'audio': (self.audio_device, self.audio_rpc_servers),
        }

    @property
    def served(self) -> set:
        """The parts that RPC servers compute."""
        placed = self.placed().items()
        return {part for part, (device, servers) in placed if servers and device != 'cpu'}


@dataclass(frozen=True)
class Amount:
    """Bytes that one part of the model takes for one thing."""

    part: str  # of PLANNED
    what: str  # of WHAT
    host: int  # bytes of the machine's memory
    device: int = 0  # bytes of the GPU's


@dataclass(frozen=True)
class Plan:
    """A forecast; positions: of the window that a second of all images and audio takes, about."""

    options: PlanOptions
    amounts: tuple
    positions: int = 0

    @property
    def window_s(self) -> int:
        """Return how many seconds the window holds, if it holds nothing else."""
        return self.options.n_ctx // max(1, self.positions)

    @property
    def host_mib(self) -> float:
        """MiB of the machine's memory."""
        return sum(amount.host for amount in self.amounts) / MIB

    @property
    def device_mib(self) -> float:
        """MiB of the GPU's memory; on a board the same memory, on an RPC server its."""
        return sum(amount.device for amount in self.amounts) / MIB

    @property
    def total_mib(self) -> float:
        """Both, but for what is on RPC servers: counts where the GPU has the machine's memory."""
        here = (amount for amount in self.amounts if amount.part not in self.options.served)
        return self.host_mib + sum(amount.device for amount in here) / MIB

    def parts_text(self) -> str:
        """Return the MiB by part, or of a single part by what they are for, in words."""
        sums = {}
        for amount in self.amounts:
            name = amount.part if len(self.options.parts) > 1 else amount.what
            sums[name] = sums.get(name, 0) + (amount.host + amount.device) / MIB
        return ', '.join(f'{name} {mib:.0f}' for name, mib in sums.items() if mib >= 0.5)

    def amount(self, part: str, what: str) -> Amount:
        """Return one amount; zero bytes if there is none."""
        for amount in self.amounts:
            if (amount.part, amount.what) == (part, what):
                return amount
        return Amount(part, what, 0)


def forecast(
    model: ModelDirectory, options: PlanOptions | None = None, known: Plan | None = None
) -> Plan:
    """Forecast a model with these parameters: 30 ms of CPU at the true size, hardly any memory.

    known: a plan of the same model; what the options do not change is taken from it.
    Raises ModelFileError for headers that do not tell what is needed, InputError for more
    positions than the language model was made for.
    """
    options = options or PlanOptions()
    if 'llm' in options.parts:
        check_n_ctx(options.n_ctx, LlmSizes.of(model.headers['llm']).context_length)
    on_gpu = {
        part: device == 'gpu' or (device == 'auto' and bool(servers or gpu_name()))
        for part, (device, servers) in options.placed().items()
    }
    with _Devices() as devices:
        amounts = []
        if 'llm' in options.parts:
            amounts += _llm_amounts(model.headers['llm'], options, on_gpu['llm'], devices)
        for part, make in (('vision', _vision), ('audio', _audio)):
            if part not in options.parts:
                continue
            amounts += _kept(part, options, known) or make(
                model.headers[part], options, devices.get(on_gpu[part])
            )
    if 'process' in options.parts:
        amounts.append(Amount('process', 'Python and ROS', int(PROCESS_MIB * MIB)))
        if any(on_gpu[part] for part in on_gpu if part not in options.served):
            gpu_runtime = int(GPU_RUNTIME_MIB * MIB)
            amounts.append(Amount('process', 'GPU runtime (assumed)', 0, gpu_runtime))
    there = tuple(amount for amount in amounts if amount.host or amount.device)
    return Plan(options, there, positions_of_a_second(model, options))


def positions_of_a_second(model: ModelDirectory, options: PlanOptions) -> int:
    """Return how many positions a second takes, with as many tiles as there may be; about."""
    if not {'vision', 'audio'} <= model.headers.keys():
        return 0
    image = vision_facts(model.headers['vision']).queries + AROUND
    images = options.images_per_s * image
    if options.n_cameras > 1:
        images += options.n_cameras * LABEL
    return 1 + images + audio_facts(model.headers['audio']).tokens_per_second + AROUND


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


def _kept(part: str, options: PlanOptions, known: Plan | None) -> list:
    if known is None or any(
        getattr(options, name) != getattr(known.options, name) for name in OPTIONS_OF[part]
    ):
        return []
    return [amount for amount in known.amounts if amount.part == part]


def _llm_amounts(header: Header, options: PlanOptions, on_gpu: bool, devices: _Devices) -> list:
    facts = LlmSizes.of(header)
    n_gpu = llm_formulas.layers_on_gpu(facts, options.gpu_layers) if on_gpu else 0
    n_cpu = facts.layers + 1 - n_gpu
    weights = llm_formulas.weights(header, facts, n_gpu, options.use_mmap)
    if options.llm_precision:
        now = weights.host + weights.device
        share = 1 - quantized_savings(header, 'llm', options.llm_precision) / now
        weights = llm_formulas.Split(int(weights.host * share), int(weights.device * share))
    host_weights = weights.host
    if not options.use_mmap or n_gpu:
        host_weights += int(TOKEN_ROWS_MIB * MIB)
    repacked = 0
    if options.repack and options.use_mmap and n_cpu == facts.layers + 1:
        repacked = llm_formulas.repacked_bytes(header, devices.get(False))
    n_ctx = options.n_robots * cells(options.n_ctx)
    kv = llm_formulas.keys_and_values(facts, n_ctx, options.kv_type, n_gpu)
    # The windows, and the forks for questions (live/shared_context.py).
    n_forks = options.max_parallel + min(ALERTS_TOGETHER, options.max_rules)
    n_sequences = options.n_robots + max(n_forks, options.n_robots)
    n_outputs = min(options.n_ubatch, max(llm_formulas.OUTPUTS, n_sequences))
    fused = is_fused(options.attention, options.kv_type, bool(n_gpu))
    computing = llm_formulas.compute(facts, n_ctx, options.n_ubatch, n_outputs, fused)
    on_host = computing + llm_formulas.work(facts, options.n_ubatch) if n_cpu else 0
    if n_gpu:
        on_host += llm_formulas.gpu_inputs(facts, n_ctx, options.n_ubatch)
    return [
        Amount('llm', 'weights', host_weights, weights.device),
        Amount('llm', 'repacked weights', repacked),
        Amount('llm', 'keys and values', kv.host, kv.device),
        Amount('llm', 'computing', on_host, computing if n_gpu else 0),
        Amount('llm', 'output', llm_formulas.output(facts, n_sequences)),
        Amount('llm', 'vocabulary', facts.vocabulary * BYTES_PER_TOKEN),
    ]


def _vision(header: Header, options: PlanOptions, backend: Backend) -> list:
    tiles = min(options.batch, options.max_tiles)
    area = reserved_area(options.area, options.max_tiles, options.look_tiles)
    memory = vision_memory(header, backend, tiles, area=area)
    return _encoder_amounts('vision', header, memory, options.vision_precision, backend.is_cpu)


def _audio(header: Header, options: PlanOptions, backend: Backend) -> list:
    # The second stream begins before the first is full (streams/audio.py).
    streams = (None,) if options.isolated or not options.overlap_s else (None, options.overlap_s)
    memory = audio_memory(header, backend, streams)
    return _encoder_amounts('audio', header, memory, options.audio_precision, backend.is_cpu)


def _encoder_amounts(
    part: str, header: Header, memory: EncoderMemory, precision: str, on_cpu: bool
) -> list:
    """Return whose memory it is: the GPU's, whole, where the encoder runs there."""
    figures = (
        ('weights', memory.weights - quantized_savings(header, part, precision)),
        ('keys and values', memory.cache),
        ('computing', memory.compute + memory.work),
    )
    return [
        Amount(part, what, n_bytes if on_cpu else 0, 0 if on_cpu else n_bytes)
        for what, n_bytes in figures
    ]


def quantized_savings(header: Header, part: str, precision: str) -> int:
    """Return by how many bytes `minicpmo quantize --type` shrinks the weights; '': by none."""
    if not precision:
        return 0
    saved = 0
    for name, ggml_type in chosen_types(header, part, type_named(precision), ()).items():
        info = header.tensors[name]
        if name != FOLDED:
            blocks = math.ceil(info.shape[-1] / ggml_type.block_size)  # rows are widened to fit
            stored = math.prod(info.shape[:-1]) * blocks * ggml_type.block_bytes
            saved += max(0, info.n_bytes - stored)
    return saved


def read_parameters(path) -> dict:
    """Return {node: {parameter: value}} of the three nodes; InputError if it is no preset."""
    try:
        record = parse_yaml(read_bounded(path))
        sections = {
            key.rpartition('/')[2] or key: dict(value['ros__parameters'])
            for key, value in record.items()
            if key != EVERYWHERE
        }
        common = dict(record.get(EVERYWHERE, {'ros__parameters': {}})['ros__parameters'])
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise InputError(
            f'{path} is no file of ROS parameters ({in_words(error)}); expected is '
            '/**/llm: with ros__parameters: below it'
        ) from None
    return {node: {**common, **sections.get(node, {})} for node in NODES}


def plan_options(parameters: dict) -> PlanOptions:
    """Return the options of {node: {parameter: value}}; what is missing is the node's default."""
    given = {}
    for row in fields(PlanOptions):
        node, name = SOURCES.get(row.name, ('llm', row.name))
        if name in parameters.get(node, {}):
            value = parameters[node][name]
            if name == 'robots':  # their namespaces; none: one robot
                value = _count_robots(value)
            elif name == 'cameras':  # their names; none: one camera
                text = ','.join(map(str, value)) if isinstance(value, list | tuple) else str(value)
                value = max(1, sum(1 for one in text.split(',') if one.strip()))
            given[row.name] = _checked(name, value, row.default)
    return PlanOptions(**given)


def _count_robots(names) -> int:
    """Return how many robots parameter robots names, at least one; InputError as the node has."""
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise InputError(f'robots is {told(names)}; a list of names is expected, such as [a, b]')
    given = [name.rstrip('/') for name in filter(None, names)]
    if len(set(given)) < len(given):
        raise InputError(f'robots is {told(names)}; name each robot once')
    return max(1, len(given))


def _checked(name: str, value, default):
    if type(value) is not type(default):
        kind = {int: 'an int', float: 'a float, as 1.0', str: 'a text', bool: 'true or false'}[
            type(default)
        ]
        raise InputError(f'{name} is {told(value)}; {kind} is expected')
    if name in CHOICES and value not in CHOICES[name]:
        raise InputError(f'{name} is {value!r}; allowed are {", ".join(CHOICES[name])}')
    least, most = RANGES.get(name, (value, value))
    if not least <= value <= most:
        raise InputError(f'{name} is {value}; {least} to {most} are allowed')
    return value
