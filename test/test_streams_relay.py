# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What a relay sends: one image of each second, small enough; audio in pieces; within a rate."""

import io

import numpy as np
import pytest
from PIL import Image

from minicpmo_ros.streams.relay import (
    STEPS,
    JpegFitter,
    NewestOfSecond,
    RateRule,
    Rechunker,
    to_pcm,
    wire_bytes,
)
from minicpmo_ros.streams.time import Arrival, Instant

NS = 10**9
RATE_HZ = 16_000


class Camera:
    """Offers images by their stamps in seconds, which arrive a little later."""

    def __init__(self, delay_s: float = 0.05):
        self.chosen, self.images, self._delay_s = [], NewestOfSecond(), delay_s

    def shoot(self, stamp_s: float, at_s: float | None = None) -> None:
        at = Instant(stamp_s + self._delay_s if at_s is None else at_s)
        self._note(self.images.offer(Arrival(round(stamp_s * NS), at, stamp_s)))
        self.wait(at.steady_s)

    def wait(self, at_s: float) -> None:
        self._note(self.images.due(Instant(at_s)))

    def _note(self, seconds: list) -> None:
        self.chosen += [[arrival.content for arrival in images] for images in seconds]


def test_of_each_second_the_newest_image_is_chosen_with_the_one_before_it_in_reserve():
    camera = Camera()
    for i in range(35):
        camera.shoot(100 + i / 10)
    assert camera.chosen == [[100.9, 100.8], [101.9, 101.8], [102.9, 102.8]]
    assert camera.images.late == 0


@pytest.mark.parametrize('rate_hz', [0.5, 1, 2, 3, 7, 10, 30])
@pytest.mark.parametrize('phase', [0.0, 0.013, 0.49, 0.97])
def test_an_image_lags_little_behind_and_is_the_newest_whatever_the_rate(rate_hz, phase):
    """An image that is sent more than a second after it was taken looks like a wrong clock."""
    stamps = [100 + phase + i / rate_hz for i in range(int(40 * rate_hz))]
    images, sent = NewestOfSecond(), {}
    ticks = sorted([(stamp, 1) for stamp in stamps] + [(100 + i / 20, 0) for i in range(820)])
    for at_s, is_image in ticks:
        now = Instant(at_s)
        if is_image:
            over = images.offer(Arrival(round(at_s * NS), now, at_s))
        for newest, *_ in (over if is_image else []) + images.due(now):
            sent[newest.content] = at_s
    newest = {int(stamp): stamp for stamp in stamps}.values()
    assert list(sent) == list(newest)[: len(sent)] and len(sent) >= len(newest) - 1
    lags = [at_s - stamp for stamp, at_s in sent.items() if stamp > 100 + (5 + 1) / rate_hz]
    assert max(lags) <= 1 / rate_hz + 0.11 and max(lags) <= 0.61


def test_a_second_is_over_at_its_end_even_if_no_image_follows():
    camera = Camera(delay_s=0.0)
    camera.shoot(100.2)
    camera.wait(101.0)
    assert camera.chosen == []
    camera.wait(101.06)
    assert camera.chosen == [[100.2]]
    camera.wait(109.0)
    assert len(camera.chosen) == 1


def test_an_image_of_a_second_that_is_over_is_late_and_not_sent():
    camera = Camera()
    camera.shoot(100.9), camera.shoot(101.1)
    camera.shoot(100.95, at_s=101.3)
    camera.shoot(101.2, at_s=101.4), camera.shoot(102.0)
    assert camera.chosen == [[100.9], [101.2, 101.1]]
    assert camera.images.late == 1


def test_a_recording_that_loops_is_followed_back():
    camera = Camera()
    for stamp_s in (100.5, 101.5, 102.5):
        camera.shoot(stamp_s)
    for i, stamp_s in enumerate((50.5, 51.5, 52.5)):
        camera.shoot(stamp_s, at_s=103.5 + i)
    camera.wait(110.0)
    assert [images[0] for images in camera.chosen] == [100.5, 101.5, 102.5, 50.5, 51.5, 52.5]


def test_stamps_that_stand_still_still_give_one_image_a_second():
    camera = Camera()
    for i in range(60):
        camera.shoot(100.0, at_s=100 + i / 10)
    assert 3 <= len(camera.chosen) <= 6


