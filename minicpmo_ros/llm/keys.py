# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Every key of a header that llama.cpp reads for Qwen2 and Qwen3, and what may stand there.

llama.cpp (the release pinned in environment/requirements.txt) ends the process where some keys
hold what it does not expect: `nextn_predict_layers` makes it count layers that are not there, an
unknown `rope.scaling.type` fails an assertion. Others change what is computed, and a value of
another type is refused. Here each key has its exact type and its range. A key that makes another
kind of model of it (experts, pooling, sliding windows) must have the value that does nothing.
Keys that llama.cpp does not read for these models have no effect; the unusual ones are returned.

Source: llama.cpp's llama_model_base::load_hparams, llama_vocab::impl::load, llama_model_loader and
load_arch_hparams of models/qwen2.cpp and models/qwen3.cpp.

One key, `tokenizer.ggml.pre`, says how text is split before pieces are merged.
llama.cpp splits by another rule where that is missing, `default` or another's name, and then reads
other tokens than the model learned, without a word. Such a file is refused by `adopt`, `check` and
when it is loaded, by one verdict. Somebody who knows that only the name is wrong may say so
(`pre_tokenizer` of the manifest): then it is read as qwen2, if its vocabulary gives for some texts
the ids of Qwen2's, which every published MiniCPM-o has.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import llama_cpp.llama_cpp as llama

from minicpmo_ros.errors import ModelFileError
from minicpmo_ros.ggml.gguf_file import FETCH_AGAIN, Header, ValueType

MAX_LAYERS = 512  # llama.cpp's own limit
MAX_CONTEXT = 1 << 24  # positions; more than any float counts exactly
MERGE = 'Merge its parts first: llama-gguf-split --merge FIRST_PART WHOLE'
U16, U32, F32 = ValueType.UINT16, ValueType.UINT32, ValueType.FLOAT32
BOOL, STRING = ValueType.BOOL, ValueType.STRING
TEXTS = (ValueType.ARRAY, ValueType.STRING)


@dataclass(frozen=True)
class KeyRule:
    """What llama.cpp reads a key as, and which values are allowed."""

    type: ValueType | tuple
    allows: Callable[[object], bool] = lambda value: True
    allowed: str = ''  # the same in words
    required: bool = False


def _within(type_: ValueType, low, high, required: bool = False) -> KeyRule:
    return KeyRule(type_, lambda value: low <= value <= high, f'{low} to {high}', required)


def _one_of(type_: ValueType, *values) -> KeyRule:
    return KeyRule(type_, lambda value: value in values, ' or '.join(map(repr, values)))


NONE = _one_of(U32, 0)  # of what a MiniCPM-o has not

OF_ARCHITECTURE = {
    'context_length': _within(U32, 1, MAX_CONTEXT, required=True),
    'embedding_length': _within(U32, 1, 1 << 20, required=True),
    'block_count': _within(U32, 1, MAX_LAYERS, required=True),
    'feed_forward_length': _within(U32, 1, 1 << 24, required=True),
    'attention.head_count': _within(U32, 1, 1 << 20, required=True),
    'attention.head_count_kv': _within(U32, 1, 1 << 20),
    'attention.key_length': _within(U32, 2, 1 << 12),
    'attention.value_length': _within(U32, 2, 1 << 12),
    'attention.layer_norm_rms_epsilon': _within(F32, 1e-12, 0.1, required=True),
    'attention.causal': _one_of(BOOL, True),
    'rope.dimension_count': _within(U32, 2, 1 << 12),
    'rope.freq_base': _within(F32, 1.0, 1e12, required=True),  # llama.cpp guesses 10000
    'rope.scaling.type': _one_of(STRING, 'none', 'linear', 'yarn'),
    'rope.scaling.factor': _within(F32, 1.0, 1e4),
    'rope.scale_linear': _within(F32, 1.0, 1e4),
    'rope.scaling.original_context_length': _within(U32, 1, MAX_CONTEXT),
    'rope.scaling.attn_factor': _within(F32, 0.1, 10.0),
    'rope.scaling.alpha': _one_of(F32, 0.0, 1.0),
    'rope.scaling.finetuned': KeyRule(BOOL),
    'embedding_length_out': NONE,
    'nextn_predict_layers': NONE,
    'expert_count': NONE,
    'expert_used_count': NONE,
    'expert_group_count': NONE,
    'expert_group_used_count': NONE,
    'pooling_type': NONE,
    'classifier.pooling_type': NONE,
    'classifier.output_labels': KeyRule(TEXTS, lambda value: len(value) == 0, 'an empty list'),
    # Of layers with a sliding window, which these models have not.
    'attention.key_length_swa': KeyRule(U32),
    'attention.value_length_swa': KeyRule(U32),
    'rope.dimension_count_swa': KeyRule(U32),
}
UNREAD = ('vocab_size', 'tensor_data_layout')  # usual, and not worth a word

