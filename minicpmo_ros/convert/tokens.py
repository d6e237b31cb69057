# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The vocabulary of a Hugging Face checkpoint, as GGUF stores it.

Words and merges come from tokenizer.json where it is there, else from vocab.json and merges.txt:
those published with MiniCPM-o 4.5 lack merges. Where both are there and differ, that is told.
Added tokens come from any of tokenizer.json, tokenizer_config.json and added_tokens.json. A place
of the embedding table that no token has becomes an unused one, as llama.cpp's converter has it.
"""

from pathlib import Path

from minicpmo_ros.convert.checkpoint import (
    FETCH_AGAIN,
    FETCH_ALL,
    MAX_JSON_BYTES,
    read_json,
    require_own,
)
from minicpmo_ros.documents import told
from minicpmo_ros.errors import ModelFileError
from minicpmo_ros.families import FAMILIES
from minicpmo_ros.llm.tokens import CONTROL, NORMAL, UNUSED, USER_DEFINED, TokenTable
from minicpmo_ros.modelset.gguf_metadata import CHAT_TEMPLATE

FAST, CONFIG, ADDED = 'tokenizer.json', 'tokenizer_config.json', 'added_tokens.json'
VOCABULARY, MERGES, TEMPLATE = 'vocab.json', 'merges.txt', 'chat_template.jinja'


def read_tokens(directory, size: int, family: str) -> TokenTable:
    """Read the vocabulary for an embedding table of `size` rows.

    ModelFileError: files that are missing or damaged, ids beyond the table, or a vocabulary
    without the special tokens of the family.
    """
    directory = Path(directory)
    words, merges, warnings = _words(directory)
    added = _added(directory)
    texts = [f'[PAD{token}]' for token in range(size)]
    types = [UNUSED] * size
    for text, token in words.items():
        _check_id(directory, text, token, size)
        if types[token] == NORMAL:
            problem = f'the tokens {told(texts[token])} and {told(text)} have the same id {token}'
            raise ModelFileError(directory, problem, FETCH_ALL)
        texts[token], types[token] = text, NORMAL
    for pair in merges:
        left, right = pair.split(' ')
        if not (left in words and right in words and left + right in words):
            problem = f'the merge {told(pair)} is of pieces that are not in the vocabulary'
            raise ModelFileError(directory, problem, FETCH_ALL)
    for token, (text, special) in added.items():
        _check_id(directory, text, token, size)
        texts[token], types[token] = text, CONTROL if special else USER_DEFINED
    required = FAMILIES[family].required_tokens
    if missing := sorted(required - {text for text, _ in added.values()}):
        raise ModelFileError(
            directory,
            'among its added tokens there is no ' + ' '.join(missing),
            f'Use the tokenizer files of {family}, not those of the Qwen it is made from',
        )
    return TokenTable(texts, types, merges, warnings)


def read_chat_template(directory) -> str:
    """Return the template of chats, or a plain one where the checkpoint has none.

    It is a file of its own, which goes before, or a text in tokenizer_config.json, or one of
    several there that have names.
    """
    path = Path(directory) / TEMPLATE
    if path.exists():
        return _text(path) or CHAT_TEMPLATE
    path = path.with_name(CONFIG)
    template = read_json(path).get('chat_template') if path.exists() else None
    for named in template if isinstance(template, list) else ():
        if isinstance(named, dict) and named.get('name') == 'default':
            template = named.get('template')
    return template if isinstance(template, str) and template else CHAT_TEMPLATE


def _words(directory: Path) -> tuple:
    """Return ({text: id}, ['left right', ...], sentences about files that differ)."""
    has_lists = (directory / VOCABULARY).exists() and (directory / MERGES).exists()
    if (directory / FAST).exists():
        words, merges = _fast_words(directory / FAST)
        lists = _listed_words(directory) if has_lists else (words, merges)
        return words, merges, tuple(_differences(directory, (words, merges), lists))
    if has_lists:
        return *_listed_words(directory), ()
    raise ModelFileError(
        directory, f'it has neither {FAST} nor {VOCABULARY} and {MERGES}', FETCH_ALL
    )


def _fast_words(path: Path) -> tuple:
    model = read_json(path).get('model')
    if not isinstance(model, dict) or model.get('type') != 'BPE':
        raise ModelFileError(path, 'its model is no BPE, as Qwen has', FETCH_AGAIN)
    merges = model.get('merges')
    if isinstance(merges, list):  # pairs as lists in newer files
        merges = [' '.join(map(str, pair)) if isinstance(pair, list) else pair for pair in merges]
    return _checked_words(path, model.get('vocab'), merges)


def _listed_words(directory: Path) -> tuple:
    words = read_json(directory / VOCABULARY)
    return _checked_words(directory / VOCABULARY, words, _merge_lines(directory / MERGES))


def _checked_words(path: Path, words, merges) -> tuple:
    if not isinstance(words, dict) or not words:
        raise ModelFileError(path, 'it holds no vocabulary', FETCH_AGAIN)
    if (
        not merges
        or not isinstance(merges, list)
        or not all(isinstance(pair, str) and pair.count(' ') == 1 for pair in merges)
    ):
        raise ModelFileError(path, 'its merges are not pairs of pieces', FETCH_AGAIN)
    return words, merges


def _differences(directory: Path, fast: tuple, lists: tuple):
    """Yield sentences on how tokenizer.json differs from the two lists beside it."""
    (words, merges), (listed_words, listed_merges) = fast, lists
    n_words = len(words.items() ^ listed_words.items())
    if n_words:
        yield f'{directory}: {FAST} and {VOCABULARY} differ in {n_words} words; {FAST} is used'
    if merges != listed_merges:
        fewer, more = (
            len(set(a) - set(b)) for a, b in ((merges, listed_merges), (listed_merges, merges))
        )
        yield (
            f'{directory}: {MERGES} lacks {fewer} of the {len(merges)} merges of {FAST} and has '
            f'{more} others; {FAST} is used'
            if fewer or more
            else f'{directory}: {MERGES} and {FAST} order their merges differently; {FAST} is used'
        )


def _merge_lines(path: Path) -> list:
    lines = _text(path).splitlines()
    is_headed = bool(lines) and lines[0].startswith('#version')
    merges = [line for line in lines[is_headed:] if line]
    if not all(pair.count(' ') == 1 for pair in merges):
        raise ModelFileError(path, 'its lines are not pairs of pieces', FETCH_AGAIN)
    if not merges:
        raise ModelFileError(path, 'it holds no merges', FETCH_AGAIN)
    return merges


def _text(path: Path) -> str:
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ModelFileError(path, f'it has more than {MAX_JSON_BYTES >> 20} MiB', FETCH_AGAIN)
    try:
        data = path.read_bytes()
        require_own(path, data)
        return data.decode('utf-8-sig')
    except ValueError as error:
        raise ModelFileError(path, f'it is no text ({error})', FETCH_AGAIN) from None


def _added(directory: Path) -> dict:
    """Return {id: (text, whether it means something beside its text)}; the later files win."""
    found = []
    if (directory / ADDED).exists():
        found += [
            (token, {'content': text}) for text, token in read_json(directory / ADDED).items()
        ]
    if (directory / FAST).exists():
        for entry in _listed(directory / FAST, 'added_tokens', list):
            found.append((entry.get('id') if isinstance(entry, dict) else None, entry))
    if (directory / CONFIG).exists():
        entries = _listed(directory / CONFIG, 'added_tokens_decoder', dict).items()
        found += [(int(token) if token.isdecimal() else token, entry) for token, entry in entries]
    added = {}
    for token, entry in found:
        text = entry.get('content') if isinstance(entry, dict) else None
        if type(token) is not int or not isinstance(text, str) or not text:
            raise ModelFileError(
                directory,
                f'it describes the added token {token!r} as {str(entry)[:80]}',
                FETCH_AGAIN,
            )
        added[token] = (text, bool(entry.get('special', True)) or _looks_special(text))
    return added


def _listed(path: Path, key: str, kind: type):
    found = read_json(path).get(key, kind())
    if not isinstance(found, kind):
        raise ModelFileError(path, f'its {key} is no {kind.__name__}', FETCH_AGAIN)
    return found


def _looks_special(text: str) -> bool:
    return text.startswith('<|') and text.endswith('|>')


def _check_id(directory: Path, text: str, token, size: int) -> None:
    if type(token) is not int or not 0 <= token < size:
        raise ModelFileError(
            directory,
            f'the token {text!r} has the id {token!r}, the embedding table has {size} rows',
            'Use weights and tokenizer files of one model',
        )
