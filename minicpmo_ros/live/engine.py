# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The one thread that owns the language model: it loads it, reads the units and answers.

Everybody else only leaves work in bounded queues and never waits. Rules:
* A question goes before units that wait. One is answered at a time; `max_waiting` more may wait.
* While one is answered, units that came meanwhile are read between its tokens, after its first,
  as long as they take no more than half of the time.
* Beside an answer the window grows as far as there is room (session.py); then units wait for its
  end.
* `max_backlog` units may wait; a newer one pushes out the oldest, which is counted as dropped.
* A cancelled question ends before the next token or the next chunk of its prefill, or in the
  middle of looking for a token that its grammar allows.
* An error in a question is that question's. When llama.cpp fails, the context is rebuilt and the
  window is lost; when that fails too, the engine is, and says why.

Callbacks run in the engine's thread and must return soon; what they raise is logged.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from minicpmo_ros.errors import (
    BusyError,
    CancelledError,
    ContextFullError,
    EngineError,
    Error,
)
from minicpmo_ros.language.context import AbortFlag
from minicpmo_ros.language.sampling import SamplingOptions
from minicpmo_ros.live.arbiter import DeviceArbiter, Priority, Turn
from minicpmo_ros.live.asking import Asking, call_safely
from minicpmo_ros.live.engine_status import EngineStatus, why_failed
from minicpmo_ros.live.pacing import Instant
from minicpmo_ros.live.question import Answer, Finish, Question
from minicpmo_ros.live.session import Session
from minicpmo_ros.live.units import Unit, UnitAssembler, UnitInbox

log = logging.getLogger(__name__)

SHORTEST_WAIT_S = 0.01  # for a deadline in simulated time, which may be slow


@dataclass(frozen=True)
class EngineOptions:
    """Bounds of the queues."""

    unit_deadline_s: float = 2.0  # wait for the other half of a second: an encoder may take 1 s
    max_backlog: int = 8  # units waiting to be read
    max_waiting: int = 8  # questions waiting, beside the one being answered

    @property
    def max_pending(self) -> int:
        """How many seconds may be open: all that come until the deadline, and at least a burst."""
        return max(8, math.ceil(self.unit_deadline_s) + 2)


