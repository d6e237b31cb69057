# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""MiniCPM-o 2.6: Qwen2.5-7B, SigLIP-400M, the encoder of Whisper medium."""

from minicpmo_ros.families.base import Family, PromptLayout, Publication, Shape

VERSION = '2.6'
NAME = 'minicpm-o-2.6'

# It has no system role: the system prompt is a turn of the user.
ENGLISH = PromptLayout(
    'You are a helpful assistant. You can accept video, audio and text input and output voice '
    'and text. '
)
CHINESE = PromptLayout('你是一个AI助手。你能接受视频，音频和文本输入并输出语音和文本。')
# Ids 151643..151699.
SPECIAL_TOKENS = (
    '<|endoftext|>',
    '<|im_start|>',
    '<|im_end|>',
    '<|object_ref_start|>',
    '<|object_ref_end|>',
    '<|box_start|>',
    '<|box_end|>',
    '<|quad_start|>',
    '<|quad_end|>',
    '<|vision_start|>',
    '<|vision_end|>',
    '<|vision_pad|>',
    '<|image_pad|>',
    '<|video_pad|>',
    '<tool_call>',
    '</tool_call>',
    '<|fim_prefix|>',
    '<|fim_middle|>',
    '<|fim_suffix|>',
    '<|fim_pad|>',
    '<|repo_name|>',
    '<|file_sep|>',
    '<image>',
    '</image>',
    '<ref>',
    '</ref>',
    '<box>',
    '</box>',
    '<quad>',
    '</quad>',
    '<point>',
    '</point>',
    '<slice>',
    '</slice>',
    '<image_id>',
    '</image_id>',
    '<unit>',
    '</unit>',
    '<asr>',
    '</asr>',
    '<query>',
    '</query>',
    '<|audio_start|>',
    '<|audio|>',
    '<|audio_end|>',
    '<|spk_bos|>',
    '<|spk|>',
    '<|spk_eos|>',
    '<|tts_bos|>',
    '<|tts_eos|>',
    '<|listen|>',
    '<|speak|>',
    '<|interrupt|>',
    '<|vad_start|>',
    '<|vad_end|>',
    '<reserved_43>',
    '<reserved_53>',
)
PUBLISHED = Shape(
    VERSION,
    NAME,
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

FAMILY = Family(
    name=NAME,
    version=VERSION,
    architecture='qwen2',
    layouts={'en': ENGLISH, 'zh': CHINESE},
    special_tokens=SPECIAL_TOKENS,
    published=PUBLISHED,
    vision_versions=(4,),
    checkpoint_mark='q_proj.bias',  # Qwen2 adds to its queries
    isolated_audio=True,
    without_speech=('nano',),
    sources={
        'llm': Publication('openbmb/MiniCPM-o-2_6-gguf', 'Model-7.6B-*.gguf'),
        'vision': Publication('openbmb/MiniCPM-o-2_6-gguf', 'mmproj-model-*.gguf'),
        'audio': Publication(
            '',
            'minicpmo-audio-encoder_*.gguf',
            'https://www.modelscope.cn/models/kkssss/MiniCPM-o.cpp (of 360CVGroup)',
        ),
    },
)
