# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A question on its way: asked, pending, being answered, answered with its evidence."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntEnum

from minicpmo_ros.errors import (
    BusyError,
    Error,
    InputError,
    LateError,
)

log = logging.getLogger(__name__)


class Finish(IntEnum):
    """Why an answer ended; the numbers are those of the Answer message."""

    STOP = 0  # the model ended it
    LENGTH = 1  # max_tokens was reached, or the answer did nothing but repeat itself
    CANCELLED = 2  # by the asker, by its timeout, by a reset, or because the engine closed
    ERROR = 3  # failed; the text is what was said until then


@dataclass(frozen=True)
class Question:
    """A question about what is seen and heard now; with an empty text, what was just said."""

    text: str
    choices: tuple = ()  # the answer is one of these; max_tokens does not matter
    grammar: str = ''  # GBNF the answer follows; not together with choices
    json_schema: str = ''  # the answer is JSON of this schema; not together with the two above
    max_tokens: int = 0  # at most the session's own; 0: the session's own
    temperature: float | None = None  # 0: greedy; None: the session's own
    seed: int | None = None  # of the draws, where the temperature is not 0; None: the session's
    remember: bool = False  # question and answer stay in the window
    timeout_s: float = math.inf  # after so long, counted from its arrival, it is dropped
    heard_until: int = 0  # ns of the stamps: its audio must reach so far; 0: what has come by now
    memory: str = 'auto'  # notes are read before it: auto, off, only (them, and not the window)
    look: str = ''  # of config.LOOKS; who asks has the image encoded by it
    image: object = None  # ImageSecond that is read on its fork, before it; None: none

    @property
    def is_past(self) -> bool:
        """Whether it is answered from notes alone."""
        return self.memory == 'only'

    @property
    def is_about_audio(self) -> bool:
        """Whether it asks what was just said, or about audio up to a stamp."""
        return not self.text.strip() or self.heard_until != 0


@dataclass(frozen=True)
class Answer:
    """A finished answer."""

    question: str
    text: str
    finish: Finish
    error: Exception | None = None  # why it failed or was cancelled; its text is for a person
    stale: bool = False  # a sense is missing or too old; notes say which
    notes: tuple = ()  # sentences: what the answer lacks although it was given
    remembered: bool = False  # question and answer are in the window
    window_start_s: int = 0  # start of the oldest second it is based on
    window_end_s: int = 0  # end of the newest second it is based on
    units: int = 0  # seconds in the window
    seconds: tuple = ()  # which ones, oldest first
    image_end_s: int | None = None  # end of the newest second with an image; None: no image
    audio_end_s: int | None = None  # end of the newest second with audio; None: no audio
    cameras: tuple = ()  # of several cameras: names of those that came before
    camera_ends_s: tuple = ()  # of each: end of the newest second with its image; None: none
    prompt_tokens: int = 0  # positions read: system prompt, units, question
    answer_tokens: int = 0
    first_token_ms: float = 0.0  # from the question's arrival
    look_ms: float = 0.0  # of it: until its image was encoded
    look_stamp_s: float = 0.0  # stamp of that image; 0: none
    tokens_per_second: float = 0.0  # after the first token; 0 with fewer than two
    probabilities: tuple = ()  # of each choice, if one of them is the answer; together 1
    # Of the tokens that the model chose, not those that choices or a grammar forced; NaN: none.
    mean_log_probability: float = math.nan
    least_log_probability: float = math.nan
    token_log_probabilities: tuple = ()  # of each of these tokens, in order
    token_begins: tuple = ()  # where the text of each begins in `text`, characters
    token_ends: tuple = ()  # and where it ends
    # Share of what choices or a grammar allow, in all that the model would say first where they
    # leave it a choice: if it is low, the model would say something else. 1 without them.
    mass: float = math.nan
    recalled: tuple = ()  # Notes that were read before it
    snapshots: tuple = ()  # seconds of before that were read again before it
    live_s: float = 0.0  # of its time went to the live seconds, which it slowed down for
    temperature: float = 0.0  # that was used
    seed: int = 0  # that was used

    @property
    def reason(self) -> str:
        """Why there is no answer, or what it lacks; '' where nothing is wrong with it."""
        return ' '.join(filter(None, (str(self.error or ''), *self.notes)))


