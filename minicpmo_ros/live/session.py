# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""One live window in a language model, and the question that is forked from it.

Sequence 0 holds the system prompt and the units. A question is read and answered on sequence 1,
a fork of sequence 0 at its last whole unit, and dropped: the live window never sees it, and goes
on growing meanwhile. Room for the longest question and answer is always kept; what the one that
is being answered does not need of it is lent to the window. Units leave only while no fork shares
their cells, because what stays must move then: where the room is used up during an answer, the
next unit waits for its end (`can_append`). One thread uses a session.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from minicpmo_ros.errors import ContextFullError, EngineError, InputError
from minicpmo_ros.language.context import AbortFlag, Context, ContextOptions
from minicpmo_ros.language.model import LanguageModel, ModelOptions
from minicpmo_ros.language.prompt import CompiledPrompt, PromptLayout
from minicpmo_ros.language.sampling import SamplingOptions
from minicpmo_ros.live.answering import Answering
from minicpmo_ros.live.question import Question
from minicpmo_ros.live.units import Unit
from minicpmo_ros.live.window import Window
from minicpmo_ros.models.llm_memory import cells

LIVE, FORK = 0, 1  # sequences
LEAST_ROOM = 256  # positions of the smallest window: two seconds of picture and sound


@dataclass(frozen=True)
class SessionOptions:
    """What a session allows a question, and how it answers."""

    max_tokens: int = 256  # of an answer
    max_question_tokens: int = 384
    window_policy: str = 'recent'  # who leaves when room is short: recent, long (window.py)
    speech: bool = False  # open answers in the form that prepares for a voice
    system_text: str | None = None  # None: the layout's own
    sampling: SamplingOptions = field(default_factory=SamplingOptions)


@dataclass(frozen=True)
class UnitReport:
    """What reading a unit took."""

    second: int
    rows: int
    prefill_ms: float


