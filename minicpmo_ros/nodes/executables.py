# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Where the executables begin: from here on a signal ends them with exit code 0.

Importing rclpy, NumPy and llama.cpp is most of a start. In that time Python would answer SIGINT
with a traceback, and SIGTERM would kill; so this module imports neither before it is asked to.
"""

import importlib
import os
import signal

from minicpmo_ros.process import prepare


def _start(module: str) -> int:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))  # nothing has begun that could be left open
    prepare()  # before threads of NumPy take memory of their own
    return importlib.import_module(f'minicpmo_ros.nodes.{module}').main()


def live() -> int:
    """Run the encoders and the llm in one process."""
    return _start('live')


def llm() -> int:
    """Run node `llm`."""
    return _start('llm')


def streaming_encoder() -> int:
    """Run node `streaming_encoder`."""
    return _start('streaming_encoder')


def vision_encoder() -> int:
    """Run node `vision_encoder`."""
    return _start('vision_encoder')


def media_player() -> int:
    """Run node `media_player`."""
    return _start('media_player')


def recorder() -> int:
    """Run node `recorder`."""
    return _start('recorder')
