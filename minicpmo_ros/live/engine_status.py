# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What an engine says about itself."""

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineStatus:
    """A snapshot; the counts are since the engine was made."""

    state: str = 'unloaded'  # unloaded, loading, ready, failed
    progress: float = 0.0  # of loading, 0 to 1
    reason: str = ''  # why it failed, or lost its window
    remedy: str = ''
    window_start_s: int = 0  # 0 with units 0
    window_end_s: int = 0
    units: int = 0  # in the window
    positions: int = 0  # of the context in use by the window
    context_size: int = 0
    smallest_context: int = 0  # that `Engine.resize` can make of it
    resizes: int = 0  # times that was tried
    waiting: int = 0  # questions, beside the one being answered
    answering: bool = False
    units_read: int = 0
    units_dropped: int = 0
    units_refused: int = 0  # embeddings that did not fit the model, or were not finite
    late: int = 0  # halves of units that came after their unit was closed
    jumps: int = 0  # times a stream went back
    evicted: int = 0  # units that left the window
    rebuilds: int = 0  # times llama.cpp failed and the window was lost
    prefill_ms: float = 0.0  # of the newest unit
    busy_s: float = 0.0  # since the piece of work at hand was begun; 0: none is

    def why_not_ready(self) -> str:
        """Tell a person who asks too early, or in vain."""
        if self.state == 'loading':
            return f'The model is loading, {self.progress:.0%} is done. Ask again in a moment.'
        if self.state == 'failed':
            return f'There is no model: {self.reason} {self.remedy}'
        return 'No model is loaded. Start or configure the node first.'
