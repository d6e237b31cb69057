# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What a Hugging Face MiniCPM-o checkpoint is: family and sizes, as a Shape.

Sizes come from the tensors; config.json gives what shapes do not tell, and where it speaks of a
size too, both must agree. What the published GGUF layouts have no key for (activations, epsilons
of the encoders, scaled positions) must be what they take for granted.
"""

import re
from pathlib import Path

from minicpmo_ros.convert.checkpoint import CONFIG, Checkpoint
from minicpmo_ros.documents import told
from minicpmo_ros.errors import ModelFileError
from minicpmo_ros.families import FAMILIES
from minicpmo_ros.families.base import Family, Shape
from minicpmo_ros.media.audio.log_mel import BANDS

LLM, VISION, AUDIO = 'llm.model.layers', 'vpm.encoder.layers', 'apm.layers'
OTHER_MODEL = 'Use the checkpoint of a MiniCPM-o ' + ' or '.join(
    family.version for family in FAMILIES.values()
)
CORRECT = f'Correct {CONFIG}, or use the files of one model'
REQUIRED = object()
# The layouts have no key for these; a value of None in the config is as good as none.
GRANTED = {
    'hidden_act': 'silu',
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
    checkpoint.require_plain()
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
        family=family.name,
        **_llm_sizes(checkpoint),
        **_vision_sizes(checkpoint, family),
        **_audio_sizes(checkpoint),
    )


def _family(checkpoint: Checkpoint) -> Family:
    """Know the family by its mark; the config must say the same version, or, of one, nothing."""
    for part in ('llm', 'vpm', 'resampler', 'apm', 'audio_projection_layer'):
        if not any(name.startswith(part + '.') for name in checkpoint.tensors):
            first = next(iter(checkpoint.tensors), 'nothing')
            problem = f'it has no tensors {part}.*; its first is {told(first)}'
            raise ModelFileError(checkpoint.path, problem, OTHER_MODEL)
    marks = {family.checkpoint_mark for family in FAMILIES.values()}
    found = [mark for mark in marks if f'{LLM}.0.self_attn.{mark}' in checkpoint.tensors]
    if len(found) != 1:
        raise ModelFileError(
            checkpoint.path, 'its language model is neither Qwen2 nor Qwen3', OTHER_MODEL
        )
    families = [family for family in FAMILIES.values() if family.checkpoint_mark == found[0]]
    version = _value(checkpoint, 'version', None if len(families) == 1 else REQUIRED)
    if version is None:
        return families[0]
    for family in families:
        if family.version == str(version):
            return family
    raise ModelFileError(
        checkpoint.path / CONFIG,
        f'version is {version!r}, the language model is {families[0].architecture} as in '
        + ' or '.join(family.name for family in families),
        OTHER_MODEL,
    )


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


def _vision_sizes(checkpoint: Checkpoint, family: Family) -> dict:
    agreed = _Agreed(checkpoint, 'vision_config.')
    kernel = 'vpm.embeddings.patch_embedding.weight'
    positions = checkpoint.side('vpm.embeddings.position_embedding.weight', 0, 2)
    width, patch = checkpoint.side(kernel, 0, 4), checkpoint.side(kernel, 2, 4)
    grid = round(positions**0.5)
    if _number(checkpoint, 'vision_config.image_size', grid * patch) // patch != grid:
        agreed('image_size', grid * patch)
    # A dropped layer may have been left out of the checkpoint, or still be there, unused.
    layers = _count(checkpoint, VISION)
    dropped = bool(_value(checkpoint, 'drop_vision_last_layer', family.drops_vision_layer))
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
    for section in ('rope_scaling', 'rope_parameters'):
        if _is_scaled(found := _value(checkpoint, section, {})):
            raise ModelFileError(
                checkpoint.path / CONFIG,
                f'{section} is {told(found)}: the GGUF layouts allow rotary positions that are '
                'not scaled',
                OTHER_MODEL,
            )
    nested = _value(checkpoint, 'rope_parameters.rope_theta', None)
    key = 'rope_theta' if nested is None else 'rope_parameters.rope_theta'
    return float(_number(checkpoint, key, kinds=(int, float)))


def _is_scaled(section) -> bool:
    """Whether a section on rotary positions scales them; the type "default" does not."""
    if not isinstance(section, dict):
        return True
    kinds = [section.get(name) for name in ('type', 'rope_type')]
    return any(kind not in (None, 'default') for kind in kinds) or 'factor' in section
