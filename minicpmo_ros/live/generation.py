# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""One question on its fork of the live sequence: read in chunks, then answered token by token.

Tokens that choices or a grammar leave no choice of are not asked for: they are read together with
what stands before them. Where choices were given, what their probabilities need beyond that is
read when the answer has been worded (probability.py).

An answer ends when the model ends it, when its grammar is complete, at max_tokens, or when it only
repeats itself: the same words at least four times, over at least 64 tokens. Answers that follow a
grammar may repeat themselves, because somebody asked for that form.
"""

import math
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from minicpmo_ros.errors import ContextFullError, InputError
from minicpmo_ros.live.answers import RememberedTurn
from minicpmo_ros.live.question import Answer, Finish, Question, check_form
from minicpmo_ros.live.window import Read
from minicpmo_ros.llm.grammar.json_schema import write_gbnf
from minicpmo_ros.llm.grammar.mask import Grammar
from minicpmo_ros.llm.probability import AT_ONCE, ChoiceScores, allowed_mass
from minicpmo_ros.llm.sampling import Choices, Sampler, SamplingOptions, log_probability
from minicpmo_ros.llm.vocabulary import Utf8Stream
from minicpmo_ros.notes.recall import Recollection

AGAIN_SHARE = 0.25  # of the window's positions, for seconds that are read again
LOOP_TIMES, LOOP_TOKENS, LOOP_WORDS = 4, 64, 32  # at least, at least, tokens of what is repeated


def most_tokens(choices: tuple) -> int:
    """Return how many tokens spell a choice at most: one a byte, and a space before."""
    return 1 + max(len(choice.encode()) for choice in choices)


class Generation:
    """The reading of one question and the writing of its answer; Session.ask creates it.

    It owns a fork of the window. Read what `next_read` returns, alone or together with others, and
    hand the logits to `take`, or call `step`, which does both; until `answer` is set. `complete`
    does so until then; or `end` it early. `between` is called in the middle of a long step; its
    exceptions propagate.
    """

    def __init__(
        self,
        session,
        question: Question,
        asked_s: float,
        between: Callable[[], None] | None = None,
        tail=None,
    ):
        self._session, self.question, self._asked_s = session, question, asked_s
        options, vocabulary = session.options, session.model.vocabulary
        self.question_ids = self._read_question()
        self._recalled = self._recall()
        again, self._again, self._notes = self._look_again()
        preface = vocabulary.encode(self._recalled.text)
        question_rows = self._read_rows(again, tail, [*preface, *self.question_ids])  # (n, width)
        self._max_tokens = min(question.max_tokens or options.max_tokens, options.max_tokens)
        self._grammar = self._read_grammar(between)
        unsaid = vocabulary.unspoken_ids - session.prompt.stop_ids
        self._sampling = self._asked_sampling()
        self.sampler = Sampler(self._sampling, unsaid, self._grammar)
        self._stream = Utf8Stream()
        self.ids, self.text = [], ''
        self._log_probabilities, self._mass = [], math.nan  # of the tokens that were picked
        self._spans = []  # (begin, end) of each of these tokens in the text, characters
        self._scores, self._scored_path = None, ()  # ChoiceScores; what was read for them last
        self._worded = None  # (Finish, token that ended it), once the text is whole
        self.answer = self.turn = None  # an Answer, once it is finished; a RememberedTurn
        self._heard = session.epoch, tail.unit.second if tail else None
        self._remembered, self._first_s, self._last_s = False, None, None
        self._evidence = self._evidence_of(tail, len(question_rows))
        if question.choices:
            self._scores = ChoiceScores(self._grammar.paths, self._grammar.end_ids)
        n_positions = len(question_rows) + self._n_answer_positions()
        self.fork = session.fork(n_positions, is_empty=question.is_past)
        self._question_rows = len(question_rows)
        self._unsent = self._say_forced()  # text
        if self._scores is not None:
            self._scores.skip(tuple(self.ids))
        rows = np.concatenate([question_rows, self._rows(self.ids)])
        self._todo = rows, 1  # not yet read, and of how many of the last ones logits are wanted

    def _n_answer_positions(self) -> int:
        """Return how many positions the answer, or a choice that is scored, takes at most."""
        choices = self.question.choices
        if not choices:
            return self._max_tokens
        spelled = min(self._max_tokens, most_tokens(choices))
        return max(spelled, *map(len, self._grammar.paths))

    def _asked_sampling(self) -> SamplingOptions:
        """Return how tokens are chosen: as the session has it, but for what the question says."""
        asked = {'temperature': self.question.temperature, 'seed': self.question.seed}
        given = {name: value for name, value in asked.items() if value is not None}
        return replace(self._session.options.sampling, **given)

    def _evidence_of(self, tail, n_rows: int) -> dict:
        """Return what the answer is based on, as fields of an Answer; n_rows: of the question."""
        window, is_empty = self._session.window, self.question.is_past  # the fork has none of it
        seconds = [] if is_empty else window.seconds
        audio_end_s = None if is_empty else window.audio_end_s
        return {
            'seconds': tuple(seconds),
            'units': len(seconds),
            'window_start_s': seconds[0] if seconds else tail.unit.second if tail else 0,
            'window_end_s': tail.audio_end_s if tail else seconds[-1] + 1 if seconds else 0,
            'image_end_s': None if is_empty else window.image_end_s,
            'audio_end_s': tail.audio_end_s if tail else audio_end_s,
            'prompt_tokens': (window.prefix if is_empty else window.end) + n_rows,
        }

    def _read_rows(self, again: list, tail, ids: list) -> np.ndarray:
        """Return what the fork reads: old seconds, the open one, the image, the question."""
        session, image = self._session, self.question.image
        rows = [*again, session.unit_rows(tail.unit)] if tail is not None else [*again]
        if image is not None:
            tiles = image.tiles_wide, image.tiles_high
            rows.append(session.prompt.unit(image.rows, *tiles, None, image.cameras))
        return np.concatenate([*rows, session.prompt.question(ids)])

    @property
    def has_token(self) -> bool:
        """Whether the question has been read, and the first token was chosen."""
        return self._first_s is not None

    def step(self) -> str:
        """Read one chunk of the question or one token alone; return as `take`."""
        (logits,) = self._session.read([self.next_read()])
        return self.take(logits)

    def complete(self) -> Answer:
        """Read all that is left alone, and return the answer; a step that raises ends it."""
        try:
            while self.answer is None:
                self.step()
        finally:
            self.end(Finish.ERROR)  # does nothing where it has ended
        return self.answer

    def next_read(self) -> Read:
        """Return what the fork reads next: a chunk of the question, or tokens."""
        rows, n_logits = self._todo
        if self._first_s is None and len(rows) > self._session.context.n_batch:
            return Read(self.fork, rows[: self._session.context.n_batch], 0)
        return Read(self.fork, rows, n_logits)

    def take(self, logits: np.ndarray) -> str:
        """Go on with the logits (n_logits, vocabulary) of what was read; return the new text.

        After an error the caller must call `end`.
        """
        if not len(logits):
            rows, n_logits = self._todo
            self._todo = rows[self._session.context.n_batch :], n_logits
            return ''
        if self._scores is not None:
            path = self._scored_path if self._worded else tuple(self.ids)
            for n, row in enumerate(logits, len(path) - len(logits) + 1):
                self._scores.take(path[:n], row)
        if self._worded:
            return self._score()
        unsent, self._unsent = self._unsent, ''
        return unsent + self._pick(logits[-1])

    def _pick(self, logits: np.ndarray) -> str:
        token = self.sampler.pick(logits)
        self._last_s = time.monotonic()
        if self._first_s is None:
            self._first_s = self._last_s
            self._mass = allowed_mass(logits, self._grammar) if self._grammar else 1.0
        if token in self._session.prompt.stop_ids or self._session.model.vocabulary.is_end(token):
            return self._finish(Finish.STOP, token)
        self._log_probabilities.append(log_probability(logits, token))
        n_before, begin = len(self.ids), len(self.text)
        new = self._say(token)
        self._spans.append((begin, len(self.text)))
        new += self._say_forced()
        if self._grammar is not None and self._grammar.is_complete:
            return new + self._finish(Finish.STOP)
        loops = self._grammar is None and repeats_itself(self.ids)
        if loops or len(self.ids) >= self._max_tokens:
            return new + self._finish(Finish.LENGTH)
        ids = self.ids[n_before:]
        wants_all = self._scores is not None and len(ids) <= AT_ONCE
        self._todo = self._rows(ids), len(ids) if wants_all else 1
        return new

    def _say(self, token: int) -> str:
        """Take a token into the answer; return the characters that are complete with it."""
        self.sampler.accept(token)
        self.ids.append(token)
        new = self._stream.push(self._session.model.vocabulary.piece(token))
        self.text += new
        return new

    def _say_forced(self) -> str:
        """Take the tokens that must come next into the answer; the model picks the very first."""
        if self._grammar is None or self._grammar.is_complete:
            return ''
        forced = self._grammar.forced_tokens()
        if not self.ids and len(self.question.choices) < 2:
            forced = forced[:-1]  # with it the answer might be complete before anything was read
        n_left = self._max_tokens - len(self.ids) - (not self.ids)
        return ''.join(map(self._say, forced[:n_left]))

    def _rows(self, ids) -> np.ndarray:
        return self._session.model.token_rows.rows(ids)

    def _score(self) -> str:
        """Read what the probabilities of the choices still need, or end the answer."""
        needed = self._scores.next_read()
        if needed is None:
            return self._end_worded()
        self._scored_path, n_logits = needed
        self._session.rewind(self.fork, self._question_rows)
        self._todo = self._rows(self._scored_path), n_logits
        return ''

    def end(self, finish: Finish, error: Exception | None = None) -> Answer:
        """Drop the fork, if it is still open, and return the answer."""
        if self.answer is None:
            self.fork.drop()
            if self.question.remember and finish == Finish.CANCELLED:
                self.turn = RememberedTurn(self._session, *self._heard, self.question_ids)
            self.answer = self._make_answer(finish, error)
        return self.answer

    def _finish(self, finish: Finish, end_id: int | None = None) -> str:
        """End the text; and the answer, once its probabilities are known."""
        rest = self._stream.finish()
        self.text += rest
        self._worded = finish, end_id
        return rest + (self._end_worded() if self._scores is None else self._score())

    def _end_worded(self) -> str:
        finish, end_id = self._worded
        if self.question.remember:
            self.fork.drop()  # eviction needs the window alone
            self._remember(end_id)
        self.end(finish)
        return ''

    def _remember(self, end_id: int | None) -> None:
        try:
            session, answer = self._session, (self.ids, self.text, end_id)
            turn = RememberedTurn(
                session, session.epoch, self._heard[1], self.question_ids, answer
            )
            turn.settle()
            self.turn, self._remembered = turn, True
        except ContextFullError as error:  # the answer is still valid
            self._notes += (f'The window does not remember this question and answer: {error}',)

    def _read_question(self) -> list:
        ids = self._session.model.vocabulary.encode(self.question.text)
        limit = self._session.options.max_question_tokens
        if len(ids) > limit:
            raise InputError(
                f'The question is {len(ids)} tokens long, at most {limit} are '
                'allowed. Shorten it, or raise max_question_tokens.'
            )
        return ids

    def _recall(self) -> Recollection:
        """Return what is remembered for the question."""
        session, encode = self._session, self._session.model.vocabulary.encode
        if session.options.recall is None:
            if self.question.is_past:
                raise InputError(
                    'The question asks for notes alone (memory: only), and none are kept. Set '
                    'memory.enabled, or ask about what is in the window.'
                )
            return Recollection()
        return session.options.recall(
            self.question, session.window.seconds, lambda text: len(encode(text))
        )

    def _look_again(self) -> tuple:
        """Return (rows, seconds, problems) of the seconds that are read again, the best last."""
        session, taken, problems = self._session, [], self._recalled.problems
        room = session.window.capacity * AGAIN_SHARE
        for unit in self._recalled.units:
            rows = session.unit_rows(unit)
            room -= len(rows)
            if room < 0:
                told = f'There was no room to look at second {unit.second} again: raise n_ctx.'
                problems = *problems, told
                break
            taken.append((rows, unit.second))
        rows, seconds = zip(*taken[::-1]) if taken else ((), ())
        return rows, seconds, problems

    def _read_grammar(self, between) -> Grammar | Choices | None:
        question, vocabulary = self.question, self._session.model.vocabulary
        if not (question.choices or question.grammar or question.json_schema):
            return None
        check_form(question.choices, question.grammar, question.json_schema)
        if question.choices:
            self._max_tokens = self._session.options.max_tokens  # whatever the question says
            return Choices(
                vocabulary, question.choices, self._session.prompt.stop_ids, self._max_tokens
            )
        gbnf = question.grammar or write_gbnf(question.json_schema)
        return Grammar(vocabulary, gbnf, self._session.prompt.stop_ids, between)

    def _make_answer(self, finish: Finish, error: Exception | None) -> Answer:
        n, n_evicted = len(self.ids), sum(s.second is not None for s in self.fork.evicted)
        if finish == Finish.LENGTH and self.question.json_schema:
            finish, error = Finish.ERROR, _cut_error(n)
        if n_evicted:
            self._notes += (
                f'{n_evicted} of its seconds left the window while it was being given: '
                'there was no room for new ones beside it.',
            )
        chosen = self._log_probabilities
        is_scored = self._scores is not None and finish == Finish.STOP
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
            probabilities=self._scores.probabilities() if is_scored else (),
            mean_log_probability=float(np.mean(chosen)) if chosen else math.nan,
            least_log_probability=min(chosen, default=math.nan),
            token_log_probabilities=tuple(chosen),
            token_begins=tuple(begin for begin, _ in self._spans),
            token_ends=tuple(end for _, end in self._spans),
            mass=self._mass,
            remembered=self._remembered,
            notes=self._notes,
            recalled=self._recalled.notes,
            snapshots=self._again,
            **self._evidence,
            temperature=self._sampling.temperature,
            seed=self._sampling.seed,
        )


def _cut_error(n_tokens: int) -> InputError:
    return InputError(
        f'The JSON was cut after {n_tokens} tokens (max_tokens). Raise max_tokens, or limit texts '
        'and lists in json_schema (maxLength, maxItems).'
    )


def repeats_itself(ids: list) -> bool:
    """Return whether the newest tokens are the same few again and again."""
    for n in range(1, LOOP_WORDS + 1):
        newest = ids[-max(LOOP_TIMES * n, LOOP_TOKENS) :]
        if len(newest) < LOOP_TOKENS:
            return False
        if len(newest) >= LOOP_TIMES * n and newest[n:] == newest[:-n]:
            return True
    return False
