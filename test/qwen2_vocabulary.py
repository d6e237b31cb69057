# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Qwen2's vocabulary as far as some texts need it: the same ids, filled up to the published size.

The ids of data/qwen2_excerpt.json are those that llama.cpp and Hugging Face's tokenizers give with
the whole vocabulary.
"""

import json
from pathlib import Path

from minicpmo_ros.families import FAMILIES
from minicpmo_ros.llm.tokens import NORMAL, TokenTable, make_tokens

EXCERPT = json.loads((Path(__file__).parent / 'data' / 'qwen2_excerpt.json').read_text('utf-8'))
VECTORS = [tuple(vector) for vector in EXCERPT['vectors']]


def published_tokens(family: str = 'minicpm-o-2.6') -> TokenTable:
    """Give a table of the published size with the published ids of what the texts hold."""
    size = 151643 + len(FAMILIES[family].special_tokens)
    table = make_tokens(size, family)
    texts, types = list(table.texts), list(table.types)
    for place in range(151643):
        if types[place] == NORMAL:
            texts[place] = f'filling{place}'
    for token, text in EXCERPT['tokens'].items():
        texts[int(token)], types[int(token)] = text, NORMAL
    return TokenTable(texts, types, list(EXCERPT['merges']))


def without_han(merges: list) -> list:
    """Leave out the merges of two and more Han characters, as published lists do."""
    alphabet = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = [byte for byte in range(256) if byte not in alphabet]
    byte = {chr(b): b for b in alphabet} | {chr(256 + i): b for i, b in enumerate(spare)}

    def is_han(merge):
        text = bytes(byte[c] for c in merge.replace(' ', '')).decode('utf-8', 'replace')
        return len(text) > 1 and all('\u3400' <= c <= '\u9fff' for c in text)

    return [merge for merge in merges if not is_han(merge)]
