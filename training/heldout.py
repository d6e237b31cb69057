# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Held-out clips from a second generator: other code, another hand, other voices than training's.

Pictures are painted by Pillow at camera size, four times enlarged and scaled down, with rounded
corners, outlines, shadows and backgrounds training never had, and stored as JPEG. Sounds come from
other formulas, words from voices and speeds that were never trained on. Only the names of things
and the grammar of questions are shared with training.

    python -m training.heldout --out build/heldout

writes clip_000/ (frame_00.jpg ..., sound.wav) ... and questions.json: 1,800 questions, 300 a
family.
"""

import argparse
import colorsys
import io
import json
import subprocess
import wave
from dataclasses import asdict
from math import cos, pi, sin, tau
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .questions import FAMILIES, Clip, asked, make_question
from .world import COLORS, COLUMNS, KINDS, PITCHES, ROWS, SHAPES, SPOKEN, Picture, Sound

SIZES = ((640, 480), (640, 360), (480, 480), (1280, 720))
ZOOM = 2  # painted larger, then scaled down
RATE_HZ = 16000
# hue (degrees), saturation, value: the middle of what a person calls by the name.
HSV = {
    'red': (358, 0.86, 0.82),
    'green': (127, 0.78, 0.64),
    'blue': (230, 0.83, 0.83),
    'yellow': (54, 0.84, 0.93),
    'white': (60, 0.02, 0.96),
    'black': (240, 0.1, 0.07),
    'purple': (285, 0.78, 0.64),
    'orange': (30, 0.91, 0.95),
}
VOICES = (
    ('en-gb-x-rp', 'm6', 'man'),
    ('en-us', 'm6', 'man'),
    ('en-gb-x-gbclan', 'm2', 'man'),
    ('en-gb-x-rp', 'f4', 'woman'),
    ('en-us', 'f4', 'woman'),
    ('en-gb-x-gbcwmd', 'f2', 'woman'),
)
SPEEDS = (118, 140, 166, 205, 220)


def ink(color, rng):
    hue, saturation, value = HSV[color]
    hue = (hue + rng.uniform(-6, 6)) / 360 % 1
    saturation = min(1, max(0, saturation + rng.uniform(-0.1, 0.1) * (saturation > 0.2)))
    value = min(1, max(0, value + rng.uniform(-0.05, 0.05)))
    return tuple(int(255 * c) for c in colorsys.hsv_to_rgb(hue, saturation, value))


def wall(width, height, rng):
    """A greyish wall: plaster, planks, dots, a light from the side or a blurred room."""
    base = rng.randint(80, 170)
    tint = [rng.randint(-14, 14) for _ in range(3)]
    image = Image.new('RGB', (width, height), tuple(base + t for t in tint))
    pen, kind = ImageDraw.Draw(image), rng.choice(('plaster', 'planks', 'dots', 'light', 'room'))
    if kind == 'plaster':
        chance = np.random.default_rng(rng.getrandbits(32))
        grain = chance.normal(base, 22, (height // 6, width // 6))
        cloud = Image.fromarray(np.clip(grain, 0, 255).astype(np.uint8)).resize((width, height))
        image = Image.blend(image, Image.merge('RGB', [cloud] * 3), 0.5)
    elif kind == 'planks':
        step = rng.randint(height // 12, height // 4)
        for y in range(0, height, step):
            pen.rectangle((0, y, width, y + step // 9), fill=tuple(base - 22 + t for t in tint))
    elif kind == 'dots':
        step = rng.randint(width // 22, width // 9)
        for x in range(0, width, step):
            for y in range((x // step % 2) * step // 2, height, step):
                pen.ellipse(
                    (x, y, x + step // 4, y + step // 4), fill=tuple(base + 18 + t for t in tint)
                )
    elif kind == 'light':
        ramp = Image.linear_gradient('L').resize((width, height))
        if rng.random() < 0.5:
            ramp = Image.linear_gradient('L').rotate(90).resize((width, height))
        image = Image.blend(image, Image.merge('RGB', [ramp] * 3), 0.17)
    else:
        for _ in range(5):
            x, y, grey = rng.randint(0, width), rng.randint(0, height), base + rng.randint(-25, 25)
            pen.rectangle(
                (x - width // 5, y - height // 4, x + width // 5, y + height // 4),
                fill=tuple(grey + t for t in tint),
            )
        image = image.filter(ImageFilter.GaussianBlur(width / 60))
    return image


def outline(shape, x, y, r, turn, rng):
    """Corner points of a shape around x, y, or None for round ones."""

    def ring_of(radii, start):
        n = len(radii)
        return [
            (x + q * sin(start + tau * i / n + turn), y - q * cos(start + tau * i / n + turn))
            for i, q in enumerate(radii)
        ]

    if shape == 'square':
        return ring_of([1.2 * r] * 4, pi / 4)
    if shape == 'triangle':
        return ring_of([1.12 * r] * 3, 0)
    if shape == 'star':
        return ring_of([1.1 * r, rng.uniform(0.42, 0.5) * r] * 5, 0)
    if shape == 'cross':
        a = rng.uniform(0.29, 0.35)
        corners = [
            (a, 1),
            (a, a),
            (1, a),
            (1, -a),
            (a, -a),
            (a, -1),
            (-a, -1),
            (-a, -a),
            (-1, -a),
            (-1, a),
            (-a, a),
            (-a, 1),
        ]
        return [
            (x + r * (u * cos(turn) - v * sin(turn)), y + r * (u * sin(turn) + v * cos(turn)))
            for u, v in corners
        ]
    return None


def put(image, shape, color, x, y, r, rng):
    """Paint one shape, with a soft shadow or a thin dark rim now and then."""
    turn, fill = rng.uniform(-0.28, 0.28), ink(color, rng)
    mask = Image.new('L', image.size, 0)
    pen, corners = ImageDraw.Draw(mask), outline(shape, x, y, r, turn, rng)
    if corners:
        pen.polygon(corners, fill=255)
        if rng.random() < 0.5:  # rounded corners
            mask = mask.filter(ImageFilter.GaussianBlur(r / 9)).point(lambda v: 255 * (v > 127))
    else:
        pen.ellipse((x - r, y - r, x + r, y + r), fill=255)
        if shape == 'ring':
            hole = rng.uniform(0.5, 0.62) * r
            pen.ellipse((x - hole, y - hole, x + hole, y + hole), fill=0)
    if rng.random() < 0.3:
        shadow = Image.new('L', image.size, 0)
        shadow.paste(mask, (int(r / 10), int(r / 8)))
        dark = shadow.filter(ImageFilter.GaussianBlur(r / 12)).point(lambda v: v // 4)
        image.paste((20, 20, 20), (0, 0), dark)
    image.paste(fill, (0, 0), mask)


def spots(count, width, height, rng):
    """(radius, centres): one shape well inside a third, several on a loose ring."""
    side = (width * height) ** 0.5
    if count == 1:
        r = min(side * rng.uniform(0.15, 0.21), 0.28 * height)
        x = (rng.randrange(3) + rng.uniform(0.3, 0.7)) * width / 3
        y = (rng.randrange(3) + rng.uniform(0.3, 0.7)) * height / 3
        return r, [(min(max(x, 0.8 * r), width - 0.8 * r), min(max(y, 0.8 * r), height - 0.8 * r))]
    r = min(side * rng.uniform(0.1, 0.13), 0.18 * height)
    start, centres = rng.uniform(0, tau), []
    for i in range(count):
        angle = start + tau * i / count + rng.uniform(-0.2, 0.2)
        centres.append(
            (
                width / 2 + (width / 2 - 1.3 * r) * cos(angle) * rng.uniform(0.75, 1),
                height / 2 + (height / 2 - 1.3 * r) * sin(angle) * rng.uniform(0.8, 1),
            )
        )
    return r, centres


def paint_frame(picture, size, backdrop, rng):
    """-> JPEG bytes, Picture with its place"""
    width, height = (ZOOM * n for n in size)
    radius, centres = spots(picture.count, width, height, rng)
    image = backdrop.copy()
    for x, y in centres:
        put(image, picture.shape, picture.color, x, y, radius, rng)
    if picture.count == 1:
        x, y = centres[0]
        picture = Picture(
            picture.shape, picture.color, 1, COLUMNS[int(3 * x / width)], ROWS[int(3 * y / height)]
        )
    buffer = io.BytesIO()
    image.resize(size, Image.LANCZOS).save(buffer, 'JPEG', quality=rng.randint(70, 92))
    return buffer.getvalue(), picture


# ---- sounds
def swell(pcm, attack=0.02):
    n = max(2, int(len(pcm) * attack))
    gate = np.minimum(1, np.minimum(np.arange(len(pcm)), np.arange(len(pcm))[::-1]) / n)
    return pcm * gate


def tone(hertz, length_s, rng):
    """A flute-like tone with vibrato, or a soft triangle wave."""
    t = np.arange(int(RATE_HZ * length_s)) / RATE_HZ
    phase = tau * hertz * t + rng.uniform(0, 0.3) * np.sin(tau * 5 * t)
    wave_ = np.sin(phase) if rng.random() < 0.5 else 2 / pi * np.arcsin(np.sin(phase))
    return 0.45 * swell(wave_)


def event(sound, rng):
    noise = np.random.default_rng(rng.getrandbits(32)).normal
    if sound.kind in ('beep', 'tone'):
        hertz = rng.uniform(190, 310) if sound.pitch == 'low' else rng.uniform(900, 1600)
        return tone(
            hertz, rng.uniform(0.12, 0.22) if sound.kind == 'beep' else rng.uniform(0.7, 0.92), rng
        )
    n = int(RATE_HZ * rng.uniform(0.65, 0.9))
    t = np.arange(n) / RATE_HZ
    if sound.kind == 'noise':  # wind: noise that breathes
        breath = 0.75 + 0.25 * np.sin(tau * rng.uniform(1, 4) * t)
        return swell(0.25 * noise(size=n) * breath, 0.1)
    if sound.kind == 'siren':  # a rising and falling wail
        sweep = 2 / pi * np.arcsin(np.sin(tau * rng.uniform(1.4, 3.2) * t + rng.uniform(0, 6)))
        return 0.45 * swell(np.sin(tau * np.cumsum(900 + 330 * sweep) / RATE_HZ))
    if sound.kind == 'bell':  # frequency modulation, dying away
        base = rng.uniform(500, 1050)
        index = 3.5 * np.exp(-t * 5)
        return (
            0.5
            * np.exp(-t * rng.uniform(4, 6))
            * np.sin(tau * base * t + index * np.sin(tau * base * 1.41 * t))
        )
    if sound.kind == 'knock':
        pcm = np.zeros(n)
        for i in range(rng.randint(2, 4)):
            at = int(i * rng.uniform(0.15, 0.19) * RATE_HZ)
            thump = np.convolve(noise(size=1400), np.ones(30) / 8, 'same') * np.exp(
                -np.arange(1400) / RATE_HZ * 50
            )
            pcm[at : at + 1400] += thump[: max(0, n - at)]
        return 0.6 * pcm
    return np.zeros(1)


def say(word, rng):
    """-> samples at 16 kHz, the voice's sex; shortened from the end if it lasts too long."""
    accent, variant, sex = rng.choice(VOICES)
    speed = rng.choice(SPEEDS)
    while True:
        out = subprocess.run(
            [
                'espeak-ng',
                '-v',
                f'{accent}+{variant}',
                '-s',
                str(speed),
                '-p',
                str(rng.randint(30, 68)),
                '--stdout',
                word,
            ],
            capture_output=True,
            check=True,
        ).stdout
        with wave.open(io.BytesIO(out)) as spoken:
            rate = spoken.getframerate()
        pcm = np.frombuffer(out[44:], np.int16) / 32768
        at = np.arange(int(len(pcm) * RATE_HZ / rate)) * rate / RATE_HZ
        smooth = np.convolve(pcm, np.hanning(5) / np.hanning(5).sum(), 'same')
        pcm = np.interp(at, np.arange(len(pcm)), smooth)
        loud = np.flatnonzero(np.abs(pcm) > 0.012)
        pcm = pcm[max(0, loud[0] - 300) : loud[-1] + 500]
        if len(pcm) < 15300:
            return pcm / np.abs(pcm).max(), sex
        speed += 30


