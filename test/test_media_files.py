# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Files are read with the stamps they were made with, and bad ones are refused in words."""

import socket
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from minicpmo_ros.errors import InputError
from minicpmo_ros.media.files import probe, read_audio, read_video

DEMO = Path(__file__).parent / 'data' / 'scene.mp4'
RATE = 48000


def write(path, first_pts=0, rotation=0, codec='libx264', sound='aac', channels=2):
    """Two seconds: frame i has the brightness 10 i + 20; a click in the sound at exactly 1 s."""
    layout = {1: 'mono', 2: 'stereo', 6: '5.1'}[channels]
    with av.open(str(path), 'w') as container:
        video = codec and container.add_stream(codec, rate=10)
        audio = sound and container.add_stream(sound, rate=RATE, layout=layout)
        if video:
            video.width, video.height = 64, 48
            video.pix_fmt = 'yuvj420p' if codec == 'mjpeg' else 'yuv420p'
            video.options = {'bf': '2', 'qp': '1'} if codec == 'libx264' else {}
            if rotation:
                video.set_display_rotation(rotation)
            container.mux([p for f in frames(first_pts) for p in video.encode(f)])
            container.mux(video.encode(None))
        if audio:
            kind = 's16' if sound == 'pcm_s16le' else 'fltp'
            chunks = sound_chunks(int(first_pts * RATE / 10), kind, layout, channels)
            container.mux([p for c in chunks for p in audio.encode(c)])
            container.mux(audio.encode(None))
    return path


def frames(first_pts):
    for i in range(20):
        grey = np.full((48, 64, 3), 10 * i + 20, np.uint8)
        grey[:24, :32] = 250  # a bright corner, top left
        frame = av.VideoFrame.from_ndarray(grey, format='rgb24')
        frame.pts, frame.time_base = first_pts + i, Fraction(1, 10)
        yield frame


def sound_chunks(first_pts, kind, layout, channels):
    wave = np.zeros((channels, 2 * RATE), np.float32)
    wave[:, RATE : RATE + 480] = 0.5
    for i in range(0, 2 * RATE, 1024):
        values = wave[:, i : i + 1024]
        if kind == 's16':
            values = np.round(values.T.reshape(1, -1) * 32767).astype(np.int16)
        chunk = av.AudioFrame.from_ndarray(np.ascontiguousarray(values), kind, layout)
        chunk.sample_rate, chunk.time_base = RATE, Fraction(1, RATE)
        chunk.pts = first_pts + i
        yield chunk


def click_s(path) -> float:
    """Give the time of the click by the stamps of the chunks."""
    rate_hz, chunks = read_audio(path)
    for stamp_ns, samples in chunks:
        loud = np.flatnonzero(samples > 0.25)
        if len(loud):
            return stamp_ns / 1e9 + loud[0] / rate_hz
    raise AssertionError('no click')


@pytest.mark.parametrize(
    'name, codec, sound',
    [
        ('a.mp4', 'libx264', 'aac'),
        ('a.mkv', 'libx264', 'aac'),
        ('a.ts', 'libx264', 'aac'),
        ('a.mkv', 'mjpeg', 'pcm_s16le'),
        ('a.mov', 'mpeg4', 'pcm_s16le'),
    ],
)
@pytest.mark.parametrize('first_pts', [0, 70])
def test_stamps_are_those_of_presentation(tmp_path, name, codec, sound, first_pts):
    path = write(tmp_path / name, first_pts, codec=codec, sound=sound)
    shown = list(read_video(path))
    stamps_ms = [round(stamp_ns / 1e6) for stamp_ns, _ in shown]
    # A file that starts late (a cut) starts at 0 here, sound and picture by the same amount.
    shift_ms = stamps_ms[0]
    assert 0 <= shift_ms < 50
    assert stamps_ms == pytest.approx([shift_ms + 100 * i for i in range(20)], abs=1)
    brightness = [picture[-8:, -8:].mean() for _, picture in shown]
    assert np.abs(np.array(brightness) - 10 * np.arange(20) - 20).max() < 6  # in order
    assert click_s(path) * 1000 - shift_ms == pytest.approx(1000, abs=3)


