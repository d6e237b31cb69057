# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The thread that owns a language model and works for the engines of one or several robots.

In each pass every robot may begin questions, and what the robots read next is read in one decode:
the next tokens of all answers, and units as long as they fit into one batch of llama.cpp. Who has
used the device least comes first and is not bound to that.

Shares are kept in time: of what a decode takes, each robot that took part is charged its share by
rows. Who has been charged more than SLACK_S beyond the one with the least has to wait, so a robot
that asks or sends more than others slows down itself. Who comes back after a pause begins with
what the least have been charged: nobody saves up. Who sends more than any robot may (`excess`),
such as seconds that come faster than time passes, is charged FLOOD_CHARGE times what it takes
until FLOOD_S after that, so that a flood costs the others a part of a share, not a whole one.

An error of one robot ends its engine alone. An error of llama.cpp costs all of them their windows,
and is survived as Engine says.
"""

import logging
import math
import threading
import time

from minicpmo_ros.errors import CancelledError, EngineError, Error
from minicpmo_ros.live.arbiter import Priority
from minicpmo_ros.live.question import Finish
from minicpmo_ros.llm.context import AbortFlag, Context

log = logging.getLogger(__name__)

SHORTEST_WAIT_S = 0.01  # for a deadline in simulated time, which may be slow
SLACK_S = 0.1  # of computing: as much as robots may be ahead of each other
FLOOD_CHARGE, FLOOD_S = 4, 10.0


class EngineThread:
    """Works for the engines that are added, until they are closed; used from any thread.

    `wake` guards what engines share with other threads. `abort` ends a decode.
    """

    def __init__(self):
        self.wake, self.abort = threading.Condition(), AbortFlag()
        self.new_size = None  # (positions, bytes) that were requested
        self.engines, self._open = [], []  # in the order of joining; of them, those that loaded
        self._thread = None
        self._begun_s = None  # monotonic: the start of the present piece of work
        self._shares = Shares()

    def add(self, engine) -> None:
        """Load and work for an engine until it is closed or fails; the caller holds `wake`."""
        self.engines.append(engine)
        self.abort.clear()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name='llm', daemon=True)
            self._thread.start()
        self.wake.notify_all()

    @property
    def is_current(self) -> bool:
        """Whether this is the thread that asks."""
        return self._thread is threading.current_thread()

    @property
    def busy_s(self) -> float:
        """How long the present piece of work has taken; 0: there is none."""
        now_s = time.monotonic()
        return max(0.0, now_s - (self._begun_s or now_s))

    def resize(self, n_ctx: int, max_copy_bytes: float) -> None:
        """Resize the context once no question is being answered; no other begins before."""
        with self.wake:
            self.new_size = n_ctx, max_copy_bytes
            self.wake.notify_all()

    def stop_decode_for_nobody(self) -> None:
        """Stop the decode if all engines are closing; the caller holds `wake`."""
        if all(engine.is_closing for engine in self.engines):
            self.abort.set()

    def _run(self) -> None:
        while self._come_and_go():
            try:
                with self.wake:
                    while not self._has_work():
                        self.wake.wait(self._due_s())
                    self._begun_s = time.monotonic()
                self._work()
            except Exception as error:  # in none of the engines: of all of them
                self._fail_all(error)
            self._begun_s = None

    def _come_and_go(self) -> bool:
        """End the engines that are closing, then load new ones; return False if none is left."""
        with self.wake:
            closing = [engine for engine in self.engines if engine.is_closing]
        for engine in closing:
            self._end(engine)
        with self.wake:
            new = [engine for engine in self.engines if engine not in self._open]
        for engine in new:
            try:
                engine.open()
                self._open.append(engine)
            except CancelledError:
                self._end(engine)
            except Exception as error:
                self._fail(engine, error)
        with self.wake:
            if not self.engines:
                self._thread = None
            return self._thread is not None

    def _end(self, engine, error: Exception | None = None) -> None:
        self._open = [one for one in self._open if one is not engine]
        self._shares.forget(engine)
        try:
            engine.end(error)
        except Exception:  # the engines of the other robots go on
            log.exception('an engine has not ended as it should')
        with self.wake:
            self.engines.remove(engine)

    def _fail(self, engine, error: Exception) -> None:
        if not isinstance(error, Error):
            log.exception('the engine failed')
        if engine in self.engines:
            self._end(engine, error)

    def _has_work(self) -> bool:
        has_work = [engine.has_work for engine in self.engines]  # of each: it closes units
        is_new = len(self._open) < len(self.engines)
        return any(has_work) or is_new or self.new_size is not None

    def _due_s(self) -> float | None:
        due_s = [due_s for engine in self._open if (due_s := engine.due_s) is not None]
        return max(SHORTEST_WAIT_S, min(due_s)) if due_s else None

    def _work(self) -> None:
        """Do one piece of work for each engine."""
        self._for_each(lambda engine: engine.reset_window())
        self._resize()
        self._for_each(self._begin)
        engines = [engine for engine in self._open if not engine.is_closing]
        self._shares.watch({engine: engine.excess for engine in engines}, time.monotonic())
        try:
            self._read(engines)
        except CancelledError:
            pass  # the engines are closing
        except EngineError as error:
            self._rebuild(error)
        self._for_each(lambda engine: engine.let_others())

    def _for_each(self, work) -> None:
        """Do something for each engine; an error is that engine's alone."""
        for engine in list(self._open):
            if engine.is_closing:
                continue
            try:
                work(engine)
            except Exception as error:
                self._fail(engine, error)

    def _begin(self, engine) -> None:
        began_s = time.monotonic()
        if engine.is_asked:
            engine.answers.end_expired()
            engine.begin_questions()
        self._shares.charge(engine, time.monotonic() - began_s)

    def _resize(self) -> None:
        with self.wake:
            if self.new_size is None or any(engine.answers.running for engine in self._open):
                return
            size, self.new_size = self.new_size, None
        try:
            for engine in self._open[:1]:
                with engine.arbiter.hold(Priority.UNIT):
                    engine.session.resize(*size)
        except EngineError as error:  # unless that fails too, in the former size it goes on
            log.warning('the context does not become one of %d positions: %s', size[0], error)
        except Exception as error:
            self._fail_all(error)
        self._for_each(lambda engine: engine.update_status('resizes'))

    def _rebuild(self, error: EngineError) -> None:
        self._for_each(lambda engine: engine.answers.end_all(Finish.ERROR, error))
        log.error('the window is lost and the context is rebuilt: %s', error)
        try:
            for engine in self._open[:1]:
                with engine.arbiter.hold(Priority.UNIT):
                    engine.session.rebuild()
        except Exception as failure:
            self._fail_all(failure)
        self._for_each(lambda engine: engine.note_rebuild(error))

    def _fail_all(self, error: Exception) -> None:
        for engine in list(self._open):
            self._fail(engine, error)

    def _read(self, engines: list) -> None:
        """Read in one decode what those may read whose turn it is."""
        waiting, rows = [], {}
        try:
            for engine in self._shares.in_turn(engines):
                steps = self._guarded(engine, engine.reading(self._room(engine, rows)))
                if (pieces := next(steps, None)) is not None:
                    waiting.append((steps, pieces))
                    rows[engine] = sum(len(piece.rows) for piece in pieces)
            if waiting:
                self._read_together(waiting, rows)
        except BaseException:
            for steps, _ in waiting:
                steps.close()
            raise

    def _room(self, engine, rows: dict) -> float:
        """Return how many rows one more may read beside those of the others."""
        return engine.session.context.n_batch - sum(rows.values()) if rows else math.inf

    def _read_together(self, waiting: list, rows: dict) -> None:
        began_s, context = time.monotonic(), next(iter(rows)).session.context
        try:
            read_together(context, waiting)
        finally:
            spent_s = time.monotonic() - began_s
            for engine, n_rows in rows.items():
                self._shares.charge(engine, spent_s * n_rows / sum(rows.values()))

    def _guarded(self, engine, steps):
        """Let an unforeseen error end this engine alone."""
        try:
            yield from steps
        except (CancelledError, EngineError):
            raise
        except Exception as error:
            self._fail(engine, error)


