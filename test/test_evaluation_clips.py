# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Clips as bags: what is written is read, the same bytes each time; others are refused."""

import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin, Writer
from scored_clips import START_S, jpeg, write_test_clip

from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.bags import writing
from minicpmo_ros.evaluation.bags.clip import (
    AUDIO_INFO,
    IMAGE,
    Clip,
    Sources,
    type_store,
)
from minicpmo_ros.evaluation.bags.clip_reading import read_clip
from minicpmo_ros.evaluation.bags.writing import write_clip
from minicpmo_ros.units import NS


def test_a_clip_keeps_its_stamps_pictures_and_samples(tmp_path, rng):
    pictures = [(i * NS + 123456789, jpeg((40 * i, 90, 200))) for i in range(3)]
    samples = rng.uniform(-0.9, 0.9, 40123).astype(np.float32)
    write_clip(tmp_path / 'a.mcap', START_S, pictures, samples)
    clip = read_clip(tmp_path / 'a.mcap')
    assert [(shot.stamp_ns, shot.compressed()) for shot in clip.images] == [
        (START_S * NS + at, ('jpeg', data)) for at, data in pictures
    ]
    stamps = [stamp for stamp, _ in clip.audio]
    assert stamps == [START_S * NS + i * NS // 10 for i in range(26)]
    heard = np.concatenate([chunk for _, chunk in clip.audio])
    assert heard.dtype == np.float32 and len(heard) == len(samples)
    np.testing.assert_allclose(heard, samples * 32767 / 32768, atol=0.51 / 32768)


def test_the_same_clip_gives_the_same_bytes(tmp_path):
    for name in ('a', 'b'):
        (tmp_path / name).mkdir()
        write_test_clip(tmp_path / name / 'clip.mcap', 2)
    first, second = (tmp_path / name / 'clip.mcap' for name in ('a', 'b'))
    assert first.read_bytes() == second.read_bytes()
    assert [path.name for path in (tmp_path / 'a').iterdir()] == ['clip.mcap']


def test_sound_of_another_rate_is_resampled(tmp_path, monkeypatch):
    """A 48 kHz tone of 500 Hz is one of 500 Hz at 16 kHz."""
    monkeypatch.setattr(writing, 'SAMPLE_RATE_HZ', 48000)
    monkeypatch.setattr(writing, 'CHUNK', 4800)
    tone = 0.5 * np.sin(2 * np.pi * 500 * np.arange(96000) / 48000)
    write_clip(tmp_path / 'a.mcap', START_S, [], tone)
    stamped = read_clip(tmp_path / 'a.mcap').audio
    begins = np.cumsum([0, *(len(chunk) for _, chunk in stamped)])
    assert begins[-1] == 32000
    for (stamp_ns, _), begin in zip(stamped, begins):
        assert abs(stamp_ns - START_S * NS - begin * NS // 16000) <= 1
    heard = np.concatenate([chunk for _, chunk in stamped])
    assert np.argmax(np.abs(np.fft.rfft(heard))) == 1000


@pytest.mark.parametrize('data', [b'nothing', bytes(3000)], ids=['other', 'zeros'])
def test_what_is_no_bag_is_refused_in_words(tmp_path, data):
    path = tmp_path / 'clip.mcap'
    path.write_bytes(data)
    with pytest.raises(InputError, match=r'clip\.mcap: it has neither .* damaged at byte 0'):
        read_clip(path)


def test_a_bag_without_a_clip_is_refused(tmp_path):
    write_clip(tmp_path / 'a.mcap', START_S, [], np.zeros(0))
    with pytest.raises(InputError, match='neither'):
        read_clip(tmp_path / 'a.mcap')
    with pytest.raises(InputError, match='no such bag'):
        read_clip(tmp_path / 'nothing.mcap')


def test_a_part_of_a_clip_begins_and_ends_with_its_seconds(tmp_path):
    write_test_clip(tmp_path / 'a.mcap', 4)
    clip = read_clip(tmp_path / 'a.mcap')
    part = clip.between(START_S + 1, START_S + 3)
    assert [shot.stamp_ns // NS - START_S for shot in part.images] == [1, 2]
    assert part.audio[0][0] == (START_S + 1) * NS and part.first_s == START_S + 1
    heard = np.concatenate([samples for _, samples in clip.audio])
    np.testing.assert_array_equal(
        np.concatenate([samples for _, samples in part.audio]), heard[16000:48000]
    )


@pytest.mark.parametrize('offset_ns', [0, 1, 37_123_456, 62_499, 999_999_999])
def test_parts_hold_every_sample_once_in_its_own_second(offset_ns):
    """Whatever a microphone's stamps are to the grid of samples, 62.5 us."""
    samples = np.arange(16000 * 4, dtype=np.float32)
    chunks = tuple(
        (START_S * NS + offset_ns + i * NS // 16000, samples[i : i + 1600])
        for i in range(0, len(samples), 1600)
    )
    clip = Clip((), chunks)
    parts = [clip.between(START_S + i, START_S + i + 1) for i in range(5)]
    for i, part in enumerate(parts):
        for stamp_ns, held in part.audio:
            assert (START_S + i) * NS <= stamp_ns
            assert stamp_ns + (len(held) - 1) * NS // 16000 < (START_S + i + 1) * NS
    assert all(sum(len(held) for _, held in part.audio) == 16000 for part in parts[1:4])
    kept = np.concatenate([held for part in parts for _, held in part.audio])
    np.testing.assert_array_equal(kept, samples)


def test_two_cameras_are_refused_by_name(tmp_path):
    types = type_store()
    *_, (_, _, message) = writing.clip_messages(
        types, START_S, [(0, jpeg((0, 0, 0)))], np.zeros(0)
    )
    with Writer(tmp_path / 'bag', version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        for topic in ('/right', '/left'):
            connection = writer.add_connection(topic, IMAGE, typestore=types)
            writer.write(connection, 0, types.serialize_cdr(message, IMAGE))
    with pytest.raises(InputError, match='/left, /right'):
        read_clip(tmp_path / 'bag')


def test_sound_without_its_format_is_refused(tmp_path, monkeypatch):
    written = writing.clip_messages
    monkeypatch.setattr(
        writing, 'clip_messages', lambda *a: [row for row in written(*a) if row[1] != AUDIO_INFO]
    )
    write_clip(tmp_path / 'a.mcap', START_S, [], np.zeros(16000))
    with pytest.raises(InputError, match='tells their format. Tell it by audio_format'):
        read_clip(tmp_path / 'a.mcap')
    told = Sources(audio_format='16000,1,S16LE')
    assert sum(len(s) for _, s in read_clip(tmp_path / 'a.mcap', sources=told).audio) == 16000