def photo(seed: int = 0, width: int = 640, height: int = 480) -> np.ndarray:
    """Give (h, w, 3) uint8 with as much detail as a photograph."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (height // 8, width // 8, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.BICUBIC), np.int16)
    noisy = smooth + rng.normal(0, 12, smooth.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


@pytest.mark.parametrize('most', [200_000, 50_000, 20_000, 5_000, 2_000])
def test_an_image_is_as_good_as_the_bytes_allow_and_never_larger(most):
    fitter, pixels = JpegFitter(80, 640), photo()
    fitted = fitter.fit(pixels, most)
    assert len(fitted.data) <= most
    assert Image.open(io.BytesIO(fitted.data)).size == (fitted.width, fitted.height)
    if fitter.step:
        better = JpegFitter(80, 640)
        assert len(better.fit(pixels, 10**9).data) > most
    else:
        assert (fitted.quality, fitted.width, fitted.height) == (80, 640, 480)


def test_the_step_is_kept_and_a_better_one_is_tried_when_there_is_room_again():
    fitter, busy, calm = JpegFitter(80, 640), photo(), np.full((480, 640, 3), 90, np.uint8)
    fitter.fit(busy, 20_000)
    low = fitter.step
    assert low > 0 and fitter.fit(busy, 20_000) and fitter.step == low
    for _ in STEPS:
        fitter.fit(calm, 20_000)
    assert fitter.step == 0


def test_what_no_step_makes_small_enough_is_not_sent():
    assert JpegFitter(80, 640).fit(photo(), 100) is None


def test_large_images_are_made_smaller_whatever_their_shape():
    for width, height, size in (
        (1920, 1080, (640, 360)),
        (300, 1200, (160, 640)),
        (64, 64, (64, 64)),
    ):
        fitted = JpegFitter(80, 640).fit(photo(1, width, height), 10**9)
        assert (fitted.width, fitted.height) == size


@pytest.mark.parametrize('lengths', [(160,) * 100, (640,) * 25, (4000, 1, 799, 11_200)])
def test_audio_is_cut_into_equal_pieces_with_the_stamps_of_their_first_samples(lengths):
    samples = np.arange(sum(lengths), dtype=np.float32)
    rechunker, pieces, begin = Rechunker(RATE_HZ, 40), [], 0
    for length in lengths:
        stamp_ns = 5 * NS + begin * NS // RATE_HZ
        pieces += rechunker.push(stamp_ns, samples[begin : begin + length])
        begin += length
    pieces += rechunker.flush()
    assert np.array_equal(np.concatenate([piece for _, piece in pieces]), samples)
    assert {len(piece) for _, piece in pieces[:-1]} == {640}
    for stamp_ns, piece in pieces:
        assert stamp_ns == 5 * NS + int(piece[0]) * NS // RATE_HZ


def test_a_gap_ends_a_piece_so_that_no_stamp_is_wrong():
    rechunker, second = Rechunker(RATE_HZ, 40), np.zeros(1000, np.float32)
    first = rechunker.push(0, second)
    after = rechunker.push(NS, second)
    assert [stamp for stamp, _ in first + after] == [0, 40_000_000, NS]
    assert [len(piece) for _, piece in first + after] == [640, 360, 640]


def test_samples_of_16_bits_come_out_as_they_went_in():
    samples = np.arange(-32768, 32768).astype('<i2')
    assert np.array_equal(to_pcm(samples.astype(np.float32) / np.float32(32768)), samples)
    assert to_pcm(np.float32([1.0, -1.0])).tolist() == [32767, -32768]


@pytest.mark.parametrize('mbit', [0.35, 0.75, 3.0])
@pytest.mark.parametrize('audio_rate', [1.0, 4.0])
def test_no_mix_of_images_and_audio_exceeds_the_rate(mbit, audio_rate):
    """Also not audio that comes faster than real time, nor images as large as is allowed."""
    rule, sent, seconds = RateRule(mbit, 0.0), [], 20
    audio_bytes = 25 * audio_rate * wire_bytes(1280)
    rule.audio_takes(audio_bytes)
    for tick in range(int(seconds * 25 * audio_rate)):
        now_s = tick / (25 * audio_rate)
        if rule.spend(1280, now_s):
            sent.append((now_s, wire_bytes(1280)))
        if tick % int(25 * audio_rate) == 0:
            size = int(rule.image_bytes(now_s))
            if size > 0 and rule.spend(size, now_s):
                sent.append((now_s, wire_bytes(size)))
    total = sum(size for _, size in sent)
    assert total <= (seconds + 1) * mbit * 1e6 / 8
    assert total >= 0.9 * seconds * mbit * 1e6 / 8


def test_audio_is_never_dropped_for_images():
    rule = RateRule(0.75, 0.0)
    rule.audio_takes(25 * wire_bytes(1280))
    for tick in range(1000):
        assert rule.spend(1280, tick / 25)
        if tick % 25 == 3:
            assert rule.spend(int(rule.image_bytes(tick / 25)), tick / 25)
