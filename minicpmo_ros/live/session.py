# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""One live window in a language model, and the forks on which questions about it are answered.

One sequence holds the system prompt and the units. A question is read and answered on a fork of
it, which shares the window as it was and is dropped afterwards: the window never sees it. Up to
`max_forks` live at once, and what they read next is read in one decode, alone or with a unit:

    generations = [session.ask(question) for question in questions]
    while generations:  # a tick of the engine
        reads = [generation.next_read() for generation in generations]
        logits = session.read(reads)  # or, with a unit: session.append(unit, reads, riders).logits
        for generation, found in zip(generations, logits):
            generation.take(found)
        generations = [generation for generation in generations if generation.answer is None]

Riders are questions about the very unit that they ride with, (n, width) rows each: every one is
read on a fork of its own, which sees the unit and is forgotten at once. `report.riders` has the
logits behind each; None for one that there was no sequence or no room for.

Space for the longest question and answer is reserved. A fork takes what its own question and
answer can need; the window may borrow the rest, riders too. When that is used up old units are
evicted, also from the forks that share them. A question has to wait where forks would leave less
than half of the window (`can_fork`). Sessions in one SharedContext may read in one decode what
`appending` and `reading` yield. One thread uses them.
"""

import math
import time
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from functools import cached_property

import numpy as np

from minicpmo_ros.errors import ContextFullError, InputError
from minicpmo_ros.families.base import PromptLayout
from minicpmo_ros.live.generation import Generation
from minicpmo_ros.live.question import Question
from minicpmo_ros.live.session_options import SessionOptions, UnitReport
from minicpmo_ros.live.shared_context import SharedContext, read_alone
from minicpmo_ros.live.window import Fork, Forks, Window, grouped
from minicpmo_ros.llm.context import AbortFlag, Piece, copies
from minicpmo_ros.llm.context_options import ContextOptions, cells
from minicpmo_ros.llm.model import LanguageModel, ModelOptions
from minicpmo_ros.llm.prompt import CompiledPrompt
from minicpmo_ros.streams.pairing import Unit
from minicpmo_ros.voice.hearing import Tail

LIVE = 0  # the sequence of the first window; those behind the windows' are for forks
LEAST_ROOM = 256  # positions of the smallest window: two seconds of images and audio
WAIT = 'The answers that are being given hold the room; wait.'


class Session:
    """A window over a loaded model; the session owns both, with the others in `shared`."""

    def __init__(
        self,
        model: LanguageModel,
        layout: PromptLayout,
        context_options: ContextOptions | None = None,
        options: SessionOptions | None = None,
        abort: AbortFlag | None = None,
        shared: SharedContext | None = None,
    ):
        self.model, self.options = model, options or SessionOptions()
        self.shared = shared or SharedContext(
            model, context_options or ContextOptions(), self.options.max_forks, abort
        )
        self._n_turns = 0  # that were remembered
        self.epoch = 0  # grows whenever the window begins anew
        self.evicted = 0  # units, to make room for newer ones or for a remembered turn
        self.prompt = CompiledPrompt(
            layout,
            model.vocabulary,
            model.token_rows,
            self.options.speech,
            self.options.system_text or None,
        )
        self.context = self.window = self.forks = None  # once it is open
        self.sequence = self.shared.add(self)  # of the window
        try:
            self.open()
        except BaseException:
            self.shared.remove(self)
            raise

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

    def append(self, unit: Unit, reads=(), riders=()) -> UnitReport:
        """Read one second at the live end, with forks' reads; evict old units if space is short.

        All is read completely or nothing is. Raises InputError for embeddings that do not fit,
        ContextFullError when there is no space (see `can_append`), CancelledError, EngineError.
        """
        return read_alone(self.context, self.appending(unit, reads, riders))

    def appending(self, unit: Unit, reads=(), riders=()):
        """As `append`, in steps: yield Pieces to decode, take their logits, return the report.

        Until it has ended nothing else may be done with the session.
        """
        if unit.restarted:
            self.reset()
        if unit.window is not None:
            self.keep(unit.window)
        started_s = time.perf_counter()
        rows, is_still = self._make_room_for(unit, riders)
        room = self.forks.n_unreserved() - len(rows)
        first, *others = (riders and [*grouped(riders, self.shared.n_free(self), room)]) or [[]]
        logits, found = yield from self._reading(reads, [riders[i] for i in first], rows)
        self.window.append_unit(unit, len(rows), is_still)
        if others:
            logits, found = copies(logits), copies(found)
        riding = dict(zip(first, found))
        for places in others:
            _, found = yield from self._reading((), [riders[i] for i in places])
            riding.update(zip(places, copies(found)))
        told = logits, [riding.get(i) for i in range(len(riders))]
        spent_ms = 1e3 * (time.perf_counter() - started_s)
        return UnitReport(unit.second, len(rows), spent_ms, *told)

    def read(self, reads) -> list:
        """Read what forks read next in one decode; return the logits of each, as `append`."""
        return read_alone(self.context, self.reading(reads))

    def reading(self, reads):
        """As `read`, in steps as `appending`."""
        logits, _ = yield from self._reading(reads, ())
        return logits

    @property
    def reads_apart(self) -> bool:
        """Whether each question is read in a decode of its own: a CPU's time goes by the rows."""
        return not self.model.on_gpu

    def rewind(self, fork: Fork, n_kept: int) -> None:
        """Forget what a fork has read behind the first `n_kept` positions of its own."""
        self.context.remove(fork.sequence, fork.forked_at + n_kept, -1)

    def can_append(self, unit: Unit) -> bool:
        """Return False while answers leave no space for the unit, even in an empty window."""
        if not self.forks.living:
            return True
        try:
            n_rows = len(self.unit_rows(unit))
        except InputError:
            return True  # append will say why not
        return self.window.prefix + n_rows <= self.forks.window_limit()

    def ask(
        self,
        question: Question,
        asked_s: float | None = None,
        between: Callable[[], None] | None = None,
        tail: Tail | None = None,
    ) -> Generation:
        """Fork the window for a question; raise InputError if it cannot be answered as asked.

        `asked_s`: time.monotonic() of its arrival; default now. `between`: see Generation.
        `tail`: a second that has not ended, which only this question reads.
        """
        asked_s = time.monotonic() if asked_s is None else asked_s
        return Generation(self, question, asked_s, between, tail)

    def fork(self, n_positions: int, is_empty: bool = False) -> Fork:
        """Return a sequence that shares the window as it is now and may grow by `n_positions`.

        `is_empty`: it shares the system prompt alone. Evicts old units if space is short. Raises
        ContextFullError where forks would leave less than half of the window, ValueError if there
        are `max_forks` already.
        """
        living, n_unreserved = self.forks.living, self.forks.n_unreserved()
        if len(living) >= self.options.max_forks:
            raise ValueError(f'{len(living)} questions are being answered; end one first')
        if not self.can_fork(n_positions):
            raise ContextFullError(n_positions, n_unreserved, WAIT)
        self.evict(self.window.spans_to_evict(n_positions, self.window.end + n_unreserved))
        (sequence,), drop = self.shared.take(self, 1), lambda: self._drop(fork)
        shared_end = self.window.prefix if is_empty else self.window.end
        fork = Fork(sequence, shared_end, n_positions, self.forks.n_resets, drop)
        self.context.copy(self.sequence, fork.sequence, fork.forked_at)
        living.append(fork)
        return fork

    def can_fork(self, n_positions: int) -> bool:
        """Return whether `fork` has a sequence, and room that leaves half of the window."""
        window_limit = self.window.end + self.forks.n_unreserved() - n_positions
        return self.shared.n_free(self) > 0 and window_limit >= self.window.capacity // 2

    def remember(self, question_ids: list, answer_ids: list, end_id: int | None = None) -> int:
        """Read a question and its answer at the live end, as the next turn of the conversation.

        `end_id`: the token that ended the answer; None if the answer was cut. Returns the number
        of the turn, for `forget`.
        """
        rows = self.prompt.turn(question_ids, answer_ids, end_id)
        self._make_room(len(rows))
        read_alone(self.context, self._reading((), (), rows))
        self._n_turns += 1
        self.window.append_turn(len(rows), self._n_turns)
        return self._n_turns

    def forget(self, turn: int) -> bool:
        """Take a remembered turn out of the window; return whether it was there."""
        spans = [span for span in self.window.spans if span.turn == turn]
        self.evict(spans)
        return bool(spans)

    def keep(self, seconds) -> None:
        """Evict the units of all other seconds."""
        kept = {None, *seconds}
        self.evict([span for span in self.window.spans if span.second not in kept])

    def reset(self) -> None:
        """Empty the window; running answers keep their evidence."""
        self.forks.n_resets += 1
        self.epoch += 1
        self.window.remove(self.window.spans)
        self.context.remove(self.sequence, self.window.prefix, -1)

    def rebuild(self) -> None:
        """Create a new context after an EngineError; all windows in it are lost."""
        self.shared.reopen()

    @cached_property
    def smallest_context(self) -> int:
        """Smallest context that `resize` accepts; its window holds about two seconds."""
        least = len(self.prompt.prefix) + self._reserve + LEAST_ROOM
        return cells(max(least, self.shared.options.n_batch))

    def resize(self, n_ctx: int, max_copy_bytes: float = math.inf) -> None:
        """Replace the context by one of another size; keep the newest units that fit into it.

        This is the only way to return memory, because llama.cpp allocates keys and values in one
        piece, for all windows. The units that stay are copied aside; those beyond
        `max_copy_bytes` are evicted. After an EngineError the session continues in its former
        size; if that fails too, the session must not be used any more.
        """
        self.shared.resize(n_ctx, max_copy_bytes)

    def close(self) -> None:
        """Free the window, and with the last one the context and the model."""
        if self.shared.remove(self):
            self.model.close()

    def _drop(self, fork: Fork) -> None:
        """Free the cells of a fork; after the last one, evict what the window has borrowed."""
        if fork not in self.forks.living:
            return  # dropped before, or lost with its context
        self.forks.living.remove(fork)
        self.context.remove(fork.sequence, 0, -1)
        self.shared.give_back([fork.sequence])
        if not self.forks.living:
            self._make_room(0)

    @property
    def _reserve(self) -> int:
        """Positions that are reserved for the longest question and answer."""
        options = self.options
        return len(self.prompt.question([])) + options.max_question_tokens + options.max_tokens

    def pack(self, n_ctx: int, max_copy_bytes: float) -> tuple | None:
        """Evict what will not fit; return (state, spans) of the rest, or None if nothing fits."""
        window, prefix = self.window, self.window.prefix
        per_position = self.context.state_bytes(self.sequence) / window.end
        room = int(min(n_ctx - self._reserve, max_copy_bytes / per_position))
        if room < prefix:
            self.evicted += len(window.seconds)
            return None
        window.capacity = room
        self.evict(window.spans_to_evict(0, room))
        end = self.context.next_position(self.sequence)
        self.context.read(self.prompt.prefix[-1:], self.sequence)  # closes the gaps; removed again
        self.context.remove(self.sequence, end, -1)
        return self.context.save(self.sequence), window.spans

    def open(self, carried: tuple | None = None) -> None:
        """Begin a window in the shared context, empty or with what was `carried` over."""
        self.epoch += carried is None
        if self.forks is not None:
            self.forks.living.clear()  # they were lost with the context before
        self.context = self.shared.context()
        prefix, reserve, options = self.prompt.prefix, self._reserve, self.options
        capacity = self.context.n_ctx - reserve
        if len(prefix) >= capacity:
            raise InputError(
                f'n_ctx is {self.context.n_ctx}, but the system prompt takes '
                f'{len(prefix)} positions and a question with its answer {reserve}. '
                'Raise n_ctx, or lower max_tokens or max_question_tokens.'
            )
        self.window = Window(len(prefix), capacity, options.window_policy, options.still)
        self.forks = Forks(self.window, self.context.n_ctx)
        if carried is None:
            self.context.read(prefix, self.sequence)
        else:
            state, self.window.spans = carried
            self.context.restore(self.sequence, state)

    def unit_rows(self, unit: Unit, is_still: bool = False) -> np.ndarray:
        """Return what is read of a unit, (n, width); raise InputError if it does not fit."""
        image_rows = None if is_still else unit.image_rows
        return self.prompt.unit(image_rows, *unit.tiles[:2], unit.audio_rows, unit.cameras)

    def _make_room(self, n_rows: int) -> None:
        """Evict what keeps `n_rows` from the window, also from the forks that share it."""
        limit = self.forks.window_limit()
        if self.forks.living and self.window.prefix + n_rows > limit:
            raise ContextFullError(n_rows, limit - self.window.prefix, WAIT)
        self.evict(self.window.spans_to_evict(n_rows, limit))

    def _make_room_for(self, unit: Unit, riders) -> tuple:
        """Evict for a unit and what rides with it; return its rows, and whether it is still."""
        is_still = self.window.is_still(unit)
        rows = self.unit_rows(unit, is_still)
        self._make_room(len(rows))
        if self.forks.living:  # without them there is room for riders
            room = self.forks.window_limit() - self.window.prefix - len(rows)
            self._make_room(len(rows) + max((n for n in map(len, riders) if n <= room), default=0))
        has_left = is_still and not self.window.is_still(unit)  # the image that it goes without
        return self._make_room_for(unit, riders) if has_left else (rows, is_still)

    def evict(self, spans: list) -> None:
        """Take spans out of the window and of the forks that share them."""
        self.evicted += sum(span.second is not None for span in spans)
        self.forks.note_evicted(spans)
        for start, end in self.window.remove(spans):
            own, strangers = self.forks.shared_ends(), self.shared.strangers(self)
            self.context.close_gap(start, end, self.sequence, own, strangers)
            self.forks.move_up(start, end)

    def _reading(self, reads, riders, live_rows: np.ndarray | None = None):
        """Read what forks read, rows at the live end, and riders behind them, in one decode.

        Steps, as `appending`; returns the logits of reads and of riders (None: no sequence left).
        """
        for fork, rows, _ in reads:
            if fork not in self.forks.living:
                raise ValueError('this fork was dropped, or lost with its context')
            if self.context.next_position(fork.sequence) + len(rows) > fork.end:
                raise ValueError(f'{len(rows)} rows are more than this fork has reserved')
        with self._riding(len(riders)) if riders else nullcontext(()) as sequences:
            pieces = [Piece(rows, (fork.sequence,), n) for fork, rows, n in reads]
            if live_rows is not None:
                pieces.append(Piece(live_rows, (self.sequence, *sequences)))
            n_before = len(pieces)
            pieces += [Piece(rows, (sequence,), 1) for rows, sequence in zip(riders, sequences)]
            logits = yield pieces
        riding = [found[0] for found in logits[n_before:]]
        return logits[: len(reads)], riding + [None] * (len(riders) - len(riding))

    @contextmanager
    def _riding(self, n: int):
        """Give sequences that share the window as it is now, and forget them at the end."""
        sequences = self.shared.take(self, min(n, self.shared.n_free(self)))
        try:
            for sequence in sequences:
                self.context.copy(self.sequence, sequence, self.window.end)
            yield sequences
        finally:
            for sequence in sequences:
                self.context.remove(sequence, 0, -1)
            self.shared.give_back(sequences)
