# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Make checkpoint.npz: what PyTorch answers with the tiny checkpoints of hf_checkpoint.py.

    pip install -r environment/requirements-golden.txt && python test/golden/make_checkpoint.py

The checkpoints are written, read back by safetensors and the tokeniser of transformers, and their
tensors loaded, none missing and none left over, into transformers' own classes: Qwen2 or Qwen3,
SigLIP, Whisper's encoder. The resampler is torch's MultiheadAttention between the layers that
MiniCPM puts around it. All in float32.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from make_whisper import tokens as audio_tokens
from safetensors.torch import load_file
from torch.nn import functional
from transformers import (
    AutoTokenizer,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
    WhisperConfig,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

import hf_checkpoint as made  # noqa: E402
from whisper_files import random_mel  # noqa: E402

from minicpmo_ros.encoders.siglip.encoder import bucket_ids, sine_grid  # noqa: E402

N_ANSWER, SECONDS = 24, 2


def part(state: dict, prefix: str) -> dict:
    """Give the tensors whose names begin so, without that beginning."""
    return {name[len(prefix) :]: t for name, t in state.items() if name.startswith(prefix)}


def loaded(module: torch.nn.Module, state: dict) -> torch.nn.Module:
    """Load weights into a module, all of them and no others."""
    module.load_state_dict(state, strict=True)
    return module.eval()


def language(config: dict, state: dict):
    """Give transformers' language model; its sizes are the keys of the checkpoint's config."""
    keys = ('hidden_size', 'intermediate_size', 'num_hidden_layers', 'num_attention_heads',
            'num_key_value_heads', 'max_position_embeddings', 'rms_norm_eps', 'vocab_size',
            'tie_word_embeddings', 'head_dim')  # fmt: skip
    sizes = {key: config[key] for key in keys if key in config}
    kinds = {'2.6': (Qwen2Config, Qwen2ForCausalLM), '4.5': (Qwen3Config, Qwen3ForCausalLM)}
    configuration, model = kinds[config['version']]
    rope = {'rope_theta': config['rope_theta'], 'rope_type': 'default'}
    return loaded(model(configuration(rope_parameters=rope, **sizes)), part(state, 'llm.'))


def greedy(model, ids: list) -> tuple:
    """Return the ids of the answer, and by how much each was the most likely."""
    ids, margins = list(ids), []
    for _ in range(N_ANSWER):
        top = model(torch.tensor([ids])).logits[0, -1].topk(2)
        margins.append(float(top.values[0] - top.values[1]))
        ids.append(int(top.indices[0]))
    return ids[-N_ANSWER:], margins


def vision(config: dict, state: dict, picture: np.ndarray) -> np.ndarray:
    """Encode (H, W, 3) uint8: (queries, width)."""
    sizes = dict(config['vision_config'])
    sizes['num_hidden_layers'] -= config['drop_vision_last_layer']
    encoder = loaded(
        SiglipVisionModel(SiglipVisionConfig(vision_use_head=False, **sizes)), part(state, 'vpm.')
    )
    rows, columns = picture.shape[0] // 14, picture.shape[1] // 14
    pixels = torch.from_numpy((picture / np.float32(127.5) - 1).transpose(2, 0, 1)[None])
    x = encoder.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)  # (1, n, d)
    ids = torch.from_numpy(bucket_ids(rows, columns))
    x = x + encoder.embeddings.position_embedding(ids)
    x = encoder.post_layernorm(encoder.encoder(inputs_embeds=x).last_hidden_state)
    return resampled(part(state, 'resampler.'), x, sine_grid(made.WIDTH, rows, columns))


def resampled(state: dict, x, positions: np.ndarray) -> np.ndarray:
    """Run MiniCPM's resampler on (1, n, vision width)."""
    width = state['proj'].shape[0]
    attention = loaded(
        torch.nn.MultiheadAttention(width, width // 128, batch_first=True), part(state, 'attn.')
    )

    def norm(x, name):
        weight, bias = state[name + '.weight'], state[name + '.bias']
        return functional.layer_norm(x, (width,), weight, bias, 1e-6)

    v = norm(functional.linear(x, state['kv_proj.weight']), 'ln_kv')
    q = norm(state['query'], 'ln_q')[None]
    y, _ = attention(q, v + torch.from_numpy(positions), v)
    return (norm(y, 'ln_post') @ state['proj'])[0].numpy()


def audio(config: dict, state: dict) -> np.ndarray:
    """Encode the random sound of the tests: (tokens, width)."""
    sizes = WhisperConfig(
        num_mel_bins=80, activation_function='gelu', attn_implementation='eager', dropout=0.0,
        **config['audio_config'])  # fmt: skip
    encoder = loaded(WhisperEncoder(sizes), part(state, 'apm.'))
    projector = {
        f'audio_projector.{name}': tensor.numpy()
        for name, tensor in part(state, 'audio_projection_layer.').items()
    }
    return audio_tokens(encoder, projector, random_mel(SECONDS), config['audio_pool_step'], False)


def answers(family: str, directory: Path) -> dict:
    """Give what is stored of one family."""
    made.write_checkpoint(directory, family)
    config = made.config(family)
    state = load_file(directory / 'model.safetensors')
    state = {name: tensor.float() for name, tensor in state.items()}
    tokenizer = AutoTokenizer.from_pretrained(directory)
    prompt = tokenizer(made.PROMPT)['input_ids']
    answer, margins = greedy(language(config, state), prompt)
    text = tokenizer.decode(answer, skip_special_tokens=True)
    print(f'{family}: smallest margin {min(margins):.3f}, {text!r}')
    return {
        'checksum': sum(float(tensor.abs().sum(dtype=torch.float64)) for tensor in state.values()),
        'prompt_ids': prompt,
        'answer_ids': answer,
        'answer': text,
        'vision': vision(config, state, made.picture()),
        'audio': audio(config, state),
    }


def main() -> None:
    """Write the file."""
    found = {}
    for family in made.KINDS:
        with tempfile.TemporaryDirectory() as directory, torch.no_grad():
            for name, value in answers(family, Path(directory)).items():
                found[f'{family}/{name}'] = value
    np.savez_compressed(HERE / 'checkpoint.npz', **found)


if __name__ == '__main__':
    main()
