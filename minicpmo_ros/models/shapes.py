# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The sizes of a MiniCPM-o: one frozen record for the three networks, and the ones we write."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Shape:
    """All sizes of one model; widths are counted in numbers, not bytes."""

    name: str
    width: int  # LLM embedding; a multiple of 128, the resampler's head width
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
    mel_bins: int = 80
    audio_positions: int = 1500  # 30 s
    audio_pool: int = 2
    llm_tied: bool = False  # the output matrix is the token embedding
    llm_head: int = 0  # width of an attention head; 0: the heads share the embedding's width
    context_length: int = 32768
    rope_base: float = 1e6
    rms_epsilon: float = 1e-6  # of the language model's norms
    family: str = 'minicpm-o-2.6'

    @property
    def llm_head_width(self) -> int:
        """Width of one attention head of the language model."""
        return self.llm_head or self.width // self.llm_heads

    @property
    def audio_ffn(self) -> int:
        """Width of the audio encoder's feed-forward."""
        return 4 * self.audio_width


# As published, the vision feed-forward is no multiple of 32; from small on its heads have 72.
TINY = Shape(
    'tiny',
    width=256,
    llm_layers=2,
    llm_heads=4,
    llm_kv_heads=2,
    llm_ffn=512,
    vocabulary=640,
    vision_width=160,
    vision_layers=2,
    vision_heads=2,
    vision_ffn=538,
    audio_width=128,
    audio_layers=2,
    audio_heads=2,
)
NANO = Shape(
    'nano',
    width=256,
    llm_layers=6,
    llm_heads=4,
    llm_kv_heads=2,
    llm_ffn=512,
    vocabulary=640,
    vision_width=128,
    vision_layers=3,
    vision_heads=4,
    vision_ffn=512,
    audio_width=128,
    audio_layers=3,
    audio_heads=4,
    queries=16,
    image_size=112,
    llm_tied=True,
    rope_base=1e4,
)
SMALL = Shape(
    'small',
    width=512,
    llm_layers=8,
    llm_heads=4,
    llm_kv_heads=1,
    llm_ffn=1536,
    vocabulary=2048,
    vision_width=576,
    vision_layers=4,
    vision_heads=8,
    vision_ffn=2152,
    audio_width=256,
    audio_layers=4,
    audio_heads=4,
)
HALF_B = Shape(
    '0.5b',
    width=896,
    llm_layers=24,
    llm_heads=14,
    llm_kv_heads=2,
    llm_ffn=4864,
    vocabulary=151700,
    vision_width=576,
    vision_layers=12,
    vision_heads=8,
    vision_ffn=2152,
    audio_width=512,
    audio_layers=6,
    audio_heads=8,
    llm_tied=True,
)
# The published MiniCPM-o 2.6: Qwen2.5-7B, SigLIP-400M, the encoder of Whisper medium.
MINICPM_O_2_6 = Shape(
    '2.6',
    width=3584,
    llm_layers=28,
    llm_heads=28,
    llm_kv_heads=4,
    llm_ffn=18944,
    vocabulary=151700,
    vision_width=1152,
    vision_layers=27,
    vision_heads=16,
    vision_ffn=4304,
    audio_width=1024,
    audio_layers=24,
    audio_heads=16,
)
# The published MiniCPM-o 4.5: Qwen3-8B, and five positions of sound to a token.
MINICPM_O_4_5 = replace(
    MINICPM_O_2_6,
    name='4.5',
    width=4096,
    llm_layers=36,
    llm_heads=32,
    llm_kv_heads=8,
    llm_ffn=12288,
    vocabulary=151748,
    audio_pool=5,
    context_length=40960,
    family='minicpm-o-4.5',
)
# Its heads are wider than their share of the embedding, as Qwen3 allows.
TINY_4_5 = replace(
    TINY, name='tiny-4.5', llm_head=96, audio_pool=5, vision_layers=1, family='minicpm-o-4.5'
)

SHAPES = {
    shape.name: shape
    for shape in (TINY, NANO, SMALL, HALF_B, MINICPM_O_2_6, TINY_4_5, MINICPM_O_4_5)
}