def second_of_sound(sound, rng):
    chance = np.random.default_rng(rng.getrandbits(32))
    pcm = chance.normal(0, 10 ** rng.uniform(-3.8, -2.6), RATE_HZ)
    made = event(sound, rng)
    if sound.kind == 'speech':
        made, sex = say(sound.word, rng)
        sound = Sound('speech', sound.word, sex)
    made = made[:RATE_HZ] * rng.uniform(0.3, 0.85)
    start = rng.randint(0, RATE_HZ - len(made))
    pcm[start : start + len(made)] += made
    return np.clip(pcm, -1, 1), sound


# ---- clips
def plan(seconds, rng):
    """Pictures and sounds of a clip; a fifth of the clips hold still but for one change."""
    still = rng.random() < 0.2
    pictures, sounds, words = [], [], list(SPOKEN)
    rng.shuffle(words)
    for i in range(seconds):
        count = 1 if rng.random() < 0.6 else rng.randint(2, 4)
        fresh = Picture(rng.choice(SHAPES), rng.choice(COLORS), count)
        change = i == 0 or not still or i == seconds // 2
        pictures.append(fresh if change else pictures[-1])
        if rng.random() < 0.55:
            favourite = [w for w in words if w in COLORS or w in SHAPES]
            word = rng.choice(favourite or words) if rng.random() < 0.6 else rng.choice(words)
            words.remove(word)
            sounds.append(Sound('speech', word))
        else:
            kind = rng.choice(KINDS[:-1])
            sounds.append(
                Sound(kind, pitch=rng.choice(PITCHES) if kind in ('beep', 'tone') else None)
            )
    return pictures, sounds, not still


