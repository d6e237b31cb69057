# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What is asked, and what is answered with the evidence it rests on."""

from dataclasses import dataclass
from enum import IntEnum


class Finish(IntEnum):
    """Why an answer ended; the numbers are those of the Answer message."""

    STOP = 0  # the model ended it
    LENGTH = 1  # max_tokens was reached, or the answer did nothing but repeat itself
    CANCELLED = 2  # taken back by the asker, or the engine closed
    ERROR = 3  # failed; the text is what was said until then


@dataclass(frozen=True)
class Question:
    """A question about what is seen and heard now; an empty text leaves it to what was said."""

    text: str
    choices: tuple = ()  # the answer is one of these; max_tokens does not matter
    grammar: str = ''  # GBNF the answer follows; not together with choices
    max_tokens: int = 0  # at most the session's own; 0: the session's own
    temperature: float | None = None  # 0: greedy; None or negative: the session's own
    remember: bool = False  # question and answer stay in the window


@dataclass(frozen=True)
class Answer:
    """A finished answer."""

    question: str
    text: str
    finish: Finish
    error: Exception | None = None  # with Finish.ERROR; its text is for a person
    window_start_s: int = 0  # start of the oldest second it is based on
    window_end_s: int = 0  # end of the newest second it is based on
    units: int = 0  # seconds in the window
    seconds: tuple = ()  # which ones, oldest first
    prompt_tokens: int = 0  # positions read: system prompt, units, question
    answer_tokens: int = 0
    first_token_ms: float = 0.0  # from the question's arrival
    tokens_per_second: float = 0.0  # after the first token; 0 with fewer than two
