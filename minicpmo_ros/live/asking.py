# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A question on its way through the engine, and the callbacks that hear of it."""

import logging
import time
from collections.abc import Callable

from minicpmo_ros.live.question import Answer, Question

log = logging.getLogger(__name__)


class Asking:
    """What Engine.ask gives back.

    `on_delta(text)` hears the pieces of the answer, which joined are its text; then
    `on_done(answer)` is called, exactly once. Either may be None.
    """

    def __init__(
        self,
        question: Question,
        on_delta: Callable[[str], None] | None,
        on_done: Callable[[Answer], None] | None,
        wake: Callable[[], None],
    ):
        self.question, self.asked_s = question, time.monotonic()
        self.cancelled = False
        self._on_delta, self._on_done, self._wake = on_delta, on_done, wake
        self._n_told = 0  # characters

    def cancel(self) -> None:
        """Take the question back; a second time, or after the answer, it does nothing."""
        self.cancelled = True
        self._wake()

    def tell(self, text: str) -> None:
        """Hand on a piece of the answer; for the engine."""
        self._n_told += len(text)
        if text and self._on_delta is not None:
            call_safely(self._on_delta, text)

    def finish(self, answer: Answer) -> None:
        """Hand on the answer; for the engine."""
        self.tell(answer.text[self._n_told :])
        if self._on_done is not None:
            call_safely(self._on_done, answer)


def call_safely(callback, argument) -> None:
    """Call back; what it raises is logged, and ends nothing."""
    try:
        callback(argument)
    except Exception:
        log.exception('a callback of the engine failed')