class Session:
    """A window over a loaded model; it owns both."""

    def __init__(
        self,
        model: LanguageModel,
        layout: PromptLayout,
        context_options: ContextOptions | None = None,
        options: SessionOptions | None = None,
        abort: AbortFlag | None = None,
    ):
        self.model, self.options = model, options or SessionOptions()
        self._context_options = replace(context_options or ContextOptions(), n_sequences=2)
        self._abort = abort
        self.evicted = 0  # units that left for newer ones or for a remembered turn
        self.prompt = CompiledPrompt(
            layout,
            model.vocabulary,
            model.token_rows,
            self.options.speech,
            self.options.system_text,
        )
        self._open()

    @classmethod
    def load(
        cls,
        path,
        layout: PromptLayout,
        model_options: ModelOptions | None = None,
        context_options: ContextOptions | None = None,
        options: SessionOptions | None = None,
        on_progress: Callable[[float], bool] | None = None,
        abort: AbortFlag | None = None,
    ) -> 'Session':
        """Load a model and open a session on it; see LanguageModel.load and Context."""
        model = LanguageModel.load(path, model_options, on_progress)
        try:
            return cls(model, layout, context_options, options, abort)
        except BaseException:
            model.close()
            raise

    def append(self, unit: Unit) -> UnitReport:
        """Read one second at the live end, evicting the oldest units where room is short.

        It is read whole or not at all. Raises InputError for embeddings that do not fit,
        ContextFullError where there is no room (see `can_append`), CancelledError, EngineError.
        """
        if unit.restarted:
            self.reset()
        rows = self._unit_rows(unit)
        started_s = time.perf_counter()
        self._make_room(len(rows))
        self._read_live(rows, unit.second)
        return UnitReport(unit.second, len(rows), 1e3 * (time.perf_counter() - started_s))

    def can_append(self, unit: Unit) -> bool:
        """Tell whether a unit must wait for the end of the answer, which holds the room."""
        if self._answering is None:
            return True
        try:
            return len(self._unit_rows(unit)) <= self._n_free()
        except InputError:
            return True  # append will say why not

    def ask(
        self,
        question: Question,
        asked_s: float | None = None,
        between: Callable[[], None] | None = None,
    ) -> Answering:
        """Fork the window for a question; InputError where it cannot be answered as asked.

        `asked_s`: time.monotonic() of its arrival; default now. `between`: see Answering.
        """
        if self._answering is not None:
            raise ValueError('one question is being answered; end it first')
        asked_s = time.monotonic() if asked_s is None else asked_s
        answering = Answering(self, question, asked_s, between)
        self.context.copy(LIVE, FORK, self.window.end)
        self._answering, self._forked_at = answering, self.window.end
        return answering

    def remember(self, question_ids: list, answer_ids: list) -> None:
        """Read a question and its answer at the live end, as the conversation's next turn."""
        rows = self.prompt.turn(question_ids, answer_ids)
        self._make_room(len(rows))
        self._read_live(rows, None)

    def reset(self) -> None:
        """Empty the window; a running answer keeps its evidence."""
        if self._answering is not None:
            self._held = self._forked_at - self.window.prefix
        self.window.remove(self.window.spans)
        self.context.remove(LIVE, self.window.prefix, -1)

    def rebuild(self) -> None:
        """Start anew after an EngineError: the window is lost."""
        self.context.close()
        self._open()

    @property
    def smallest_context(self) -> int:
        """How small `resize` can make the context: the window then holds little."""
        least = len(self.prompt.prefix) + self._reserve + LEAST_ROOM
        return cells(max(least, self._context_options.n_batch))

    def resize(self, n_ctx: int, max_copy_bytes: float = math.inf) -> None:
        """Go on in a context of another size, with the newest units that fit into it.

        Only that returns memory: keys and values lie in one piece that llama.cpp takes at the
        start. The units that stay are copied meanwhile; those that `max_copy_bytes` does not hold
        leave too. On EngineError the session goes on in its former size, or is not to be used.
        """
        if self._answering is not None:
            raise ValueError('a question is being answered; end it first')
        former, carried = self._context_options, self._pack(n_ctx, max_copy_bytes)
        self.context.close()
        try:
            self._context_options = replace(former, n_ctx=n_ctx)
            self._open(carried)
        except EngineError:
            self._context_options = former
            self._open(carried)
            raise

    def close(self) -> None:
        """Free the context and the model."""
        self.context.close()
        self.model.close()

    def read_fork(self, rows: np.ndarray, want_logits: bool) -> np.ndarray | None:
        """Read rows on the fork; for the answering. Logits are good until the next call."""
        return self.context.decode(rows, FORK, want_logits, self._logits)

    def drop_fork(self) -> None:
        """Give the fork's cells back, and take back what was lent; for the answering."""
        self._answering, self._held = None, 0
        self.context.remove(FORK, 0, -1)
        self._make_room(0)

    @property
    def _reserve(self) -> int:
        """Positions that are kept for the longest question and answer."""
        options = self.options
        return len(self.prompt.question([])) + options.max_question_tokens + options.max_tokens

    def _pack(self, n_ctx: int, max_copy_bytes: float) -> tuple | None:
        """Let go what does not fit; give (state, spans) of the rest, None where it is nothing."""
        window, prefix = self.window, self.window.prefix
        per_position = self.context.state_bytes(LIVE) / window.end
        room = int(min(n_ctx - self._reserve, max_copy_bytes / per_position))
        if room < prefix:
            self.evicted += len(window.seconds)
            return None
        window.capacity = room
        self._let_go(window.leaving(0))
        end = self.context.next_position(LIVE)
        self.context.decode(self.prompt.prefix[-1:], LIVE)  # it closes the gaps; and goes again
        self.context.remove(LIVE, end, -1)
        return self.context.save(LIVE), window.spans

    def _open(self, carried: tuple | None = None) -> None:
        """Make a context and a window, empty or with what was `carried` over."""
        self._answering = None
        self._logits = np.empty(self.model.vocabulary.size, np.float32)  # of the fork
        self._held = 0  # cells of units that left the window and live on in the fork
        self.context = Context(self.model, self._context_options, self._abort)
        prefix, reserve = self.prompt.prefix, self._reserve
        capacity = self.context.n_ctx - reserve
        if len(prefix) >= capacity:
            self.context.close()
            raise InputError(
                f'n_ctx is {self.context.n_ctx}, but the system prompt takes '
                f'{len(prefix)} positions and a question with its answer {reserve}. '
                'Raise n_ctx, or lower max_tokens or max_question_tokens.'
            )
        self.window = Window(len(prefix), capacity, self.options.window_policy)
        try:
            if carried is None:
                self._read_chunks(prefix)
            else:
                state, self.window.spans = carried
                self.context.restore(LIVE, state)
        except BaseException:
            self.context.close()
            raise

    def _unit_rows(self, unit: Unit) -> np.ndarray:
        return self.prompt.unit(unit.picture_rows, *unit.tiles, unit.sound_rows)

    def _n_free(self) -> int:
        """Return how many positions the window may take now without letting anything go."""
        limit = self.window.capacity
        if self._answering is not None:
            limit = self.context.n_ctx - self._answering.n_positions - self._held
        return limit - self.window.end

    def _make_room(self, n_rows: int) -> None:
        leaving = self.window.leaving(n_rows)
        if n_rows <= self._n_free():
            return
        if self._answering is not None:
            raise ContextFullError(
                n_rows, self._n_free(), 'The answer that is being given holds the room; wait.'
            )
        self._let_go(leaving)

    def _let_go(self, leaving: list) -> None:
        self.evicted += sum(span.second is not None for span in leaving)
        for start, end in self.window.remove(leaving):
            self.context.remove(LIVE, start, end)
            if end < self.context.next_position(LIVE):
                self.context.shift(LIVE, end, start - end)

    def _read_live(self, rows: np.ndarray, second: int | None) -> None:
        self._read_chunks(rows)
        self.window.append(second, len(rows))

    def _read_chunks(self, rows: np.ndarray) -> None:
        """Read rows at the live end, all or none."""
        start = self.context.next_position(LIVE)
        try:
            for begin in range(0, len(rows), self.context.n_batch):
                self.context.decode(rows[begin : begin + self.context.n_batch], LIVE)
        except BaseException as error:
            if not isinstance(error, EngineError):
                self.context.remove(LIVE, start, -1)
            raise