def make_clip(seconds, seed):
    """-> Clip, list of JPEG bytes, (seconds * 16000,) float"""
    rng = Random(f'held out {seconds} {seed}')
    size = rng.choice(SIZES)
    backdrop = wall(ZOOM * size[0], ZOOM * size[1], rng)
    pictures, sounds, independent = plan(seconds, rng)
    frames, shown = zip(*(paint_frame(p, size, backdrop, rng) for p in pictures))
    pcm, heard = zip(*(second_of_sound(s, rng) for s in sounds))
    return Clip(shown, heard, independent), frames, np.concatenate(pcm)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--out', type=Path, default=Path('build/heldout'))
    parser.add_argument('--clips', type=int, default=150)
    parser.add_argument('--per-family', type=int, default=300)
    options = parser.parse_args()
    lengths, number, rows = (2, 3, 4, 2, 3, 4, 6, 8, 12, 16), 0, []
    quota = -(-options.per_family // options.clips)
    left = dict.fromkeys(FAMILIES, options.per_family)
    while number < options.clips or any(left.values()):
        clip, frames, pcm = make_clip(lengths[number % len(lengths)], number)
        folder = options.out / f'clip_{number:03d}'
        folder.mkdir(parents=True, exist_ok=True)
        for i, frame in enumerate(frames):
            (folder / f'frame_{i:02d}.jpg').write_bytes(frame)
        with wave.open(str(folder / 'sound.wav'), 'wb') as out:
            out.setnchannels(1)
            out.setsampwidth(2)
            out.setframerate(RATE_HZ)
            out.writeframes((pcm * 32767).astype('<i2').tobytes())
        rng = np.random.default_rng((20260, number))
        for family in FAMILIES:
            for _ in range(min(quota, left[family])):
                made = make_question(clip, family, rng, with_options=bool(rng.random() < 0.25))
                if made:
                    left[family] -= 1
                    rows.append(
                        {
                            'clip': folder.name,
                            'seconds': clip.seconds,
                            'hard': clip.independent,
                            **asdict(made),
                            'asked': asked(made),
                        }
                    )
        number += 1
    (options.out / 'questions.json').write_text(json.dumps(rows, indent=1))
    print(f'{number} clips, {len(rows)} questions in {options.out}')


if __name__ == '__main__':
    main()
