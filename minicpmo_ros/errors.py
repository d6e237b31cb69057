# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Every error this package raises on purpose: facts in, a sentence a person can act on out."""


class Error(Exception):
    """Base of all errors raised on purpose."""


class ModelFileError(Error):
    """A model file that is missing, damaged or does not belong to the others."""

    def __init__(self, path, problem: str, remedy: str):
        super().__init__(f'{path}: {problem}. {remedy}')
        self.path, self.problem, self.remedy = str(path), problem, remedy


class InputError(Error):
    """A picture, sound or question that cannot be used; the text says what is allowed."""


class BusyError(Error):
    """Refused for now: not ready yet, or too many are waiting."""


class CancelledError(Error):
    """The caller took the work back."""


class AskError(Error):
    """A question that was refused or could not be answered; `answer` is what there is of one."""

    def __init__(self, text: str, answer=None):
        super().__init__(text)
        self.answer = answer


class LateError(Error, TimeoutError):
    """What was waited for did not come in time; the text says what is known."""


class ContextFullError(Error):
    """The language model's context has no room for what was asked."""

    def __init__(self, needed: int, available: int, remedy: str):
        super().__init__(f'{needed} positions are needed, {available} are free. {remedy}')
        self.needed, self.available = needed, available


class EngineError(Error):
    """llama.cpp or ggml failed; what owns the context must be rebuilt."""
