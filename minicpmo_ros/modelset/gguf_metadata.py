# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The metadata of the three published files: a GGUFWriter that has all of it, for each part.

    writer = audio_writer(path, shape, FILE_TYPE)
    declare(writer, [(name, shape of the tensor, type), ...])

Then the tensors follow in that order. LLM: llama.cpp's keys for qwen2 and qwen3. Vision:
llama.cpp's clip with a resampler. Audio: 360CVGroup's whisper, whose keys have no prefix.
"""

import gguf
import numpy as np

from minicpmo_ros.families import FAMILIES
from minicpmo_ros.families.base import Shape
from minicpmo_ros.ggml.gguf_copy import byte_count
from minicpmo_ros.ggml.types import GgmlType as Type
from minicpmo_ros.llm.tokens import TokenTable
from minicpmo_ros.media.audio.log_mel import filter_bank

CHAT_TEMPLATE = (
    '{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n'
    '{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
)


def llm_writer(
    path,
    shape: Shape,
    file_type: int,
    name: str,
    tokens: TokenTable,
    chat_template: str = CHAT_TEMPLATE,
) -> gguf.GGUFWriter:
    """Describe a language model; file_type is llama.cpp's number of the precision."""
    writer = gguf.GGUFWriter(path, FAMILIES[shape.family].architecture)
    writer.add_name(name)
    writer.add_file_type(file_type)
    writer.add_context_length(shape.context_length)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.llm_layers)
    writer.add_feed_forward_length(shape.llm_ffn)
    writer.add_head_count(shape.llm_heads)
    writer.add_head_count_kv(shape.llm_kv_heads)
    if FAMILIES[shape.family].architecture == 'qwen3':
        writer.add_key_length(shape.llm_head_width)
        writer.add_value_length(shape.llm_head_width)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.rms_epsilon)
    writer.add_tokenizer_model('gpt2')
    writer.add_tokenizer_pre('qwen2')
    writer.add_token_list(tokens.texts)
    writer.add_token_types(tokens.types)
    writer.add_token_merges(tokens.merges)
    writer.add_bos_token_id(tokens.id_of('<|endoftext|>'))
    writer.add_eos_token_id(tokens.id_of('<|im_end|>'))
    writer.add_pad_token_id(tokens.id_of('<|endoftext|>'))
    writer.add_add_bos_token(False)
    writer.add_chat_template(chat_template)
    return writer


def vision_writer(path, shape: Shape, file_type: int) -> gguf.GGUFWriter:
    """Describe SigLIP and its projector; images are normalised with 0.5, as it was trained."""
    writer = gguf.GGUFWriter(path, 'clip')
    writer.add_bool('clip.has_text_encoder', False)
    writer.add_bool('clip.has_vision_encoder', True)
    writer.add_bool('clip.has_minicpmv_projector', not shape.joins_patches)
    writer.add_file_type(file_type)
    if shape.joins_patches:
        writer.add_description('image encoder in the shape of BlueLM-V')
        writer.add_string('clip.projector_type', 'downsample_mlp')
    else:
        writer.add_description('image encoder for MiniCPM-V')
        writer.add_string('clip.projector_type', 'resampler')
        writer.add_int32('clip.minicpmv_version', FAMILIES[shape.family].vision_versions[0])
        writer.add_uint32('clip.minicpmv_query_num', shape.queries)
    for key, value in {
        'image_size': shape.image_size,
        'patch_size': shape.patch_size,
        'embedding_length': shape.vision_width,
        'feed_forward_length': shape.vision_ffn,
        'projection_dim': 0,
        'block_count': shape.vision_layers,
        'attention.head_count': shape.vision_heads,
    }.items():
        writer.add_uint32(f'clip.vision.{key}', value)
    writer.add_float32('clip.vision.attention.layer_norm_epsilon', 1e-6)
    writer.add_array('clip.vision.image_mean', [0.5, 0.5, 0.5])
    writer.add_array('clip.vision.image_std', [0.5, 0.5, 0.5])
    writer.add_bool('clip.use_gelu', True)
    return writer


def audio_writer(path, shape: Shape, file_type: int) -> gguf.GGUFWriter:
    """Describe the Whisper encoder and projector; the mel filters are among the keys."""
    writer = gguf.GGUFWriter(path, 'whisper')
    writer.add_file_type(file_type)
    writer.add_description('audio encoder for MiniCPM-omni')
    bank = np.asarray(filter_bank(), np.float32)  # (mel bins, spectrum bins)
    for key, value in {
        'encoder_attention_heads': shape.audio_heads,
        'encoder_ffn_dim': shape.audio_ffn,
        'encoder_layers': shape.audio_layers,
        'num_hidden_layers': shape.audio_layers,
        'd_model': shape.audio_width,
        'audio_pool_step': shape.audio_pool,
        'use_f16': 1,
        'n_mel': shape.mel_bins,
        'n_fft': bank.shape[1],
    }.items():
        writer.add_uint32(key, value)
    writer.add_array('filters', bank.reshape(-1).tolist())
    return writer


def declare(writer: gguf.GGUFWriter, tensors) -> None:
    """Write everything that comes before the tensors: (name, shape in NumPy order, type) each."""
    for name, shape, ggml_type in tensors:
        writer.add_tensor_info(
            name,
            shape,
            np.dtype(np.float32),
            byte_count(shape, Type(ggml_type)),
            gguf.GGMLQuantizationType(ggml_type),
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
