# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""MiniCPM-o 4.5: Qwen3-8B, the encoders of 2.6, five positions of audio to a token."""

from dataclasses import replace

from minicpmo_ros.families import minicpm_o_2_6
from minicpmo_ros.families.base import Family, PromptLayout, Publication

VERSION = '4.5'
NAME = 'minicpm-o-4.5'

# Half duplex. Its system turn has a role of its own and, without a voice to imitate, no text;
# a unit has no mark of its own; an answer opens behind thoughts that are left out.
LAYOUT = PromptLayout(
    '',
    system_open='<|im_start|>system\n',
    unit_open='',
    answer_open='<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n',
    speech_open='<|tts_bos|>',
)
# Ids 151643..151747; the places of ids that mean nothing here are reserved.
SPECIAL_TOKENS = (
    *minicpm_o_2_6.SPECIAL_TOKENS[:22],
    '<tool_response>',
    '</tool_response>',
    '<think>',
    '</think>',
    *minicpm_o_2_6.SPECIAL_TOKENS[22:38],
    *(f'<reserved_{place}>' for place in range(151685, 151697)),
    *minicpm_o_2_6.SPECIAL_TOKENS[42:55],
    *(f'<reserved_{place}>' for place in range(151710, 151716)),
    '<|turn_bos|>',
    '<|turn_eos|>',
    '<|chunk_eos|>',
    '<|chunk_bos|>',
    '<|chunk_tts_bos|>',
    '<|chunk_tts_eos|>',
    '<|tts_pad|>',
    *(f'<reserved_{place}>' for place in range(151723, 151748)),
)
PUBLISHED = replace(
    minicpm_o_2_6.PUBLISHED,
    name=VERSION,
    family=NAME,
    width=4096,
    llm_layers=36,
    llm_heads=32,
    llm_kv_heads=8,
    llm_ffn=12288,
    vocabulary=151748,
    audio_pool=5,
    context_length=40960,
)

FAMILY = Family(
    name=NAME,
    version=VERSION,
    architecture='qwen3',
    layouts={'en': LAYOUT, 'zh': LAYOUT},
    special_tokens=SPECIAL_TOKENS,
    word_tokens=('<think>', '</think>', '<tool_response>', '</tool_response>'),
    published=PUBLISHED,
    vision_versions=(100045, 45, 451),
    checkpoint_mark='q_norm.weight',  # Qwen3 normalises its queries
    drops_vision_layer=True,
    # Its audio shifts the first second by 35 ms and clamps over a buffer that grows.
    isolated_audio=False,
    # Issues 1116 and 1131 of OpenBMB/MiniCPM-V: from 11,500 and 12,000 positions on.
    sound_positions=11264,
    # The heads are wider than their share of the embedding, as Qwen3 allows.
    sources={
        'llm': Publication('openbmb/MiniCPM-o-4_5-gguf', 'MiniCPM-o-4_5-*.gguf'),
        'vision': Publication('openbmb/MiniCPM-o-4_5-gguf', 'vision/MiniCPM-o-4_5-vision-*.gguf'),
        'audio': Publication('openbmb/MiniCPM-o-4_5-gguf', 'audio/MiniCPM-o-4_5-audio-*.gguf'),
    },
    tiny={'llm_head': 96, 'audio_pool': 5, 'vision_layers': 1},
)
