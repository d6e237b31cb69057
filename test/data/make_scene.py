# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Make scene.mp4: twelve seconds of shapes, words and sounds, one event of each a second.

What happens in which second is the table SCENE below; every second is different from its
neighbours in picture and in sound, so that an answer tells which second it is based on.

    apt-get install espeak-ng && python test/data/make_scene.py

H.264 and AAC, 320x240 at 15 frames a second, mono at 24 kHz. The random numbers are seeded: the
script gives the same clip again, as far as espeak-ng and the codecs are of the same version.
"""

import io
import subprocess
import wave
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soxr

WIDTH, HEIGHT, FRAME_RATE_HZ = 320, 240, 15
SOUND_RATE_HZ = 24000
RADIUS = 42  # of a shape, pixels

COLOURS = {
    'red': (215, 30, 30),
    'green': (30, 165, 45),
    'blue': (35, 60, 215),
    'yellow': (235, 220, 40),
    'white': (245, 245, 245),
    'purple': (135, 35, 165),
    'orange': (245, 135, 20),
    'black': (15, 15, 15),
}
BACKGROUND = (122, 126, 124)
LEFT, CENTRE, RIGHT = (60, 120), (160, 120), (260, 120)
TOP, BOTTOM = (160, 55), (160, 185)


@dataclass(frozen=True)
class Shape:
    """A shape that moves evenly from one place to another within its second."""

    colour: str
    kind: str
    begin: tuple  # x, y of the centre, pixels
    end: tuple


def still(colour, kind, place) -> Shape:
    """Give a shape that does not move."""
    return Shape(colour, kind, place, place)


# One row a second: the shapes, and the sound: ('say', word, voice) or a name of SOUNDS.
SCENE = [
    ([still('red', 'circle', LEFT)], 'silence'),  # 0
    ([Shape('red', 'circle', LEFT, CENTRE)], ('say', 'red', 'en-us+m3')),  # 1
    ([still('red', 'circle', CENTRE)], 'high beep'),  # 2
    ([still('blue', 'square', RIGHT)], ('say', 'square', 'en-gb+f2')),  # 3
    ([Shape('blue', 'square', RIGHT, CENTRE)], 'low tone'),  # 4
    ([still('blue', 'square', LEFT), still('yellow', 'star', RIGHT)], 'bell'),  # 5
    ([still('yellow', 'star', CENTRE)], ('say', 'star', 'en-us+f2')),  # 6
    ([Shape('green', 'triangle', TOP, BOTTOM)], 'siren'),  # 7
    ([still('green', 'triangle', BOTTOM)], 'knock'),  # 8
    (
        [
            still('white', 'ring', LEFT),
            still('purple', 'cross', CENTRE),
            still('orange', 'circle', RIGHT),
        ],
        ('say', 'three', 'en-gb+m1'),
    ),  # 9
    ([still('purple', 'cross', TOP)], 'noise'),  # 10
    ([Shape('black', 'square', RIGHT, LEFT)], ('say', 'stop', 'en-us+f4')),  # 11
]


def distance(kind: str, x, y):
    """Give the signed distance of points to the edge of a shape, negative inside; pixels."""
    if kind == 'circle':
        return np.hypot(x, y) - RADIUS
    if kind == 'ring':
        return np.abs(np.hypot(x, y) - 0.76 * RADIUS) - 0.24 * RADIUS
    if kind == 'square':
        return np.maximum(np.abs(x), np.abs(y)) - 0.85 * RADIUS
    if kind == 'cross':
        far, near = np.maximum(np.abs(x), np.abs(y)), np.minimum(np.abs(x), np.abs(y))
        return np.maximum(far - RADIUS, near - 0.32 * RADIUS)
    if kind == 'triangle':
        return np.maximum(0.866 * np.abs(x) - 0.5 * y, y) - 0.5 * RADIUS
    angle = np.abs((np.arctan2(x, -y) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)  # a star
    px, py = np.hypot(x, y) * np.cos(angle), np.hypot(x, y) * np.sin(angle)
    inner = 0.42 * RADIUS * np.array([np.cos(np.pi / 5), np.sin(np.pi / 5)])
    normal = np.array([inner[1], RADIUS - inner[0]])
    return ((px - RADIUS) * normal[0] + py * normal[1]) / np.hypot(*normal)


def draw(shapes, progress: float, rng) -> np.ndarray:
    """Give the frame (240, 320, 3) uint8 at a progress of 0..1 through a second."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    frame = np.full((HEIGHT, WIDTH, 3), BACKGROUND, np.float64)
    for shape in shapes:
        centre = np.add(shape.begin, progress * np.subtract(shape.end, shape.begin))
        cover = np.clip(0.5 - distance(shape.kind, x - centre[0], y - centre[1]), 0, 1)
        frame += cover[..., None] * (np.array(COLOURS[shape.colour]) - frame)
    return np.clip(frame + rng.normal(0, 2, (HEIGHT, WIDTH, 1)), 0, 255).astype(np.uint8)


