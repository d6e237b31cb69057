# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Writes nano as the world's MiniCPM-o 2.6 files are laid out: llm, vision and audio GGUF, and a
manifest.

Language: llama.cpp's qwen2 with tied output. Vision: llama.cpp's clip with a resampler,
minicpmv_version 4 (the feed-forward layers' names are swapped there: 'down' is the first).
Audio: 360CVGroup's Whisper encoder with its projector. Matrices in float16, norms and biases in
float32.
"""

import hashlib
from pathlib import Path

import gguf
import numpy as np
import torch
import yaml

from .model import interpolation, mel_filters, position_buckets
from .scenes import IMAGE_SIZE, PATCH
from .tokenizer import SPECIAL

POSITIONS = 70  # rows and columns of the published table of positions
CHAT_TEMPLATE = (
    '{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n'
    '{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
)
NORMAL, CONTROL = 1, 3  # token types
# Of 1500: as far into a stream as it still hears words as well as at its begin; the package hands
# over to a second stream before that.
AUDIO_POSITIONS = 750
WINDOW_ROWS = 8192


def _array(tensor, half=True):
    return tensor.detach().numpy().astype(np.float16 if half else np.float32)


def _linear(writer, name, layer):
    writer.add_tensor(f'{name}.weight', _array(layer.weight))
    if layer.bias is not None:
        writer.add_tensor(f'{name}.bias', _array(layer.bias, half=False))


def _norm(writer, name, norm):
    writer.add_tensor(f'{name}.weight', _array(norm.weight, half=False))
    if getattr(norm, 'bias', None) is not None:
        writer.add_tensor(f'{name}.bias', _array(norm.bias, half=False))


def _finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_llm(path, language, tokenizer):
    c = language.config
    writer = gguf.GGUFWriter(path, 'qwen2')
    writer.add_name('nano')
    writer.add_file_type(1)
    writer.add_context_length(WINDOW_ROWS)
    writer.add_embedding_length(c.width)
    writer.add_block_count(c.layers)
    writer.add_feed_forward_length(c.ffn)
    writer.add_head_count(c.heads)
    writer.add_head_count_kv(c.kv_heads)
    writer.add_rope_freq_base(c.rope_base)
    writer.add_layer_norm_rms_eps(1e-6)
    _add_tokens(writer, tokenizer)
    writer.add_tensor('token_embd.weight', _array(language.embed.weight))
    _norm(writer, 'output_norm', language.norm)
    for i, layer in enumerate(language.layers):
        block = f'blk.{i}.'
        _norm(writer, block + 'attn_norm', layer.norm1)
        _norm(writer, block + 'ffn_norm', layer.norm2)
        for name, linear in (
            ('attn_q', layer.q),
            ('attn_k', layer.k),
            ('attn_v', layer.v),
            ('attn_output', layer.out),
            ('ffn_gate', layer.gate),
            ('ffn_up', layer.up),
            ('ffn_down', layer.down),
        ):
            _linear(writer, block + name, linear)
    _finish(writer)


def _add_tokens(writer, tokenizer):
    writer.add_tokenizer_model('gpt2')
    writer.add_tokenizer_pre('qwen2')
    writer.add_token_list(tokenizer.pieces)
    writer.add_token_types([CONTROL if p in SPECIAL else NORMAL for p in tokenizer.pieces])
    writer.add_token_merges([' '.join(pair) for pair in tokenizer.merges])
    writer.add_bos_token_id(tokenizer.ids['<|endoftext|>'])
    writer.add_eos_token_id(tokenizer.ids['<|im_end|>'])
    writer.add_pad_token_id(tokenizer.ids['<|endoftext|>'])
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def position_table(vision):
    """(4900, d): the control points spread over the published grid of 70 x 70."""
    weights = interpolation(position_buckets(POSITIONS), vision.config.vision_grid)
    return torch.tensor(np.kron(weights, weights), dtype=torch.float32) @ vision.positions


def write_vision(path, vision):
    c = vision.config
    writer = gguf.GGUFWriter(path, 'clip')
    writer.add_bool('clip.has_text_encoder', False)
    writer.add_bool('clip.has_vision_encoder', True)
    writer.add_bool('clip.has_minicpmv_projector', True)
    writer.add_file_type(1)
    writer.add_description('image encoder for MiniCPM-V')
    writer.add_string('clip.projector_type', 'resampler')
    writer.add_int32('clip.minicpmv_version', 4)
    writer.add_uint32('clip.minicpmv_query_num', c.queries)
    for key, value in {
        'image_size': IMAGE_SIZE,
        'patch_size': PATCH,
        'embedding_length': c.vision_width,
        'feed_forward_length': 4 * c.vision_width,
        'projection_dim': 0,
        'block_count': c.vision_layers,
        'attention.head_count': c.vision_heads,
    }.items():
        writer.add_uint32(f'clip.vision.{key}', value)
    writer.add_float32('clip.vision.attention.layer_norm_epsilon', 1e-6)
    writer.add_array('clip.vision.image_mean', [0.5, 0.5, 0.5])
    writer.add_array('clip.vision.image_std', [0.5, 0.5, 0.5])
    writer.add_bool('clip.use_gelu', True)
    writer.add_tensor('v.patch_embd.weight', _array(vision.patch.weight.view(-1, 3, PATCH, PATCH)))
    writer.add_tensor('v.patch_embd.bias', _array(vision.patch.bias, half=False))
    writer.add_tensor('v.position_embd.weight', _array(position_table(vision)))
    for i, layer in enumerate(vision.layers):
        block = f'v.blk.{i}.'
        _norm(writer, block + 'ln1', layer.norm1)
        _norm(writer, block + 'ln2', layer.norm2)
        for name, linear in (
            ('attn_q', layer.q),
            ('attn_k', layer.k),
            ('attn_v', layer.v),
            ('attn_out', layer.out),
            ('ffn_down', layer.up),
            ('ffn_up', layer.down),
        ):
            _linear(writer, block + name, linear)
    _norm(writer, 'v.post_ln', vision.post_norm)
    _write_resampler(writer, vision)
    _finish(writer)


def _write_resampler(writer, vision):
    writer.add_tensor('resampler.query', _array(vision.query, half=False))
    # Readers look for this table and compute the positions themselves; 5 MB are spared.
    writer.add_tensor('resampler.pos_embed_k', np.zeros((1, vision.config.width), np.float32))
    for name, linear in (
        ('kv', vision.kv),
        ('attn.q', vision.q),
        ('attn.k', vision.k),
        ('attn.v', vision.v),
        ('attn.out', vision.out),
        ('proj', vision.project),
    ):
        _linear(writer, f'resampler.{name}', linear)
    for name, norm in (
        ('ln_q', vision.norm_q),
        ('ln_kv', vision.norm_kv),
        ('ln_post', vision.norm_out),
    ):
        _norm(writer, f'resampler.{name}', norm)


def write_audio(path, audio):
    c = audio.config
    writer = gguf.GGUFWriter(path, 'whisper')
    writer.add_file_type(1)
    writer.add_description('audio encoder for MiniCPM-omni')
    filters = mel_filters(c.mels)
    for key, value in {
        'encoder_attention_heads': c.audio_heads,
        'encoder_ffn_dim': 4 * c.audio_width,
        'encoder_layers': c.audio_layers,
        'num_hidden_layers': c.audio_layers,
        'd_model': c.audio_width,
        'audio_pool_step': 2,
        'use_f16': 1,
        'n_mel': c.mels,
        'n_fft': filters.shape[1],
    }.items():
        writer.add_uint32(key, value)
    writer.add_array('filters', filters.reshape(-1).tolist())
    for name, conv in (('conv1', audio.conv1), ('conv2', audio.conv2)):
        writer.add_tensor(f'encoder.{name}.weight', _array(conv.weight))
        writer.add_tensor(f'encoder.{name}.bias', _array(conv.bias[:, None], half=False))
    positions = audio.position_rows()[:AUDIO_POSITIONS]
    writer.add_tensor('encoder.positional_embedding', _array(positions, half=False))
    for i, layer in enumerate(audio.layers):
        block = f'encoder.blocks.{i}.'
        _norm(writer, block + 'attn_ln', layer.norm1)
        _norm(writer, block + 'mlp_ln', layer.norm2)
        for name, linear in (
            ('attn.query', layer.q),
            ('attn.key', layer.k),
            ('attn.value', layer.v),
            ('attn.out', layer.out),
            ('mlp.0', layer.up),
            ('mlp.2', layer.down),
        ):
            _linear(writer, block + name, linear)
    _norm(writer, 'encoder.ln_post', audio.post_norm)
    _linear(writer, 'audio_projector.linear1', audio.linear1)
    _linear(writer, 'audio_projector.linear2', audio.linear2)
    _finish(writer)


def export(directory, vision, audio, language, tokenizer, notes):
    """Write the three files and manifest.yaml; `notes` says how nano was trained and what it
    knows.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_llm(directory / 'llm.gguf', language, tokenizer)
    write_vision(directory / 'vision.gguf', vision)
    write_audio(directory / 'audio.gguf', audio)
    files = {}
    for role in ('llm', 'vision', 'audio'):
        digest = hashlib.sha256((directory / f'{role}.gguf').read_bytes()).hexdigest()
        files[role] = {'path': f'{role}.gguf', 'precision': 'f16', 'sha256': digest}
    manifest = {
        'family': 'minicpm-o-2.6',
        'model_id': 'nano',
        'files': files,
        'licence': 'Apache-2.0',
        'notes': notes,
    }
    (directory / 'manifest.yaml').write_text(
        yaml.safe_dump(manifest, sort_keys=False, allow_unicode=True, width=90), encoding='utf-8'
    )
