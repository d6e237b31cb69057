# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Quantisation rules in a YAML file: a base type and an ordered list of rules for each network.

    format: minicpmo_ros quantization rules 1
    llm:
      type: q4_K
      rules:
      - blk.*.attn_v.weight: q6_K
    vision:
      type: q8_0

A network that is not named keeps its types, as one without `type` does. Errors are InputErrors
that name the file, the line and what stands there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from minicpmo_ros.errors import InputError
from minicpmo_ros.ggml.header import Header
from minicpmo_ros.models.appearing import appearing
from minicpmo_ros.models.manifest import ROLES
from minicpmo_ros.models.quantize_rules import TYPES, Rule, type_name, type_named, used_rules

FORMAT = 'minicpmo_ros quantization rules 1'
MAX_FILE_BYTES = 1 << 20
QUOTE = "Patterns that begin with * need quotes, as '*.attn_v.weight': q8_0"


@dataclass(frozen=True)
class RulesFile:
    """What a file says: role -> name of the base type, and the rules in their order."""

    precisions: dict = field(default_factory=dict)
    rules: Sequence[Rule] = ()  # each of a role

    @classmethod
    def read(cls, path) -> 'RulesFile':
        """Read and check a file; raises InputError."""
        return _Reader(Path(path)).read()

    @classmethod
    def of_run(
        cls, headers: Mapping[str, Header], precisions: Mapping[str, str], rules: Sequence[Rule]
    ) -> 'RulesFile':
        """Return what gives these files the same types again: headers, precisions by role."""
        used = [
            replace(rule, role=role)
            for role, header in headers.items()
            for rule in used_rules(header, role, rules)
        ]
        return cls({role: precisions.get(role, 'keep') for role in headers}, tuple(used))

    def write(self, path) -> None:
        """Write the file; the same rules give the same bytes."""
        record = {'format': FORMAT}
        for role, precision in self.precisions.items():
            rules = [
                {rule.pattern: type_name(rule.type)} for rule in self.rules if rule.role == role
            ]
            record[role] = {'type': precision, **({'rules': rules} if rules else {})}
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
        for role, node in sections.items():
            if role not in ROLES:
                self._refuse(node, f'{role!r} is none of {", ".join(ROLES)}')
            section = self._entries(node, role)
            for key, value in section.items():
                if key not in ('type', 'rules'):
                    self._refuse(value, f"{key!r} is neither 'type' nor 'rules'")
            if 'type' in section:
                self._type(section['type'])
            precisions[role] = self._scalar(section.get('type')) or 'keep'
            rules += self._rules(section.get('rules'), role)
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

    def _rules(self, node, role: str) -> list:
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
            rules.append(Rule(pattern, self._type(value), role))
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
