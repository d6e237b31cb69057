# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The fields of a question as a file has them: what each may hold, and how that is told."""

import json
from collections.abc import Callable
from pathlib import PurePosixPath

from minicpmo_ros.config import LOOKS
from minicpmo_ros.documents import is_utf8, told
from minicpmo_ros.errors import InputError

RULES = ('text', 'letter')  # by which an answer is right, as in matching.py


def _is_filled(value) -> bool:
    return is_utf8(value) and bool(value.strip())


def _is_second(value) -> bool:
    is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return is_whole and not isinstance(value, bool) and abs(value) < 2**31


def _is_texts(value) -> bool:
    return isinstance(value, list) and all(map(_is_filled, value))


def is_lines(value) -> bool:
    """Return whether it is texts as they are printed in a question; they may be empty."""
    return isinstance(value, list) and all(map(is_utf8, value))


def _is_share(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1


def is_inside(value) -> bool:
    """Return whether it is a path that does not leave the folder."""
    if not _is_filled(value) or '\\' in value or '\0' in value:
        return False
    path = PurePosixPath(value)
    is_short = len(value.encode()) < 4096 and all(len(p.encode()) < 256 for p in path.parts)
    return is_short and not path.is_absolute() and '..' not in path.parts and bool(path.name)


SECONDS = ('start_s', 'end_s', 'asked_at_s')
CHECKS: dict[str, tuple[Callable, str]] = {
    'id': (_is_filled, 'a text'),
    'clip': (is_inside, 'a path relative to the file'),
    'start_s': (_is_second, 'a whole number of seconds'),
    'end_s': (_is_second, 'a whole number of seconds'),
    'family': (_is_filled, 'a text'),
    'text': (is_utf8, 'a text, an empty one to ask for an answer to what was said'),
    'answers': (lambda v: _is_texts(v) and bool(v), 'a list of one text or more'),
    'choices': (_is_texts, 'a list of texts'),
    'kind': (is_utf8, 'a text'),
    'chance': (_is_share, 'a number from 0 to 1'),
    'hard': (lambda v: isinstance(v, bool), 'true or false'),
    'rule': (lambda v: v in RULES, f'one of {", ".join(RULES)}'),
    'options': (is_lines, 'a list of texts'),
    'relative': (lambda v: isinstance(v, bool), 'true or false'),
    'asked_at_s': (_is_second, 'a whole number of seconds'),
    'note': (is_utf8, 'a text'),
    'look': (lambda v: v in LOOKS, f'one of {", ".join(LOOKS)}'),
    'image': (is_inside, 'a path relative to the file'),
    'json_schema': (lambda v: isinstance(v, (str, dict)), 'a JSON schema, as an object or a text'),
}


def read_schema(where: str, entry: dict) -> str:
    """Return the schema of a question as a text, '' for none; InputError if it is no good."""
    given = entry.get('json_schema', '')  # {} is a schema, of any value
    schema = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
    if not schema:
        return ''
    if entry.get('choices') or entry.get('rule', RULES[0]) != RULES[0]:
        raise InputError(f'{where}: json_schema goes with no choices and no other rule.')
    from minicpmo_ros.llm.grammar.json_schema import write_gbnf  # loads llama.cpp
    from minicpmo_ros.llm.grammar.schema_values import misfit

    try:
        write_gbnf(schema)
        unfit = {answer: misfit(schema, answer) for answer in entry['answers']}
    except InputError as error:
        raise InputError(f'{where}: {error}') from None
    except (ValueError, RecursionError):
        raise InputError(
            f'{where}: json_schema is given, and an answer that counts as right is no JSON.'
        ) from None
    for answer, place in unfit.items():
        if place:
            raise InputError(
                f'{where}: {told(answer)} counts as right, but does not fit json_schema '
                f'({place}): it can never be given. Correct one of the two.'
            )
    return schema


def has_truth(value) -> bool:
    """Return whether a value is, or has in it, true or false."""
    return any(isinstance(v, bool) for v in (value if isinstance(value, list) else [value]))