_FLAGS = (
    'add_bos_token',
    'add_eos_token',
    'add_sep_token',
    'add_space_prefix',
    'remove_extra_whitespaces',
    'normalizer.lowercase',
    'normalizer.strip_accents',
)
GENERAL = {
    'general.architecture': KeyRule(STRING, required=True),
    'general.name': KeyRule(
        STRING,
        lambda name: not any(word in name.lower() for word in ('phi-3', 'phi3')),
        'a name without phi-3, by which llama.cpp changes the tokens,',
    ),
    'general.file_type': KeyRule(U32),
    'general.tensor_extra.name': KeyRule(TEXTS, lambda value: len(value) == 0, 'an empty list'),
    'split.count': KeyRule(U16),
    'tokenizer.ggml.model': KeyRule(STRING, required=True),
    'tokenizer.ggml.pre': KeyRule(STRING),
    'tokenizer.ggml.tokens': KeyRule(TEXTS, required=True),
    'tokenizer.ggml.merges': KeyRule(TEXTS, required=True),
    'tokenizer.ggml.token_type': KeyRule((ValueType.ARRAY, ValueType.INT32), required=True),
    'tokenizer.ggml.token_type_count': KeyRule(U32),
    'tokenizer.ggml.scores': KeyRule((ValueType.ARRAY, ValueType.FLOAT32)),
    'tokenizer.ggml.suppress_tokens': KeyRule(
        (ValueType.ARRAY, ValueType.INT32), lambda value: len(value) == 0, 'an empty list'
    ),
    **{f'tokenizer.ggml.{name}': KeyRule(BOOL) for name in _FLAGS},
}
_TOKEN_ID = KeyRule(U32)  # whether there is such a token is compared with the vocabulary


def check_keys(header: Header, architecture: str) -> tuple:
    """Check every key that llama.cpp reads; return unusual ones that it does not.

    Raises ModelFileError with key, value and what is allowed.
    """
    rules = {f'{architecture}.{name}': rule for name, rule in OF_ARCHITECTURE.items()} | GENERAL
    unread = []
    for key in [key for key, rule in rules.items() if rule.required]:
        if key not in header.metadata:
            raise ModelFileError(
                header.path,
                f'its header has no {key}',
                'Use a file made for this purpose, or convert it again',
            )
    for key, value in header.metadata.items():
        rule = rules.get(key)
        if rule is None and key.startswith('tokenizer.ggml.') and key.endswith('_token_id'):
            rule = _TOKEN_ID
        if rule is not None:
            _check(header, key, value, rule)
        elif key.startswith(f'{architecture}.') and key.split('.', 1)[1] not in UNREAD:
            unread.append(key)
    if header.metadata.get('split.count', 1) not in (0, 1):
        raise ModelFileError(header.path, 'it is one part of a model that was split', MERGE)
    return tuple(unread)


