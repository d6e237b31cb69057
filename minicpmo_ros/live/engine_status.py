# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What an engine says about itself."""

from dataclasses import dataclass, replace

from minicpmo_ros.errors import InputError, ModelFileError

SEE_LOG = 'See the log; restart the node.'


@dataclass(frozen=True)
class EngineStatus:
    """A snapshot; the counts are since the engine was made."""

    state: str = 'unloaded'  # unloaded, loading, ready, failed
    progress: float = 0.0  # of loading, 0 to 1
    reason: str = ''  # why it failed
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
    units_too_large: int = 0  # for an empty window
    late: int = 0  # halves of units that came after their unit was closed
    jumps: int = 0  # times a stream went back
    evicted: int = 0  # units that left the window
    rebuilds: int = 0  # times llama.cpp failed and the window was lost
    lost_window: str = ''  # why it was the last time
    prefill_ms: float = 0.0  # of the newest unit
    busy_s: float = 0.0  # since the piece of work at hand was begun; 0: none is

    def after(self, session, is_answering: bool, counts: dict) -> 'EngineStatus':
        """Give it brought up to date with the Session, and with `counts` more by name."""
        seconds = session.window.seconds
        return replace(
            self,
            units=len(seconds),
            positions=session.window.end,
            evicted=session.evicted,
            context_size=session.context.n_ctx,
            smallest_context=session.smallest_context,
            window_start_s=seconds[0] if seconds else 0,
            window_end_s=seconds[-1] + 1 if seconds else 0,
            answering=is_answering,
            **{name: getattr(self, name) + n for name, n in counts.items()},
        )

    def why_not_ready(self) -> str:
        """Tell a person who asks too early, or in vain."""
        if self.state == 'loading':
            return f'The model is loading, {self.progress:.0%} is done. Ask again in a moment.'
        if self.state == 'failed':
            return f'There is no model: {self.reason} {self.remedy}'
        return 'No model is loaded. Start or configure the node first.'


def why_failed(error: Exception) -> tuple[str, str]:
    """Give (reason, remedy) for the error that ended an engine."""
    if isinstance(error, ModelFileError):
        return f'{error.path}: {error.problem}', error.remedy
    if isinstance(error, MemoryError):
        return 'the memory ran out', 'Lower n_ctx, take smaller files, or end other programs.'
    is_input = isinstance(error, InputError)
    remedy = 'Correct the parameters and configure again.' if is_input else SEE_LOG
    return str(error) or repr(error), remedy
