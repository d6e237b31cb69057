# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What became of one second of sound or picture; the numbers are those of the messages."""

from enum import IntEnum

# Of an embedding's numbers: far above what a model gives, within float16 (65504).
LARGEST = 6e4


class Status(IntEnum):
    """The `status` of AudioEmbedding.msg and ImageEmbedding.msg."""

    OK = 0
    EMPTY = 1  # nothing arrived in this second
    LOST = 2  # something arrived and could not be used
    OVERLOADED = 3  # dropped, because encoding could not keep up