def test_sound_before_the_start_is_left_out(tmp_path):
    path = write(tmp_path / 'a.ogg', first_pts=-5.1, codec=None, sound='libopus')
    _, chunks = read_audio(path)
    stamps_ns, chunks = zip(*chunks)
    assert stamps_ns[0] == 0
    assert stamps_ns[1] == len(chunks[0]) * 10**9 // RATE
    assert sum(map(len, chunks)) == pytest.approx(1.49 * RATE, abs=1000)
    assert click_s(path) == pytest.approx(0.49, abs=0.003)


@pytest.mark.parametrize('channels', [1, 2, 6])
@pytest.mark.parametrize('sound', ['pcm_s16le', 'aac'])
def test_sound_is_mono_float_at_its_own_rate(tmp_path, channels, sound):
    path = write(tmp_path / 'a.mkv', codec=None, sound=sound, channels=channels)
    rate_hz, chunks = read_audio(path)
    whole = np.concatenate([samples for _, samples in chunks])
    assert rate_hz == RATE and whole.dtype == np.float32
    assert abs(len(whole) - 2 * RATE) <= 1024
    assert np.abs(whole[RATE + 100 : RATE + 400] - 0.5).max() < (0.001 if sound[0] == 'p' else 0.3)
    assert probe(path).channels == channels and probe(path).width == 0


@pytest.mark.parametrize('rotation', [90, 180, -90])
def test_pictures_are_upright(tmp_path, rotation):
    path = write(tmp_path / 'a.mp4', rotation=rotation, sound=None)
    _, picture = next(read_video(path))
    bright = {90: np.s_[-20:, :12], 180: np.s_[-12:, -20:], -90: np.s_[:20, -12:]}[rotation]
    assert picture.shape == ((64, 48, 3) if rotation != 180 else (48, 64, 3))
    assert picture.flags['C_CONTIGUOUS']
    assert picture[bright].mean() > 200 > 60 > np.median(picture)


def test_reading_is_lazy(tmp_path):
    path = write(tmp_path / 'a.mp4')
    pictures = read_video(path)
    next(pictures)
    pictures.close()
    facts = probe(path)
    assert (facts.width, facts.height, facts.frame_rate_hz) == (64, 48, 10)
    assert (facts.sample_rate_hz, facts.channels) == (RATE, 2)
    assert abs(facts.duration_ns - 2e9) < 1e8


@pytest.mark.parametrize('content', [None, b'', b'not a film', bytes(5000)])
@pytest.mark.parametrize('read', [read_video, read_audio, probe])
def test_bad_files_are_refused_at_once(tmp_path, content, read):
    path = tmp_path / 'bad.mp4'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match='bad.mp4') as refused:
        read(path)
    assert 'Errno' not in str(refused.value)  # a number that only programs know


def test_directories_and_addresses_are_no_files(tmp_path):
    for path in ('http://localhost:1/a.mp4', 'concat:a.mp4'):
        with pytest.raises(InputError, match='no such file'):
            read_video(path)
    for path in (tmp_path, '/dev/zero'):
        with pytest.raises(InputError, match='it is no file'):
            read_video(path)


def test_playlists_are_refused_and_open_no_address(tmp_path):
    path = tmp_path / 'list.m3u8'
    with socket.create_server(('127.0.0.1', 0)) as server:
        server.setblocking(False)
        address = f'http://127.0.0.1:{server.getsockname()[1]}/a.ts'
        path.write_text(f'#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{address}\n')
        with pytest.raises(InputError, match='its format is another'):
            read_video(path)
        with pytest.raises(BlockingIOError):  # nobody came
            server.accept()


@pytest.mark.parametrize(
    'name, sound',
    [
        ('a.wav', 'pcm_s16le'),
        ('a.flac', 'flac'),
        ('a.mp3', 'libmp3lame'),
        ('a.aac', 'aac'),
        ('a.avi', 'pcm_s16le'),
        ('a.webm', 'libopus'),
        ('a.m4a', 'aac'),
        ('a.ogg', 'libopus'),
    ],
)
def test_common_containers_are_read(tmp_path, name, sound):
    path = write(tmp_path / name, codec='mpeg4' if name == 'a.avi' else None, sound=sound)
    assert click_s(path) == pytest.approx(1, abs=0.03)  # an MP3 does not tell its delay


