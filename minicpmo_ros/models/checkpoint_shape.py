# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What a Hugging Face MiniCPM-o checkpoint is: family and sizes, as a Shape.

Sizes come from the tensors; config.json gives what shapes do not tell, and where it speaks of a
size too, both must agree. What the published GGUF layouts have no key for (activations, epsilons
of the encoders, scaled positions) must be what they take for granted.
"""

import re
from pathlib import Path

from minicpmo_ros.errors import ModelFileError
from minicpmo_ros.media.log_mel import BANDS
from minicpmo_ros.models.checkpoint import CONFIG, Checkpoint
from minicpmo_ros.models.manifest import ARCHITECTURES
from minicpmo_ros.models.shapes import Shape

LLM, VISION, AUDIO = 'llm.model.layers', 'vpm.encoder.layers', 'apm.layers'
OTHER_MODEL = 'Use the checkpoint of a MiniCPM-o 2.6 or 4.5'
CORRECT = f'Correct {CONFIG}, or use the files of one model'
DROPS_VISION_LAYER = 'minicpm-o-4.5'  # where the configuration does not say
REQUIRED = object()
# The layouts have no key for these; a value of None in the config is as good as none.
GRANTED = {
    'hidden_act': 'silu',
    'rope_scaling': None,
    'use_sliding_window': False,
    'vision_config.hidden_act': 'gelu_pytorch_tanh',
    'vision_config.layer_norm_eps': 1e-6,
    'audio_config.activation_function': 'gelu',
    'audio_config.scale_embedding': False,
    'audio_config.num_mel_bins': BANDS,
}


def read_shape(checkpoint: Checkpoint, name: str) -> Shape:
    """Read family and all sizes; ModelFileError for another model or one that contradicts itself.

    name: what the Shape is called.
    """
    family = _family(checkpoint)
    for key, granted in GRANTED.items():
        if (found := _value(checkpoint, key, granted)) != granted:
            raise ModelFileError(
                checkpoint.path / CONFIG,
                f'{key} is {found!r}, the GGUF layouts allow {granted!r} only',
                OTHER_MODEL,
            )
    return Shape(
        name,
        family=family,
        **_llm_sizes(checkpoint),
        **_vision_sizes(checkpoint, family),
        **_audio_sizes(checkpoint),
    )


def _family(checkpoint: Checkpoint) -> str:
    """Qwen3 normalises queries, Qwen2 adds to them; the config must say the same version."""
    for part in ('llm', 'vpm', 'resampler', 'apm', 'audio_projection_layer'):
        if not any(name.startswith(part + '.') for name in checkpoint.tensors):
            raise ModelFileError(checkpoint.path, f'it has no tensors {part}.*', OTHER_MODEL)
    marks = {'q_proj.bias': 'minicpm-o-2.6', 'q_norm.weight': 'minicpm-o-4.5'}
    found = [
        family
        for mark, family in marks.items()
        if f'{LLM}.0.self_attn.{mark}' in checkpoint.tensors
    ]
    if len(found) != 1:
        raise ModelFileError(
            checkpoint.path, 'its language model is neither Qwen2 nor Qwen3', OTHER_MODEL
        )
    version = _value(checkpoint, 'version', None)
    if version is not None and f'minicpm-o-{version}' != found[0]:
        raise ModelFileError(
            checkpoint.path / CONFIG,
            f'version is {version!r}, the language model is {ARCHITECTURES[found[0]]} as in '
            f'{found[0]}',
            OTHER_MODEL,
        )
    return found[0]


def _llm_sizes(checkpoint: Checkpoint) -> dict:
    def rows(module):
        return checkpoint.side(f'{LLM}.0.{module}.weight', 0, 2)

    agreed = _Agreed(checkpoint)
    vocabulary, width = (checkpoint.side('llm.model.embed_tokens.weight', i, 2) for i in (0, 1))
    heads = _heads(checkpoint, 'num_attention_heads', rows('self_attn.q_proj'))
    head = rows('self_attn.q_proj') // heads
    tied = bool(_value(checkpoint, 'tie_word_embeddings', False))
    return {
        'width': agreed('hidden_size', width),
        'vocabulary': agreed('vocab_size', vocabulary),
        'llm_layers': agreed('num_hidden_layers', _count(checkpoint, LLM)),
        'llm_heads': heads,
        'llm_kv_heads': agreed('num_key_value_heads', rows('self_attn.k_proj') // head),
        'llm_head': agreed('head_dim', head),
        'llm_ffn': agreed('intermediate_size', rows('mlp.gate_proj')),
        'llm_tied': tied and 'llm.lm_head.weight' not in checkpoint.tensors,
        'context_length': _number(checkpoint, 'max_position_embeddings'),
        'rope_base': _rope_base(checkpoint),
        'rms_epsilon': _number(checkpoint, 'rms_norm_eps', kinds=(float,)),
    }


def _vision_sizes(checkpoint: Checkpoint, family: str) -> dict:
    agreed = _Agreed(checkpoint, 'vision_config.')
    kernel = 'vpm.embeddings.patch_embedding.weight'
    positions = checkpoint.side('vpm.embeddings.position_embedding.weight', 0, 2)
    width, patch = checkpoint.side(kernel, 0, 4), checkpoint.side(kernel, 2, 4)
    grid = round(positions**0.5)
    if _number(checkpoint, 'vision_config.image_size', grid * patch) // patch != grid:
        agreed('image_size', grid * patch)
    # A dropped layer may have been left out of the checkpoint, or still be there, unused.
    layers = _count(checkpoint, VISION)
    dropped = bool(_value(checkpoint, 'drop_vision_last_layer', family == DROPS_VISION_LAYER))
    if not dropped or _value(checkpoint, 'vision_config.num_hidden_layers', layers) == layers:
        layers = agreed('num_hidden_layers', layers) - dropped
    else:
        agreed('num_hidden_layers', layers + 1)
    return {
        'vision_width': agreed('hidden_size', width),
        'vision_layers': layers,
        'vision_heads': _heads(checkpoint, 'vision_config.num_attention_heads', width),
        'vision_ffn': agreed(
            'intermediate_size', checkpoint.side(f'{VISION}.0.mlp.fc1.weight', 0, 2)
        ),
        'queries': _Agreed(checkpoint)('query_num', checkpoint.side('resampler.query', 0, 2)),
        'image_size': _number(checkpoint, 'image_size', 448),
        'patch_size': agreed('patch_size', patch),
        'position_grid': grid,
    }


def _audio_sizes(checkpoint: Checkpoint) -> dict:
    agreed = _Agreed(checkpoint, 'audio_config.')
    width = checkpoint.side('apm.conv1.weight', 0, 3)
    agreed('encoder_ffn_dim', checkpoint.side(f'{AUDIO}.0.fc1.weight', 0, 2))
    return {
        'audio_width': agreed('d_model', width),
        'audio_layers': agreed('encoder_layers', _count(checkpoint, AUDIO)),
        'audio_heads': _heads(checkpoint, 'audio_config.encoder_attention_heads', width),
        'mel_bins': agreed('num_mel_bins', checkpoint.side('apm.conv1.weight', 1, 3)),
        'audio_positions': agreed(
            'max_source_positions', checkpoint.side('apm.embed_positions.weight', 0, 2)
        ),
        'audio_pool': _number(checkpoint, 'audio_pool_step'),
    }


class _Agreed:
    """Gives sizes found in tensors, once the config has been seen to say the same or nothing."""

    def __init__(self, checkpoint: Checkpoint, section: str = ''):
        self._checkpoint, self._section = checkpoint, section

    def __call__(self, key: str, found: int) -> int:
        said = _value(self._checkpoint, self._section + key, found)
        if said != found:
            raise ModelFileError(
                Path(self._checkpoint.path) / CONFIG,
                f'{self._section}{key} is {said!r}, the tensors have {found}',
                CORRECT,
            )
        return found


def _count(checkpoint: Checkpoint, prefix: str) -> int:
    """How many layers the names of the tensors go up to."""
    pattern = re.compile(re.escape(prefix) + r'\.(\d{1,4})\.')
    numbers = (pattern.match(name) for name in checkpoint.tensors)
    return 1 + max((int(match[1]) for match in numbers if match), default=-1)


def _value(checkpoint: Checkpoint, key: str, default=REQUIRED):
    """Look a key up, 'section.key' in a section; null counts as missing."""
    section, _, last = key.rpartition('.')
    record = checkpoint.config.get(section) if section else checkpoint.config
    found = record.get(last) if isinstance(record, dict) else None
    if found is None and default is REQUIRED:
        raise ModelFileError(
            checkpoint.path / CONFIG, f'it has no {key}', 'Add it, as the model was trained'
        )
    return default if found is None else found


def _number(checkpoint: Checkpoint, key: str, default=REQUIRED, kinds=(int,)):
    value = _value(checkpoint, key, default)
    if type(value) not in kinds or not 0 < value < 2**31:
        wanted = 'a number' if float in kinds else 'a whole number'
        raise ModelFileError(
            checkpoint.path / CONFIG, f'{key} is {value!r}, {wanted} above 0 is expected', CORRECT
        )
    return value


def _heads(checkpoint: Checkpoint, key: str, width: int) -> int:
    heads = _number(checkpoint, key)
    if width % heads:
        raise ModelFileError(
            checkpoint.path / CONFIG, f'{key} is {heads}, which does not divide {width}', CORRECT
        )
    return heads


def _rope_base(checkpoint: Checkpoint) -> float:
    """Return the base of the rotary positions; transformers 5 keeps it in a section."""
    nested = _value(checkpoint, 'rope_parameters.rope_theta', None)
    if nested is None:
        return float(_number(checkpoint, 'rope_theta', kinds=(int, float)))
    if _value(checkpoint, 'rope_parameters.rope_type', 'default') != 'default':
        raise ModelFileError(
            checkpoint.path / CONFIG, 'its rotary positions are scaled', OTHER_MODEL
        )
    return float(_number(checkpoint, 'rope_parameters.rope_theta', kinds=(int, float)))
