# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Tiny random Hugging Face checkpoints of MiniCPM-o 2.6 and 4.5, the same on every machine.

Names, shapes and files are the published ones'; golden/make_checkpoint.py loads them into the
classes of transformers. RandomState's stream is frozen by NumPy, so only PyTorch's answers are
stored. All values are bfloat16's, so that every dtype holds the same model.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minicpmo_ros.llm.tokens import CONTROL, NORMAL, make_tokens

TWO_SIX, FOUR_FIVE = 'minicpm-o-2.6', 'minicpm-o-4.5'
VOCABULARY, WIDTH, FFN, LAYERS, HEADS, KV_HEADS = 640, 256, 288, 2, 4, 2
VISION_WIDTH, VISION_HEADS, VISION_FFN = 128, 2, 172
AUDIO_WIDTH, AUDIO_HEADS, AUDIO_LAYERS, AUDIO_POSITIONS = 64, 2, 2, 200
QUERIES = 16
PROMPT = (
    '<|im_start|>user\nwhat you see and hear is the red, é one<|im_end|>\n<|im_start|>assistant\n'
)
DTYPES = {'bf16': ('BF16', 2), 'f16': ('F16', 2), 'f32': ('F32', 4)}


@dataclass(frozen=True)
class Kind:
    """In what the two families differ."""

    head: int  # width of an attention head of the language model
    vision_layers: int  # in the weights
    dropped: bool  # one more vision layer is in the configuration
    pool: int
    seed: int


KINDS = {TWO_SIX: Kind(64, 2, False, 2, 13), FOUR_FIVE: Kind(96, 1, True, 5, 15)}


def random_tensors(family: str) -> dict:
    """Name -> float32 array; activations stay near one and attention is far from uniform."""
    draw = _Draw(KINDS[family].seed)
    _llm(draw, family)
    _vision(draw, KINDS[family].vision_layers)
    _resampler(draw)
    _audio(draw)
    draw.array('tts.emb_text.weight', 5, 7, std=1.0)
    draw.array('tts.head_code.0.parametrizations.weight.original0', 9, std=1.0)
    return draw.tensors


class _Draw:
    """Collects tensors whose values come from one seeded stream, in order."""

    def __init__(self, seed: int):
        self.random, self.tensors = np.random.RandomState(seed), {}

    def array(self, name: str, *shape, std: float, mean: float = 0.0) -> None:
        values = (self.random.standard_normal(shape) * std + mean).astype('<f4')
        self.tensors[name] = (values.view('<u4') & 0xFFFF0000).view('<f4')

    def linear(self, name: str, n_out: int, n_in: int, gain=1.0, bias=True) -> None:
        self.array(name + '.weight', n_out, n_in, std=gain * n_in**-0.5)
        if bias:
            self.array(name + '.bias', n_out, std=0.1)

    def norm(self, name: str, n: int, bias=True, mean=1.0) -> None:
        self.array(name + '.weight', n, std=0.1, mean=mean)
        if bias:
            self.array(name + '.bias', n, std=0.1)


def _llm(draw: _Draw, family: str) -> None:
    q, kv = HEADS * KINDS[family].head, KV_HEADS * KINDS[family].head
    two_six = family == TWO_SIX
    draw.array('llm.model.embed_tokens.weight', VOCABULARY, WIDTH, std=1.0)
    for i in range(LAYERS):
        layer = f'llm.model.layers.{i}.'
        for name, n_out, gain in (('q', q, 1.5), ('k', kv, 1.5), ('v', kv, 1.0)):
            draw.linear(f'{layer}self_attn.{name}_proj', n_out, WIDTH, gain, bias=two_six)
        draw.linear(layer + 'self_attn.o_proj', WIDTH, q, bias=False)
        if not two_six:
            draw.norm(layer + 'self_attn.q_norm', KINDS[family].head, bias=False, mean=1.5)
            draw.norm(layer + 'self_attn.k_norm', KINDS[family].head, bias=False, mean=1.5)
        draw.linear(layer + 'mlp.gate_proj', FFN, WIDTH, bias=False)
        draw.linear(layer + 'mlp.up_proj', FFN, WIDTH, bias=False)
        draw.linear(layer + 'mlp.down_proj', WIDTH, FFN, bias=False)
        draw.norm(layer + 'input_layernorm', WIDTH, bias=False)
        draw.norm(layer + 'post_attention_layernorm', WIDTH, bias=False)
    draw.norm('llm.model.norm', WIDTH, bias=False)
    draw.linear('llm.lm_head', VOCABULARY, WIDTH, gain=2.0, bias=False)