def read_together(context: Context, waiting: list) -> None:
    """Read what the steps of several sessions yield, in one decode as often as there is something.

    `waiting`: (steps, the Pieces that they have yielded). What is wrong with the pieces of one is
    thrown into its steps. An error of the context ends all of them, and is raised.
    """
    try:
        while waiting:
            waiting = _read_once(context, waiting)
    except BaseException:
        for steps, _ in waiting:
            steps.close()
        raise


def _read_once(context: Context, waiting: list) -> list:
    """Read the pieces of all; return [(steps, next pieces)] of those that go on."""
    if len(waiting) == 1:
        return _read_one(context, *waiting[0])
    try:
        logits = context.decode([piece for _, pieces in waiting for piece in pieces])
    except (CancelledError, EngineError):
        raise
    except Exception:  # one of them is to blame
        return [one for each in waiting for one in _read_one(context, *each)]
    going_on, begin = [], 0
    for steps, pieces in waiting:
        found, begin = logits[begin : begin + len(pieces)], begin + len(pieces)
        going_on += [(steps, pieces) for pieces in _resume(steps.send, found)]
    return going_on


def _read_one(context: Context, steps, pieces: list) -> list:
    try:
        logits = context.decode(pieces)
    except Exception as error:
        return [(steps, pieces) for pieces in _resume(steps.throw, error)]
    return [(steps, pieces) for pieces in _resume(steps.send, logits)]