def _check(header: Header, key: str, value, rule: KeyRule) -> None:
    if header.value_types[key] != rule.type:
        raise ModelFileError(
            header.path,
            f'{key} is stored as {_in_words(header.value_types[key])}, llama.cpp reads '
            f'{_in_words(rule.type)}',
            FETCH_AGAIN,
        )
    if not rule.allows(value):  # no comparison is true of NaN
        shown = f'a list of {len(value)}' if isinstance(rule.type, tuple) else repr(value)
        raise ModelFileError(
            header.path,
            f'{key} is {shown}; in a MiniCPM-o {rule.allowed} is allowed',
            FETCH_AGAIN,
        )


def _in_words(type_: ValueType | tuple) -> str:
    if isinstance(type_, tuple):
        return f'a list of {type_[1].name.lower()}'
    return type_.name.lower()


PRE_KEY, PRE_NAME = 'tokenizer.ggml.pre', 'qwen2'
OVERRIDES = ('', PRE_NAME)  # '': as the file says
# Texts that other rules split otherwise, and the ids that Qwen2's tokenizer gives.
KNOWN = (
    (
        "What's the ROBOT'S 3rd room? I'LL go at 12:45.",
        '3838 594 279 11813 52871 13272 220 18 6498 3054 30 358 6 4086 728 518 220 16 17 '
        '25 19 20 13',
    ),
    (
        'a  b   c\n\n  d\t e \n',
        '64 220 293 256 272 271 220 294 197 384 715',
    ),
    (
        '桌子上有什么？请看2024年的杯子。',
        '117816 104139 11319 14880 50930 17 15 17 19 104300 116120 1773',
    ),
    (
        'ドアは開いていますか',
        '44823 38780 15322 86347 124141 60589 31049',
    ),
    (
        'naïve café, Straße №7',
        '3376 37572 586 51950 11 26647 23455 96890 22',
    ),
    (
        'x=(y+1)*[2]; // ok!!\r\n',
        '87 4539 88 10 16 4806 58 17 5265 442 5394 2928 319',
    ),
    (
        '🤖 sees 👩\u200d🔬',
        '147238 15634 61804 102 378 235 147948',
    ),
)


def check_pre_tokenizer(header: Header, override: str = '') -> None:
    """Raise ModelFileError where a file is not split as qwen2, and nobody said it is."""
    found = header.metadata.get(PRE_KEY)
    if found == PRE_NAME or override == PRE_NAME:
        return
    told = 'does not say how its text is split' if found is None else f'splits text as {found}'
    raise ModelFileError(
        header.path,
        f'its tokenizer {told} ({PRE_KEY}), a MiniCPM-o as {PRE_NAME}',
        'Convert it again with the tokenizer of the model; where only the name is wrong, '
        f'`minicpmo adopt DIR --pre-tokenizer {PRE_NAME}` (with --force where a manifest is) '
        'takes it so, if its vocabulary proves to be the right one',
    )


def overrides(override: str):
    """Return llama.cpp's kv_overrides that let it split text so; None for none."""
    if not override:
        return None
    made = (llama.llama_model_kv_override * 2)()  # the last, empty, ends it
    made[0].tag, made[0].key = llama.LLAMA_KV_OVERRIDE_TYPE_STR, PRE_KEY.encode()
    made[0].value.val_str = override.encode()
    return ctypes.cast(made, ctypes.POINTER(llama.llama_model_kv_override))


def verify(vocabulary) -> None:
    """Raise ModelFileError where a vocabulary does not give the known ids."""
    for text, expected in KNOWN:
        found = ' '.join(map(str, vocabulary.encode(text)))
        if found != expected:
            raise ModelFileError(
                vocabulary.path,
                f'it cannot be read with pre_tokenizer {PRE_NAME}: {text!r} becomes the tokens '
                f'{found[:80]}, with the vocabulary of a MiniCPM-o {expected[:80]}',
                'Convert it again with the tokenizer of the model',
            )