def _vision(draw: _Draw, layers: int) -> None:
    d = VISION_WIDTH
    draw.array('vpm.embeddings.patch_embedding.weight', d, 3, 14, 14, std=588**-0.5)
    draw.array('vpm.embeddings.patch_embedding.bias', d, std=0.1)
    draw.array('vpm.embeddings.position_embedding.weight', 4900, d, std=0.3)
    for i in range(layers):
        layer = f'vpm.encoder.layers.{i}.'
        for name, gain in (('q', 1.5), ('k', 1.5), ('v', 1.0), ('out', 1.0)):
            draw.linear(f'{layer}self_attn.{name}_proj', d, d, gain)
        draw.norm(layer + 'layer_norm1', d)
        draw.norm(layer + 'layer_norm2', d)
        draw.linear(layer + 'mlp.fc1', VISION_FFN, d)
        draw.linear(layer + 'mlp.fc2', d, VISION_FFN)
    draw.norm('vpm.post_layernorm', d)


def _resampler(draw: _Draw) -> None:
    d = WIDTH
    draw.array('resampler.query', QUERIES, d, std=1.0)
    draw.array('resampler.proj', d, d, std=d**-0.5)
    draw.linear('resampler.kv_proj', d, VISION_WIDTH, bias=False)
    draw.array('resampler.attn.in_proj_weight', 3 * d, d, std=1.5 * d**-0.5)
    draw.array('resampler.attn.in_proj_bias', 3 * d, std=0.1)
    draw.linear('resampler.attn.out_proj', d, d)
    for name in ('ln_q', 'ln_kv', 'ln_post'):
        draw.norm('resampler.' + name, d)


def _audio(draw: _Draw) -> None:
    d = AUDIO_WIDTH
    for i, n_in in ((1, 80), (2, d)):
        draw.array(f'apm.conv{i}.weight', d, n_in, 3, std=(3 * n_in) ** -0.5)
        draw.array(f'apm.conv{i}.bias', d, std=0.1)
    draw.array('apm.embed_positions.weight', AUDIO_POSITIONS, d, std=0.3)
    for i in range(AUDIO_LAYERS):
        layer = f'apm.layers.{i}.'
        draw.linear(layer + 'self_attn.k_proj', d, d, 1.5, bias=False)
        for name, gain in (('v', 1.0), ('q', 1.5), ('out', 1.0)):
            draw.linear(f'{layer}self_attn.{name}_proj', d, d, gain)
        draw.norm(layer + 'self_attn_layer_norm', d)
        draw.linear(layer + 'fc1', 4 * d, d)
        draw.linear(layer + 'fc2', d, 4 * d)
        draw.norm(layer + 'final_layer_norm', d)
    draw.norm('apm.layer_norm', d)
    draw.linear('audio_projection_layer.linear1', WIDTH, d)
    draw.linear('audio_projection_layer.linear2', WIDTH, WIDTH)


def config(family: str) -> dict:
    """Return config.json; keys and sections are the published ones', sizes ours."""
    kind = KINDS[family]
    return {
        'architectures': ['MiniCPMO'],
        'model_type': 'minicpmo',
        'version': family.rpartition('-')[2],
        'hidden_act': 'silu',
        'hidden_size': WIDTH,
        'intermediate_size': FFN,
        'num_hidden_layers': LAYERS,
        'num_attention_heads': HEADS,
        'num_key_value_heads': KV_HEADS,
        **({'head_dim': kind.head} if family == FOUR_FIVE else {}),
        'max_position_embeddings': 2048,
        'rms_norm_eps': 1e-6,
        'rope_theta': 1000000.0,
        'rope_scaling': None,
        'use_sliding_window': False,
        'tie_word_embeddings': False,
        'vocab_size': VOCABULARY,
        'torch_dtype': 'bfloat16',
        'image_size': 448,
        'query_num': QUERIES,
        'drop_vision_last_layer': kind.dropped,
        'vision_config': {
            'model_type': 'siglip_vision_model',
            'hidden_size': VISION_WIDTH,
            'image_size': 980,
            'intermediate_size': VISION_FFN,
            'num_attention_heads': VISION_HEADS,
            'num_hidden_layers': kind.vision_layers + kind.dropped,
            'patch_size': 14,
        },
        'audio_pool_step': kind.pool,
        'audio_config': {
            'd_model': AUDIO_WIDTH,
            'encoder_attention_heads': AUDIO_HEADS,
            'encoder_ffn_dim': 4 * AUDIO_WIDTH,
            'encoder_layers': AUDIO_LAYERS,
            'max_source_positions': AUDIO_POSITIONS,
        },
    }


