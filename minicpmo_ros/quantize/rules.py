# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Which tensor of a model file is stored in which type: rules, and YAML files of rules.

A rule is a glob pattern of tensor names and a type; the first that fits a tensor decides. Rules
of the caller come before the defaults of the file's part, which keep in more bits what a model
depends on most. Rules speak of matrices, kernels and of tables whose names end in `weight`;
norms, biases and other tables (Whisper's positions, the resampler's queries) stay as stored.

The language model's defaults are those of llama.cpp's Q4_K_M (src/llama-quant.cpp), for all types
of two to five bits: Q6_K for the output matrix and for half of the layers' attn_v and ffn_down.

A file has a base type and an ordered list of rules for each part:

    format: minicpmo_ros quantization rules 1
    llm:
      type: q4_K
      rules:
      - blk.*.attn_v.weight: q6_K
    vision:
      type: q8_0

A part that is not named keeps its types, and so does one without `type`. Errors are InputErrors
that name the file, the line and what stands there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

import yaml

from minicpmo_ros.config import PARTS
from minicpmo_ros.documents import appearing
from minicpmo_ros.errors import InputError
from minicpmo_ros.ggml.gguf_file import Header, TensorInfo
from minicpmo_ros.ggml.types import NO_WEIGHTS
from minicpmo_ros.ggml.types import GgmlType as Type
from minicpmo_ros.modelset.gguf_layouts import takes_more_bits

LADDER = ('q8_0', 'q6_K', 'q5_K', 'q4_K', 'q4_0', 'q3_K', 'q2_K')  # from large to small
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
FORMAT = 'minicpmo_ros quantization rules 1'
MAX_FILE_BYTES = 1 << 20
QUOTE = "Patterns that begin with * need quotes, as '*.attn_v.weight': q8_0"


@dataclass(frozen=True)
class Rule:
    """Tensors whose names fit the pattern get the type; None keeps what they have."""

    pattern: str
    type: Type | None
    part: str = ''  # of the file it speaks of: llm, vision, audio; '': of all

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


def chosen_types(header: Header, part: str, base: Type | None, rules: Sequence[Rule]) -> dict:
    """Name -> the type wanted, for the tensors that may change; rows may not fit it yet.

    base: of what no rule speaks of; None leaves that as it is.
    """
    own = (rule for rule in rules if rule.part in ('', part))
    ordered = (*own, *default_rules(header, part, base))
    chosen = {}
    for name, info in header.tensors.items():
        if may_change(info):
            wanted = next(rule.type for rule in ordered if fnmatchcase(name, rule.pattern))
            chosen[name] = info.type if wanted is None else wanted
    return chosen


def may_change(info: TensorInfo) -> bool:
    """Return whether rules speak of this tensor."""
    n_sides = sum(side > 1 for side in info.shape)
    return n_sides > 1 and info.name.endswith('.weight') and info.type not in NO_WEIGHTS


def used_rules(header: Header, part: str, rules: Sequence[Rule]) -> list:
    """Return the rules that fit a tensor of the file of that part, in their order."""
    names = [info.name for info in header.tensors.values() if may_change(info)]
    return [
        rule
        for rule in rules
        if rule.part in ('', part) and any(fnmatchcase(name, rule.pattern) for name in names)
    ]


def default_rules(header: Header, part: str, base: Type | None) -> tuple:
    """Return the rules for one part ('llm', 'vision', 'audio'); the last fits every tensor."""
    rest = Rule('*', base)
    if base is None:
        return (rest,)
    if part == 'llm':
        return (*_llm_rules(header, base), rest)
    if base in FLOATS:
        return (rest,)
    if part == 'audio':
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
    """Return f16 to what is stored in f32, as the published files have it; keep the rest."""
    info = header.tensors.get(name)
    return Rule(name, Type.F16 if info and info.type == Type.F32 else None)


def fitting_type(wanted: Type, n_columns: int) -> Type:
    """Return the type llama.cpp would store rows of this length in, when asked for `wanted`."""
    if n_columns % wanted.block_size == 0:
        return wanted
    if wanted in FALLBACK:
        return fitting_type(FALLBACK[wanted], n_columns)
    return Type.F16