def _resume(resume, what) -> list:
    """Return [what the steps yield next], or [] where they have ended."""
    try:
        return [resume(what)]
    except StopIteration:
        return []


class Shares:
    """How long each engine has used the device, and so whose turn it is."""

    def __init__(self):
        self._charged_s = {}  # by engine
        self._least_s = 0.0  # that one has been charged, of those that needed the device
        self._needing = ()  # the engines that needed it in the pass before
        self._excess = {}  # by engine: how much it was sent beyond its own, and when last
        self._flooding = set()

    def watch(self, counts: dict, now_s: float) -> None:
        """Note how much each engine has been sent beyond its own until now."""
        for engine, count in counts.items():
            before, _ = self._excess.get(engine, (0, 0.0))
            if count > before:
                self._excess[engine] = count, now_s
        self._flooding = {
            engine for engine, (_, since_s) in self._excess.items() if now_s - since_s < FLOOD_S
        }

    def charge(self, engine, spent_s: float) -> None:
        """Charge an engine for what was computed for it."""
        times = FLOOD_CHARGE if engine in self._flooding else 1
        self._charged_s[engine] = self._charged_s.get(engine, self._least_s) + times * spent_s

    def forget(self, engine) -> None:
        """Forget an engine that has ended."""
        self._charged_s.pop(engine, None)
        self._excess.pop(engine, None)

    def in_turn(self, engines: list) -> list:
        """Return those that may use the device now, who has used it least first."""
        needing = [engine for engine in engines if engine.needs_device]
        for engine in needing:
            if engine not in self._needing:
                charged_s = self._charged_s.get(engine, self._least_s)
                self._charged_s[engine] = max(charged_s, self._least_s)
        self._needing = tuple(needing)
        if not needing:
            return engines
        charged_s = {engine: self._charged_s.get(engine, self._least_s) for engine in engines}
        self._least_s = min(charged_s[engine] for engine in needing)
        may = [engine for engine in engines if charged_s[engine] <= self._least_s + SLACK_S]
        return sorted(may, key=charged_s.get)
