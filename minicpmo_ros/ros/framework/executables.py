# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Entry points of the executables: from here on, a signal ends them with exit code 0.

Importing rclpy, NumPy and llama.cpp takes most of the start-up. During that time Python would
answer SIGINT with a traceback, and SIGTERM would kill; so this module imports them lazily.
"""

import gc
import importlib
import os
import signal

from minicpmo_ros.process import prepare


def _start(module: str) -> int:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))  # nothing has begun that could be left open
    prepare()  # before threads of NumPy take memory of their own
    return _imported(f'minicpmo_ros.ros.{module}').main()


def _imported(name: str):
    """Import a module without looking for garbage among what it loads: an eighth of the time."""
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        gc.freeze()  # nor later: modules stay
        gc.enable()


def live() -> int:
    """Run the encoders and the llm in one process."""
    return _start('live')


def llm() -> int:
    """Run node `llm`."""
    return _start('llm_node')


def streaming_encoder() -> int:
    """Run node `streaming_encoder`."""
    return _start('audio_node')


def vision_encoder() -> int:
    """Run node `vision_encoder`."""
    return _start('image_node')


def voice() -> int:
    """Run node `voice`."""
    return _start('voice.node')


def speaker() -> int:
    """Run node `speaker`."""
    return _start('voice.speaker')


def media_player() -> int:
    """Run node `media_player`."""
    return _start('playback.player')


def media_capture() -> int:
    """Run node `media_capture`."""
    return _start('playback.capture')


def recorder() -> int:
    """Run node `recorder`."""
    return _start('playback.recorder')


def web() -> int:
    """Run node `web`."""
    return _start('web.node')


def relay() -> int:
    """Run node `relay`."""
    return _start('relay')
