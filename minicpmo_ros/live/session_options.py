# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What a session is opened with, and what it says of a unit that it has read."""

from collections.abc import Callable
from dataclasses import dataclass, field

from minicpmo_ros.config import LLM
from minicpmo_ros.llm.sampling import SamplingOptions


@dataclass(frozen=True)
class SessionOptions:
    """The limits of a question, and how it is answered."""

    max_tokens: int = LLM.max_tokens  # of an answer
    max_question_tokens: int = LLM.max_question_tokens
    window_policy: str = LLM.window_policy  # what is evicted first: recent, long (window.py)
    still: bool = LLM.still  # leave out images that have not changed (window.py)
    speech: bool = False  # open answers in the form that prepares for a voice (prompt.py)
    system_text: str = LLM.system_text  # '': the default of the layout
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    max_forks: int = 1  # questions and riders that are read at once
    # recall(question, seconds of the window, count_tokens) -> Recollection, read before it
    recall: Callable | None = None


@dataclass(frozen=True)
class UnitReport:
    """What it cost to read a unit, and logits of what went with it, valid until the next call."""

    second: int
    rows: int
    prefill_ms: float  # with all that rode with it
    logits: list = field(default_factory=list)  # (n_logits, vocabulary) of each read
    riders: list = field(default_factory=list)  # (vocabulary,) of each; None: it was not read
