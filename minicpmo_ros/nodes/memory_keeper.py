# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The memory guard of node `llm`: measures, lets the engine give up and take back, and says so.

For the executor's thread, but for the measuring, which is the watch's.
"""

import time
from dataclasses import replace

from minicpmo_ros.live.engine import Engine
from minicpmo_ros.live.engine_status import EngineStatus
from minicpmo_ros.live.memory_guard import MemoryGuard, Verdict, context_sizes
from minicpmo_ros.models.llm_memory import kv_mib_per_position
from minicpmo_ros.nodes.memory import MIB, MemoryWatch
from minicpmo_ros.nodes.memory_room import bounds_of

# Of what is available when the context changes, the units that stay may take for their copy.
COPY_SHARE = 0.5


class MemoryKeeper:
    """Keeps one node's engine within the bounds of the parameters; `verdict` is the newest."""

    def __init__(self, node):
        self._node = node
        self._engine = self._guard = None
        self.verdict = Verdict(0)
        self._pending = False  # the engine has been asked for another size
        self._resizes, self._changed_s = 0, 0.0
        self._watch = MemoryWatch(self._on_look)

    @property
    def used_mib(self) -> float:
        """What this process occupies."""
        return self._watch.mib

    def begin(self, engine: Engine, header) -> None:
        """Guard an engine that has become ready."""
        status, kv_type = engine.status(), self._node.table.values().kv_type
        sizes = context_sizes(status.context_size, status.smallest_context)
        self._guard = MemoryGuard(sizes, kv_mib_per_position(header, kv_type))
        self._engine, self._pending, self._resizes = engine, False, status.resizes
        self.verdict = Verdict(status.context_size)

    def end(self) -> None:
        """Guard nothing any more."""
        self._engine = self._guard = None
        self.verdict = Verdict(0)

    def close(self) -> None:
        """End the watch."""
        self._watch.close()

    def hear(self, status: EngineStatus) -> None:
        """Take note of what the engine has done."""
        if self._guard is not None and status.resizes != self._resizes:
            self._resizes, self._pending = status.resizes, False
            self._guard.settle(status.context_size)
            self.verdict = replace(self.verdict, n_ctx=status.context_size)
            self._changed_s = time.monotonic()
            self._watch.look_now()

    def diagnose(self, report) -> None:
        """Write what is given up."""
        report.tell('memory [MiB]', self.used_mib)
        text = f'{self.verdict.reason} {self.verdict.remedy}'
        if self.verdict.refuses:
            report.error(text)
        elif self.verdict.reason:
            report.warn(text)

    def _on_look(self, begun_s: float, used_mib: float, available_mib: float) -> None:
        self._node.post(lambda: self._look(begun_s, used_mib, available_mib))

    def _look(self, begun_s: float, used_mib: float, available_mib: float) -> None:
        if self._guard is None or self._pending or begun_s < self._changed_s:
            return  # what was measured before a change says nothing about it
        before, bounds = self.verdict, bounds_of(self._node.table.values())
        self.verdict = verdict = self._guard.look(used_mib, available_mib, bounds)
        if verdict.n_ctx != before.n_ctx:
            self._pending = True
            self._engine.resize(verdict.n_ctx, COPY_SHARE * available_mib * MIB)
        self._engine.refuse(f'{verdict.reason} {verdict.remedy}' if verdict.refuses else '')
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
