# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What an RTSP camera of a test shows, and its server as a process."""

import subprocess
from pathlib import Path

import av
import numpy as np
import pytest

SYSTEM_PYTHON = '/usr/bin/python3'  # has gi, where it is installed
RATE_HZ, FPS = 16_000, 25
SERVER = Path(__file__).with_name('rtsp_server.py')
DARK, BRIGHT = 40, 230
FLASH_S = 0.2  # of each second, with a tone of the same length


def lack() -> str:
    """Return what the server lacks on this machine; ''."""
    test = [
        SYSTEM_PYTHON, '-c', 'import gi; gi.require_version("GstRtspServer", "1.0"); '
        'from gi.repository import Gst, GstRtspServer; Gst.init(None); '
        'assert Gst.ElementFactory.find("rtpL16pay") and Gst.ElementFactory.find("h264parse")',
    ]  # fmt: skip
    try:
        done = subprocess.run(test, capture_output=True, text=True)
    except OSError as error:
        return str(error)
    return (done.stderr.splitlines() or ['it does not work'])[-1] if done.returncode else ''


needs_rtsp_server = pytest.mark.skipif(
    bool(LACK := lack()),
    reason=f'no RTSP server here ({LACK}): sudo apt install gir1.2-gst-rtsp-server-1.0 '
    'python3-gi gstreamer1.0-plugins-good',
)


def write_video(path, images, samples, codec: str = 'libx264') -> None:
    """Write a Matroska file: images (H, W, 3) uint8 at 25 Hz, samples (n,) float32 at 16 kHz."""
    images = list(images)
    height, width, _ = images[0].shape
    with av.open(str(path), 'w', format='matroska') as file:
        fast = {'preset': 'ultrafast', 'tune': 'zerolatency', 'crf': '12'}
        video = file.add_stream(codec, rate=FPS, options=fast if codec == 'libx264' else {})
        video.width, video.height, video.gop_size = width, height, FPS
        video.pix_fmt = 'yuv420p' if codec == 'libx264' else 'yuvj420p'
        audio = file.add_stream('pcm_s16le', rate=RATE_HZ, layout='mono')
        n = RATE_HZ // FPS
        values = (samples * 32767).astype(np.int16)
        for i, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image)
            frame.pts = i
            file.mux(video.encode(frame))
            piece = np.ascontiguousarray(values[None, i * n : (i + 1) * n])
            heard = av.AudioFrame.from_ndarray(piece, format='s16', layout='mono')
            heard.sample_rate, heard.pts = RATE_HZ, i * n
            file.mux(audio.encode(heard))
        for stream in (video, audio):
            file.mux(stream.encode())


class RtspServer:
    """The process; `port` stays the same over `kill` and `start`."""

    def __init__(self, file, credentials: str = ''):
        self._arguments = [str(file), *([credentials] if credentials else [])]
        self.port = 0
        self.start()

    def start(self) -> None:
        """Start it, and wait until it listens."""
        self.process = subprocess.Popen(
            [SYSTEM_PYTHON, SERVER, str(self.port), *self._arguments],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.port = int(self.process.stdout.readline())

    def kill(self) -> None:
        """End it at once, as a camera does that loses power."""
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def url(self, path: str = 'h264', user: str = '') -> str:
        """Return an address of it."""
        return f'rtsp://{user}127.0.0.1:{self.port}/{path}'


def flashes(seconds: int) -> tuple:
    """Return (images, samples): what is bright is heard, in the first fifth of each second."""
    t = np.arange(RATE_HZ * seconds) / RATE_HZ
    samples = 0.5 * np.sin(2 * np.pi * 440 * t) * (t % 1 < FLASH_S)
    levels = [BRIGHT if i % FPS < FLASH_S * FPS else DARK for i in range(FPS * seconds)]
    return [np.full((96, 128, 3), level, np.uint8) for level in levels], samples
