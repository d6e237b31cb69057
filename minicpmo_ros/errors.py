# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What goes wrong, and what to do: errors that are raised on purpose, and findings of `doctor`."""

import re
from dataclasses import dataclass

NUMBER = re.compile(r'\[Errno -?\d+\] ')  # of an error of the system, in a library's words
OK, WARN, FAIL = 'ok', 'warn', 'FAIL'  # as it should be; works, with a loss; does not work


def printable(text: str) -> str:
    """Return a text that moves no cursor: names in files of others may hold any character."""
    return ''.join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class Error(Exception):
    """Base of all errors raised on purpose; `may_pass`: the same may succeed later."""

    may_pass = False


class ModelFileError(Error):
    """A model file that is missing, damaged or does not belong to the others."""

    def __init__(self, path, problem: str, remedy: str):
        self.path, self.problem, self.remedy = printable(str(path)), printable(problem), remedy
        super().__init__(f'{self.path}: {self.problem}. {remedy}')


class InputError(Error):
    """An image, audio or a question that cannot be used; the text says what is allowed."""


class BusyError(Error):
    """Refused for now: not ready yet, or too many are waiting."""


class CancelledError(Error):
    """The caller cancelled the work."""


class TerminatedError(Error):
    """SIGTERM has ended the work."""


class AskError(Error):
    """A question was refused or failed; `answer` holds the partial answer, if any."""

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


class ServerAwayError(EngineError):
    """Another process that computes for this one is not there, or busy."""

    may_pass = True


def in_words(error: Exception) -> str:
    """Return what an error of the system or of a library says, without numbers for programs."""
    told = getattr(error, 'strerror', None) or NUMBER.sub('', str(error))
    return ' '.join(told.split())


def sentence(text: str) -> str:
    """Return a text that another sentence can follow."""
    return text if not text or text.endswith(('.', '!', '?')) else f'{text}.'


@dataclass(frozen=True)
class Finding:
    """One line of the report; both texts are sentences without a full stop."""

    check: str
    level: str
    fact: str
    remedy: str = ''  # empty with OK

    def line(self) -> str:
        """Return it as one line."""
        remedy = f'. {self.remedy}' if self.remedy else ''
        return f'{self.level:5}{self.check:10} ' + ' '.join(f'{self.fact}{remedy}'.split())


def judged(check: str, fact: str, *rules: tuple) -> Finding:
    """Return the finding of the first rule (holds, level, remedy) that holds; else OK."""
    for holds, level, remedy in rules:
        if holds:
            return Finding(check, level, fact, remedy)
    return Finding(check, OK, fact)
