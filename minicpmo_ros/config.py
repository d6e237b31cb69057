# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The defaults of all settings that more than one place has, a record for each part.

The nodes' parameters, the options of the classes behind them, the memory plan and the verbs take
their defaults from here. Imports nothing, so that any floor may import it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Computing:
    """Of every part of the model."""

    device: str = 'auto'  # auto, cpu, gpu
    rpc_servers: str = ''  # host:port, separated by commas; their devices are then the GPUs
    threads: int = 0  # of a node; 0: one core less than there are


@dataclass(frozen=True)
class Llm:
    """Of the language model and its session."""

    prompt: str = 'en'
    system_text: str = ''  # '': the prompt's own
    speech: str = 'auto'  # as the manifest of the model says
    gpu_layers: int = -1  # all, where there is a GPU
    use_mmap: bool = True
    use_mlock: bool = False
    repack: bool = False  # measure which is faster: it is slower to load
    n_ctx: int = 4096  # positions
    n_ubatch: int = 128  # rows of one decode; wider costs memory and gains nothing
    kv_type: str = 'f16'
    attention: str = 'auto'  # plain on a CPU but for q8_0, else fused
    window_policy: str = 'recent'
    still: bool = False  # read images that have not changed only now and then
    unit_deadline_s: float = 2.0  # an encoder may take 1 s
    wait_for: str = 'auto'  # the senses that a second waits for
    max_backlog: int = 8  # units that wait to be read
    max_waiting: int = 16  # questions
    max_parallel: int = 4  # questions that are answered together
    max_rules: int = 16  # standing questions
    quiet_dbfs: float = -60.0  # for them, quieter audio is as silence
    max_question_tokens: int = 384
    max_tokens: int = 256  # of an answer
    required_evidence: str = 'some'
    max_staleness_s: float = 5.0
    temperature: float = 0.0  # greedy
    # MiniCPM-o 2.6's own.
    top_k: int = 100
    top_p: float = 0.8
    repeat_penalty: float = 1.05
    seed: int = 0


@dataclass(frozen=True)
class Vision:
    """Of the vision encoder and what is in front of it."""

    max_tiles: int = 1
    governor: bool = True
    area: float = 1.0  # of the overview, as a share of the model's square image
    crop: str = ''  # x0 y0 x1 y1 as shares; '': the whole image
    sharp_every: int = 0  # seconds; 0: none is sharper than the area
    look_tiles: int = (
        9  # of an image that a question looks at: the most the model was trained with
    )
    tile_rule: str = 'minicpm'
    tile_alpha: float = 0.1  # of BlueLM-V-3B
    batch: int = 4  # tiles of one graph: memory grows with it, speed on a CPU does not
    unchanged_threshold: float = 8.0  # of 255: above a camera's noise in a mean over a cell


@dataclass(frozen=True)
class Audio:
    """Of the audio encoder and what is in front of it."""

    isolated: bool = False
    overlap_s: int = 5  # of its second stream; 0: none


@dataclass(frozen=True)
class Memory:
    """Of the notes that outlive the window."""

    path: str = '~/.ros/minicpmo_notes.db'
    every_s: int = 10  # between periodic notes
    questions: str = 'What happened in the last {every}? Answer in one short sentence.'
    max_tokens: int = 40
    budget: int = 300  # tokens of notes before a question
    notes: int = 8  # that are recalled at most
    map_frame: str = 'map'  # by TF; '': no place by TF
    base_frame: str = 'base_link'
    snapshots: int = 64  # seconds whose embeddings are kept at most; 0.6 MB each at the 7B size
    retention_h: float = 720.0  # a month
    max_mib: float = 256.0
    black_box_s: int = 0  # seconds that outlive the process; 0: none
    black_box_path: str = '~/.ros/minicpmo_black_box.session'
    black_box_max_age_s: float = 300.0  # of what is read again after a restart


@dataclass(frozen=True)
class Evaluation:
    """Where a run differs from a robot on purpose: it must be the same on every machine."""

    threads: int = 2  # rare ties depend on it
    max_tokens: int = 16  # answers that are scored are words


SENSES = ('image', 'audio')
NOTES_READ = ('auto', 'off', 'only')  # when a question reads notes (its field memory)
LOOKS = ('live', 'sharp', 'tiles')  # how a question looks at the newest image; live: not at all
TILE_RULES = ('minicpm', 'relaxed', 'llava_next', 'internvl')
ALERTS_TOGETHER = 8  # standing questions that are read in one decode
PARTS = ('llm', 'vision', 'audio')  # of a model: a file each
NODE_OF = {'audio': 'streaming_encoder', 'vision': 'vision_encoder', 'llm': 'llm'}  # by part
NODES = tuple(NODE_OF.values())
COMPUTING, LLM, VISION, AUDIO = Computing(), Llm(), Vision(), Audio()
MEMORY, EVALUATION = Memory(), Evaluation()
