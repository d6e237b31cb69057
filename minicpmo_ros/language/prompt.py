# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""How a MiniCPM-o lays out its turns: the texts as data, and the rows they become.

The live sequence is prefix, unit, unit, ...; a question is read behind the last unit, inside the
same user's turn. Rows are embeddings, (n, width) float32; nothing stands between the parts of a
unit. The layouts follow the official streaming code of MiniCPM-o 2.6 and 4.5.
"""

import re
from dataclasses import dataclass, fields

import numpy as np

from minicpmo_ros.errors import InputError
from minicpmo_ros.language.token_rows import TokenRows
from minicpmo_ros.language.vocabulary import Vocabulary

_SPECIAL_NAME = re.compile(r'<\|?[a-z_/]+\|?>')


@dataclass(frozen=True)
class PromptLayout:
    """The turn layout of one model family in one language; texts may name special tokens."""

    system_text: str
    system_open: str = '<|im_start|>user\n'  # 2.6 has no system role
    system_close: str = '<|im_end|>\n'
    user_open: str = '<|im_start|>user\n'
    unit_open: str = '<unit>'  # only where the unit has a picture
    picture: tuple = ('<image>', '</image>')
    tile: tuple = ('<slice>', '</slice>')
    tile_row_break: str = '\n'
    sound: tuple = ('<|audio_start|>', '<|audio_end|>')
    answer_open: str = '<|im_end|>\n<|im_start|>assistant\n'
    speech_open: str = '<|spk_bos|><|spk|><|spk_eos|><|tts_bos|>'
    speech_close: str = '<|tts_eos|>'
    turn_join: str = '<|im_end|>\n<|im_start|>user\n'
    # The model closes speech before its turn; nothing a person reads follows.
    stops: tuple = ('<|im_end|>', '<|endoftext|>', '<|tts_eos|>')

    @property
    def special_tokens(self) -> frozenset:
        """All tokens the layout cannot do without."""
        texts = [str(getattr(self, each.name)) for each in fields(self)[1:]]
        return frozenset(_SPECIAL_NAME.findall(' '.join(texts)))


MINICPMO_2_6_EN = PromptLayout(
    'You are a helpful assistant. You can accept video, audio and text input and output voice '
    'and text. '
)
MINICPMO_2_6_ZH = PromptLayout('你是一个AI助手。你能接受视频，音频和文本输入并输出语音和文本。')
# Half duplex. Its system turn has a role of its own and, without a voice to imitate, no text;
# a unit has no mark of its own; an answer opens behind thoughts that are left out.
MINICPMO_4_5 = PromptLayout(
    '',
    system_open='<|im_start|>system\n',
    unit_open='',
    answer_open='<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n',
    speech_open='<|tts_bos|>',
)
LAYOUTS = {
    'minicpm-o-2.6/en': MINICPMO_2_6_EN,
    'minicpm-o-2.6/zh': MINICPMO_2_6_ZH,
    'minicpm-o-4.5/en': MINICPMO_4_5,
    'minicpm-o-4.5/zh': MINICPMO_4_5,
}


class CompiledPrompt:
    """A layout turned into embedding rows, once, for one model.

    `speech` opens answers in the form that prepares for a voice, as the official streaming code
    always does. `system_text` replaces the layout's own; special tokens in it stay text.
    Raises ModelFileError where the vocabulary lacks a token of the layout.
    """

    def __init__(
        self,
        layout: PromptLayout,
        vocabulary: Vocabulary,
        token_rows: TokenRows,
        speech: bool = False,
        system_text: str | None = None,
    ):
        for text in layout.special_tokens:
            vocabulary.special_id(text)
        self._vocabulary, self._token_rows = vocabulary, token_rows
        self.stop_ids = frozenset(vocabulary.special_id(text) for text in layout.stops)
        system = layout.system_text if system_text is None else system_text
        self.prefix = np.concatenate(
            [
                self._rows(layout.system_open),
                token_rows.rows(vocabulary.encode(system)),
                self._rows(layout.system_close + layout.user_open),
            ]
        )
        self._unit_open = self._rows(layout.unit_open)
        self._picture = [self._rows(text) for text in layout.picture]
        self._tile = [self._rows(text) for text in layout.tile]
        self._tile_row_break = self._rows(layout.tile_row_break)
        self._sound = [self._rows(text) for text in layout.sound]
        self._answer_open = self._rows(layout.answer_open + (layout.speech_open if speech else ''))
        self._turn_join = self._rows((layout.speech_close if speech else '') + layout.turn_join)

    def unit(
        self,
        picture: np.ndarray | None,
        tiles_wide: int,
        tiles_high: int,
        sound: np.ndarray | None,
    ) -> np.ndarray:
        """Return the rows of one second.

        picture: overview, then tiles row by row, (queries * (1 + tiles), width); sound:
        (tokens, width); either may be None. Raises InputError where rows and grid disagree.
        """
        parts = []
        if picture is not None:
            parts += [self._unit_open, *self._picture_parts(picture, tiles_wide, tiles_high)]
        if sound is not None:
            parts += [self._sound[0], self._checked(sound), self._sound[1]]
        if not parts:
            raise ValueError('a unit needs a picture or a sound')
        return np.concatenate(parts, dtype=np.float32)

    def question(self, ids: list) -> np.ndarray:
        """Return the rows that end the user's turn with a question and open the answer."""
        return np.concatenate([self._token_rows.rows(ids), self._answer_open])

    def turn(self, question_ids: list, answer_ids: list) -> np.ndarray:
        """Return the rows of a question, its answer and the opening of the user's next turn."""
        return np.concatenate(
            [self.question(question_ids), self._token_rows.rows(answer_ids), self._turn_join]
        )

    def _picture_parts(self, picture: np.ndarray, tiles_wide: int, tiles_high: int) -> list:
        n_pictures = 1 + tiles_wide * tiles_high
        if not len(picture) or len(picture) % n_pictures:
            raise InputError(
                f'{len(picture)} rows of picture are not {n_pictures} equal parts '
                f'(an overview and {tiles_wide} x {tiles_high} tiles). '
                'Check the encoder that made them.'
            )
        overview, *tiles = np.split(self._checked(picture), n_pictures)
        parts = [self._picture[0], overview, self._picture[1]]
        for index, tile in enumerate(tiles):
            if index and index % tiles_wide == 0:
                parts.append(self._tile_row_break)
            parts += [self._tile[0], tile, self._tile[1]]
        return parts

    def _checked(self, rows: np.ndarray) -> np.ndarray:
        if rows.ndim != 2 or rows.shape[1] != self._token_rows.width:
            raise InputError(
                f'Embeddings have the shape {rows.shape}, the language model reads '
                f'(n, {self._token_rows.width}). Use the encoders that belong to it.'
            )
        return rows

    def _rows(self, template: str) -> np.ndarray:
        return self._token_rows.rows(self._vocabulary.encode_template(template))
