# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The memory of a running robot: checked before a model is loaded, and kept within its bounds.

The check before loading says what to lower if a model does not fit. Without it, an overcommitting
system would kill the process in the middle of loading, or page the weights in and out for ever.

The memory guard of node `llm` measures memory, resizes the context and logs that. It runs in the
executor's thread; only the measuring runs in the watch's thread.
"""

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from minicpmo_ros.config import NODE_OF
from minicpmo_ros.errors import ModelFileError
from minicpmo_ros.memory.limits import (
    DoesNotFitError,
    Limits,
    MemoryBounds,
    MemoryGuard,
    Verdict,
    context_sizes,
    kv_mib_per_position,
    require_fit,
)
from minicpmo_ros.memory.plan import forecast, plan_options
from minicpmo_ros.memory.proc import MemoryWatch, available_mib, pss_mib, shares_memory_with_gpu
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.units import MIB

if TYPE_CHECKING:  # the process of an encoder alone does not load the engine
    from minicpmo_ros.live.engine import Engine
    from minicpmo_ros.live.status import EngineStatus

# Share of the available memory that the copy of the kept units may take during a resize.
COPY_SHARE = 0.5


def bounds_of(options) -> MemoryBounds:
    """Return the memory bounds set by the parameters of node `llm`."""
    return MemoryBounds(options.memory_limit_mib, options.memory_reserve_mib)


class MemoryBudget:
    """The memory of one process, shared by the nodes that load the parts of a model.

    Thread-safe. The memory of Python, ROS and a GPU's runtime is not planned for: most of it is in
    use already when a node loads.
    """

    def __init__(self):
        self._tables = {}  # ParameterTable of each part's node
        self._loaded = WeakValueDictionary()  # encoders by part, as long as they live
        self._loading = threading.Lock()

    def register(self, part: str, table) -> None:
        """Register the node of a part (llm, vision, audio) by its parameters."""
        self._tables[part] = table

    def load(self, part: str, model: ModelDirectory, make: Callable):
        """Return the encoder that `make()` loads; raise ModelFileError if it does not fit."""
        with self._loading:  # loading at once would count memory twice, as used and as needed
            self._require(model, [part], part, available_mib(beside=('self',)))
            encoder = self._loaded[part] = make()
        return encoder

    def require_llm(self, model: ModelDirectory) -> None:
        """Check that the language model fits, with what the other nodes here have still to load.

        Raises ModelFileError if it does not.
        """
        options = self._tables['llm'].values()
        with self._loading:
            missing = [
                part
                for part, table in self._tables.items()
                if part not in self._loaded and table.values().model_dir == options.model_dir
            ]
            bounds = bounds_of(options)
            room_mib = available_mib(beside=('self',)) - bounds.reserve_mib
            if bounds.limit_mib:
                room_mib = min(room_mib, bounds.limit_mib - pss_mib())
            self._require(model, missing, 'llm', room_mib)

    def _require(
        self, model: ModelDirectory, parts: Sequence[str], whose: str, room_mib: float
    ) -> None:
        given = {NODE_OF[part]: table.named() for part, table in self._tables.items()}
        plan = forecast(model, replace(plan_options(given), parts=tuple(parts)))
        # llama.cpp and ggml refuse what a GPU of its own memory has no room for.
        limits = Limits(max(0.0, room_mib), None if shares_memory_with_gpu() else math.inf)
        try:
            require_fit(model, plan, limits)
        except DoesNotFitError as error:
            with_others = ' with what else this process loads' if len(parts) > 1 else ''
            more = 'memory_limit_mib or memory_reserve_mib' if whose == 'llm' else ''
            raise ModelFileError(
                model.headers[whose].path,
                f'it needs {limits.needed_mib(plan):.0f} MiB{with_others}: {plan.parts_text()}; '
                f'there is room for {limits.host_mib:.0f}',
                f'{error.remedy} Or end other programs' + (f', or change {more}' if more else ''),
            ) from None


class MemoryLimiter:
    """Keeps one node's engine within the memory bounds of its parameters; `verdict` is the newest.

    beside(): called after each measurement, in the watch's thread. `group`: a RobotGroup, of which
    one node does it for all.
    """

    def __init__(self, node, beside: Callable[[], None] = lambda: None, group=None):
        self._node, self._beside, self._group = node, beside, group
        self._engine = self._guard = None
        self.verdict = Verdict(0)
        self._pending = False  # the engine has been asked for another size
        self._resizes, self._changed_s = 0, 0.0
        self._watch = MemoryWatch(
            self._on_look,
            # Only the measuring failed: restarting the node would lose the window for nothing.
            lambda error: node.faults.tell('the look at the memory', error, starts_anew=False),
        )

    @property
    def used_mib(self) -> float:
        """The memory that this process uses, MiB."""
        return self._watch.mib

    def begin(self, engine: 'Engine', model: ModelDirectory) -> None:
        """Guard an engine that has become ready."""
        status, options = engine.status(), plan_options({'llm': self._node.table.named()})
        n_windows = len(self._group.namespaces) if self._group is not None else 1
        per_position_mib = n_windows * kv_mib_per_position(
            model, options, shares_memory_with_gpu()
        )
        # Where a smaller window frees nothing here, none is made.
        smallest = status.smallest_context if per_position_mib else status.context_size
        sizes = context_sizes(status.context_size, smallest)
        self._guard = MemoryGuard(sizes, per_position_mib)
        self._engine, self._pending, self._resizes = engine, False, status.resizes
        self.verdict = Verdict(status.context_size)

    def end(self) -> None:
        """Guard nothing any more."""
        self._engine = self._guard = None
        self.verdict = Verdict(0)

    def close(self) -> None:
        """End the watch."""
        self._watch.close()

    def on_engine_status(self, status: 'EngineStatus') -> None:
        """Note whether the engine has resized its context."""
        if self._guard is not None and status.resizes != self._resizes:
            self._resizes, self._pending = status.resizes, False
            self._guard.settle(status.context_size)
            self.verdict = replace(self.verdict, n_ctx=status.context_size)
            self._changed_s = time.monotonic()
            self._watch.look_now()

    def diagnose(self, report) -> None:
        """Report the memory used, and what is given up."""
        report.tell('memory [MiB]', self.used_mib)
        text = f'{self.verdict.reason} {self.verdict.remedy}'
        if self.verdict.refuses:
            report.error(text)
        elif self.verdict.reason:
            report.warn(text)

    def _on_look(self, begun_s: float, used_mib: float, available_mib: float) -> None:
        self._node.post(lambda: self._look(begun_s, used_mib, available_mib))
        self._beside()

    def _look(self, begun_s: float, used_mib: float, available_mib: float) -> None:
        if self._guard is None or self._pending or begun_s < self._changed_s:
            return  # measured before the last change
        name = self._node.get_fully_qualified_name()
        if self._group is not None and not self._group.is_guard(name):
            return
        before, bounds = self.verdict, bounds_of(self._node.table.values())
        self.verdict = verdict = self._guard.look(used_mib, available_mib, bounds)
        if verdict.n_ctx != before.n_ctx:
            self._pending = True
            self._engine.resize(verdict.n_ctx, COPY_SHARE * available_mib * MIB)
        self._engine.pause_questions(
            f'{verdict.reason} {verdict.remedy}' if verdict.refuses else ''
        )
        if (verdict.n_ctx, verdict.refuses) != (before.n_ctx, before.refuses):
            self._tell(verdict)

    def _tell(self, verdict: Verdict) -> None:
        logger = self._node.get_logger()
        if verdict.refuses:
            logger.error(f'{verdict.reason} {verdict.remedy}')
        elif verdict.reason:
            logger.warning(f'{verdict.reason} {verdict.remedy}')
        else:
            logger.info(f'there is memory again: the window has {verdict.n_ctx} positions')
