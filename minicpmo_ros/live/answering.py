# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""One question on its fork of the live sequence: read in chunks, then answered token by token.

An answer ends where the model ends it, where its grammar is complete, at max_tokens, and where it
does nothing but repeat itself: the same words four times and more, for 64 tokens and more. Under a
grammar repetition is not looked at; somebody asked for that form.
"""

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from minicpmo_ros.errors import InputError
from minicpmo_ros.language.grammar import Grammar, choices_grammar
from minicpmo_ros.language.sampling import Sampler
from minicpmo_ros.language.utf8 import Utf8Stream
from minicpmo_ros.live.question import Answer, Finish, Question

LOOP_TIMES, LOOP_TOKENS, LOOP_WORDS = 4, 64, 32  # at least, at least, tokens of what is repeated


class Answering:
    """Made by Session.ask, which has forked the live sequence; `step` until `answer` is there.

    `between` is called in the middle of a step that may take long; what it raises goes out.
    """

    def __init__(
        self,
        session,
        question: Question,
        asked_s: float,
        between: Callable[[], None] | None = None,
    ):
        self._session, self.question, self._asked_s = session, question, asked_s
        options, vocabulary = session.options, session.model.vocabulary
        self.question_ids = self._read_question()
        self._todo = session.prompt.question(self.question_ids)  # rows not yet read
        self._max_tokens = min(question.max_tokens or options.max_tokens, options.max_tokens)
        self._grammar = self._read_grammar(between)
        self.n_positions = len(self._todo) + self._max_tokens  # it takes at most
        sampling = options.sampling
        if question.temperature is not None and not question.temperature < 0:
            sampling = replace(sampling, temperature=question.temperature)
        self._sampler = Sampler(
            sampling, vocabulary.unspoken_ids - session.prompt.stop_ids, self._grammar
        )
        self._stream = Utf8Stream()
        self.ids, self.text = [], ''
        self.answer = None  # an Answer, once it is finished
        self._first_s = self._last_s = None
        seconds = session.window.seconds
        self._evidence = {
            'seconds': tuple(seconds),
            'units': len(seconds),
            'window_start_s': seconds[0] if seconds else 0,
            'window_end_s': seconds[-1] + 1 if seconds else 0,
            'prompt_tokens': session.window.end + len(self._todo),
        }

    def step(self) -> str:
        """Read one chunk of the question or make one token; return the text that is new.

        After an error the caller ends the answer.
        """
        logits = self._read_chunk()
        if logits is None:
            return ''
        token = self._sampler.pick(logits)
        self._last_s = time.monotonic()
        self._first_s = self._first_s or self._last_s
        if token in self._session.prompt.stop_ids or self._session.model.vocabulary.is_end(token):
            return self._finish(Finish.STOP)
        self._sampler.accept(token)
        self.ids.append(token)
        new = self._stream.push(self._session.model.vocabulary.piece(token))
        self.text += new
        if self._grammar is not None and self._grammar.is_complete:
            return new + self._finish(Finish.STOP)
        loops = self._grammar is None and repeats_itself(self.ids)
        if loops or len(self.ids) >= self._max_tokens:
            return new + self._finish(Finish.LENGTH)
        return new

    def end(self, finish: Finish, error: Exception | None = None) -> Answer:
        """Give the fork up, if it still lives; return the answer."""
        if self.answer is None:
            self._session.drop_fork()
            self.answer = self._make_answer(finish, error)
        return self.answer

    def _finish(self, finish: Finish) -> str:
        rest = self._stream.finish()
        self.text += rest
        if self.question.remember:
            self._session.drop_fork()  # eviction needs the window alone
            self._session.remember(self.question_ids, self.ids)
        self.end(finish)
        return rest

    def _read_chunk(self) -> np.ndarray | None:
        """Return the logits behind all that was read and said, once all is read."""
        session = self._session
        if self.ids:
            return session.read_fork(session.model.token_rows.rows(self.ids[-1:]), True)
        chunk = self._todo[: session.context.n_batch]
        self._todo = self._todo[len(chunk) :]
        return session.read_fork(chunk, want_logits=not len(self._todo))

    def _read_question(self) -> list:
        ids = self._session.model.vocabulary.encode(self.question.text)
        limit = self._session.options.max_question_tokens
        if len(ids) > limit:
            raise InputError(
                f'The question is {len(ids)} tokens long, at most {limit} are '
                'allowed. Shorten it, or raise max_question_tokens.'
            )
        return ids

    def _read_grammar(self, between) -> Grammar | None:
        question, vocabulary = self.question, self._session.model.vocabulary
        if question.choices and question.grammar:
            raise InputError('Both choices and a grammar were given. Give one of them.')
        if question.choices:
            # Every token has at least one byte, so that the longest choice always fits.
            self._max_tokens = self._session.options.max_tokens
            longest = max(len(choice.encode('utf-8', 'replace')) for choice in question.choices)
            if longest > self._max_tokens:
                raise InputError(
                    f'A choice has {longest} bytes, max_tokens allows '
                    f'{self._max_tokens}. Shorten it, or raise max_tokens.'
                )
        gbnf = choices_grammar(question.choices) if question.choices else question.grammar
        if not gbnf:
            return None
        return Grammar(vocabulary, gbnf, self._session.prompt.stop_ids, between)

    def _make_answer(self, finish: Finish, error: Exception | None) -> Answer:
        n = len(self.ids)
        if self._first_s is None:
            first_token_ms, rate = 0.0, 0.0
        else:
            first_token_ms = 1e3 * (self._first_s - self._asked_s)
            spent_s = self._last_s - self._first_s
            rate = (n - 1) / spent_s if n > 1 and spent_s > 0 else 0.0
        return Answer(
            self.question.text,
            self.text,
            finish,
            error,
            answer_tokens=n,
            first_token_ms=first_token_ms,
            tokens_per_second=rate,
            **self._evidence,
        )


def repeats_itself(ids: list) -> bool:
    """Tell whether the newest tokens are the same few again and again."""
    for n in range(1, LOOP_WORDS + 1):
        newest = ids[-max(LOOP_TIMES * n, LOOP_TOKENS) :]
        if len(newest) < LOOP_TOKENS:
            return False
        if len(newest) >= LOOP_TIMES * n and newest[n:] == newest[:-n]:
            return True
    return False
