# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Sound as mgonzs13's audio_common_msgs hold it: samples in one of several arrays."""

import sys

from minicpmo_ros.errors import InputError
from minicpmo_ros.media.sound import AudioFormat

# Its arrays, and PortAudio's number of each in its `format`.
ARRAYS = {
    'float32_data': ('F32', 1),
    'int32_data': ('S32', 2),
    'int16_data': ('S16', 8),
    'int8_data': ('S8', 16),
    'uint8_data': ('U8', 32),
}
ORDER = 'LE' if sys.byteorder == 'little' else 'BE'  # of arrays, which are this machine's


def chunk_of(audio) -> tuple:
    """Give (bytes, AudioFormat) of a message Audio; raises InputError where no array has samples.

    Where several have, the one that `format` names is taken.
    """
    info, data = audio.info, audio.audio_data
    filled = [name for name in ARRAYS if len(getattr(data, name))]
    if len(filled) > 1:
        filled = [name for name in filled if ARRAYS[name][1] == info.format]
    if not filled:
        raise InputError(
            f'sound came in without samples: format is {info.format}, and no array, or none '
            f'that belongs to it, holds any; known are {ARRAYS}'
        )
    sample_format = ARRAYS[filled[0]][0] + ORDER
    chunk = getattr(data, filled[0]).tobytes()
    return chunk, AudioFormat(info.rate, info.channels, sample_format)
