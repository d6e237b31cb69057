# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Robots that ask one engine, or several, for so many answers: what benchmarks/robots.py measures.

Import it after minicpmo_ros.process.prepare.
"""

import itertools
import math
import threading
import time
from dataclasses import replace
from functools import partial

import numpy as np

from minicpmo_ros.errors import BusyError
from minicpmo_ros.families.minicpm_o_2_6 import ENGLISH
from minicpmo_ros.live.engine import Engine
from minicpmo_ros.live.engine_thread import EngineThread
from minicpmo_ros.live.question import EvidenceOptions, Finish, Question
from minicpmo_ros.live.session import Session
from minicpmo_ros.live.session_options import SessionOptions
from minicpmo_ros.live.status import EngineOptions
from minicpmo_ros.llm.context_options import ContextOptions
from minicpmo_ros.llm.model import ModelOptions

FOR_EVER_S = 600  # for what takes a minute at most on two idle cores
UNITS, TOKENS = 3, 24  # seconds in a window to begin with; of an answer
WINDOW = ContextOptions(n_ctx=2048, threads=1, attention='fused')
OPTIONS = SessionOptions(max_tokens=TOKENS, max_question_tokens=40, max_forks=4)
FLOOD_QUESTIONS = 24  # at once: those being answered, those that wait, and some that are refused
FLOOD_EVERY_S = 0.02  # of 1 s or more that reading a second takes


class Group:
    """Engines of so many robots on one thread, in one context."""

    def __init__(self, path, n: int, window: ContextOptions = WINDOW, repack: bool = True):
        self._shared, self._change, self._failure = None, threading.Condition(), ''
        options = EngineOptions(0.0, max_backlog=2, evidence=EvidenceOptions('none'))
        thread = EngineThread()

        def load(_, abort):
            if self._shared is not None:
                return Session(self._shared.model, ENGLISH, options=OPTIONS, shared=self._shared)
            given = replace(window, n_windows=n)
            model_options = ModelOptions(repack=repack)
            session = Session.load(path, ENGLISH, model_options, given, OPTIONS, abort=abort)
            self._shared = session.shared
            return session

        self.engines = [
            Engine(load, options, on_change=self.note, thread=thread) for _ in range(n)
        ]
        for engine in self.engines:
            engine.start()
        self.until(lambda: all(each.status().state == 'ready' for each in self.engines))
        self.robots = []

    def fill(self, first: int = 0) -> 'Group':
        """Give each engine a robot, and its window seconds; return the group."""
        self.robots = [Robot(self, each, n) for n, each in enumerate(self.engines, first)]
        for robot in self.robots:
            robot.fill()
        return self

    def tokens(self) -> list:
        """Return how many tokens of answers each robot has."""
        return [robot.tokens for robot in self.robots]

    def note(self, _=None) -> None:
        """Look again at what is waited for."""
        with self._change:
            self._change.notify_all()

    def fail(self, why: str) -> None:
        """End what waits."""
        self._failure = why
        self.note()

    def until(self, condition) -> None:
        """Wait for something that a change of a status or an answer may bring."""
        with self._change:
            is_true = self._change.wait_for(lambda: self._failure or condition(), FOR_EVER_S)
        if self._failure or not is_true:
            states = [each.status() for each in self.engines]
            raise SystemExit(f'{self._failure or "waited in vain"}: {states}')

    def close(self) -> None:
        """End all of them."""
        for engine in self.engines:
            engine.close(FOR_EVER_S)


class Robot:
    """One robot that asks its next question when one was answered."""

    def __init__(self, group: Group, engine: Engine, number: int):
        self._group, self._engine = group, engine
        rng, width = np.random.default_rng(number), engine.session.model.width
        self._rows = [rng.normal(size=(n, width)).astype(np.float32) for n in (64, 25)]
        self.tokens = self.answers = self.sent = 0
        self._open, self._numbers = {}, itertools.count()  # PendingQuestions by number
        self._left, self._at_once, self._per = 0, 0, 0
        self._lock = threading.Lock()

    def put(self) -> None:
        """Send a second of random embeddings."""
        image, audio = self._rows
        self._engine.put_image(self.sent, image)
        self._engine.put_audio(self.sent, audio)
        self.sent += 1

    def fill(self) -> None:
        """Send UNITS seconds, each when the one before has been read."""
        for _ in range(UNITS):
            self.put()
            self._group.until(lambda: self.units_read == self.sent)

    @property
    def units_read(self) -> int:
        """How many seconds have been read."""
        return self._engine.status().units_read

    def begin(self, answers: float, at_once: int = 1, per: int = 0) -> None:
        """Ask so many questions, so many at once, and read a second with every `per` answers."""
        self._left, self._at_once, self._per = answers, at_once, per
        self.go_on()

    @property
    def is_done(self) -> bool:
        """Whether all is answered, and read."""
        status = self._engine.status()
        is_read = status.units_read + status.units_dropped == self.sent
        return not self._left and not self._open and is_read

    def stop(self) -> None:
        """Ask no more, and cancel what was asked."""
        self._left = 0
        with self._lock:
            given_up = list(self._open.values())
        for pending in given_up:
            pending.cancel()
        self._group.until(lambda: self.is_done and not self._engine.status().answering)

    def go_on(self) -> None:
        """Ask what is wanted and not asked yet."""
        with self._lock:
            while self._left and len(self._open) < self._at_once:
                number = next(self._numbers)
                done = partial(self._done, number)
                try:
                    self._open[number] = self._engine.ask(Question('what is it'), on_done=done)
                except BusyError:
                    return
                self._left -= 1

    def _done(self, number: int, answer) -> None:
        if answer.finish == Finish.ERROR:
            self._group.fail(f'an answer failed: {answer.reason}')
        with self._lock:
            del self._open[number]
            self.tokens += answer.answer_tokens
            self.answers += 1
        if self._per and self.answers % self._per == 0:
            self.put()
        self.go_on()
        self._group.note()


def measure(group: Group, answers: int, per: int = 0, beside: str = '') -> dict:
    """Let the robots get so many answers each.

    beside: the last one asks, or floods, until the others have theirs; '': it is as the others.
    Returns the tokens of each, the CPU time, and the begin and the end on the clock.
    """
    robots, last = group.robots[:-1] if beside else group.robots, group.robots[-1]
    before, begun_s, begun_cpu_s = group.tokens(), time.monotonic(), time.process_time()
    for robot in robots:
        robot.begin(answers, per=per)
    if beside:
        last.begin(math.inf, FLOOD_QUESTIONS if beside == 'floods' else 1)
    while beside == 'floods' and not all(robot.is_done for robot in robots):
        last.put()
        last.go_on()
        time.sleep(FLOOD_EVERY_S)
    group.until(lambda: all(robot.is_done for robot in robots))
    cpu_s, end_s = time.process_time() - begun_cpu_s, time.monotonic()
    tokens = [now - then for now, then in zip(group.tokens(), before)]
    last.stop()
    if not all(tokens[: len(robots)]):
        raise SystemExit(f'a robot got answers without a token, so rates tell nothing: {tokens}')
    return {'tokens': tokens, 'cpu_s': cpu_s, 'begun_s': begun_s, 'end_s': end_s}
