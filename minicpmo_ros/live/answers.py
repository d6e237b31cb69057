# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Questions of one robot from the queue to their answers, which are given together.

What the answers read next, and their share of the device.
"""

import logging
from collections import deque
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace

from minicpmo_ros.errors import CancelledError, ContextFullError, EngineError
from minicpmo_ros.live.arbiter import DeviceArbiter, Priority, Turn
from minicpmo_ros.live.question import Answer, Finish, PendingQuestion, QuestionQueue

log = logging.getLogger(__name__)

MOST_TURNS = 8  # of which what was said may still change


class RunningAnswer:
    """A question that is being answered, with others or alone.

    Read what `next_read` returns and `take` its logits, until that returns how the answer ended;
    then `end`. `stale` describes the senses that are missing or too old. `is_closing()` returns
    whether the engine is closing.
    """

    def __init__(
        self, session, pending: PendingQuestion, turn: Turn, stale: str, is_closing: Callable
    ):
        self.pending, self._turn = pending, turn
        self._stale, self._is_closing = stale, is_closing
        self._live_s = turn.live_s  # before it
        self.is_read_alone = session.reads_apart
        asked = pending.question, pending.asked_s, self._between, pending.tail
        self._generation = session.ask(*asked)

    @property
    def has_token(self) -> bool:
        """Whether its first token was generated: its question has been read."""
        return self._generation.has_token

    @property
    def turn(self):
        """The RememberedTurn that it has become; None: it is not remembered."""
        return self._generation.turn

    def next_read(self):
        """Return the Read that comes next; see Session."""
        return self._generation.next_read()

    def take(self, logits) -> Finish | None:
        """Go on with the logits of what was read; return how it ended, None if it continues."""
        try:
            self.pending.emit(self._generation.take(logits))
        except CancelledError:
            return Finish.CANCELLED
        return None if self._generation.answer is None else self._generation.answer.finish

    def end(self, finish: Finish, error: Exception | None = None) -> Answer:
        """Drop the fork and return the answer."""
        ends_s = self.pending.camera_ends_s
        answer = replace(
            self._generation.end(finish, error),
            live_s=self._turn.live_s - self._live_s,
            cameras=tuple(ends_s),
            camera_ends_s=tuple(ends_s.values()),
        )
        missed = self.pending.hearing.note() if self.pending.hearing else ''
        notes = tuple(filter(None, (self._stale, missed)))
        return replace(answer, stale=bool(self._stale), notes=notes + answer.notes)

    def _between(self) -> None:
        """Between two slices of a long step, end it or let others compute."""
        if self.pending.is_over or self._is_closing():
            raise CancelledError('The question was cancelled.')
        self._turn.between()


class RememberedTurn:
    """A question and its answer, of which the window holds what was said.

    It comes behind the second that the question was heard in, `heard_in_s`, which the window may
    not have yet (None: it has all). Of an answer that was interrupted only what was said aloud is
    kept; this is corrected when it matters, before the next question. `epoch`: of the session when
    it was asked; nothing is kept beyond it.
    """

    def __init__(self, session, epoch, heard_in_s, question_ids, answer=((), None, None)):
        """answer: its tokens, its text, the token that ended it; without it was cancelled."""
        self._session, self._epoch, self._heard_in_s = session, epoch, heard_in_s
        self._question_ids, (self._ids, self._text, self._end_id) = question_ids, answer
        self._number = self._kept = None  # of the turn in the window; its answer

    @property
    def is_over(self) -> bool:
        """Whether it belongs to a window that is no more."""
        return self._session.epoch != self._epoch

    def settle(self, said: str | None = None, waits: bool = True) -> None:
        """Let the window hold it as it is known to be now; raise ContextFullError.

        said: of the answer, aloud; None: all of it. waits: for the second it was heard in, and
        with corrections.
        """
        audio_end_s, is_new = self._session.window.audio_end_s or 0, self._number is None
        wanted = self._text if said is None else spoken_part(self._text or '', said)
        if self.is_over or wanted == self._kept:
            return
        is_early = self._heard_in_s is not None and audio_end_s <= self._heard_in_s
        if waits and (is_early or not is_new):
            return
        if not is_new and not self._session.forget(self._number):
            self._epoch = None  # it has left the window
            return
        self._number, self._kept = None, wanted
        if said is None or wanted.strip():
            is_whole = wanted == self._text
            ids = self._ids if is_whole else self._session.model.vocabulary.encode(wanted)
            end_id = self._end_id if is_whole else None
            self._number = self._session.remember(self._question_ids, ids, end_id)


def spoken_part(text: str, said: str) -> str:
    """Return the beginning of an answer that was said, or `said` if it is none of it."""
    lead = len(text) - len(text.lstrip())
    if said == text.strip():
        return text
    return text[: lead + len(said)] if text[lead:].startswith(said) and said else said


class RunningAnswers:
    """The answers that are given together, on one turn on the device; for the engine's thread.

    `running`: the RunningAnswers there are. `turn`: the Turn on the device that they share; None:
    nothing is answered. `turns`: what was remembered and may still change, newest last. The caller
    need not ask about what there is none of.
    `queue`: of the questions, guarded by `lock`. `tell(*counted, **facts)` receives what changes
    in the status when one ends. An EngineError is raised, after which all must end; any other
    error ends the answer it is of.
    """

    def __init__(
        self,
        arbiter: DeviceArbiter,
        queue: QuestionQueue,
        lock,
        tell: Callable,
        is_closing: Callable[[], bool],
    ):
        self._arbiter, self._queue, self._lock = arbiter, queue, lock
        self._tell, self._is_closing = tell, is_closing
        self.running, self.turn = [], None
        self.turns = deque(maxlen=MOST_TURNS)  # (PendingQuestion, RememberedTurn)

    def begin(self, session, pending: PendingQuestion, stale: str) -> None:
        """Begin to answer a question; raise what Session.ask raises."""
        if self.turn is None:
            self.turn = self._arbiter.acquire(Priority.QUESTION)
        self.turn.become(Priority.QUESTION)
        self.settle_turns(waits=False)
        self.running.append(RunningAnswer(session, pending, self.turn, stale, self._is_closing))

    def settle_turns(self, waits: bool = True) -> None:
        """Bring what is remembered up to date; see RememberedTurn. Not beside an answer."""
        if self.running:
            return
        for pending, turn in self.turns:
            try:
                turn.settle(pending.said, waits)
            except ContextFullError as error:
                log.warning('a turn is not remembered: %s', error)
        self.turns = deque((one for one in self.turns if not one[1].is_over), MOST_TURNS)

    def next_reads(self) -> dict:
        """Return {answer: the Read that comes next} of those that read together.

        Where the session reads apart, the oldest question that has not been read goes alone: read
        with others, its first token would come as late as the last of theirs.
        """
        reads, answers = {}, list(self.running)
        unread = [answer for answer in answers if answer.is_read_alone and not answer.has_token]
        for answer in unread[:1] or answers:
            try:
                reads[answer] = answer.next_read()
            except Exception as error:
                self._end(answer, Finish.ERROR, error)
        return reads

    def reading(self, session, reads: dict):
        """Read and go on with the logits; in steps, as Session.reading."""
        try:
            logits = yield from session.reading(list(reads.values()))
        except (CancelledError, EngineError):
            raise
        except Exception as error:
            for answer, read in reads.items():
                if len(reads) == 1:
                    self._end(answer, Finish.ERROR, error)
                else:  # one of them is to blame
                    yield from self.reading(session, {answer: read})
        else:
            self.take(reads, logits)

    def take(self, reads: dict, logits: list) -> None:
        """Go on with the logits of what was read."""
        for answer, found in zip(reads, logits):
            error = None
            try:
                finish = answer.take(found)
            except EngineError:
                raise
            except Exception as problem:
                finish, error = Finish.ERROR, problem
            if finish is not None:
                self._end(answer, finish, error)

    def lets_unit(self, waits: bool, has_room: bool) -> tuple:
        """Return whether a unit that waits, if there is room for it, is to be read now.

        And whether it waits for a question, so that it is to be read before another begins.
        """
        turn = self.turn
        turn.unit_waits = waits and has_room
        is_let = turn.unit_waits and self._arbiter.lets_unit(turn)
        is_kept_waiting = turn.priority is Priority.QUESTION or not has_room
        return is_let, waits and not is_let and is_kept_waiting

    @contextmanager
    def hold_for_unit(self):
        """Use the turn for a unit inside the block."""
        self.turn.become(Priority.UNIT)
        try:
            yield
        finally:
            self.turn.become(Priority.ANSWER)
            self.turn.unit_waits = False

    def let_others(self) -> None:
        """Let others use the device; give it back if no answer is running."""
        if not self.running:
            self.turn.release()
            self.turn = None
            return
        is_first = not all(answer.has_token for answer in self.running)
        self.turn.become(Priority.QUESTION if is_first else Priority.ANSWER)
        self.turn.between()

    def refuse(self, pending: PendingQuestion, error: Exception, stale: bool = False) -> None:
        """End a question that was not begun, because of an error."""
        self._finish(pending, Answer(pending.question.text, '', Finish.ERROR, error, stale))

    def not_begun(self, pending: PendingQuestion, error: Exception) -> None:
        """Let a question wait for the room that other answers have, or end it with its error."""
        if not isinstance(error, ContextFullError) or not self.running:
            return self.refuse(pending, error)
        with self._lock:
            self._queue.put_back(pending)

    def end_expired(self) -> None:
        """End those that nobody is waiting for any more, begun or not."""
        with self._lock:
            expired = self._queue.take_expired()
        for pending in expired:
            self._finish(pending, Answer(pending.question.text, '', Finish.CANCELLED))
        for answer in [answer for answer in self.running if answer.pending.is_over]:
            self._end(answer, Finish.CANCELLED)

    def end_all(self, finish: Finish, error: Exception | None = None) -> None:
        """End all of them, and give the device back."""
        if self.turn is None:
            return
        for answer in list(self.running):
            try:
                self._end(answer, finish, error)
            except Exception:  # who asked has been told; the others are to be
                log.exception('an answer has not ended as it should')
        self.let_others()

    def close(self, finish: Finish, error: Exception | None = None) -> None:
        """End all questions, begun or not."""
        with self._lock:
            waiting = self._queue.take_all()
        self.end_all(finish, error)
        for pending in waiting:
            pending.finish(Answer(pending.question.text, '', finish, error))

    def _end(self, answer: RunningAnswer, finish: Finish, error: Exception | None = None) -> None:
        self.running.remove(answer)
        try:
            ended = answer.end(finish, error)
        except Exception as problem:
            text = answer.pending.question.text
            self._finish(answer.pending, Answer(text, '', Finish.ERROR, error or problem))
            raise
        if answer.turn is not None:
            self.turns.append((answer.pending, answer.turn))
        self._finish(answer.pending, ended, answer_live_s=ended.live_s)

    def _finish(self, pending: PendingQuestion, answer: Answer, **facts) -> None:
        """Finish a question; count it if nobody waits for the answer any more, and not by wish."""
        with self._lock:
            self._queue.end(pending)
        is_dropped = answer.finish == Finish.CANCELLED and pending.why_over() is not None
        try:
            self._tell(*['questions_dropped'] * is_dropped, **facts)
        finally:
            pending.finish(answer)
