# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Where each tensor of the published GGUF layouts comes from in a Hugging Face checkpoint.

Three are not copied as they are: the resampler's queries, keys and values are cut from one matrix
(in that order, along its rows), its last matrix is transposed (the checkpoint multiplies it from
the right), and its table of positions is computed. The vision layouts' names of the feed-forward
are swapped: 'down' is the first layer.
"""

import re
from dataclasses import dataclass

ATTENTION = {f'attn_{name}': f'self_attn.{name}_proj' for name in 'qkv'}
# Layers: name of the layer in the layout -> (in the checkpoint, its modules).
LAYERS = {
    'blk': (
        'llm.model.layers',
        {
            **ATTENTION,
            'attn_norm': 'input_layernorm',
            'attn_q_norm': 'self_attn.q_norm',
            'attn_k_norm': 'self_attn.k_norm',
            'attn_output': 'self_attn.o_proj',
            'ffn_norm': 'post_attention_layernorm',
            'ffn_gate': 'mlp.gate_proj',
            'ffn_up': 'mlp.up_proj',
            'ffn_down': 'mlp.down_proj',
        },
    ),
    'v.blk': (
        'vpm.encoder.layers',
        {
            **ATTENTION,
            'attn_out': 'self_attn.out_proj',
            'ln1': 'layer_norm1',
            'ln2': 'layer_norm2',
            'ffn_down': 'mlp.fc1',
            'ffn_up': 'mlp.fc2',
        },
    ),
    'encoder.blocks': (
        'apm.layers',
        {
            'attn_ln': 'self_attn_layer_norm',
            'attn.query': 'self_attn.q_proj',
            'attn.key': 'self_attn.k_proj',
            'attn.value': 'self_attn.v_proj',
            'attn.out': 'self_attn.out_proj',
            'mlp_ln': 'final_layer_norm',
            'mlp.0': 'fc1',
            'mlp.2': 'fc2',
        },
    ),
}
MODULES = {
    'token_embd': 'llm.model.embed_tokens',
    'output_norm': 'llm.model.norm',
    'output': 'llm.lm_head',
    'v.patch_embd': 'vpm.embeddings.patch_embedding',
    'v.position_embd': 'vpm.embeddings.position_embedding',
    'v.post_ln': 'vpm.post_layernorm',
    'resampler.kv': 'resampler.kv_proj',
    'resampler.attn.out': 'resampler.attn.out_proj',
    'resampler.ln_q': 'resampler.ln_q',
    'resampler.ln_kv': 'resampler.ln_kv',
    'resampler.ln_post': 'resampler.ln_post',
    'encoder.conv1': 'apm.conv1',
    'encoder.conv2': 'apm.conv2',
    'encoder.ln_post': 'apm.layer_norm',
    'audio_projector.linear1': 'audio_projection_layer.linear1',
    'audio_projector.linear2': 'audio_projection_layer.linear2',
}
COMPUTED = 'resampler.pos_embed_k'  # the checkpoint has no such tensor


@dataclass(frozen=True)
class Source:
    """A tensor of the checkpoint, and which part of it."""

    name: str
    part: int = 0  # of `parts` equal ones along the rows
    parts: int = 1
    transposed: bool = False


SINGLE = {
    'resampler.query': Source('resampler.query'),
    'resampler.proj.weight': Source('resampler.proj', transposed=True),
    'encoder.positional_embedding': Source('apm.embed_positions.weight'),
    **{
        f'resampler.attn.{letter}.{kind}': Source(f'resampler.attn.in_proj_{kind}', i, 3)
        for i, letter in enumerate('qkv')
        for kind in ('weight', 'bias')
    },
}
# In checkpoints for training, or of the voice: no network of ours reads them.
UNUSED = re.compile(r'tts\.|.*\.rotary_emb\.inv_freq$|resampler\.pos_embed$|vpm\.head\.|'
                    r'vpm\.embeddings\.position_ids$')  # fmt: skip


def source_of(name: str) -> Source:
    """Return the source of a tensor of the layouts that is not COMPUTED."""
    if name in SINGLE:
        return SINGLE[name]
    module, _, kind = name.rpartition('.')
    match = re.fullmatch(r'(blk|v\.blk|encoder\.blocks)\.(\d+)\.(.+)', module)
    if not match:
        return Source(f'{MODULES[module]}.{kind}')
    layers, modules = LAYERS[match[1]]
    return Source(f'{layers}.{match[2]}.{modules[match[3]]}.{kind}')