def moved(path, by_s, shown_by_s=0):
    """Copy a transport stream with other stamps, those of the images by so much more."""
    out = path.with_stem(f'{path.stem}_{by_s}_{shown_by_s}')
    with av.open(str(path)) as source, av.open(str(out), 'w') as container:
        streams = {one: container.add_stream_from_template(one) for one in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                more_s = shown_by_s if packet.stream.type == 'video' else 0
                shift = int((by_s + more_s) / packet.time_base)
                packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                packet.stream = streams[packet.stream]
                container.mux(packet)
    return out


@pytest.mark.parametrize('begins_s', [(0, 0), (0, 30), (5000, 0), (0, 90_000), (0, 70, 20)])
def test_parts_of_a_joined_transport_stream_follow_each_other(tmp_path, begins_s):
    part = write(tmp_path / 'a.ts')
    parts = [moved(part, begin_s) for begin_s in begins_s]
    path = tmp_path / 'joined.ts'
    path.write_bytes(b''.join(each.read_bytes() for each in parts))
    stamps_s = np.array([stamp_ns for stamp_ns, _ in read_video(path)]) / 1e9
    assert len(stamps_s) == 20 * len(parts)
    steps_s, holes_s = np.diff(stamps_s), [b - a for a, b in pairwise(begins_s) if b - a == 30]
    assert (steps_s > 0.09).all()
    assert steps_s.max() < 0.5 + sum(holes_s)  # less than a minute: there was nothing
    rate_hz, chunks = read_audio(path)
    clicks_s = [stamp_ns / 1e9 for stamp_ns, samples in chunks if samples.max() > 0.25]
    for nth in range(len(parts)):  # sound stays with its image
        shown_s = stamps_s[20 * nth + 10]
        assert min(abs(np.array(clicks_s) - shown_s)) < 0.03


@pytest.mark.parametrize(
    'name, codec, sound',
    [
        ('a.mkv', 'libx264', 'aac'),
        ('a.webm', 'libvpx', 'libopus'),
        ('a.ogg', None, 'libopus'),
        ('a.flac', None, 'flac'),
    ],
)
def test_what_is_put_behind_a_file_follows_it(tmp_path, name, codec, sound):
    path = write(tmp_path / name, codec=codec, sound=sound)
    path.write_bytes(2 * path.read_bytes())
    _, chunks = read_audio(path)
    stamps_ns, chunks = zip(*chunks)
    assert np.diff(stamps_ns).min() > -0.3e9  # of the last chunk of a FLAC
    loud = [at / 1e9 for at, samples in zip(stamps_ns, chunks) if samples.max() > 0.25]
    assert max(loud) - min(loud) == pytest.approx(2, abs=0.15)
    if codec:
        shown_s = np.array([stamp_ns for stamp_ns, _ in read_video(path)]) / 1e9
        assert len(shown_s) == 40 and (np.diff(shown_s) > 0.09).all() and shown_s[-1] < 4.3


def test_the_last_image_of_a_part_may_come_behind_the_first_sound_of_the_next(tmp_path):
    part = write(tmp_path / 'a.ts')
    path = tmp_path / 'joined.ts'
    path.write_bytes(part.read_bytes() + moved(part, 0, 0.7).read_bytes())
    stamps_s = np.array([stamp_ns for stamp_ns, _ in read_video(path)]) / 1e9
    assert np.diff(stamps_s)[:19] == pytest.approx(0.1, abs=0.001)
    assert stamps_s[20] - stamps_s[0] == pytest.approx(2.7, abs=0.3)


def test_stamps_of_a_transport_stream_may_run_over(tmp_path):
    path = moved(write(tmp_path / 'a.ts'), 2**33 / 90_000 - 3)  # a stamp has 33 bits
    stamps_s = [stamp_ns / 1e9 for stamp_ns, _ in read_video(path)]
    assert 0 <= stamps_s[0] < 0.05
    assert click_s(path) == pytest.approx(stamps_s[10], abs=0.03)


def test_audio_whose_rate_changes_keeps_its_pitch(tmp_path):
    for name, rate_hz in (('a', RATE), ('b', 24_000)):
        with av.open(str(tmp_path / f'{name}.aac'), 'w', format='adts') as container:
            audio = container.add_stream('aac', rate=rate_hz, layout='mono')
            tone = 0.3 * np.sin(2 * np.pi * 600 * np.arange(3 * rate_hz) / rate_hz)
            chunk = av.AudioFrame.from_ndarray(tone.astype(np.float32)[None], 'fltp', 'mono')
            chunk.sample_rate = rate_hz
            container.mux([*audio.encode(chunk), *audio.encode(None)])
    parts = [(tmp_path / f'{name}.aac').read_bytes() for name in 'ab']
    (tmp_path / 'joined.aac').write_bytes(b''.join(parts))
    rate_hz, chunks = read_audio(tmp_path / 'joined.aac')
    heard = np.concatenate([samples for _, samples in chunks])
    assert rate_hz == RATE and len(heard) == pytest.approx(6 * RATE, abs=RATE / 5)
    for second in (1, 4):
        spectrum = np.abs(np.fft.rfft(heard[second * RATE : (second + 1) * RATE]))
        assert np.argmax(spectrum) == 600


@pytest.mark.parametrize(
    'make, words',
    [
        (lambda whole: whole[: whole.rindex(b'moov') - 4], 'whose index .moov. is missing'),
        (lambda whole: whole[: whole.rindex(b'moov') + 90], 'whose index .moov. is missing'),
        (lambda whole: b'<!DOCTYPE html><html>sign in</html>', 'it is a web page'),
        (lambda whole: b'version https://git-lfs.github.com/spec/v1\noid', 'git-lfs pointer'),
        (lambda whole: b'GIF89a' + bytes([64, 0, 48, 0, 0, 0, 0, 59]), 'its format is another'),
    ],
)
def test_what_came_instead_of_a_video_is_said(tmp_path, make, words):
    path = write(tmp_path / 'a.mp4')
    path.write_bytes(make(path.read_bytes()))
    with pytest.raises(InputError, match=rf'a\.mp4: .*{words}'):
        probe(path)


def test_what_is_wrong_with_samples_is_told_with_the_name_of_their_file(tmp_path):
    samples = np.full((1, 4000), np.nan, np.float32)
    with av.open(str(tmp_path / 'a.wav'), 'w') as container:
        audio = container.add_stream('pcm_f32le', rate=RATE, layout='mono')
        chunk = av.AudioFrame.from_ndarray(samples, 'flt', 'mono')
        chunk.sample_rate = RATE
        container.mux([*audio.encode(chunk), *audio.encode(None)])
    _, chunks = read_audio(tmp_path / 'a.wav')
    with pytest.raises(InputError, match=r'a\.wav: The audio contains NaN'):
        list(chunks)


def test_missing_streams_are_named(tmp_path):
    with pytest.raises(InputError, match='no audio'):
        read_audio(write(tmp_path / 'silent.mp4', sound=None))
    with pytest.raises(InputError, match='no video'):
        read_video(write(tmp_path / 'blind.mp4', codec=None))


def test_damaged_files_end_early_or_say_so(tmp_path, rng):
    whole = write(tmp_path / 'a.mkv').read_bytes()
    path = tmp_path / 'damaged.mkv'
    for _ in range(20):
        damaged = bytearray(whole[: rng.integers(len(whole) // 2, len(whole))])
        for place in rng.integers(0, len(damaged), 20):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        for read in (read_video, lambda p: read_audio(p)[1]):
            try:
                assert len(list(read(path))) <= 200
            except InputError:
                pass


@pytest.fixture
def harmed(tmp_path):
    """A copy of the demo clip with the middle of one packet of each stream overwritten."""
    data = bytearray(DEMO.read_bytes())
    with av.open(str(DEMO)) as container:
        for stream in (container.streams.video[0], container.streams.audio[0]):
            container.seek(0)
            packet = [p for p in container.demux(stream) if p.size][20]
            data[packet.pos : packet.pos + packet.size] = b'\xff' * packet.size
    path = tmp_path / 'harmed.mp4'
    path.write_bytes(data)
    return path


@pytest.mark.parametrize('kind', ('video', 'audio'))
def test_a_packet_that_is_damaged_is_left_out_where_that_is_wanted(harmed, kind):
    def read(path, *how):
        return list(read_video(path, *how) if kind == 'video' else read_audio(path, None, *how)[1])

    with pytest.raises(InputError, match=f'the {kind} is damaged'):
        read(harmed)
    told = []
    stamps = [stamp_ns for stamp_ns, _ in read(harmed, told.append)]
    whole = [stamp_ns for stamp_ns, _ in read(DEMO)]
    assert len(told) >= 1 and all('is damaged' in damage for damage in told)
    assert stamps[-1] == whole[-1] and set(stamps) <= set(whole)
    assert len(whole) - len(stamps) <= 2 * len(told)


def test_what_cannot_be_read_on_ends_there_where_that_is_wanted(tmp_path):
    parts = [
        write(tmp_path / f'{channels}.ogg', codec=None, sound='libopus', channels=channels)
        for channels in (1, 2)
    ]
    (tmp_path / 'a.ogg').write_bytes(b''.join(part.read_bytes() for part in parts))
    told = []
    heard = [samples for _, samples in read_audio(tmp_path / 'a.ogg', None, told.append)[1]]
    assert sum(map(len, heard)) >= 1.9 * RATE
    assert len(told) == 1 and 'a.ogg: the audio ends where it is damaged' in told[0]
    with pytest.raises(InputError, match='a.ogg: the audio is damaged'):
        list(read_audio(tmp_path / 'a.ogg')[1])


def test_demo_clip_is_what_its_table_says():
    facts = probe(DEMO)
    assert (facts.width, facts.height, facts.sample_rate_hz) == (320, 240, 24000)
    assert DEMO.stat().st_size < 400_000
    shown = list(read_video(DEMO))
    assert len(shown) == 180
    assert [stamp_ns // 10**9 for stamp_ns, _ in shown[::15]] == list(range(12))
    red, blue, green = (shown[15 * second][1] for second in (0, 3, 8))
    assert np.abs(red[120, 60] - [215, 30, 30.0]).max() < 15
    assert np.abs(blue[120, 260] - [35, 60, 215.0]).max() < 15
    assert np.abs(green[190, 160] - [30, 165, 45.0]).max() < 15
    rate_hz, chunks = read_audio(DEMO)
    sound = np.concatenate([samples for _, samples in chunks])
    assert 11.9 * rate_hz < len(sound) <= 12 * rate_hz
    beep = sound[2 * rate_hz : 3 * rate_hz]
    assert np.argmax(np.abs(np.fft.rfft(beep))) == pytest.approx(1300, abs=5)
    assert np.flatnonzero(np.abs(beep) > 0.1)[0] / rate_hz == pytest.approx(0.4, abs=0.01)
    assert np.abs(sound[:rate_hz]).max() < 0.02


@pytest.mark.parametrize('name', ['song.mp3', 'song.flac', 'song.mp4'])
def test_the_cover_of_a_song_is_no_video(tmp_path, name):
    codec = {'mp3': 'libmp3lame', 'flac': 'flac', 'mp4': 'aac'}[name[5:]]
    cover = next(iter(frames(0))).reformat(format='yuvj420p')
    with av.open(str(tmp_path / name), 'w') as container:
        audio = container.add_stream(codec, rate=RATE, layout='mono')
        image = container.add_stream('mjpeg', rate=1)
        image.width, image.height, image.pix_fmt = 64, 48, 'yuvj420p'
        image.disposition = av.stream.Disposition.attached_pic
        container.mux([*image.encode(cover), *image.encode(None)])
        resampler = av.AudioResampler(audio.codec_context.format.name, 'mono', RATE)
        for chunk in sound_chunks(0, 'fltp', 'mono', 1):
            container.mux([p for c in resampler.resample(chunk) for p in audio.encode(c)])
        container.mux(audio.encode(None))
    facts = probe(tmp_path / name)
    assert facts.sample_rate_hz == RATE and facts.width == facts.frame_rate_hz == 0
    assert sum(len(chunk) for _, chunk in read_audio(tmp_path / name)[1]) >= 2 * RATE
    with pytest.raises(InputError, match='no video'):
        read_video(tmp_path / name)