class Engine:
    """Made anywhere, started once, used from any thread.

    `load(on_progress, abort)` returns the Session; it is called in the engine's thread and is
    expected to stop when on_progress returns False or the AbortFlag is set. `on_change(status)` is
    called in that thread when a state, a unit, a question or a reset has changed the status.
    `now()`: the instant that units wait by; it may know simulated time.
    """

    def __init__(
        self,
        load: Callable[[Callable[[float], bool], AbortFlag], Session],
        options: EngineOptions | None = None,
        arbiter: DeviceArbiter | None = None,
        on_change: Callable[[EngineStatus], None] | None = None,
        now: Callable[[], Instant] = lambda: Instant(time.monotonic()),
    ):
        self._now = now
        self.options = options or EngineOptions()
        self._load, self._on_change = load, on_change
        self._arbiter = arbiter or DeviceArbiter()
        self._abort = AbortFlag()
        self._wake = threading.Condition()  # guards everything below it
        self._status = EngineStatus()
        self._inbox = UnitInbox(
            UnitAssembler(self.options.unit_deadline_s, self.options.max_pending),
            self.options.max_backlog,
        )
        self._waiting = deque()  # askings
        self._reset = self._closing = False
        self._resize, self._refusal = None, ''  # (positions, bytes) to come; why none are taken
        self._session = self._current = None  # of the engine's thread alone
        self._answer_s = self._last_unit_s = 0.0
        self._begun_s = None  # monotonic: the piece of work at hand
        self._sampling = None  # instead of the session's
        self._thread = threading.Thread(target=self._run, name='llm', daemon=True)

    # --- for any thread -----------------------------------------------------------------------

    def start(self) -> None:
        """Begin to load."""
        self._thread.start()

    def put_picture(self, second: int, rows: np.ndarray | None, tiles: tuple = (0, 0)) -> None:
        """Take a second's picture embeddings, (queries * pictures, width); None: it has none."""
        self._put(self._inbox.assembler.add_picture, second, rows, tiles)

    def put_sound(self, second: int, rows: np.ndarray | None) -> None:
        """Take a second's sound embeddings, (tokens, width); None: it has none."""
        self._put(self._inbox.assembler.add_sound, second, rows)

    def ask(
        self,
        question: Question,
        on_delta: Callable[[str], None] | None = None,
        on_done: Callable[[Answer], None] | None = None,
    ) -> Asking:
        """Queue a question; BusyError says why it cannot be. The pieces of text go to on_delta."""
        with self._wake:
            status = self._status
            if self._closing or status.state != 'ready':
                raise BusyError(status.why_not_ready())
            if self._refusal:
                raise BusyError(self._refusal)
            if len(self._waiting) >= self.options.max_waiting:
                raise BusyError(
                    f'{len(self._waiting)} questions are waiting, more are not taken. '
                    'Ask again later, or raise max_waiting.'
                )
            asking = Asking(question, on_delta, on_done, self._notify)
            self._waiting.append(asking)
            self._wake.notify_all()
            return asking

    def reset(self) -> None:
        """Empty the window and what is on its way into it; a running answer goes on."""
        with self._wake:
            self._inbox.clear()
            self._reset = True
            self._wake.notify_all()

    def resize(self, n_ctx: int, max_copy_bytes: float) -> None:
        """Give the context another size, after the answer at hand; see Session.resize."""
        with self._wake:
            self._resize = n_ctx, max_copy_bytes
            self._wake.notify_all()

    def refuse(self, reason: str) -> None:
        """Take no more questions, and say why; '' takes them again."""
        with self._wake:
            self._refusal = reason

    def retune(self, sampling: SamplingOptions) -> None:
        """Choose tokens in another way, from the next question on that is begun."""
        self._sampling = sampling

    def status(self) -> EngineStatus:
        """Return a snapshot."""
        with self._wake:
            begun_s = self._begun_s
            return replace(
                self._status,
                busy_s=time.monotonic() - begun_s if begun_s is not None else 0.0,
                waiting=len(self._waiting),
                units_dropped=self._inbox.dropped,
                late=self._inbox.assembler.late,
                jumps=self._inbox.assembler.jumps,
            )

    def close(self, timeout_s: float = 2.0) -> bool:
        """End all that is going on, even a load or a decode; tell whether it ended in time."""
        with self._wake:
            self._closing = True
            self._abort.set()
            self._wake.notify_all()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _notify(self) -> None:
        with self._wake:
            self._wake.notify_all()

    def _put(self, add, *half) -> None:
        with self._wake:
            if self._closing:
                return
            now = self._now()
            add(*half, now)
            self._inbox.collect(now)
            self._wake.notify_all()

    # --- the engine's thread ------------------------------------------------------------------

    def _run(self) -> None:
        self._set_state('loading')
        try:
            self._session = self._load(self._progress, self._abort)
            self._publish()
            self._set_state('ready', progress=1.0)
            while self._work():
                self._begun_s = None
        except CancelledError:
            pass
        except Exception as error:
            if not isinstance(error, Error):
                log.exception('the engine failed')
            self._fail(error)
        self._end_all()
        if self._session is not None:
            self._session.close()
        self._begun_s = None
        if self._status.state != 'failed':
            self._set_state('unloaded')

    def _progress(self, fraction: float) -> bool:
        with self._wake:
            self._status = replace(self._status, progress=fraction)
        return not self._closing

    def _work(self) -> bool:
        """Do one piece of work, or wait for some; False when closing."""
        with self._wake:
            if not self._has_work():
                self._wake.wait(self._patience_s())  # any news may bring a nearer deadline
            self._begun_s = time.monotonic()
            if self._closing:
                return False
            self._inbox.collect(self._now())
            reset, self._reset = self._reset, False
            resize = None
            if self._current is None:
                resize, self._resize = self._resize, None
            taken_back = [asking for asking in self._waiting if asking.cancelled]
            for asking in taken_back:
                self._waiting.remove(asking)
            asking = None
            if self._current is None and self._waiting:
                asking = self._waiting.popleft()
            unit = None if asking else self._next_unit()
        if reset:
            self._session.reset()
            self._publish()
        if resize is not None:
            self._change_size(*resize)
        for back in taken_back:
            back.finish(Answer(back.question.text, '', Finish.CANCELLED))
        if asking is not None:
            self._begin(asking)
        if unit is not None:
            self._read(unit)
        if self._current is not None:
            self._step()
        return True

    def _has_work(self) -> bool:
        return (
            self._closing
            or self._reset
            or self._current is not None
            or self._resize is not None
            or bool(self._inbox.units)
            or bool(self._waiting)
        )

    def _patience_s(self) -> float | None:
        patience_s = self._inbox.assembler.patience_s(self._now())
        return None if patience_s is None else max(SHORTEST_WAIT_S, patience_s)

    def _next_unit(self) -> Unit | None:
        """Take the oldest waiting unit, if it is its turn; the lock is held."""
        waiting = self._inbox.units
        if not waiting:
            return None
        if self._current is not None:
            first_token_is_out = bool(self._current[1].ids)
            if not first_token_is_out or self._answer_s < self._last_unit_s:
                return None
            if not self._session.can_append(waiting[0]):
                return None
        return waiting.popleft()

    def _begin(self, asking: Asking) -> None:
        turn = self._arbiter.acquire(Priority.QUESTION)  # until the answer is finished
        try:
            if self._sampling is not None:
                self._session.options = replace(self._session.options, sampling=self._sampling)
            answering = self._session.ask(
                asking.question, asking.asked_s, partial(self._between, asking, turn)
            )
        except Exception as error:
            turn.release()
            asking.finish(Answer(asking.question.text, '', Finish.ERROR, error))
            return
        self._current = asking, answering, turn
        self._answer_s = 0.0
        self._publish()

    def _between(self, asking: Asking, turn: Turn) -> None:
        """In the middle of a long step: end it, or let others compute."""
        if asking.cancelled or self._closing:
            raise CancelledError('The question was taken back.')
        turn.between()

    def _step(self) -> None:
        asking, answering, turn = self._current
        if asking.cancelled:
            self._finish_current(Finish.CANCELLED)
            return
        started_s = time.perf_counter()
        try:
            asking.tell(answering.step())
        except CancelledError:
            self._finish_current(Finish.CANCELLED)
            return
        except Exception as error:
            self._finish_current(Finish.ERROR, error)
            if isinstance(error, EngineError):
                self._rebuild(error)
            return
        self._answer_s += time.perf_counter() - started_s
        if answering.answer is not None:
            self._finish_current(answering.answer.finish)
        else:
            turn.between()

    def _finish_current(self, finish: Finish, error: Exception | None = None) -> None:
        asking, answering, turn = self._current
        self._current = None
        turn.release()
        answer = answering.end(finish, error)
        self._publish()
        asking.finish(answer)

    def _read(self, unit: Unit) -> None:
        try:
            if self._current is not None:  # the answer holds the device
                report = self._session.append(unit)
            else:
                with self._arbiter.hold(Priority.UNIT):
                    report = self._session.append(unit)
        except CancelledError:
            return
        except EngineError as error:
            if self._current is not None:
                self._finish_current(Finish.ERROR, error)
            self._rebuild(error)
            return
        except Exception as error:
            log.warning('second %d is not read: %s', unit.second, error)
            is_too_large = isinstance(error, ContextFullError)
            self._publish(**{'units_too_large' if is_too_large else 'units_refused': 1})
            return
        self._last_unit_s, self._answer_s = 1e-3 * report.prefill_ms, 0.0
        with self._wake:
            self._status = replace(self._status, prefill_ms=report.prefill_ms)
        self._publish(units_read=1)

    def _rebuild(self, error: EngineError) -> None:
        log.error('the window is lost and the context is rebuilt: %s', error)
        with self._arbiter.hold(Priority.UNIT):
            self._session.rebuild()  # an error here is the engine's end
        with self._wake:
            self._status = replace(self._status, lost_window=f'The window was lost: {error}')
        self._publish(rebuilds=1)

    def _change_size(self, n_ctx: int, max_copy_bytes: float) -> None:
        with self._arbiter.hold(Priority.UNIT):
            try:
                self._session.resize(n_ctx, max_copy_bytes)
            except EngineError as error:  # unless that fails too, in the former size it goes on
                log.warning('the context does not become one of %d positions: %s', n_ctx, error)
        self._publish(resizes=1)

    def _fail(self, error: Exception) -> None:
        reason, remedy = why_failed(error)
        self._set_state('failed', reason=reason, remedy=remedy)

    def _end_all(self) -> None:
        """Finish what was asked and is not answered."""
        with self._wake:
            self._closing = True
            waiting, self._waiting = list(self._waiting), deque()
            self._inbox.clear()
        failed = self._status.state == 'failed'
        finish = Finish.ERROR if failed else Finish.CANCELLED
        error = BusyError(self._status.why_not_ready()) if failed else None
        if self._current is not None:
            self._finish_current(finish, error)
        for asking in waiting:
            asking.finish(Answer(asking.question.text, '', finish, error))

    def _set_state(self, state: str, **more) -> None:
        with self._wake:
            self._status = replace(self._status, state=state, **more)
        self._tell_change()

    def _publish(self, **counts) -> None:
        """Bring the snapshot up to date with the session, and count."""
        with self._wake:
            self._status = self._status.after(self._session, self._current is not None, counts)
        self._tell_change()

    def _tell_change(self) -> None:
        if self._on_change is not None:
            call_safely(self._on_change, self.status())
