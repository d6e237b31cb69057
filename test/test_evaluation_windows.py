# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Windows of real recordings: read in one pass, and what of them cannot be used is told."""

from dataclasses import replace
from pathlib import Path

import mcap.writer
import numpy as np
import pytest
from scored_clips import START_S, as_db3, jpeg, sound

from minicpmo_ros.cli import main as cli
from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation import replay
from minicpmo_ros.evaluation.bags import writing
from minicpmo_ros.evaluation.bags.clip import (
    AUDIO,
    AUDIO_INFO,
    IMAGE,
    PLAIN_AUDIO,
    RAW_IMAGE,
    Sources,
    type_store,
)
from minicpmo_ros.evaluation.bags.clip_reading import read_clip, read_windows
from minicpmo_ros.evaluation.questions import QuestionSet, ScoredQuestion
from minicpmo_ros.evaluation.report.plots import contact_sheet
from minicpmo_ros.evaluation.results import Given, Results, Run
from minicpmo_ros.media.audio.format import AudioFormat
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.synthetic.model import write_model
from minicpmo_ros.units import NS

SECONDS = 12
TYPES = type_store()


def image(stamp_ns, data=None):
    header = writing.make_header(TYPES, stamp_ns, 'camera')
    data = jpeg((40, 90, 200)) if data is None else data
    return TYPES.types[IMAGE](header, 'jpeg', np.frombuffer(data, np.uint8))


def depth(stamp_ns):
    header = writing.make_header(TYPES, stamp_ns, 'camera')
    pixels = np.ones((48, 64), np.float32).view(np.uint8).reshape(-1)  # metres
    return TYPES.types[RAW_IMAGE](header, 48, 64, '32FC1', 0, 256, pixels)


