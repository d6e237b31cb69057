# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What tells one version of MiniCPM-o from another, as data: its prompt, its tokens, its sizes.

A family is one file of this room and a line in its registry. Code that works for all families asks
a Family; nothing outside this room names one.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

# llama.cpp's names of the language models that llm reads, modelset describes and convert makes.
# Another architecture needs code there; another family of these does not.
ARCHITECTURES = ('qwen2', 'qwen3')
_SPECIAL_NAME = re.compile(r'<\|?[a-z_/]+\|?>')


@dataclass(frozen=True)
class PromptLayout:
    """The turn layout of one model family in one language; texts may name special tokens."""

    system_text: str
    system_open: str = '<|im_start|>user\n'
    system_close: str = '<|im_end|>\n'
    user_open: str = '<|im_start|>user\n'
    unit_open: str = '<unit>'  # only where the unit has a picture
    picture: tuple = ('<image>', '</image>')
    camera_label: str = '{name}: '  # before each image, where there are several cameras
    tile: tuple = ('<slice>', '</slice>')
    tile_row_break: str = '\n'
    sound: tuple = ('<|audio_start|>', '<|audio_end|>')
    answer_open: str = '<|im_end|>\n<|im_start|>assistant\n'
    speech_open: str = '<|spk_bos|><|spk|><|spk_eos|><|tts_bos|>'
    speech_close: str = '<|tts_eos|>'
    turn_join: str = '<|im_end|>\n<|im_start|>user\n'
    # The model closes speech before its turn; nothing a person reads follows.
    stops: tuple = ('<|im_end|>', '<|endoftext|>', '<|tts_eos|>')

    @property
    def special_tokens(self) -> frozenset:
        """All tokens the layout cannot do without."""
        texts = [str(getattr(self, each.name)) for each in fields(self)[1:]]
        return frozenset(_SPECIAL_NAME.findall(' '.join(texts)))


@dataclass(frozen=True)
class Shape:
    """All sizes of one model; widths are counted in numbers, not bytes."""

    name: str
    family: str
    width: int  # LLM embedding; with a resampler a multiple of 128, its head width
    llm_layers: int
    llm_heads: int
    llm_kv_heads: int
    llm_ffn: int
    vocabulary: int
    vision_width: int
    vision_layers: int
    vision_heads: int
    vision_ffn: int
    audio_width: int  # the feed-forward is four times as wide
    audio_layers: int
    audio_heads: int
    queries: int = 64  # embeddings per picture
    image_size: int = 448  # pixels
    patch_size: int = 14  # pixels
    position_grid: int = 70  # learned positions per side of the vision encoder
    joins_patches: bool = False  # 2 x 2 patches to one embedding by an MLP, not by a resampler
    mel_bins: int = 80
    audio_positions: int = 1500  # 30 s
    audio_pool: int = 2
    llm_tied: bool = False  # the output matrix is the token embedding
    llm_head: int = 0  # width of an attention head; 0: the heads share the embedding's width
    context_length: int = 32768
    rope_base: float = 1e6
    rms_epsilon: float = 1e-6  # of the language model's norms

    @property
    def llm_head_width(self) -> int:
        """Width of one attention head of the language model."""
        return self.llm_head or self.width // self.llm_heads

    @property
    def audio_ffn(self) -> int:
        """Width of the audio encoder's feed-forward."""
        return 4 * self.audio_width


@dataclass(frozen=True)
class Publication:
    """Where the files of one part were published."""

    repository: str  # on Hugging Face's hub; '': they are not there
    pattern: str  # of their names
    elsewhere: str = ''  # an address for people, where they are not on the hub


@dataclass(frozen=True)
class Family:
    """One version of MiniCPM-o: all that code must know of it."""

    name: str  # in manifests and in the names of embedding spaces
    version: str  # as config.json of a checkpoint has it
    architecture: str  # of the language model, one of ARCHITECTURES
    layouts: Mapping[str, PromptLayout]  # by language
    special_tokens: tuple  # the end of its vocabulary, in the order of the published ids
    published: Shape
    vision_versions: tuple  # llama.cpp's numbers for its vision files; the first is the published
    # The tensor of an attention layer by which a checkpoint is known; those who share it are told
    # apart by their versions.
    checkpoint_mark: str
    word_tokens: tuple = ()  # special tokens that its tokenizer adds as words of its own
    drops_vision_layer: bool = False  # of a checkpoint, where its configuration does not say
    isolated_audio: bool = False  # its front end prepares each second by itself
    speech: bool = True  # its answers open prepared for a voice
    sound_positions: int = (
        0  # beyond them its answers are reported to break; 0: no report is known
    )
    # Of its models that never learned that: how their language models call themselves
    # (general.name).
    without_speech: tuple = ()
    # By part; without them it was not published in files that are read here.
    sources: Mapping[str, Publication] = field(default_factory=dict)
    tiny: Mapping[str, object] = field(default_factory=dict)  # in what its smallest Shape differs

    def __post_init__(self):
        """Refuse what no code could read."""
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f'{self.architecture!r} is none of {", ".join(ARCHITECTURES)}')
        if missing := self.required_tokens - set(self.special_tokens):
            raise ValueError(f'its prompts need {" ".join(sorted(missing))}, which it has not')

    def speaks(self, name: object) -> bool:
        """Return whether answers of a model that is called so open prepared for a voice."""
        return self.speech and name not in self.without_speech

    def long_context_warning(self, n_ctx: int) -> str:
        """Return a sentence if answers are reported to break in so long a context, or ''."""
        if not 0 < self.sound_positions < n_ctx:
            return ''
        return (
            f'n_ctx is {n_ctx}, but users report that answers of {self.name} break beyond about '
            f'{self.sound_positions} positions: nothing, one letter again and again, broken JSON. '
            f'Set n_ctx to {self.sound_positions} or less'
        )

    @property
    def required_tokens(self) -> frozenset:
        """The special tokens without which a live session cannot be laid out."""
        return frozenset().union(*(layout.special_tokens for layout in self.layouts.values()))
