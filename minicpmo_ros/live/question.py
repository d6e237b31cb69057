# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A question on its way: what it requires, asked, pending, answered with its evidence.

Evidence is what an answer rests on: the newest second of each input, and whether it is missing or
old. The inputs are the senses, and of several cameras the image of each. The age of an input is
how far its newest second lies behind the newest second of the window, plus the time since that
arrived. Stamps are compared with stamps and waiting with waiting, so no clock need agree with any
other.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import IntEnum

from minicpmo_ros.config import LLM, SENSES
from minicpmo_ros.errors import BusyError, Error, InputError, LateError

log = logging.getLogger(__name__)

REQUIRED = ('none', 'some', 'fresh')  # what a question may require of the window


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
    aside: bool = False  # the answer is for who asks alone: nobody else is told of it
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
class EvidenceOptions:
    """What a question requires of the window before it is answered.

    none   Nothing: the model answers from its words alone.
    some   At least one second of images or audio.
    fresh  As `some`, and no input that has come is missing or older than max_staleness_s.
    """

    required: str = LLM.required_evidence
    max_staleness_s: float = LLM.max_staleness_s  # older than this, an input is told as stale


@dataclass(frozen=True)
class Evidence:
    """What is known of the inputs at one moment."""

    image_end_s: int | None = None  # end of the newest second in the window that has an image
    audio_end_s: int | None = None  # the same for audio
    window_end_s: int = 0  # end of the newest second in the window
    since_newest_s: float = 0.0  # since that second arrived
    since_arrival_s: dict = field(default_factory=dict)  # by sense that ever came: since its last
    # Of several cameras, by name: the same as image_end_s, and since the last image came live.
    camera_ends_s: dict = field(default_factory=dict)
    since_camera_s: dict = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is in the window."""
        return self.image_end_s is None and self.audio_end_s is None

    def staleness(self, max_staleness_s: float) -> str:
        """Return which inputs are missing or older than allowed, or ''.

        What neither came nor is in the window is not expected: a robot without a microphone is
        not stale.
        """
        told = [self._problem(*known, max_staleness_s) for known in self._inputs()]
        return ' '.join(filter(None, told))

    def why_refused(self, options: EvidenceOptions, asks_what_was_said: bool) -> str:
        """Return why a question about this evidence is not answered, or ''."""
        if asks_what_was_said and self.audio_end_s is None:
            return (
                'An empty question asks the model to answer what was said, but there is no audio '
                'in the window. Give a question, or check the microphone and audio_topic.'
            )
        if options.required == 'none':
            return ''
        if self.is_empty:
            return (
                'Nothing has been seen or heard: the window is empty. Check that the camera or '
                'the microphone publishes and that its topic is the one of the parameters; '
                'required_evidence: none answers all the same.'
            )
        stale = self.staleness(options.max_staleness_s)
        if options.required == 'fresh' and stale:
            return (
                f'{stale} required_evidence is fresh: such questions are refused. Raise '
                f'max_staleness_s ({options.max_staleness_s:g} s), or set required_evidence: some.'
            )
        return ''

    def _inputs(self):
        """Yield (name, end of its newest second, time since it last came) of each input."""
        if self.image_end_s is None or not self.camera_ends_s:
            yield 'image', self.image_end_s, self.since_arrival_s.get('image')
        else:
            for name, end_s in self.camera_ends_s.items():
                yield f'image of camera {name}', end_s, self.since_camera_s.get(name)
        yield 'audio', self.audio_end_s, self.since_arrival_s.get('audio')

    def _problem(self, name: str, end_s: int | None, since_s: float | None, max_s: float) -> str:
        if end_s is not None:
            age_s = self.window_end_s - end_s + self.since_newest_s
            return f'The newest {name} is {age_s:.0f} s old.' if age_s > max_s else ''
        if since_s is None:
            return ''  # it never came
        if since_s > max_s:
            return f'No {name} has come for {since_s:.0f} s, and none is left in the window.'
        if self.is_empty or name not in SENSES:
            return ''  # the first second is on its way
        return (
            f'There is no {name} in the window, although {name} comes: it comes too late, or '
            'its stamps are of another clock than those of the other sense.'
        )


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