@dataclass(frozen=True)
class RulesFile:
    """What a file says: part -> name of the base type, and the rules in their order."""

    precisions: dict = field(default_factory=dict)
    rules: Sequence[Rule] = ()  # each of a part

    @classmethod
    def read(cls, path) -> 'RulesFile':
        """Read and check a file; raises InputError."""
        return _Reader(Path(path)).read()

    @classmethod
    def of_run(
        cls, headers: Mapping[str, Header], precisions: Mapping[str, str], rules: Sequence[Rule]
    ) -> 'RulesFile':
        """Return what gives these files the same types again: headers, precisions by part."""
        used = [
            replace(rule, part=part)
            for part, header in headers.items()
            for rule in used_rules(header, part, rules)
        ]
        return cls({part: precisions.get(part, 'keep') for part in headers}, tuple(used))

    def write(self, path) -> None:
        """Write the file; the same rules give the same bytes."""
        record = {'format': FORMAT}
        for part, precision in self.precisions.items():
            rules = [
                {rule.pattern: type_name(rule.type)} for rule in self.rules if rule.part == part
            ]
            record[part] = {'type': precision, **({'rules': rules} if rules else {})}
        text = yaml.safe_dump(record, sort_keys=False, width=200)
        with appearing(Path(path)) as sink:
            sink.write(text.encode())


class _Reader:
    """Reads nodes, not values: they know their line."""

    def __init__(self, path: Path):
        self.path, self.lines = path, []

    def read(self) -> RulesFile:
        sections = self._entries(self._root(), 'the file')
        found = self._scalar(sections.pop('format', None))
        if found != FORMAT:
            raise InputError(f'{self.path}: its format is {found!r}, {FORMAT!r} is expected.')
        precisions, rules = {}, []
        for part, node in sections.items():
            if part not in PARTS:
                self._refuse(node, f'{part!r} is none of {", ".join(PARTS)}')
            section = self._entries(node, part)
            for key, value in section.items():
                if key not in ('type', 'rules'):
                    self._refuse(value, f"{key!r} is neither 'type' nor 'rules'")
            if 'type' in section:
                self._type(section['type'])
            precisions[part] = self._scalar(section.get('type')) or 'keep'
            rules += self._rules(section.get('rules'), part)
        return RulesFile(precisions, tuple(rules))

    def _root(self) -> yaml.Node:
        try:
            if self.path.stat().st_size > MAX_FILE_BYTES:
                raise InputError(f'{self.path}: it is larger than {MAX_FILE_BYTES >> 20} MiB.')
            text = self.path.read_text(encoding='utf-8')
            self.lines = text.splitlines()
            return yaml.compose(text, Loader=yaml.SafeLoader)
        except OSError as error:
            raise InputError(f'{self.path}: it cannot be read ({error.strerror}).') from error
        except yaml.MarkedYAMLError as error:
            self._refuse_at(
                error.problem_mark.line, f'it is not YAML ({error.problem}). {QUOTE}', error
            )
        except (ValueError, RecursionError, yaml.YAMLError) as error:
            raise InputError(f'{self.path}: it is not YAML ({error}).') from error

    def _rules(self, node, part: str) -> list:
        if node is None:
            return []
        if not isinstance(node, yaml.SequenceNode):
            self._refuse(node, "rules are a list, each '- PATTERN: TYPE'")
        rules = []
        for entry in node.value:
            pairs = self._entries(entry, 'a rule')
            if len(pairs) != 1:
                self._refuse(entry, "a rule is one '- PATTERN: TYPE'")
            ((pattern, value),) = pairs.items()
            rules.append(Rule(pattern, self._type(value), part))
        return rules

    def _type(self, node):
        name = self._scalar(node)
        if name not in TYPES:
            self._refuse(node, f'the type {name!r} is unknown; allowed are {", ".join(TYPES)}')
        return type_named(name)

    def _entries(self, node, what: str) -> dict:
        """Key -> node of a mapping."""
        if node is None:
            raise InputError(f'{self.path}: it is empty.')
        if not isinstance(node, yaml.MappingNode):
            self._refuse(node, f"{what} must be 'KEY: VALUE'")
        entries = {}
        for key, value in node.value:
            name = self._scalar(key)
            if name is None or name in entries:
                self._refuse(key, f'{name!r} occurs twice' if name else 'a key must be a text')
            entries[name] = value
        return entries

    def _scalar(self, node):
        return node.value if isinstance(node, yaml.ScalarNode) else None

    def _refuse(self, node, problem: str) -> None:
        self._refuse_at(node.start_mark.line, problem)

    def _refuse_at(self, line: int, problem: str, cause=None) -> None:
        shown = self.lines[line].strip() if line < len(self.lines) else ''
        raise InputError(f'{self.path}, line {line + 1} ({shown}): {problem}.') from cause