def fade(sound: np.ndarray) -> np.ndarray:
    """Fade 10 ms in and out, so that nothing clicks."""
    ramp = np.minimum(np.arange(len(sound)), np.arange(len(sound))[::-1]) / SOUND_RATE_HZ / 0.01
    return sound * np.minimum(ramp, 1)


def tone(frequency_hz, length_s: float) -> np.ndarray:
    """Give a sine of one frequency, or of a frequency for each sample."""
    samples = np.broadcast_to(frequency_hz, int(length_s * SOUND_RATE_HZ))
    return np.sin(2 * np.pi * np.cumsum(samples) / SOUND_RATE_HZ)


def bell() -> np.ndarray:
    """Strike a bell: partials that are no multiples of each other, fading by themselves."""
    t = np.arange(int(0.85 * SOUND_RATE_HZ)) / SOUND_RATE_HZ
    partials = ((1, 1, 5), (0.6, 2.76, 8), (0.4, 5.4, 12), (0.3, 0.5, 4))
    return sum(a * np.sin(2 * np.pi * 700 * m * t) * np.exp(-d * t) for a, m, d in partials) / 2


def knock(rng) -> np.ndarray:
    """Knock three times."""
    t = np.arange(int(0.22 * SOUND_RATE_HZ)) / SOUND_RATE_HZ
    blow = (np.sin(2 * np.pi * 130 * t) + 0.5 * rng.normal(0, 1, len(t))) * np.exp(-45 * t)
    return np.tile(blow, 3)


def say(text: str, voice: str) -> np.ndarray:
    """Let espeak-ng speak, without the silence around it."""
    command = ['espeak-ng', '-v', voice, '-s', '150', '--stdout', text]
    spoken = subprocess.run(command, check=True, capture_output=True).stdout
    with wave.open(io.BytesIO(spoken)) as file:
        rate_hz = file.getframerate()
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16) / 32768
    loud = np.flatnonzero(np.abs(samples) > 0.01)
    word = soxr.resample(samples[loud[0] : loud[-1]], rate_hz, SOUND_RATE_HZ)
    return word / np.abs(word).max()


def sound_of(event, rng) -> np.ndarray:
    """Give one second (24000,) of sound with the event in its middle, over a faint hiss."""
    t = np.arange(int(0.9 * SOUND_RATE_HZ)) / SOUND_RATE_HZ
    made = (
        say(*event[1:])
        if event[0] == 'say'
        else {
            'silence': lambda: np.zeros(0),
            'high beep': lambda: fade(tone(1300, 0.2)),
            'low tone': lambda: fade(tone(240, 0.85)),
            'bell': bell,
            'siren': lambda: fade(tone(850 + 320 * np.sin(2 * np.pi * 2.5 * t), 0.9)),
            'knock': lambda: knock(rng),
            'noise': lambda: fade(rng.normal(0, 0.4, int(0.8 * SOUND_RATE_HZ))),
        }[event]()
    )
    second = rng.normal(0, 0.001, SOUND_RATE_HZ)
    begin = (SOUND_RATE_HZ - len(made)) // 2
    second[begin : begin + len(made)] += 0.5 * made[:SOUND_RATE_HZ]
    return second


def encode(path, frames, sound: np.ndarray) -> None:
    """Write frames (h, w, 3) uint8 and sound (n,) in [-1, 1] as one file."""
    with av.open(str(path), 'w') as container:
        pictures = container.add_stream('libx264', rate=FRAME_RATE_HZ)
        pictures.width, pictures.height, pictures.pix_fmt = WIDTH, HEIGHT, 'yuv420p'
        pictures.options = {'crf': '26', 'preset': 'slow', 'threads': '1'}
        track = container.add_stream('aac', rate=SOUND_RATE_HZ, layout='mono')
        track.bit_rate = 64000
        for frame in frames:
            container.mux(pictures.encode(av.VideoFrame.from_ndarray(frame, format='rgb24')))
        container.mux(pictures.encode(None))
        # AAC fills its last frame of 1024 samples up, which would begin a thirteenth second.
        samples = sound[: len(sound) // 1024 * 1024].astype(np.float32)[None]  # (1, n)
        for begin in range(0, samples.shape[1], 1024):
            piece = np.ascontiguousarray(samples[:, begin : begin + 1024])
            chunk = av.AudioFrame.from_ndarray(piece, format='fltp', layout='mono')
            chunk.sample_rate, chunk.pts = SOUND_RATE_HZ, begin
            chunk.time_base = Fraction(1, SOUND_RATE_HZ)
            container.mux(track.encode(chunk))
        container.mux(track.encode(None))


def main():
    """Render the table and write scene.mp4 beside this script."""
    rng = np.random.default_rng(12)
    frames = [
        draw(shapes, i / FRAME_RATE_HZ, rng) for shapes, _ in SCENE for i in range(FRAME_RATE_HZ)
    ]
    sound = np.concatenate([sound_of(event, rng) for _, event in SCENE])
    encode(Path(__file__).with_name('scene.mp4'), frames, sound)


if __name__ == '__main__':
    main()
