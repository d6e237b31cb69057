# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The special tokens of the published vocabularies, and a byte-level vocabulary around them.

The vocabulary encodes any text: 256 byte tokens, merges for some words, filling, and at its end
the special tokens in the published order, so that a vocabulary of 151700 has the published ids.
"""

from dataclasses import dataclass

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # llama.cpp's token types

# Ids 151643..151699 of MiniCPM-o 2.6.
SPECIAL_2_6 = (
    '<|endoftext|>',
    '<|im_start|>',
    '<|im_end|>',
    '<|object_ref_start|>',
    '<|object_ref_end|>',
    '<|box_start|>',
    '<|box_end|>',
    '<|quad_start|>',
    '<|quad_end|>',
    '<|vision_start|>',
    '<|vision_end|>',
    '<|vision_pad|>',
    '<|image_pad|>',
    '<|video_pad|>',
    '<tool_call>',
    '</tool_call>',
    '<|fim_prefix|>',
    '<|fim_middle|>',
    '<|fim_suffix|>',
    '<|fim_pad|>',
    '<|repo_name|>',
    '<|file_sep|>',
    '<image>',
    '</image>',
    '<ref>',
    '</ref>',
    '<box>',
    '</box>',
    '<quad>',
    '</quad>',
    '<point>',
    '</point>',
    '<slice>',
    '</slice>',
    '<image_id>',
    '</image_id>',
    '<unit>',
    '</unit>',
    '<asr>',
    '</asr>',
    '<query>',
    '</query>',
    '<|audio_start|>',
    '<|audio|>',
    '<|audio_end|>',
    '<|spk_bos|>',
    '<|spk|>',
    '<|spk_eos|>',
    '<|tts_bos|>',
    '<|tts_eos|>',
    '<|listen|>',
    '<|speak|>',
    '<|interrupt|>',
    '<|vad_start|>',
    '<|vad_end|>',
    '<reserved_43>',
    '<reserved_53>',
)
# Ids 151643..151747 of MiniCPM-o 4.5; the places of ids that mean nothing here are reserved.
SPECIAL_4_5 = (
    *SPECIAL_2_6[:22],
    '<tool_response>',
    '</tool_response>',
    '<think>',
    '</think>',
    *SPECIAL_2_6[22:38],
    *(f'<reserved_{place}>' for place in range(151685, 151697)),
    *SPECIAL_2_6[42:55],
    *(f'<reserved_{place}>' for place in range(151710, 151716)),
    '<|turn_bos|>',
    '<|turn_eos|>',
    '<|chunk_eos|>',
    '<|chunk_bos|>',
    '<|chunk_tts_bos|>',
    '<|chunk_tts_eos|>',
    '<|tts_pad|>',
    *(f'<reserved_{place}>' for place in range(151723, 151748)),
)
SPECIAL = {'minicpm-o-2.6': SPECIAL_2_6, 'minicpm-o-4.5': SPECIAL_4_5}
# Qwen3 adds these as words of its own, not as control tokens.
WORDS_OF_QWEN3 = ('<think>', '</think>', '<tool_response>', '</tool_response>')
UNKNOWN_ID = 128244  # of '<unk>', the placeholder that embeddings replace

# Without these a live session cannot be laid out.
REQUIRED = {
    'minicpm-o-2.6': (
        '<|endoftext|>',
        '<|im_start|>',
        '<|im_end|>',
        '<image>',
        '</image>',
        '<slice>',
        '</slice>',
        '<unit>',
        '<|audio_start|>',
        '<|audio_end|>',
        '<|spk_bos|>',
        '<|spk|>',
        '<|spk_eos|>',
        '<|tts_bos|>',
        '<|tts_eos|>',
    ),
    'minicpm-o-4.5': (
        '<|endoftext|>',
        '<|im_start|>',
        '<|im_end|>',
        '<think>',
        '</think>',
        '<image>',
        '</image>',
        '<slice>',
        '</slice>',
        '<|audio_start|>',
        '<|audio_end|>',
        '<|tts_bos|>',
        '<|tts_eos|>',
    ),
}

# Merges rank in this order, so words with their space come before those without.
WORDS = (
    'Ġa',
    'Ġthe',
    'Ġyou',
    'Ġsee',
    'Ġhear',
    'Ġis',
    'Ġin',
    'Ġon',
    'Ġred',
    'Ġblue',
    'the',
    'and',
    'what',
    'you',
    'see',
    'hear',
    'is',
    'in',
    'on',
    'red',
    'blue',
    'one',
    'two',
)


@dataclass(frozen=True)
class TokenTable:
    """What `tokenizer.ggml` stores: texts, types and merges, and the ids by text."""

    texts: list
    types: list
    merges: list

    def id_of(self, text: str) -> int:
        """Return the id of a token that is in the table."""
        return self.texts.index(text)


def byte_alphabet() -> list:
    """Return the 256 printable characters GPT-2's byte-level BPE writes bytes with, by byte."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return [chr(byte if byte in plain else next(spare)) for byte in range(256)]


def make_tokens(count: int, family: str = 'minicpm-o-2.6') -> TokenTable:
    """Build a vocabulary of `count` tokens for Qwen's byte-level BPE."""
    special = SPECIAL[family]
    texts, merges = byte_alphabet(), []
    for word in WORDS:
        for end in range(2, len(word) + 1):
            if word[:end] not in texts:
                merges.append(f'{word[: end - 1]} {word[end - 1]}')
                texts.append(word[:end])
    n_filling = count - len(texts) - 1 - len(special)
    if n_filling < 0:
        raise ValueError(
            f'a vocabulary of {count} is too small, at least {count - n_filling} are needed'
        )
    texts += [f'Ġw{i}' for i in range(n_filling)]
    types = [NORMAL] * len(texts)
    unknown = min(UNKNOWN_ID, len(texts))
    texts.insert(unknown, '<unk>')
    types.insert(unknown, CONTROL)
    texts += special
    types += [USER_DEFINED if text in WORDS_OF_QWEN3 else CONTROL for text in special]
    return TokenTable(texts, types, merges)
