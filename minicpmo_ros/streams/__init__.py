# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What cameras and microphones send, as one embedding a second, and their pairs as units."""

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

# Bound of an embedding's values: far above those of a model, within float16 (65504).
LARGEST = 6e4


class Status(IntEnum):
    """The state of a second; the numbers of AudioEmbedding.msg and ImageEmbedding.msg."""

    OK = 0
    EMPTY = 1  # nothing arrived in this second
    LOST = 2  # something arrived but could not be used
    OVERLOADED = 3  # dropped, because encoding could not keep up
    SKIPPED = 4  # of an image: left out by the governor, which lowered the rate


@dataclass(frozen=True)
class AudioSecond:
    """One second of audio: its samples, the corrections made to them, and then its embedding.

    Without rows, status and reason say why.
    """

    second: int  # covers [second, second + 1) s of the stamps
    samples: np.ndarray | None = None  # (16000,) float32; None: no audio
    look_ahead: np.ndarray | None = None  # (200,) float32: what follows; zeros where nothing does
    begins_stream: bool = False  # the audio begins with this second, or time has jumped to it
    padded_samples: int = 0  # zeros before the begin or after the end of a stream
    gap_samples: int = 0  # zeros for audio that never came
    drift_samples: int = 0  # zeros put in (> 0) or samples left out (< 0) at the second's begin
    overlap_samples: int = 0  # dropped: their time is covered already, or wrong
    status: Status = Status.EMPTY
    reason: str = ''  # a sentence, for LOST
    rows: np.ndarray | None = None  # (25, width) float16
    level_dbfs: float = -math.inf  # root mean square, relative to 1; -inf: digital silence
    remembered_s: int = 0  # seconds right before this one that the encoder remembers
    restarted: bool = False  # it remembers nothing
    preprocess_ms: float = 0.0  # log-mel spectrum
    encode_ms: float = 0.0  # all of the encoder's work in this second
