# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What the file of a language model says: Qwen2 and Qwen3 in llama.cpp's GGUF layout.

llama.cpp ends the process over some of what is refused here (two equal tokens, heads that do not
fill their matrix, an epsilon below zero) and reads beyond its memory over other (token types of
another width): nothing goes to it that has not been compared with every other part of the header.
"""

from dataclasses import dataclass

import numpy as np

from minicpmo_ros.errors import ModelFileError
from minicpmo_ros.ggml.header import FETCH_AGAIN, Header, StringArray
from minicpmo_ros.ggml.types import NO_WEIGHTS, GgmlType

ARCHITECTURES = ('qwen2', 'qwen3')
MAX_LAYERS = 512  # llama.cpp's own limit
MAX_VOCABULARY = 1 << 20
MAX_CONTEXT = 1 << 24  # positions; more than any float counts exactly
TOKEN_TYPES = (
    1,
    2,
    3,
    4,
    5,
)  # normal, unknown, control, user-defined, unused; 6 is SentencePiece's
MERGE = 'Merge its parts first: llama-gguf-split --merge FIRST_PART WHOLE'


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


def read_facts(header: Header) -> LlmFacts:
    """Read the facts and check every tensor and token; ModelFileError says what does not fit."""
    architecture = _architecture(header)

    def key(name, low, high):
        value = header.require(f'{architecture}.{name}', int)
        return _within(header, f'{architecture}.{name}', value, low, high)

    width = key('embedding_length', 1, 1 << 20)
    heads = key('attention.head_count', 1, width)
    kv_heads = heads
    if f'{architecture}.attention.head_count_kv' in header.metadata:
        kv_heads = key('attention.head_count_kv', 1, heads)
    tokens = header.require('tokenizer.ggml.tokens', StringArray)
    facts = LlmFacts(
        architecture=architecture,
        width=width,
        layers=key('block_count', 1, MAX_LAYERS),
        heads=heads,
        kv_heads=kv_heads,
        head_width=_head_width(header, architecture, width, heads),
        ffn=key('feed_forward_length', 1, 1 << 24),
        context_length=key('context_length', 1, MAX_CONTEXT),
        tokens=tokens,
        token_types=_check_tokens(header, tokens),
    )
    if heads % kv_heads:
        _refuse(header, f'its {heads} heads cannot share {kv_heads} keys and values')
    _check_numbers(header, architecture)
    _check_tensors(header, facts)
    return facts


def _architecture(header: Header) -> str:
    architecture = header.require('general.architecture', str)
    if architecture not in ARCHITECTURES:
        raise ModelFileError(
            header.path,
            f'its architecture is {architecture}, a MiniCPM-o has {" or ".join(ARCHITECTURES)}',
            'Use the language model of a MiniCPM-o',
        )
    if header.get('split.count', int, 1) not in (0, 1):
        raise ModelFileError(header.path, 'it is one part of a model that was split', MERGE)
    for name in header.metadata:
        if name.startswith(f'{architecture}.expert'):
            _refuse(header, f'{name} is of a mixture of experts, which a MiniCPM-o is not')
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
    given = {
        name: header.require(f'{architecture}.{name}', int)
        for name in names
        if f'{architecture}.{name}' in header.metadata
    }
    head_width = given.get('attention.key_length', width // heads)
    _within(header, 'the width of a head', head_width, 2, 1 << 12)
    for name, value in given.items():
        if value != head_width:
            _refuse(header, f'{architecture}.{name} is {value}, its heads are {head_width} wide')
    if head_width % 2:
        _refuse(header, f'its heads have an odd width of {head_width}')
    return head_width


def _check_numbers(header: Header, architecture: str) -> None:
    epsilon = f'{architecture}.attention.layer_norm_rms_epsilon'
    _within(header, epsilon, header.require(epsilon, float), 1e-12, 0.1)
    limits = {
        'rope.freq_base': (1.0, 1e12),
        'rope.scaling.factor': (1.0, 1e4),
        'rope.scale_linear': (1.0, 1e4),
        'rope.scaling.original_context_length': (1, MAX_CONTEXT),
    }
    for name, (low, high) in limits.items():
        key = f'{architecture}.{name}'
        if key in header.metadata:
            _within(header, key, header.require(key, type(low)), low, high)


def _check_tokens(header: Header, tokens: StringArray) -> np.ndarray:
    """Check the vocabulary of a byte-level BPE; return the types of its tokens."""
    model = header.require('tokenizer.ggml.model', str)
    if model != 'gpt2':
        _refuse(header, f'its tokeniser is {model!r}, a MiniCPM-o has gpt2')
    _within(header, 'the size of its vocabulary', len(tokens), 1, MAX_VOCABULARY)
    _check_texts(header, list(tokens.raw()))
    types = header.metadata.get('tokenizer.ggml.token_type')
    if not isinstance(types, np.ndarray) or types.dtype != np.int32 or len(types) != len(tokens):
        _refuse(header, 'it has no types for its tokens')
    if not np.isin(types, TOKEN_TYPES).all():
        _refuse(header, 'a token of its vocabulary has a type that byte-level BPE does not know')
    header.require('tokenizer.ggml.merges', StringArray)
    scores = header.metadata.get('tokenizer.ggml.scores')
    if scores is not None and (
        not isinstance(scores, np.ndarray)
        or scores.dtype != np.float32
        or len(scores) != len(tokens)
    ):
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
        if info.type in NO_WEIGHTS or len(info.shape) == 1 and info.type != GgmlType.F32:
            _refuse(
                header,
                f'the tensor {name} has the type {info.type.name}, which is not one of '
                + ('weights' if len(info.shape) > 1 else 'norms and biases'),
            )


def expected_shapes(facts: LlmFacts) -> dict:
    """Return the shape of every tensor llama.cpp reads, rows first."""
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