def write_checkpoint(
    directory, family: str, dtype='bf16', shards=1, fast_tokenizer=False, tensors=None, **changed
) -> Path:
    """Write a whole checkpoint; `changed` overrides keys of config.json (None removes one)."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    record = {**config(family), **changed}
    (directory / 'config.json').write_text(json.dumps(record, indent=2))
    write_weights(directory, random_tensors(family) if tensors is None else tensors, dtype, shards)
    write_tokenizer(directory, family, fast_tokenizer)
    return directory


def write_weights(directory: Path, tensors: dict, dtype='bf16', shards=1) -> None:
    """Write model.safetensors, or an index and `shards` files."""
    if shards == 1:
        write_safetensors(directory / 'model.safetensors', tensors, dtype)
        return
    names, places = list(tensors), {}
    for i in range(shards):
        file = f'model-{i + 1:05}-of-{shards:05}.safetensors'
        share = {name: tensors[name] for name in names[i::shards]}
        places.update(dict.fromkeys(share, file))
        write_safetensors(directory / file, share, dtype)
    index = {'metadata': {'total_size': 0}, 'weight_map': places}
    (directory / 'model.safetensors.index.json').write_text(json.dumps(index))


def write_safetensors(path: Path, tensors: dict, dtype='bf16') -> None:
    """Write name -> float32 array, or (shape, dtype) of a tensor of zeros that takes no disk."""
    header, offset = {'__metadata__': {'format': 'pt'}}, 0
    for name, array in tensors.items():
        shape, (kind, size) = np.shape(array), DTYPES[dtype]
        if isinstance(array, tuple):
            shape = array
        n_bytes = math.prod(shape) * size
        place = [offset, offset + n_bytes]
        header[name] = {'dtype': kind, 'shape': list(shape), 'data_offsets': place}
        offset += n_bytes
    raw = json.dumps(header).encode()
    raw += b' ' * (-len(raw) % 8)
    with open(path, 'wb') as file:
        file.write(len(raw).to_bytes(8, 'little') + raw)
        start = file.tell()
        for name, array in tensors.items():
            file.seek(start + header[name]['data_offsets'][0])
            if not isinstance(array, tuple):
                file.write(_encoded(array, dtype))
        file.truncate(start + offset)


def _encoded(array: np.ndarray, dtype: str) -> bytes:
    if dtype == 'bf16':
        return (np.ascontiguousarray(array, '<f4').view('<u4') >> 16).astype('<u2').tobytes()
    return np.asarray(array).astype('<f2' if dtype == 'f16' else '<f4').tobytes()


def write_tokenizer(directory: Path, family: str, fast=False, count=VOCABULARY) -> None:
    """Write vocab.json, merges.txt and added_tokens.json, or tokenizer.json with all of it."""
    table = make_tokens(count, family)
    words = {text: i for i, text in enumerate(table.texts) if table.types[i] == NORMAL}
    entries = {
        i: {'content': text, 'special': table.types[i] == CONTROL, 'normalized': False}
        for i, text in enumerate(table.texts)
        if table.types[i] != NORMAL
    }
    tokenizer = {
        'tokenizer_class': 'Qwen2Tokenizer',
        'eos_token': '<|im_end|>',
        'pad_token': '<|endoftext|>',
        'unk_token': '<unk>',
        'chat_template': '{{ messages }}',
        'added_tokens_decoder': {str(i): entry for i, entry in entries.items()},
    }
    (directory / 'tokenizer_config.json').write_text(json.dumps(tokenizer))
    if fast:
        record = {
            'added_tokens': [{'id': i, **entry} for i, entry in entries.items()],
            'model': {
                'type': 'BPE',
                'vocab': words,
                'merges': [pair.split(' ') for pair in table.merges],
            },
        }
        (directory / 'tokenizer.json').write_text(json.dumps(record))
        return
    (directory / 'vocab.json').write_text(json.dumps(words, ensure_ascii=False))
    (directory / 'merges.txt').write_text('#version: 0.2\n' + '\n'.join(table.merges) + '\n')
    added = {entry['content']: i for i, entry in entries.items()}
    (directory / 'added_tokens.json').write_text(json.dumps(added))


def picture() -> np.ndarray:
    """(112, 140, 3) uint8: 8 x 10 patches."""
    y, x = np.mgrid[:112, :140]
    waves = np.stack([y * 255 / 112, x * 255 / 140, 127 + 127 * np.sin(x * y / 900)], -1)
    return waves.astype(np.uint8)
