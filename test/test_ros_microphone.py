# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Node `media_capture` hears a microphone: a device of ALSA that reads a pipe, by PortAudio."""

import fcntl
import os
import sys
import threading
import time
from contextlib import suppress

import numpy as np
import pytest
from audio_common_msgs.msg import AudioDataStamped, AudioInfo
from rclpy.qos import QoSProfile

from minicpmo_ros.errors import InputError
from minicpmo_ros.media.microphone import Microphone
from minicpmo_ros.ros.framework.lifecycle import LATCHED
from minicpmo_ros.ros.messages import stamp_ns_of
from minicpmo_ros.units import NS

try:
    import sounddevice  # noqa: F401

    LACK = ''
except (ImportError, OSError) as error:
    LACK = str(error)
needs_portaudio = pytest.mark.skipif(
    bool(LACK), reason=f'no PortAudio here ({LACK}): sudo apt install libportaudio2'
)
RATE_HZ, BLOCK = 16_000, 1600  # what PortAudio reads of the pipe at once
ALSA = """
</usr/share/alsa/alsa.conf>
pcm.!default {{ type file slave.pcm null file /dev/null infile "{pipe}" format raw }}
"""


class PipedMicrophone:
    """A device of ALSA whose samples count up, at the pace of a microphone, until it is muted."""

    def __init__(self, folder):
        pipe, config = folder / 'microphone', folder / 'asoundrc'
        os.mkfifo(pipe)
        config.write_text(ALSA.format(pipe=pipe))
        self.env = {'ALSA_CONFIG_PATH': str(config)}
        # Of both ends, or whoever opens it would wait for the other one.
        self._pipe = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
        fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, 16_384)  # half a second
        self._is_over = threading.Event()
        self.is_on = threading.Event()
        self.is_on.set()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        count, next_s = 0, time.monotonic()
        while not self._is_over.wait(max(0.0, next_s - time.monotonic())):
            next_s += BLOCK / RATE_HZ
            if self.is_on.is_set():
                samples = (np.arange(count, count + BLOCK) % 2**15).astype('<i2')
                with suppress(BlockingIOError):  # the pipe is full: nobody listens
                    os.write(self._pipe, samples.tobytes())  # all at once, as it is so little
                    count += BLOCK

    def close(self) -> None:
        """End the thread, and the pipe."""
        self._is_over.set()
        self._thread.join()
        os.close(self._pipe)


@pytest.fixture
def microphone(tmp_path):
    """Give a PipedMicrophone."""
    piped = PipedMicrophone(tmp_path)
    yield piped
    piped.close()


def listen(graph, *parameters, env):
    """Start the node; give (process, pieces of audio, infos)."""
    audio, infos = [], []
    graph.create_subscription(AudioDataStamped, 'audio', audio.append, QoSProfile(depth=2000))
    graph.create_subscription(AudioInfo, 'audio_info', infos.append, LATCHED)
    arguments = [part for each in parameters for part in ('-p', each)]
    return graph.start('media_capture', *arguments, env=env), audio, infos


@needs_portaudio
def test_a_microphone_is_heard_told_when_it_is_gone_and_found_again(graph, microphone):
    process, audio, infos = listen(
        graph, 'microphone:=default', f'microphone_rate_hz:={RATE_HZ}', env=microphone.env
    )
    graph.spin_until(lambda: len(audio) >= 30, 'three seconds')
    info = infos[-1]
    assert (info.sample_rate, info.channels, info.sample_format) == (RATE_HZ, 1, 'S16LE')
    heard = np.concatenate([np.frombuffer(bytes(each.audio.data), '<i2') for each in audio])
    steps = np.diff(heard.astype(int)) % 2**15
    assert (steps == 1).mean() > 0.999, 'every sample once, in order'
    stamps_ns = np.array([stamp_ns_of(each) for each in audio])
    counted_ns = np.arange(len(audio)) * BLOCK * NS // RATE_HZ
    late_ns = stamps_ns - stamps_ns[-1] - (counted_ns - counted_ns[-1])
    assert np.abs(late_ns[10:]).max() < 50_000_000, 'dated by the count'
    microphone.is_on.clear()
    graph.spin_until(lambda: 'Was it unplugged?' in process.log, 'the words')
    microphone.is_on.set()
    n = len(audio)
    graph.spin_until(lambda: len(audio) > n + 5, 'more')
    assert process.log.count('it is there') == 2 and process.end() == 0


@needs_portaudio
def test_a_microphone_that_is_not_there_is_told_and_tried_again(graph, microphone):
    process, _, _ = listen(graph, 'microphone:=97', env=microphone.env)
    graph.spin_until(lambda: process.log.count('python -m sounddevice lists') >= 2, 'the words')
    assert process.is_running and 'Traceback' not in process.log


def test_what_is_to_be_installed_for_a_microphone_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, 'sounddevice', None)
    with pytest.raises(InputError, match='libportaudio2.*leave microphone empty'):
        Microphone('default', 0, time.monotonic_ns)
