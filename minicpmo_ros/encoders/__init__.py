# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Images and audio to embeddings of the language model."""

from dataclasses import dataclass

MAX_LAYERS = 256  # of one encoder


@dataclass(frozen=True)
class EncoderMemory:
    """Bytes that one encoder takes of its device, from its header alone.

    Weights, caches and graphs are described as the encoder makes them, and measured by ggml's own
    allocators: nothing is loaded.
    """

    weights: int
    cache: int  # keys and values of the audio heard
    compute: int  # intermediate results
    work: int  # of the CPU, beside them