def rows(seconds=SECONDS, kinds=tuple(writing.TOPICS), shift_ns=0):
    """Camera and microphone of some seconds: (topic, log_ns, kind, message)."""
    shots = [(i * NS + NS // 2, jpeg((40, 90, 200))) for i in range(seconds)]
    found = writing.clip_messages(TYPES, START_S, shots, sound(seconds))
    for log_ns, kind, message in found:
        if kind == IMAGE and shift_ns:
            message = image(log_ns + shift_ns)
        if kind in kinds:
            yield writing.TOPICS[kind], log_ns, kind, message


def write(path, messages):
    with path.open('wb') as file:
        writer, channels = mcap.writer.Writer(file), {}
        writer.start('ros2')
        for topic, log_ns, kind, message in messages:
            if topic not in channels:
                schema = writer.register_schema(kind, 'ros2msg', b'')
                channels[topic] = writer.register_channel(topic, 'cdr', schema)
            data = bytes(TYPES.serialize_cdr(message, kind))
            writer.add_message(channels[topic], log_ns, data, log_ns)
        writer.finish()
    return path


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp('model')
    return ModelDirectory.open(write_model(folder / 'nano', 'nano', llm_type='f32'))


def asked(model, path, windows=((0, 4),), sources=None):
    """Give a run over one bag: questions about windows from its begin."""
    questions = tuple(
        ScoredQuestion(
            f'q{i}', path.name, begin, end, 'x', 'What?', ('a',), ('a', 'b'), relative=True
        )
        for i, (begin, end) in enumerate(windows)
    )
    options = replay.CoreOptions(device='cpu', threads=1, n_ctx=2048, max_tokens=4)
    chosen = QuestionSet(questions, folder=path.parent)
    plan = replay.ReplayPlan(model, chosen, options, sources=sources or Sources())
    folder = path.parent / f'run {len(list(path.parent.iterdir()))}'
    results = Results(folder, plan.facts())
    try:
        replay.run(plan, results, replay.CoreAnswerer)
    finally:
        results.close()
    return Run.read(folder)


def test_without_audio_info_images_are_answered_and_the_audio_is_told(model, tmp_path):
    told = AUDIO_INFO
    with_format = write(tmp_path / 'a.mcap', rows())
    without = write(tmp_path / 'b.mcap', (row for row in rows() if row[2] != told))
    run = asked(model, without)
    assert not run.unanswered and run.texts['q0'] in ('a', 'b')
    assert 'chunks of audio are not heard' in run.costs['q0']['note']
    assert '--audio-format 16000,1,S16LE' in run.costs['q0']['note']
    given = asked(model, without, sources=Sources(audio_format='16000,1,S16LE'))
    assert not given.costs['q0']['note']
    a = read_clip(with_format).audio
    b = read_clip(without, sources=Sources(audio_format='16000,1,S16LE')).audio
    assert all(np.array_equal(x, y) for (_, x), (_, y) in zip(a, b)) and len(a) == len(b)


def test_formats_of_audio_are_read_as_people_write_them():
    assert AudioFormat.parse('') is None
    assert AudioFormat.parse('48000, 2, S32_LE') == AudioFormat(48000, 2, 'S32_LE')
    assert AudioFormat.parse('44100,2,S24_3LE').duration_s(44100 * 6) == 1
    assert AudioFormat.parse('mp3').coding == 'mp3'
    for wrong in ('16000', '16000,1', 'S16LE,1,16000', '16000,1,S17', '1,1,S16LE', '8000,99,u8'):
        with pytest.raises(InputError):
            AudioFormat.parse(wrong)


@pytest.mark.parametrize('what', ['depth', 'broken', 'half'])
def test_images_that_cannot_be_used_are_told_beside_the_answer(model, tmp_path, what):
    messages = []
    for topic, log_ns, kind, message in rows():
        if kind == IMAGE and what == 'depth':
            topic, kind, message = '/depth', RAW_IMAGE, depth(log_ns)
        elif kind == IMAGE and (what == 'broken' or log_ns // NS % 2):
            message = image(log_ns, b'\xff\xd8\xff' + bytes(100))
        messages.append((topic, log_ns, kind, message))
    path = write(tmp_path / 'a.mcap', messages)
    run = asked(model, path)
    note = run.costs['q0']['note']
    assert f'{2 if what == "half" else 4} of 4 images cannot be used: ' in note
    assert ('None of the 4 seconds has an image.' in note) == (what != 'half')
    assert any('rest on what is not whole' in sentence for sentence in run.summary())
    if what == 'depth':
        assert '32FC1' in note


def test_of_a_bag_the_name_of_the_topic_tells_thermal_images_from_depth(tmp_path):
    for topic, is_read in (('/thermal/image', True), ('/camera/depth/image', False)):
        messages = [
            (topic, log_ns, RAW_IMAGE, depth(log_ns)) if kind == IMAGE else (name, log_ns, kind, m)
            for name, log_ns, kind, m in rows()
        ]
        clip = read_clip(write(tmp_path / f'{is_read}.mcap', messages))
        assert {bool(shot.rgb.problem) for shot in clip.images} == {not is_read}


def test_a_camera_that_stopped_is_told(model, tmp_path):
    end_ns = (START_S + 3) * NS
    path = write(tmp_path / 'a.mcap', (r for r in rows() if r[2] != IMAGE or r[1] < end_ns))
    run = asked(model, path, ((0, 3), (0, 12), (6, 12)))
    notes = [run.costs[f'q{i}']['note'] for i in range(3)]
    assert notes[0] == '' and notes[1] == 'For 9 s there is no image, from second 3 on.'
    assert notes[2] == 'None of the 6 seconds has an image.'


def test_the_contact_sheet_says_why_there_is_no_image(tmp_path):
    messages = [
        (
            topic,
            log_ns,
            kind,
            image(log_ns, b'\xff\xd8\xff') if kind == IMAGE else message,
        )
        for topic, log_ns, kind, message in rows(2)
    ]
    clip = read_clip(write(tmp_path / 'a.mcap', messages))
    blank = replace(clip, images=())
    drawn, empty = (np.asarray(contact_sheet(c, START_S)) for c in (clip, blank))
    assert drawn.shape == empty.shape and (drawn != empty).any()
    assert len(np.unique(empty[20:140, 10:130])) > 1  # it says that there is none


def test_two_clocks_in_one_bag_are_told(model, tmp_path):
    path = write(tmp_path / 'a.mcap', rows(shift_ns=-START_S * NS + 7777 * NS))
    note = asked(model, path).costs['q0']['note']
    assert 'their clocks differ' in note and 'of /image are' in note and 'of /audio' in note
    assert f'{START_S - 7777} s behind' in note


@pytest.mark.parametrize('stray_ns', [1, 123_456, (START_S + 10**6) * NS, (START_S - 7200) * NS])
@pytest.mark.parametrize('place', [0, 30, -1])
def test_a_stray_stamp_moves_no_window_and_is_told(tmp_path, stray_ns, place):
    messages = list(rows())
    place = place % len(messages)
    messages.insert(place, ('/image/compressed', messages[place][1], IMAGE, image(stray_ns)))
    clip = read_clip(write(tmp_path / 'a.mcap', messages), [((0, 4), True)])
    assert clip.first_s == START_S and len(clip.images) == 4
    (loss,) = clip.losses
    assert loss.startswith('1 of 13 messages of /image are left out: their stamps')


def test_a_clock_that_was_set_in_the_middle_leaves_nothing_out(tmp_path):
    messages = [
        (topic, log_ns, kind, image(log_ns - 10**18) if second < 6 else message)
        for topic, log_ns, kind, message in rows(kinds=(IMAGE,))
        for second in [log_ns // NS - START_S]
    ]
    clip = read_clip(write(tmp_path / 'a.mcap', messages))
    assert len(clip.images) == SECONDS and not clip.losses


class Counting:
    """Answers with how many images and seconds of audio a window has."""

    def __init__(self):
        self.largest = 0

    def answer(self, clip, asked):
        self.largest = max(self.largest, len(clip.images))
        for question in asked:
            part = clip.between(*question.window(clip.first_s))
            heard = sum(len(samples) for _, samples in part.audio) / 16000
            yield Given(question.id, f'{len(part.images)} {heard:g}', units=question.seconds)

    def close(self):
        pass


def test_a_bag_of_six_hours_is_read_once_for_all_its_windows(tmp_path):
    hours_s, count = 6 * 3600, 360
    data = jpeg((1, 2, 3), 8, 8)
    info = TYPES.types[AUDIO_INFO](1, 8000, 'U8', 0, 'wave')
    quiet = TYPES.types[PLAIN_AUDIO](np.full(8000, 128, np.uint8))

    def recorded():
        yield '/audio_info', START_S * NS, AUDIO_INFO, info
        for i in range(hours_s):
            stamp_ns = (START_S + i) * NS
            yield '/image/compressed', stamp_ns, IMAGE, image(stamp_ns, data)
            if i % 60 == 30:  # a second of audio a minute
                header = writing.make_header(TYPES, stamp_ns, 'microphone')
                message = TYPES.types[AUDIO](header, quiet)
                yield '/audio', stamp_ns + NS, AUDIO, message

    path = write(tmp_path / 'long.mcap', recorded())
    questions = tuple(
        ScoredQuestion(f'q{i}', path.name, 60 * i, 60 * i + 60, 'x', '?', ('a',), relative=True)
        for i in reversed(range(count))
    )
    plan = replay.ReplayPlan(None, QuestionSet(questions, folder=tmp_path))
    answerer = Counting()
    before = bytes_read()
    given = list(replay.answer_about(answerer, plan, path.name, list(questions)))
    size, read = path.stat().st_size, bytes_read() - before
    assert [g.id for g in given] == [q.id for q in questions] and not any(g.error for g in given)
    # A second without audio around it is shorter by the resampler's lag, and flushed later.
    assert all(g.text.startswith('60 ') for g in given)
    assert answerer.largest <= replay.MOST_HELD_S + 60 and size < read < 1.1 * size + 2**20


def bytes_read():
    """Of all files by this process, as the kernel counts them."""
    lines = Path('/proc/self/io').read_text(encoding='utf-8').splitlines()
    return int(dict(line.split(': ') for line in lines)['rchar'])


@pytest.mark.parametrize('storage', ['mcap', 'db3'])
def test_look_reads_only_the_seconds_that_are_drawn(tmp_path, storage):
    """Of ten minutes of large images, ten seconds in the middle."""
    numbers = np.random.default_rng(0)

    def recorded():
        yield from rows(2)
        for i in range(2, 600):
            stamp_ns = (START_S + i) * NS
            data = jpeg((1, 2, 3), 8, 8) + numbers.bytes(50_000)  # behind the end of the image
            yield '/image/compressed', stamp_ns, IMAGE, image(stamp_ns, data)

    path = write(tmp_path / 'long.mcap', recorded())
    if storage == 'db3':
        path = as_db3(path, tmp_path / 'long.db3')
    out, before = tmp_path / 'sheet.png', bytes_read()
    arguments = ['look', str(path), '--out', str(out), '--start', '300', '--seconds', '10']
    assert cli.main(arguments) == 0
    size, read = path.stat().st_size, bytes_read() - before
    assert size > 3 * 10**7 and read < size / 4
    part = [((300, 310), True)]
    whole, sought = read_clip(path, part), read_windows(path, part, by_index=True).clip()
    assert [s.compressed() for s in whole.images] == [s.compressed() for s in sought.images]
    assert len(sought.images) == 10 and sought.first_s == whole.first_s and out.stat().st_size


def test_where_stamps_and_log_drift_apart_look_reads_all(tmp_path):
    """Simulated time of half the speed."""
    messages = [
        ('/image/compressed', START_S * NS + 2 * i * NS, IMAGE, image((7 + i) * NS))
        for i in range(200)
    ]
    path = write(tmp_path / 'a.mcap', messages)
    kept = read_windows(path, [((150, 160), True)], by_index=True)
    assert [shot.stamp_ns // NS for shot in kept.clip().images] == list(range(157, 167))
