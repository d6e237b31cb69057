# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Which tensor of a model file is stored in which type: an ordered list of rules.

A rule is a glob pattern of tensor names and a type; the first that fits a tensor decides. Rules
of the caller come before the defaults of the file's role, which keep in more bits what a model
depends on most. Rules speak of matrices, kernels and of tables whose names end in `weight`;
norms, biases and other tables (Whisper's positions, the resampler's queries) stay as stored.

The language model's defaults are those of llama.cpp's Q4_K_M (src/llama-quant.cpp), for all types
of two to five bits: Q6_K for the output matrix and for half of the layers' attn_v and ffn_down.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from minicpmo_ros.errors import InputError
from minicpmo_ros.ggml.header import Header, TensorInfo
from minicpmo_ros.ggml.types import NO_WEIGHTS, block_size
from minicpmo_ros.ggml.types import GgmlType as Type
from minicpmo_ros.models.layouts import takes_more_bits

TYPES = {
    'f32': Type.F32,
    'f16': Type.F16,
    'bf16': Type.BF16,
    'q8_0': Type.Q8_0,
    'q6_K': Type.Q6_K,
    'q5_K': Type.Q5_K,
    'q5_1': Type.Q5_1,
    'q5_0': Type.Q5_0,
    'q4_K': Type.Q4_K,
    'q4_1': Type.Q4_1,
    'q4_0': Type.Q4_0,
    'q3_K': Type.Q3_K,
    'q2_K': Type.Q2_K,
    'keep': None,
}
FLOATS = (Type.F32, Type.F16, Type.BF16)
# llama.cpp's, for rows that are no multiple of 256.
FALLBACK = {
    Type.Q2_K: Type.IQ4_NL,
    Type.Q3_K: Type.IQ4_NL,
    Type.Q4_K: Type.Q5_0,
    Type.Q5_K: Type.Q5_1,
    Type.Q6_K: Type.Q8_0,
}
HIGHER = Type.Q6_K  # of what a model depends on most, where the rest has two to five bits
HAS_HIGHER = (
    Type.Q2_K,
    Type.Q3_K,
    Type.Q4_0,
    Type.Q4_1,
    Type.Q4_K,
    Type.Q5_0,
    Type.Q5_1,
    Type.Q5_K,
)


@dataclass(frozen=True)
class Rule:
    """Tensors whose names fit the pattern get the type; None keeps what they have."""

    pattern: str
    type: Type | None
    role: str = ''  # of the file it speaks of: llm, vision, audio; '': of all

    @classmethod
    def parse(cls, text: str) -> 'Rule':
        """Read 'PATTERN=TYPE', as `blk.*.attn_v.weight=q8_0`; InputError says what is wrong."""
        pattern, equals, name = text.rpartition('=')
        if not equals or not pattern:
            raise InputError(
                f'The rule {text!r} is not of the form PATTERN=TYPE. Write for '
                "example 'blk.*.attn_v.weight=q8_0'."
            )
        return cls(pattern, type_named(name))


def type_named(name: str) -> Type | None:
    """Return the type of that name, None for 'keep'; InputError for another name."""
    if name not in TYPES:
        raise InputError(f'The type {name!r} is unknown; allowed are {", ".join(TYPES)}.')
    return TYPES[name]


def type_name(ggml_type: Type | None) -> str:
    """Return the name of a type of TYPES, 'keep' for None; InputError where it has none."""
    for name, known in TYPES.items():
        if known == ggml_type:
            return name
    raise InputError(f'{ggml_type.name} is none of {", ".join(TYPES)}.')


def chosen_types(header: Header, role: str, base: Type | None, rules: Sequence[Rule]) -> dict:
    """Name -> the type wanted, for the tensors that may change; rows may not fit it yet.

    base: of what no rule speaks of; None leaves that as it is.
    """
    own = (rule for rule in rules if rule.role in ('', role))
    ordered = (*own, *default_rules(header, role, base))
    chosen = {}
    for name, info in header.tensors.items():
        if may_change(info):
            wanted = next(rule.type for rule in ordered if fnmatchcase(name, rule.pattern))
            chosen[name] = info.type if wanted is None else wanted
    return chosen


def may_change(info: TensorInfo) -> bool:
    """Tell whether rules speak of this tensor."""
    n_sides = sum(side > 1 for side in info.shape)
    return n_sides > 1 and info.name.endswith('.weight') and info.type not in NO_WEIGHTS


def used_rules(header: Header, role: str, rules: Sequence[Rule]) -> list:
    """Return the rules that fit a tensor of the file of that role, in their order."""
    names = [info.name for info in header.tensors.values() if may_change(info)]
    return [
        rule
        for rule in rules
        if rule.role in ('', role) and any(fnmatchcase(name, rule.pattern) for name in names)
    ]


def default_rules(header: Header, role: str, base: Type | None) -> tuple:
    """Return the rules for one role ('llm', 'vision', 'audio'); the last fits every tensor."""
    rest = Rule('*', base)
    if base is None:
        return (rest,)
    if role == 'llm':
        return (*_llm_rules(header, base), rest)
    if base in FLOATS:
        return (rest,)
    if role == 'audio':
        return (_half(header, 'encoder.conv1.weight'), _half(header, 'encoder.conv2.weight'), rest)
    kept = [_half(header, 'v.patch_embd.weight'), _half(header, 'v.position_embd.weight')]
    if base in HAS_HIGHER:
        # It is multiplied once while loading: its bits cost nothing on the device.
        kept.append(Rule('resampler.attn.q.weight', Type.Q8_0))
    return (*kept, rest)


def _llm_rules(header: Header, base: Type) -> list:
    if base not in HAS_HIGHER:
        return []
    layers = sum(name.endswith('.ffn_down.weight') for name in header.tensors)
    output = 'output.weight' if 'output.weight' in header.tensors else 'token_embd.weight'
    sensitive = [
        f'blk.{i}.{name}.weight'
        for i in range(layers)
        if takes_more_bits(i, layers)
        for name in ('attn_v', 'ffn_down')
    ]
    return [Rule(pattern, HIGHER) for pattern in (output, *sensitive)]


def _half(header: Header, name: str) -> Rule:
    """Give f16 to what is stored in f32, as the published files have it; keep the rest."""
    info = header.tensors.get(name)
    return Rule(name, Type.F16 if info and info.type == Type.F32 else None)


def fitting_type(wanted: Type, n_columns: int) -> Type:
    """Return the type llama.cpp would store rows of this length in, when asked for `wanted`."""
    if n_columns % block_size(wanted) == 0:
        return wanted
    if wanted in FALLBACK:
        return fitting_type(FALLBACK[wanted], n_columns)
    return Type.F16
