# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Whether there is room for a model, before it is loaded: the plan, and what to lower.

Without this, a system that promises more memory than it has would end the process in the middle
of loading, or page the weights in and out for ever.
"""

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from weakref import WeakValueDictionary

from minicpmo_ros.errors import ModelFileError
from minicpmo_ros.live.memory_guard import MemoryBounds
from minicpmo_ros.models.directory import ModelDirectory
from minicpmo_ros.models.plan import forecast
from minicpmo_ros.models.presets import plan_options
from minicpmo_ros.models.remedies import DoesNotFitError, Limits, require_fit
from minicpmo_ros.nodes.memory import available_mib, pss_mib, shares_memory_with_gpu

NODES = {'llm': 'llm', 'vision': 'vision_encoder', 'audio': 'streaming_encoder'}  # by module


def bounds_of(options) -> MemoryBounds:
    """Give the bounds that the parameters of node `llm` set."""
    return MemoryBounds(options.memory_limit_mib, options.memory_reserve_mib)


class Room:
    """The memory of one process, into which its nodes load their parts of a model.

    For any thread. What Python, ROS and a GPU's runtime take is not asked for: most of it is there
    when a node loads, and the rest is assumed.
    """

    def __init__(self):
        self._tables = {}  # ParameterTable of each module's node
        self._loaded = WeakValueDictionary()  # encoders by module, as long as they live
        self._loading = threading.Lock()

    def enter(self, module: str, table) -> None:
        """Tell of the node of a module (llm, vision, audio) by its parameters."""
        self._tables[module] = table

    def load(self, module: str, model: ModelDirectory, make: Callable):
        """Give the encoder that `make()` loads; ModelFileError where there is no room for it."""
        with self._loading:  # half of it would be counted twice, as taken and as needed
            self._require(model, [module], module, available_mib(beside=('self',)))
            encoder = self._loaded[module] = make()
        return encoder

    def require_llm(self, model: ModelDirectory) -> None:
        """Ask for the language model, and for what the other nodes here have still to load of it.

        Raises ModelFileError where that does not fit.
        """
        options = self._tables['llm'].values()
        with self._loading:
            missing = [
                module
                for module, table in self._tables.items()
                if module not in self._loaded and table.values().model_dir == options.model_dir
            ]
            bounds = bounds_of(options)
            room_mib = available_mib(beside=('self',)) - bounds.reserve_mib
            if bounds.limit_mib:
                room_mib = min(room_mib, bounds.limit_mib - pss_mib())
            self._require(model, missing, 'llm', room_mib)

    def _require(
        self, model: ModelDirectory, modules: Sequence[str], whose: str, room_mib: float
    ) -> None:
        given = {NODES[module]: table.named() for module, table in self._tables.items()}
        plan = forecast(model, replace(plan_options(given), modules=tuple(modules)))
        # llama.cpp and ggml refuse what a GPU of its own memory has no room for.
        limits = Limits(max(0.0, room_mib), None if shares_memory_with_gpu() else math.inf)
        try:
            require_fit(model, plan, limits)
        except DoesNotFitError as error:
            with_others = ' with what else this process loads' if len(modules) > 1 else ''
            more = 'memory_limit_mib or memory_reserve_mib' if whose == 'llm' else ''
            raise ModelFileError(
                model.headers[whose].path,
                f'it needs {limits.needed_mib(plan):.0f} MiB{with_others}: {plan.parts_text()}; '
                f'there is room for {limits.host_mib:.0f}',
                f'{error.remedy} Or end other programs' + (f', or change {more}' if more else ''),
            ) from None