class PendingQuestion:
    """A question that was submitted to the engine; Engine.ask returns it.

    `on_delta(text)` receives the pieces of the answer, joined its text; `on_done(answer)`
    is called exactly once at the end. Either may be None. `wake`: notified when it is cancelled.
    """

    def __init__(
        self,
        question: Question,
        on_delta: Callable[[str], None] | None,
        on_done: Callable[[Answer], None] | None,
        wake: threading.Condition,
    ):
        self.question, self.asked_s = question, time.monotonic()
        self.cancelled = False
        self.hearing = self.tail = None  # Hearing of a question about audio; the Tail it found
        self.camera_ends_s = {}  # of several cameras, as Evidence, when it was begun
        self.said = None  # of the answer, aloud; see note_said
        self._why_cancelled = None
        self._on_delta, self._on_done, self._wake = on_delta, on_done, wake
        self._n_emitted = 0  # characters

    def note_said(self, said: str | None) -> None:
        """Note what was said of the answer aloud; None: nobody says it, or it goes on."""
        self.said = said

    def cancel(self, why: Error | None = None) -> None:
        """Cancel the question; does nothing if it is cancelled or answered already."""
        self._why_cancelled = self._why_cancelled or why
        self.cancelled = True
        with self._wake:
            self._wake.notify_all()

    @property
    def is_overdue(self) -> bool:
        """Whether the asker's timeout has passed."""
        return time.monotonic() - self.asked_s >= self.question.timeout_s

    @property
    def is_over(self) -> bool:
        """Whether nobody is waiting for the answer any more."""
        return self.cancelled or self.is_overdue

    def why_over(self) -> Error | None:
        """Return why nobody is waiting any more; None if somebody is, or cancelled silently."""
        if self.cancelled or not self.is_overdue:
            return self._why_cancelled
        return LateError(
            f'There was no whole answer within timeout_s, {self.question.timeout_s:g} s. '
            'Allow more time, or ask for fewer tokens.'
        )

    def emit(self, text: str) -> None:
        """Pass a piece of the answer to on_delta; called by the engine."""
        self._n_emitted += len(text)
        if text and self._on_delta is not None:
            call_safely(self._on_delta, text)

    def finish(self, answer: Answer) -> None:
        """Pass the rest of the text to on_delta, the answer to on_done; called by the engine.

        An answer that was cancelled says why nobody is waiting for it.
        """
        if answer.finish == Finish.CANCELLED and (error := self.why_over()):
            answer = replace(answer, error=error)
        if answer.error is not None and not isinstance(answer.error, Error):
            log.error('a question failed unexpectedly', exc_info=answer.error)
        self.emit(answer.text[self._n_emitted :])
        if self._on_done is not None:
            call_safely(self._on_done, answer)


class QuestionQueue:
    """Questions in the order of arrival: those that wait, and those that have begun.

    Up to `max_parallel` are begun, first come, first served. One that is to be remembered is
    begun alone, because those that come after it are to see it. The caller holds the lock of the
    engine.
    """

    def __init__(self, max_waiting: int, max_parallel: int):
        self._max_waiting, self.max_parallel = max_waiting, max_parallel
        self.n_refused = 0  # because there was no room for them
        self.waiting, self._begun = deque(), []  # oldest first
        self._has_room = True  # for another beside those that have begun
        self.pause_reason = ''  # why no questions are accepted; '': they are accepted

    def put(self, pending: PendingQuestion) -> None:
        """Add a question; raise BusyError if it is not accepted."""
        if self.pause_reason:
            raise BusyError(self.pause_reason)
        if len(self.waiting) >= self._max_waiting:
            self.n_refused += 1
            raise BusyError(
                f'{len(self.waiting)} questions are waiting, more are not taken. '
                'Ask again later, or raise max_waiting.'
            )
        self.waiting.append(pending)

    def begin(self, has_heard: Callable = lambda _: True) -> PendingQuestion | None:
        """Return the oldest that waits and `has_heard`, to be begun; None: none may be now."""
        ready = next(filter(has_heard, self.waiting), None)
        if ready is None or len(self._begun) >= self.max_parallel or not self._has_room:
            return None
        if self._begun and (ready.question.remember or self._begun[0].question.remember):
            return None
        self.waiting.remove(ready)
        self._begun.append(ready)
        return ready

    def put_back(self, pending: PendingQuestion) -> None:
        """Let the question begun last wait until another one ends: there is no room for it."""
        self._begun.remove(pending)
        self.waiting.appendleft(pending)
        self._has_room = False

    def end(self, pending: PendingQuestion) -> None:
        """Forget a question that has ended, whether it was begun or not."""
        if pending in self._begun:
            self._begun.remove(pending)
            self._has_room = True

    def take_expired(self) -> list:
        """Remove and return those that wait although nobody is waiting for their answers."""
        over = [pending for pending in self.waiting if pending.is_over]
        for pending in over:
            self.waiting.remove(pending)
        return over

    def take_all(self) -> list:
        """Remove and return all questions that wait."""
        waiting, self.waiting = list(self.waiting), deque()
        return waiting

    def cancel_all(self, why: Error) -> None:
        """Cancel all questions, begun or not."""
        for pending in [*self._begun, *self.waiting]:
            pending.cancel(why)


def check_form(choices, grammar, json_schema) -> None:
    """Raise InputError if more than one of them says what an answer looks like."""
    if bool(choices) + bool(grammar) + bool(json_schema) > 1:
        raise InputError('Only one of choices, grammar and json_schema can be given. Choose one.')


def call_safely(callback: Callable, argument) -> None:
    """Call a callback; log what it raises."""
    try:
        callback(argument)
    except Exception:
        log.exception('a callback of the engine failed')
