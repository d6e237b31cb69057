# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Small random audio files in the published layout, the same on every machine.

RandomState's stream is frozen by NumPy, so the golden arrays need no weights beside them.
"""

import gguf
import numpy as np

MEL_BINS = 80
WEIGHT_TYPES = {'f32': 0, 'f16': 1, 'q4_0': 2, 'q8_0': 8, 'q4_K': 12, 'bf16': 30}


def random_tensors(d=64, layers=2, ffn=256, width=96, seconds=4, seed=7) -> dict:
    """Name -> float32 array; activations stay near one and attention is far from uniform."""
    random = np.random.RandomState(seed)

    def draw(*shape, std, mean=0.0):
        return (random.standard_normal(shape) * std + mean).astype(np.float32)

    def linear(name, n_out, n_in, gain=1.0, bias=True):
        tensors[name + '.weight'] = draw(n_out, n_in, std=gain * n_in**-0.5)
        if bias:
            tensors[name + '.bias'] = draw(n_out, std=0.1)

    def norm(name):
        tensors[name + '.weight'] = draw(d, std=0.1, mean=1.0)
        tensors[name + '.bias'] = draw(d, std=0.1)

    tensors = {}
    for i, n_in in ((1, MEL_BINS), (2, d)):
        tensors[f'encoder.conv{i}.weight'] = draw(d, n_in, 3, std=(3 * n_in) ** -0.5)
        tensors[f'encoder.conv{i}.bias'] = draw(d, 1, std=0.1)
    tensors['encoder.positional_embedding'] = draw(50 * seconds, d, std=0.3)
    for i in range(layers):
        block = f'encoder.blocks.{i}.'
        norm(block + 'attn_ln')
        linear(block + 'attn.query', d, d, gain=1.5)
        linear(block + 'attn.key', d, d, gain=1.5, bias=False)
        linear(block + 'attn.value', d, d)
        linear(block + 'attn.out', d, d)
        norm(block + 'mlp_ln')
        linear(block + 'mlp.0', ffn, d)
        linear(block + 'mlp.2', d, ffn)
    norm('encoder.ln_post')
    linear('audio_projector.linear1', width, d)
    linear('audio_projector.linear2', width, width)
    return tensors


def random_mel(seconds=4, seed=8) -> np.ndarray:
    """(100 * seconds, 80) float32 in which neighbouring frames are alike, as in speech."""
    mel = np.random.RandomState(seed).standard_normal((100 * seconds, MEL_BINS)) * 0.8
    for _ in range(3):
        mel[1:] = 0.6 * mel[1:] + 0.4 * mel[:-1]
    return mel.astype(np.float32)


def step_mel(mel: np.ndarray, second: int) -> np.ndarray:
    """(103, bins): a second with 2 frames before and 1 after it, zeros outside the sound."""
    padded = np.pad(mel, ((2, 1), (0, 0)))  # (2 + frames + 1, bins)
    return padded[100 * second : 100 * second + 103]


def write(path, tensors: dict, weight_type='f32', heads=4, pool_step=2, **metadata):
    """Write a GGUF file: matrices in weight_type, kernels at least f16, the rest float32."""
    layers = sum(name.endswith('attn_ln.weight') for name in tensors)
    d, ffn = tensors['encoder.blocks.0.mlp.2.weight'].shape
    keys = {
        'encoder_attention_heads': heads,
        'encoder_ffn_dim': ffn,
        'encoder_layers': layers,
        'num_hidden_layers': layers,
        'd_model': d,
        'audio_pool_step': pool_step,
        'use_f16': 1,
        'n_mel': MEL_BINS,
        'n_fft': 201,
        **metadata,
    }
    writer = gguf.GGUFWriter(path, 'whisper')
    for key, value in keys.items():
        writer.add_uint32(key, value)
    writer.add_array('filters', [0.0] * (MEL_BINS * 201))
    for name, array in tensors.items():
        _add(writer, name, array, weight_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer, name: str, array: np.ndarray, weight_type: str) -> None:
    from minicpmo_ros.ggml.library import GgmlType, quantize

    if array.ndim == 1 or not name.endswith('weight') or weight_type == 'f32':
        writer.add_tensor(name, array)
    elif array.ndim == 3 or weight_type == 'f16':
        writer.add_tensor(name, array.astype(np.float16))
    else:
        number = WEIGHT_TYPES[weight_type]
        writer.add_tensor(
            name, quantize(array, GgmlType(number)), raw_dtype=gguf.GGMLQuantizationType(number)
        )
