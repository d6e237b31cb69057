# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The turns of a MiniCPM-o as rows of embeddings, by the layout of its family.

The live sequence is prefix, unit, unit, ...; a question is read behind the last unit, inside the
same user's turn. Rows are embeddings, (n, width) float32; nothing stands between the parts of a
unit. The layouts follow the official streaming code of MiniCPM-o 2.6 and 4.5.
"""

import numpy as np

from minicpmo_ros.errors import InputError
from minicpmo_ros.families.base import PromptLayout
from minicpmo_ros.llm.vocabulary import TokenRows, Vocabulary


class CompiledPrompt:
    """A layout turned into embedding rows, once, for one model.

    `speech` opens answers in the form that prepares for a voice, as the official streaming code
    always does: behind sound the published models know no other. `system_text` replaces the
    layout's own; special tokens in it stay text.
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
        self._camera_label = layout.camera_label
        self._tile = [self._rows(text) for text in layout.tile]
        self._tile_row_break = self._rows(layout.tile_row_break)
        self._sound = [self._rows(text) for text in layout.sound]
        self._answer_open = self._rows(layout.answer_open + (layout.speech_open if speech else ''))
        self._turn_join = self._rows(layout.turn_join)
        self._speech_close = self._rows(layout.speech_close)
        self._speech, self._speech_close_id = speech, vocabulary.special_id(layout.speech_close)

    def unit(
        self,
        picture: np.ndarray | None,
        tiles_wide: int,
        tiles_high: int,
        sound: np.ndarray | None,
        cameras: tuple = (),
    ) -> np.ndarray:
        """Return the rows of one second.

        picture: overview, then tiles row by row, (queries * (1 + tiles), width); of several
        `cameras` their overviews, each of which is read behind the name of its camera; sound:
        (tokens, width); either may be None. Raises InputError where rows and grid disagree.
        """
        parts = []
        if picture is not None and cameras:
            parts += [self._unit_open, *self._camera_parts(picture, cameras)]
        elif picture is not None:
            parts += [self._unit_open, *self._picture_parts(picture, tiles_wide, tiles_high)]
        if sound is not None:
            parts += [self._sound[0], self._checked(sound), self._sound[1]]
        if not parts:
            raise ValueError('a unit needs a picture or a sound')
        return np.concatenate(parts, dtype=np.float32)

    def question(self, ids: list) -> np.ndarray:
        """Return the rows that end the user's turn with a question and open the answer."""
        return np.concatenate([self._token_rows.rows(ids), self._answer_open])

    def turn(self, question_ids: list, answer_ids: list, end_id: int | None = None) -> np.ndarray:
        """Return the rows of a question, its answer and the opening of the user's next turn.

        `end_id`: the token the model ended its answer with; None where it was cut. As in the
        official streaming code speech is closed where the model closed it, and where it was cut:
        an answer that ended its turn without closing speech is left as it is.
        """
        closes = end_id == self._speech_close_id or end_id is None and self._speech
        rows = [self.question(question_ids), self._token_rows.rows(answer_ids)]
        return np.concatenate([*rows, *([self._speech_close] if closes else []), self._turn_join])

    def _camera_parts(self, pictures: np.ndarray, cameras: tuple) -> list:
        if not len(pictures) or len(pictures) % len(cameras):
            raise InputError(
                f'{len(pictures)} rows of picture are not {len(cameras)} equal parts, one for '
                f'each camera ({", ".join(cameras)}). Check the encoder that made them.'
            )
        parts = []
        for name, picture in zip(cameras, np.split(self._checked(pictures), len(cameras))):
            label = self._vocabulary.encode(self._camera_label.format(name=name))
            parts += [self._token_rows.rows(label), self._picture[0], picture, self._picture[1]]
        return parts

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
