# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""One llama.cpp context for the windows of one or several robots, over one model.

Each session has a sequence and `n_ctx` positions of its own; the forks have what comes behind the
sequences of the windows. A session may have `max_forks` at once, but never the last one that
another session, which has none, would need.

What sessions read is told in steps: generators that yield Pieces, take the logits, and return what
became of it. `read_alone` reads those of one session; an EngineThread those of several, in one
decode. One thread uses all of it.
"""

import math
from dataclasses import replace

from minicpmo_ros.errors import EngineError
from minicpmo_ros.llm.context import AbortFlag, Context
from minicpmo_ros.llm.context_options import ContextOptions
from minicpmo_ros.llm.model import LanguageModel


class SharedContext:
    """The context of `options.n_windows` sessions; the last one to leave closes it."""

    def __init__(
        self,
        model: LanguageModel,
        options: ContextOptions,
        max_forks: int,
        abort: AbortFlag | None = None,
    ):
        self.model, self.max_forks = model, max_forks
        self.n_windows = options.n_windows
        n_forks = max(max_forks, self.n_windows)  # at least one for each window
        self.options = replace(options, n_sequences=self.n_windows + n_forks)
        self._abort, self._context = abort, None
        self._sessions = {}  # Session by the sequence of its window
        self._taken = {}  # Session by the sequence of a fork

    @property
    def is_open(self) -> bool:
        """Whether a session has its window here."""
        return bool(self._sessions)

    def context(self) -> Context:
        """Return the context; it is made for the first window."""
        if self._context is None:
            self._context = Context(self.model, self.options, self._abort)
        return self._context

    def add(self, session) -> int:
        """Return the sequence of a session's window; ValueError if there is no room for one."""
        free = [n for n in range(self.n_windows) if n not in self._sessions]
        if not free:
            raise ValueError(f'all {self.n_windows} windows of this context are in use')
        self._sessions[free[0]] = session
        return free[0]

    def remove(self, session) -> bool:
        """Free the cells of a session; return whether it was the last, and the context closed."""
        if self._sessions.pop(session.sequence, None) is None:
            return False
        if not self._sessions:
            self.close()
            return True
        mine = [sequence for sequence, owner in self._taken.items() if owner is session]
        for sequence in (session.sequence, *mine) if self._context is not None else ():
            self._context.remove(sequence, 0, -1)
        self.give_back(mine)
        return False

    # --- sequences of forks -------------------------------------------------------------------

    def n_free(self, session) -> int:
        """Return how many more forks a session may have."""
        owners = list(self._taken.values())
        without = sum(one not in owners for one in self._sessions.values() if one is not session)
        n_free = self.options.n_sequences - self.n_windows - len(owners) - without
        return max(0, min(n_free, self.max_forks - owners.count(session)))

    def take(self, session, n: int) -> list:
        """Return so many sequences, which are the session's until it gives them back."""
        behind = range(self.n_windows, self.options.n_sequences)
        sequences = [one for one in behind if one not in self._taken][:n]
        self._taken.update(dict.fromkeys(sequences, session))
        return sequences

    def give_back(self, sequences: list) -> None:
        """Take back the sequences of forks."""
        for sequence in sequences:
            self._taken.pop(sequence, None)

    def strangers(self, session) -> set:
        """Return the sequences that share no cell with those of a session."""
        owners = {**self._sessions, **self._taken}
        return {sequence for sequence, owner in owners.items() if owner is not session}

    # --- all windows at once ------------------------------------------------------------------

    def reopen(self, carried: dict | None = None) -> None:
        """Make a new context, with empty windows or what was `carried` over of each session."""
        self.close()
        try:
            for session in self._sessions.values():
                session.open((carried or {}).get(session))
        except BaseException:
            self.close()
            raise

    def resize(self, n_ctx: int, max_copy_bytes: float = math.inf) -> None:
        """Give every window another size; see Session.resize."""
        if self._taken:
            raise ValueError('a question is being answered; end it first')
        former, room = self.options, max_copy_bytes / len(self._sessions)
        carried = {one: one.pack(n_ctx, room) for one in self._sessions.values()}
        self.options = replace(former, n_ctx=n_ctx)
        try:
            self.reopen(carried)
        except EngineError:
            self.options = former
            self.reopen(carried)
            raise

    def close(self) -> None:
        """Free the context, with all windows and forks; it is made anew when it is wanted."""
        context, self._context = self._context, None
        self._taken.clear()
        if context is not None:
            context.close()


def read_alone(context: Context, steps):
    """Read what the steps of one session yield; return what they return."""
    try:
        pieces = next(steps)
        while True:
            try:
                logits = context.decode(pieces)
            except BaseException as error:
                pieces = steps.throw(error)
            else:
                pieces = steps.send(logits)
    except StopIteration as end:
        return end.value
