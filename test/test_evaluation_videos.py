# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A video becomes a bag whose stamps are exact, and StreamingBench is run from its own files."""

import json
import re
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from minicpmo_ros.cli import main as cli
from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.bags import media_source
from minicpmo_ros.evaluation.bags.clip_reading import read_clip
from minicpmo_ros.evaluation.bags.media_source import open_source
from minicpmo_ros.evaluation.bags.writing import START_S, write_video
from minicpmo_ros.units import NS

RATE_HZ, FPS = 48000, 10


def write_test_video(path, seconds=3.5):
    """Frame k is grey of 6 k; in second 1 alone there is a tone."""
    with av.open(str(path), 'w') as container:
        pictures = container.add_stream('mjpeg', rate=FPS, width=64, height=48)
        pictures.pix_fmt = 'yuvj420p'
        sound = container.add_stream('pcm_s16le', rate=RATE_HZ, layout='mono')
        for k in range(int(seconds * FPS)):
            grey = np.full((48, 64, 3), 6 * k % 256, np.uint8)
            container.mux(pictures.encode(av.VideoFrame.from_ndarray(grey, 'rgb24')))
            t = (k * RATE_HZ // FPS + np.arange(RATE_HZ // FPS)) / RATE_HZ
            tone = 9000 * np.sin(2 * np.pi * 500 * t) * ((t >= 1) & (t < 2))
            chunk = av.AudioFrame.from_ndarray(tone.astype('<i2')[None], 's16', 'mono')
            chunk.rate, chunk.pts = RATE_HZ, k * RATE_HZ // FPS
            container.mux(sound.encode(chunk))
        for stream in (pictures, sound):
            container.mux(stream.encode())


def test_a_second_shows_what_is_seen_just_before_its_end(tmp_path):
    write_test_video(tmp_path / 'a.mkv')
    write_video(tmp_path / 'a.mkv', tmp_path / 'a.mcap')
    clip = read_clip(tmp_path / 'a.mcap')
    stamps = [shot.stamp_ns - START_S * NS for shot in clip.images]
    assert stamps == [900_000_000 + i * NS for i in range(4)]
    greys = [float(shot.rgb().mean()) for shot in clip.images]
    np.testing.assert_allclose(greys, [6 * 9, 6 * 19, 6 * 29, 6 * 34], atol=3)


def test_the_sound_lies_where_it_was(tmp_path):
    write_test_video(tmp_path / 'a.mkv')
    write_video(tmp_path / 'a.mkv', tmp_path / 'a.mcap')
    heard = np.concatenate([samples for _, samples in read_clip(tmp_path / 'a.mcap').audio])
    assert abs(len(heard) - 3.5 * 16000) <= 1
    loud = np.flatnonzero(np.abs(heard) > 0.05)
    assert abs(loud[0] - 16000) < 40 and abs(loud[-1] - 32000) < 40


def test_a_video_whose_copy_is_not_complete_is_told(tmp_path, capsys):
    write_test_video(tmp_path / 'a.mkv', 12)
    whole = (tmp_path / 'a.mkv').read_bytes()
    (tmp_path / 'cut.mkv').write_bytes(whole[: len(whole) // 2])
    told = {}
    for name in ('a', 'cut'):
        video, bag = (str(tmp_path / f'{name}.{end}') for end in ('mkv', 'mcap'))
        assert cli.main(['bag', video, '--out', bag]) == 0
        told[name] = capsys.readouterr().err
    assert not told['a']
    words = r'cut.mkv: it ends after [56]\.\d s, and its header says 12\.\d s'
    assert re.search(words, told['cut'])


def test_a_bag_has_what_can_be_decoded_and_says_what_it_lacks(tmp_path, capsys):
    with wave.open(str(tmp_path / 'cut.wav'), 'wb') as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(bytes(4 * 48000))
    whole = (tmp_path / 'cut.wav').read_bytes()
    (tmp_path / 'cut.wav').write_bytes(whole[: len(whole) * 2 // 3 + 1])
    bag = tmp_path / 'cut.mcap'
    assert cli.main(['bag', str(tmp_path / 'cut.wav'), '--out', str(bag)]) == 0
    told = capsys.readouterr().err
    assert (
        'cut.wav: the audio is damaged' in told and 'Damaged parts that are left out: 1.' in told
    )
    heard = sum(len(samples) for _, samples in read_clip(bag).audio)
    assert 1.5 * 16000 < heard <= 2 * 16000


def test_the_last_slide_is_shown_to_the_end_of_its_time(tmp_path, capsys):
    with av.open(str(tmp_path / 'a.mp4'), 'w') as container:
        stream = container.add_stream('mjpeg', rate=10, width=64, height=48)
        stream.pix_fmt = 'yuvj420p'
        for at_s, shown_s in ((0, 2), (2, 9)):
            grey = np.full((48, 64, 3), 50 * shown_s % 256, np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, 'rgb24').reformat(format='yuvj420p')
            frame.pts, frame.time_base = 10 * at_s, Fraction(1, 10)
            for packet in stream.encode(frame):
                packet.duration = int(shown_s / packet.time_base)
                container.mux(packet)
    bag = tmp_path / 'a.mcap'
    assert cli.main(['bag', str(tmp_path / 'a.mp4'), '--out', str(bag)]) == 0
    assert not capsys.readouterr().err  # it does not end before its header says
    greys = [float(shot.rgb().mean()) for shot in read_clip(bag).images]
    np.testing.assert_allclose(greys, 2 * [100] + 9 * [450 % 256], atol=3)
    played = open_source(str(tmp_path / 'a.mp4')).images
    assert {offset_ns // NS for offset_ns, _, _ in played} == set(range(11))


def test_an_image_that_is_shown_for_long_is_played_again_every_second(tmp_path):
    def times_s(name, shown_s):
        with av.open(str(tmp_path / name), 'w') as container:
            stream = container.add_stream('mjpeg', rate=10, width=64, height=48)
            stream.pix_fmt, stream.codec_context.time_base = 'yuvj420p', Fraction(1, 10)
            for i, at_s in enumerate(shown_s):
                grey = np.full((48, 64, 3), 50 * i, np.uint8)
                frame = av.VideoFrame.from_ndarray(grey, 'rgb24').reformat(format='yuvj420p')
                frame.pts, frame.time_base = round(at_s * 10), Fraction(1, 10)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        played = list(open_source(str(tmp_path / name)).images)
        assert len({data for _, _, data in played}) == len(shown_s)
        return [round(offset_ns / NS, 3) for offset_ns, _, _ in played]

    assert times_s('a.mkv', (0, 0.5, 3, 4)) == [0, 0.5, 1.5, 2.5, 3, 4]
    assert times_s('b.mkv', (0, 100)) == list(range(101))  # the header says that it is so long
    assert times_s('c.avi', (0, 3)) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    'fps, times_s',
    [(4, [0, 0.3, 0.5, 0.8, 1, 1.3]), (1, [0, 1]), (0, [i / 10 for i in range(15)])],
)
def test_no_more_images_are_encoded_than_are_asked_for(tmp_path, monkeypatch, fps, times_s):
    write_test_video(tmp_path / 'a.mkv', 1.5)
    encoded = []
    monkeypatch.setattr(
        media_source, 'encode_jpeg', lambda image, quality: encoded.append(image) or b'jpeg'
    )
    played = list(media_source.open_source(str(tmp_path / 'a.mkv'), fps=fps).images)
    assert [round(offset_ns / NS, 3) for offset_ns, _, _ in played] == times_s
    assert len(encoded) == len(times_s)


@pytest.mark.parametrize('sense', ['images', 'audio'])
def test_stamps_that_jump_for_hours_are_refused_and_leave_no_bag(tmp_path, sense):
    # Without a length in its header, in which slides may be shown for hours.
    with av.open(str(tmp_path / 'a.mkv'), 'w', options={'live': '1'}) as container:
        if sense == 'images':
            stream = container.add_stream('mjpeg', rate=1, width=64, height=48)
            stream.pix_fmt = 'yuvj420p'
            pieces = [av.VideoFrame(64, 48, 'yuvj420p') for _ in range(2)]
        else:
            stream = container.add_stream('pcm_s16le', rate=8000, layout='mono')
            pieces = [av.AudioFrame('s16', 'mono', 8000) for _ in range(2)]
        for piece, at_s in zip(pieces, (0, 7200)):
            piece.pts, piece.time_base = at_s * 1000, Fraction(1, 1000)
            if sense == 'audio':
                piece.sample_rate, piece.pts, piece.time_base = (
                    8000,
                    at_s * 8000,
                    Fraction(1, 8000),
                )
            container.mux(stream.encode(piece))
        container.mux(stream.encode())
    with pytest.raises(InputError, match=rf'a\.mkv: the stamps of its {sense} jump'):
        write_video(tmp_path / 'a.mkv', tmp_path / 'a.mcap')
    assert not list(tmp_path.glob('*.mcap'))


def test_what_is_no_video_leaves_no_bag(tmp_path):
    (tmp_path / 'a.mkv').write_bytes(b'nothing')
    with pytest.raises(InputError, match=r'a\.mkv'):
        write_video(tmp_path / 'a.mkv', tmp_path / 'a.mcap')
    assert not list(tmp_path.glob('*.mcap'))


def test_what_ends_behind_its_header_leaves_no_bag(tmp_path):
    with wave.open(str(tmp_path / 'a.wav'), 'wb') as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
    with pytest.raises(InputError, match='ends before its first image or sound'):
        write_video(tmp_path / 'a.wav', tmp_path / 'a.mcap')
    assert not (tmp_path / 'a.mcap').exists()


def test_streamingbench_goes_from_its_files_to_a_report(tmp_path, capsys):
    videos, out = tmp_path / 'videos', tmp_path / 'set'
    (videos / 'deep').mkdir(parents=True)
    write_test_video(videos / 'deep' / 'sample_0.mkv')
    question = {
        'question': 'Which lamp is lit?',
        'answer': 'B',
        'options': ['A. Red', 'B. Blue', 'C. Green', 'D. None'],
    }
    entries = [
        {
            'video_path': f'./videos/{name}.mkv',
            'questions': [{**question, 'task_type': task, 'time_stamp': stamp}],
        }
        for name, task, stamp in (
            ('sample_0', 'Scene Understanding', '00:00:02'),
            ('sample_0', 'Source Discrimination', '00:00:03'),
            ('sample_9', 'Scene Understanding', '00:00:02'),
        )
    ]
    (tmp_path / 'questions_omni.json').write_text(json.dumps(entries))
    arguments = ['streamingbench', str(tmp_path / 'questions_omni.json'), '--videos', str(videos)]
    assert cli.main([*arguments, '--out', str(out), '--context', '2']) == 0
    assert (
        '2 questions (1 Scene Understanding, 1 Source Discrimination)' in capsys.readouterr().out
    )
    assert 'sample_9.mkv' in (out / 'defects.txt').read_text()
    model = Path(__file__).parents[1] / 'models' / 'nano'
    replay = ['replay', str(model), str(out / 'questions.json'), '--device', 'cpu']
    assert cli.main([*replay, '--out', str(tmp_path / 'run'), '--max-tokens', '4']) == 0
    page = tmp_path / 'page.html'
    report = ['report', str(tmp_path / 'run'), '--questions', str(out / 'questions.json')]
    assert cli.main([*report, '--out', str(page)]) == 0
    assert 'Source Discrimination' in page.read_text()
    assert page.with_suffix('.csv').read_text().count('\n') > 2
