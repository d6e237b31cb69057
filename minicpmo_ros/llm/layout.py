# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What the file of a language model says: Qwen2 and Qwen3 in llama.cpp's GGUF layout.

llama.cpp ends the process over some of what is refused here (two equal tokens, heads that do not
fill their matrix, an epsilon below zero) and reads beyond its memory over other (token types of
another width): nothing goes to it that has not been compared with every other part of the header.
What single keys may hold is in llm_keys; here is what must agree between them.
"""

from dataclasses import dataclass

import numpy as np

from minicpmo_ros.errors import ModelFileError
from minicpmo_ros.families.base import ARCHITECTURES
from minicpmo_ros.ggml.gguf_file import FETCH_AGAIN, Header, StringArray
from minicpmo_ros.ggml.types import NO_WEIGHTS, GgmlType
from minicpmo_ros.llm.keys import check_keys, check_pre_tokenizer

MAX_VOCABULARY = 1 << 20
TOKEN_TYPES = (
    1,
    2,
    3,
    4,
    5,
)  # normal, unknown, control, user-defined, unused; 6 is SentencePiece's


@dataclass(frozen=True)
class LlmFacts:
    """Sizes of one language model."""

    architecture: str  # qwen2 or qwen3
    width: int  # of the embeddings
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    ffn: int  # width of the feed-forward
    context_length: int  # positions it was made for
    tokens: StringArray
    token_types: np.ndarray  # (vocabulary,)
    unread_keys: tuple = ()  # keys of its architecture that llama.cpp has no use for


def read_facts(header: Header, pre_tokenizer: str = '') -> LlmFacts:
    """Read the facts and check every tensor and token; ModelFileError says what does not fit.

    `pre_tokenizer`: what somebody says instead of the file; see `check_pre_tokenizer`.
    """
    architecture = _architecture(header)
    unread = check_keys(header, architecture)

    def key(name, default=None):
        return header.metadata.get(f'{architecture}.{name}', default)

    width, heads = key('embedding_length'), key('attention.head_count')
    kv_heads = key('attention.head_count_kv', heads)
    tokens = header.require('tokenizer.ggml.tokens', StringArray)
    facts = LlmFacts(
        architecture=architecture,
        width=width,
        layers=key('block_count'),
        heads=heads,
        kv_heads=kv_heads,
        head_width=_head_width(header, architecture, width, heads),
        ffn=key('feed_forward_length'),
        context_length=key('context_length'),
        tokens=tokens,
        token_types=_check_tokens(header, tokens),
        unread_keys=unread,
    )
    if heads % kv_heads:
        _refuse(header, f'its {heads} heads cannot share {kv_heads} keys and values')
    _check_tensors(header, facts)
    check_pre_tokenizer(header, pre_tokenizer)
    return facts


def _architecture(header: Header) -> str:
    architecture = header.require('general.architecture', str)
    if architecture not in ARCHITECTURES:
        raise ModelFileError(
            header.path,
            f'its architecture is {architecture}, a MiniCPM-o has {" or ".join(ARCHITECTURES)}',
            'Use the language model of a MiniCPM-o',
        )
    return architecture


def _refuse(header: Header, problem: str):
    raise ModelFileError(header.path, problem, FETCH_AGAIN)


def _within(header: Header, name: str, value, low, high):
    if not low <= value <= high:  # refuses NaN, too
        _refuse(header, f'{name} is {value}, {low} to {high} is allowed')
    return value


def _head_width(header: Header, architecture: str, width: int, heads: int) -> int:
    """Width of one head; Qwen3's need not share the embedding's width."""
    names = ('attention.key_length', 'attention.value_length', 'rope.dimension_count')
    given = {name: header.metadata.get(f'{architecture}.{name}') for name in names}
    head_width = given['attention.key_length'] or width // heads
    _within(header, 'the width of a head', head_width, 2, 1 << 12)
    for name, value in given.items():
        if value is not None and value != head_width:
            _refuse(header, f'{architecture}.{name} is {value}, its heads are {head_width} wide')
    if architecture == 'qwen2' and head_width * heads != width:
        _refuse(header, f'its {heads} heads of {head_width} do not fill the width of {width}')
    if head_width % 2:
        _refuse(header, f'its heads have an odd width of {head_width}')
    return head_width


def _check_tokens(header: Header, tokens: StringArray) -> np.ndarray:
    """Check the vocabulary of a byte-level BPE; return the types of its tokens."""
    model = header.require('tokenizer.ggml.model', str)
    if model != 'gpt2':
        _refuse(header, f'its tokeniser is {model!r}, a MiniCPM-o has gpt2')
    _within(header, 'the size of its vocabulary', len(tokens), 1, MAX_VOCABULARY)
    _check_texts(header, list(tokens.raw()))
    types = header.require('tokenizer.ggml.token_type', np.ndarray)
    if len(types) != len(tokens):
        _refuse(header, 'it has no types for its tokens')
    if not np.isin(types, TOKEN_TYPES).all():
        _refuse(header, 'a token of its vocabulary has a type that byte-level BPE does not know')
    scores = header.metadata.get('tokenizer.ggml.scores')
    if scores is not None and len(scores) != len(tokens):
        _refuse(header, 'the scores of its tokens are not one number for each')
    for name in header.metadata:
        if name.startswith('tokenizer.ggml.') and name.endswith('_token_id'):
            _within(header, name, header.require(name, int), 0, len(tokens) - 1)
    return types


def _check_texts(header: Header, texts: list) -> None:
    """Each has a text of its own; 150 000 are looked at together, which takes some 40 ms."""
    distinct = set(texts)
    if len(distinct) == len(texts) and b'' not in distinct and b'\0' not in b''.join(texts):
        return
    seen = set()
    for token, text in enumerate(texts):
        if not text or b'\0' in text or text in seen:
            reason = 'occurs twice' if text in seen else 'is empty or holds a zero byte'
            _refuse(header, f'the token {token} of its vocabulary, {text[:40]!r}, {reason}')
        seen.add(text)


def _check_tensors(header: Header, facts: LlmFacts) -> None:
    """Every tensor has its shape; vectors are f32, matrices of a type ggml multiplies with."""
    if facts.architecture == 'qwen2' and 'blk.0.attn_q.bias' not in header.tensors:
        raise ModelFileError(header.path, 'its attention has no biases', 'Convert it again')
    wanted = expected_shapes(facts)
    for name, shape in wanted.items():
        if name not in header.tensors:
            if name != 'output.weight':  # without one the embeddings are also the output
                _refuse(header, f'the tensor {name} is missing')
            continue
        info = header.tensors[name]
        if info.shape != shape:
            _refuse(header, f'the tensor {name} has the shape {info.shape}, {shape} is expected')
    if f'blk.{facts.layers}.attn_norm.weight' in header.tensors:
        _refuse(header, f'it has more layers than its block_count of {facts.layers}')
    for name, info in header.tensors.items():
        if name not in wanted:  # llama.cpp loads all tensors or none
            _refuse(header, f'the tensor {name} is none of a MiniCPM-o')
        if info.type in NO_WEIGHTS or len(info.shape) == 1 and info.type != GgmlType.F32:
            _refuse(
                header,
                f'the tensor {name} has the type {info.type.name}, which is not one of '
                + ('weights' if len(info.shape) > 1 else 'norms and biases'),
            )


def expected_shapes(facts: LlmFacts) -> dict:
    """Return the shape of every tensor there may be, rows first."""
    d, head, ffn = facts.width, facts.head_width, facts.ffn
    q, kv, vocabulary = head * facts.heads, head * facts.kv_heads, len(facts.tokens)
    shapes = {
        'token_embd.weight': (vocabulary, d),
        'output_norm.weight': (d,),
        'output.weight': (vocabulary, d),
    }
    for i in range(facts.layers):
        block = f'blk.{i}.'
        shapes.update(
            {
                block + 'attn_norm.weight': (d,),
                block + 'attn_q.weight': (q, d),
                block + 'attn_k.weight': (kv, d),
                block + 'attn_v.weight': (kv, d),
                block + 'attn_output.weight': (d, q),
                block + 'ffn_norm.weight': (d,),
                block + 'ffn_gate.weight': (ffn, d),
                block + 'ffn_up.weight': (ffn, d),
                block + 'ffn_down.weight': (d, ffn),
            }
        )
        if facts.architecture == 'qwen2':
            shapes.update({f'{block}attn_{name}.bias': (kv,) for name in ('k', 'v')})
            shapes[block + 'attn_q.bias'] = (q,)
        else:
            shapes.update({f'{block}attn_{name}_norm.weight': (head,) for name in ('q', 'k')})
    return shapes
