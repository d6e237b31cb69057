# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What is done for one robot: its units are read into its window and its questions answered.

An EngineThread does the work; all other threads fill bounded queues and never wait. Rules:
* A question goes before waiting units; a unit that waited for it, before the next question.
* Questions are read together, or in turn where the session reads apart; answers go on together.
* During answers, a unit that arrives is read in the same decode as their next tokens, but not
  before the first one of each, and not while the arbiter owes the answers time (arbiter.py).
* During answers the window grows while there is space; then old units are evicted (session.py).
* A question about audio that has not come yet waits for it (voice/hearing.py).
* `max_backlog` units may wait; a newer one replaces the oldest, which is counted as dropped.
* A question that is cancelled or timed out ends before the next token or chunk of its prefill.
* A question is refused if the window lacks what the question requires (question.py).
* Standing questions ride in the decode of the unit that they are asked about (alerts).
* An error while answering fails only that question. If llama.cpp fails, the context is rebuilt,
  and the black box read again; if the rebuild fails too, the engine fails and says why.

Callbacks run in the thread of the engine and must return soon; their exceptions are logged.
"""

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from minicpmo_ros.alerts.reader import AlertAsker
from minicpmo_ros.errors import (
    BusyError,
    CancelledError,
    ContextFullError,
    EngineError,
    Error,
    InputError,
)
from minicpmo_ros.live.answers import RunningAnswers
from minicpmo_ros.live.arbiter import DeviceArbiter, Priority
from minicpmo_ros.live.engine_thread import EngineThread
from minicpmo_ros.live.question import (
    Answer,
    Finish,
    PendingQuestion,
    Question,
    QuestionQueue,
)
from minicpmo_ros.live.session import Session
from minicpmo_ros.live.status import EngineOptions, EngineStatus, LiveInputs, why_failed
from minicpmo_ros.llm.context import AbortFlag
from minicpmo_ros.llm.sampling import SamplingOptions
from minicpmo_ros.sessions.keeper import SessionKeeper, StoredSession
from minicpmo_ros.streams.pairing import Unit
from minicpmo_ros.streams.time import Instant
from minicpmo_ros.voice.hearing import OpenSecond, hear

log = logging.getLogger(__name__)


class Engine:
    """Reads units and answers questions; started once, used from any thread.

    `thread`: the EngineThread that it shares with other robots; None: one of its own.
    `load(on_progress, abort)` returns the Session; it is called in the thread of the engine and
    must stop when on_progress returns False or the AbortFlag is set. `on_change(status)` is called
    in that thread after every change of the status by a state, a unit, a question or a reset.
    `now()` returns the instant by which units wait; it may follow simulated time.
    `listen(until_ns, timeout_s, take)` asks for the open second and calls `take(OpenSecond)`.
    """

    def __init__(
        self,
        load: Callable[[Callable[[float], bool], AbortFlag], Session],
        options: EngineOptions | None = None,
        arbiter: DeviceArbiter | None = None,
        on_change: Callable[[EngineStatus], None] | None = None,
        now: Callable[[], Instant] = lambda: Instant(time.monotonic()),
        alerts: AlertAsker | None = None,  # standing questions
        listen: Callable = lambda until_ns, timeout_s, take: take(OpenSecond()),
        black_box: SessionKeeper | None = None,
        thread: EngineThread | None = None,
    ):
        self._now, self.thread = now, thread or EngineThread()
        self.options, self._abort = options or EngineOptions(), self.thread.abort
        self._alerts, self._listen = alerts or AlertAsker(), listen
        self._load, self._on_change = load, on_change or (lambda _: None)
        self.arbiter = arbiter or DeviceArbiter()
        self.arbiter.unit_deadline_s = self.options.unit_deadline_s
        self._wake = self.thread.wake  # guards everything below it
        self._status = EngineStatus()
        self._inputs = LiveInputs(self.options, black_box)
        self._questions = QuestionQueue(self.options.max_waiting, self.options.max_parallel)
        self._reset_is_due = False  # before anything else is done
        self.is_closing = False  # it is closed, or about to be
        self._ended = threading.Event()  # set while the thread has nothing to do with it
        self._ended.set()
        self.session = None  # used in the thread of the engine only, as the next
        self.answers = RunningAnswers(
            self.arbiter, self._questions, self._wake, self.update_status, lambda: self.is_closing
        )
        self._unit_is_owed = False  # it waited for a question; it is read before another begins
        self._sampling = None  # replaces that of the session

    # --- for any thread -----------------------------------------------------------------------

    def start(self) -> None:
        """Let the thread load the model."""
        with self._wake:
            self._ended.clear()
            self._status = replace(self._status, state='loading')  # others may load before it
            self.thread.add(self)

    def put_image(self, second: int, rows: np.ndarray | None, tiles: tuple = (0, 0)) -> None:
        """Add the image embeddings (queries * images, width) of a second; None if it has none."""
        self._put(lambda now: self._inputs.put_image(second, rows, tiles, now))

    def put_audio(self, second: int, rows: np.ndarray | None, level_dbfs=math.inf) -> None:
        """Add the audio embeddings (tokens, width) of a second, None: it has none; see Unit."""
        self._put(lambda now: self._inputs.put_audio(second, rows, now, level_dbfs))

    def ask(
        self,
        question: Question,
        on_delta: Callable[[str], None] | None = None,
        on_done: Callable[[Answer], None] | None = None,
        asked_s: float | None = None,
    ) -> PendingQuestion:
        """Queue a question; raise BusyError if it is not accepted. See PendingQuestion."""
        with self._wake:
            self._status.require_ready(self.is_closing)
            pending = PendingQuestion(question, on_delta, on_done, self._wake)
            pending.asked_s = asked_s or pending.asked_s
            self._questions.put(pending)
            if question.is_about_audio:
                hear(pending, self._listen, self.options.unit_deadline_s, self._wake)
            self._wake.notify_all()
            return pending

    def reset(self, why_end_questions: Error | None = None) -> str:
        """Empty the window, the queue of units and the black box; return why not the last, or ''.

        With `why_end_questions` all questions are cancelled for that reason; without it, the
        running answer continues and the waiting questions are answered.
        """
        with self._wake:
            if why_end_questions is not None:
                self._questions.cancel_all(why_end_questions)
            self._reset_is_due = True
            self._wake.notify_all()
            return self._inputs.forget()

    def load_session(self, session: StoredSession, on_done: Callable[[int, str], None]) -> None:
        """Read a saved session in place of the window; see Restoring.load."""
        with self._wake:
            self._status.require_ready(self.is_closing)
            self._inputs.load(session, on_done)
            self._reset_is_due = True
            self._wake.notify_all()

    def resize(self, n_ctx: int, max_copy_bytes: float) -> None:
        """Resize the context when the current answers have ended; see Session.resize."""
        self.thread.resize(n_ctx, max_copy_bytes)

    def pause_questions(self, reason: str) -> None:
        """Reject new questions with this reason, of all robots of the thread; '': accept them."""
        with self._wake:
            for engine in self.thread.engines:
                engine._questions.pause_reason = reason

    def wait_for(self, senses: str) -> None:
        """Set which senses a second waits for, a key of pairing.WAIT_FOR."""
        self._put(lambda _: self._inputs.set_wait_for(senses))

    def set_sampling(self, sampling: SamplingOptions) -> None:
        """Set how tokens are chosen, from the next question on."""
        self._sampling = sampling

    def status(self) -> EngineStatus:
        """Return a snapshot of the status."""
        with self._wake:
            known = self._inputs.reported(self._status, self._now())
            return replace(known, busy_s=self.thread.busy_s, waiting=len(self._questions.waiting))

    def close(self, timeout_s: float = 2.0) -> bool:
        """Stop everything, even a load or a decode; return whether it ended in time.

        A decode that reads for other robots, too, is not stopped.
        """
        with self._wake:
            self.is_closing = True
            self.thread.stop_decode_for_nobody()
            self._wake.notify_all()
        if not self.thread.is_current:
            self._ended.wait(timeout_s)
        return self._ended.is_set()

    def _put(self, put: Callable[[Instant], None]) -> None:
        with self._wake:
            if self.is_closing:
                return
            now = self._now()
            put(now)
            self.arbiter.closed_second = self._inputs.collect(now)
            self._wake.notify_all()

    # --- the engine's thread ------------------------------------------------------------------

    def open(self) -> None:
        """Load; raise what that raises."""
        self.update_status(state='loading')
        self.session = self._load(self._progress, self._abort)
        self._alerts.bind(self.session)
        self._inputs.offer_black_box()
        with self._wake:
            most = min(self.options.max_parallel, self.session.options.max_forks)
            self._questions.max_parallel = most
        self.update_status(state='ready', progress=1.0)

    def end(self, error: Exception | None = None) -> None:
        """End all questions and free the window, because of an error or because it is closed."""
        if error is not None:
            self.update_status(state='failed', **why_failed(error))
        try:
            self._end_all()
            self._alerts.bind(None)
            if self.session is not None:
                self.session.close()
            if error is None:
                self.update_status(state='unloaded')
        finally:
            self._ended.set()

    def _progress(self, fraction: float) -> bool:
        with self._wake:
            self._status = replace(self._status, progress=fraction)
        return not self.is_closing

    @property
    def has_work(self) -> bool:
        """Close the units that are due; return whether there is something to do now."""
        if self._inputs.due_s is not None:
            self.arbiter.closed_second = self._inputs.collect(self._now())
        return self._reset_is_due or self.is_closing or self.is_asked or self._inputs.has_unit

    @property
    def excess(self) -> int:
        """How much was sent beyond what any robot may: halves that race, questions refused."""
        return self._inputs.flood.count + self._questions.n_refused

    @property
    def is_asked(self) -> bool:
        """Whether a question waits or is being answered."""
        return bool(self.answers.running or self._questions.waiting)

    @property
    def needs_device(self) -> bool:
        """Whether there is something to be read."""
        return bool(self.answers.running) or self._inputs.has_unit

    @property
    def due_s(self) -> float | None:
        """Time until a unit is closed if nothing comes; None: none is open."""
        return self._inputs.due_s  # any news may bring it nearer, and notify

    def reset_window(self) -> None:
        """Empty the window if that was requested."""
        with self._wake:
            is_due, self._reset_is_due = self._reset_is_due, False
        if is_due:
            self.session.reset()
            self.update_status()
            self._alerts.try_lose('the window was reset')

    def begin_questions(self) -> None:
        """Begin the questions that may be answered now, oldest first."""
        while (pending := self._next_question()) is not None:
            try:
                with self._wake:
                    stale, refused = self._inputs.judge(pending, self._status, self._now())
                if refused:
                    self.answers.refuse(pending, InputError(refused), bool(stale))
                    continue
                if self._sampling is not None:
                    self.session.options = replace(self.session.options, sampling=self._sampling)
                self.answers.begin(self.session, pending, stale)
                self.update_status()
            except Exception as error:
                self.answers.not_begun(pending, error)

    def _next_question(self) -> PendingQuestion | None:
        with self._wake:
            # A reset that came since `_reset_window` goes before what was asked after it.
            if self._reset_is_due or self.thread.new_size or self._unit_is_owed:
                return None
            return self._questions.begin(lambda one: self._inputs.has_heard(one, self._status))

    def reading(self, room: float = math.inf):
        """Read what the answers read next, and the oldest unit if it is its turn.

        In steps, as Session.appending; nothing is read where that is more than `room` rows.
        """
        reads = self.answers.next_reads() if self.answers.running else {}
        room -= sum(len(read.rows) for read in reads.values()) if room < math.inf else 0
        if room < 0:
            return
        unit = self._take_unit(room)
        if unit is not None:
            yield from self._reading_unit(unit, reads)
        elif reads:
            yield from self.answers.reading(self.session, reads)

    def let_others(self) -> None:
        """Let others use the device."""
        if self.answers.turn is not None:
            self.answers.let_others()

    def _take_unit(self, room: float) -> Unit | None:
        """Take the oldest waiting unit if it is its turn."""
        with self._wake:
            if self._reset_is_due:
                return None  # it may be of the time after the reset
            unit = self._inputs.peek()
            has_room = unit is not None and self.session.can_append(unit)
            fits = room == math.inf or (has_room and len(self.session.unit_rows(unit)) <= room)
            is_let, self._unit_is_owed = unit is not None and fits, False
            if self.answers.turn is not None:
                is_let, self._unit_is_owed = self.answers.lets_unit(is_let, has_room)
            return self._inputs.take(unit) if is_let else None

    def _reading_unit(self, unit: Unit, reads: dict):
        is_watched = bool(self._alerts.watch.rules)
        riders = self._alerts.try_begin(unit) if is_watched else []
        try:
            with self._holding_device():
                report = yield from self.session.appending(unit, list(reads.values()), riders)
                if self.answers.turns:
                    self.answers.settle_turns()
        except (CancelledError, EngineError):
            raise
        except Exception as error:
            log.warning('second %d is not read: %s', unit.second, error)
            is_too_large = isinstance(error, ContextFullError)
            return self.update_status('units_too_large' if is_too_large else 'units_refused')
        with self._wake:
            window = () if self._reset_is_due else self.session.window.seconds
            self._inputs.note_read(unit, report, window)
        self.update_status(**self._status.after_reading(unit, report))
        if is_watched:
            self._alerts.try_end(report)
        if reads:
            self.answers.take(reads, report.logits)

    def _holding_device(self):
        """Hold the device for a unit, by the turn of the answers where there are any."""
        if self.answers.turn is None:
            return self.arbiter.hold(Priority.UNIT)
        return self.answers.hold_for_unit()

    def note_rebuild(self, error: EngineError) -> None:
        """Tell that the window was lost with the context, and read what the black box has."""
        self._inputs.read_again(self._status.newest, self._wake)
        self.update_status('rebuilds', lost_window=f'The window was lost: {error}')
        self._alerts.try_lose('the window was lost')

    def _end_all(self) -> None:
        """Finish all questions that are not answered yet."""
        with self._wake:
            self.is_closing = True
        finish, error = Finish.CANCELLED, None
        if self._status.state == 'failed':
            finish, error = Finish.ERROR, BusyError(self._status.why_not_ready())
        self.answers.close(finish, error)
        with self._wake:
            self._inputs.clear()

    def update_status(self, *counted: str, **facts) -> None:
        """Update the status from the session, count one more of these, and set the facts."""
        with self._wake:
            self._status = self._status.after(
                self.session, bool(self.answers.running), counted, **facts
            )
        status = self.status()
        try:
            self._on_change(status)
        except Exception:
            log.exception('on_change of the engine failed')
