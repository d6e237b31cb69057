# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""`minicpmo look --mcap`: what Foxglove is given of a bag, read back with the mcap library."""

import base64
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from mcap.reader import make_reader
from rclpy.serialization import serialize_message
from scored_clips import START_S, as_db3, jpeg, sound, write_question_set, write_test_clip

from minicpmo_ros.cli import main, recordings
from minicpmo_ros.evaluation.bags import writing
from minicpmo_ros.evaluation.bags.clip import IMAGE, RAW_IMAGE, type_store
from minicpmo_ros.evaluation.bags.clip_reading import read_clip
from minicpmo_ros.evaluation.report import foxglove
from minicpmo_ros.evaluation.report.foxglove import ANSWER
from minicpmo_ros.evaluation.results import Given, Results
from minicpmo_ros.msg import Answer
from minicpmo_ros.units import NS

MESSAGES = Path(__file__).parents[1] / 'msg'
DEFINITIONS = {
    f'minicpmo_ros/msg/{name}': (MESSAGES / f'{name}.msg').read_text()
    for name in ('Answer', 'Note')
}
KINDS = {'string': str, 'number': (int, float), 'integer': int, 'boolean': bool}


class Read:
    """An MCAP file as the mcap library reads it: {topic: [(log_ns, message)]}."""

    def __init__(self, path):
        self.topics, self.schemas = defaultdict(list), {}
        with path.open('rb') as file:
            for schema, channel, message in make_reader(file, validate_crcs=True).iter_messages():
                is_json = channel.message_encoding == 'json'
                told = json.loads(message.data) if is_json else message.data
                self.topics[channel.topic].append((message.log_time, told))
                self.schemas[channel.topic] = schema

    def of(self, topic) -> list:
        """Give the messages of a topic without their times."""
        return [message for _, message in self.topics[topic]]

    def texts_at(self, at_ns) -> list:
        """Give what stands on the image at a time, from the top."""
        (told,) = (message for ns, message in self.topics[foxglove.ANNOTATIONS] if ns == at_ns)
        ordered = sorted(told['texts'], key=lambda text: text['position']['y'])
        return [text['text'] for text in ordered]


def look(capsys, *arguments):
    """Run the verb; give its exit status, what it printed, and its complaints."""
    status = main.main(['look', *map(str, arguments)])
    return status, *capsys.readouterr()


def write_run(folder, questions, texts) -> None:
    results = Results(folder, {'model': 'a'}, questions)
    for question, text in zip(questions.questions, texts):
        results.add(Given(question.id, text, first_token_ms=12.5))
    results.close()


def make_answer(second, text='red', **fields) -> Answer:
    """Give an answer about two seconds, [second - 2, second), given 0.25 s later."""
    answer = Answer(id='a', question='which?', text=text, seconds=[second - 2, second - 1])
    answer.window_end.sec = second
    answer.header.stamp = Time(sec=second, nanosec=NS // 4)
    for name, value in fields.items():
        setattr(answer, name, value)
    return answer


def write_bag_with_answers(path, *answers, seconds=4) -> None:
    """Write a recording of images, audio and answers; an answer may be bytes."""
    bag, store = writing.Recording(path, DEFINITIONS), type_store()
    images = [(i * NS + NS // 2, jpeg((200, 30 * i, 0))) for i in range(seconds)]
    for at_ns, kind, message in writing.clip_messages(store, START_S, images, sound(seconds)):
        bag.write(writing.TOPICS[kind], kind, at_ns, store.serialize_cdr(message, kind))
    for answer in answers:
        data = answer if isinstance(answer, bytes) else serialize_message(answer)
        bag.write('/robot/llm/answer', ANSWER, START_S * NS, data)
    bag.close()


def check_schema(value, schema, where) -> None:
    """Fail unless a value is of a JSON schema of the kind that the module writes."""
    if schema['type'] == 'object':
        assert isinstance(value, dict) and set(value) <= set(schema['properties']), where
        for name, part in value.items():
            check_schema(part, schema['properties'][name], f'{where}.{name}')
    elif schema['type'] == 'array':
        for part in value:
            check_schema(part, schema['items'], where)
    else:
        assert isinstance(value, KINDS[schema['type']]), where


@pytest.fixture
def asked(tmp_path):
    """Give questions about two clips, of which the first has two seconds, and a run of them."""
    questions = write_question_set(tmp_path, (2, 3))
    write_run(tmp_path / 'run', questions, ('red', 'low', 'green', 'high'))
    return questions


def test_of_a_run_each_answer_is_told_when_its_window_ends(asked, tmp_path, capsys):
    out = tmp_path / 'out.mcap'
    arguments = ('--answers', tmp_path / 'run', '--questions', tmp_path / 'questions.json')
    status, said, err = look(capsys, tmp_path / '0.mcap', '--mcap', out, *arguments)
    assert (status, err) == (0, '') and '2 seconds, 2 with an image, 2 answers' in said
    read, end_ns = Read(out), (START_S + 2) * NS
    assert [at_ns for at_ns, _ in read.topics[foxglove.ANSWERS]] == [end_ns] * 2
    assert [one['text'] for one in read.of(foxglove.ANSWERS)] == ['red', 'low']
    first = read.of(foxglove.ANSWERS)[0]
    assert first['seconds'] == [START_S, START_S + 1] and first['first_token_ms'] == 12.5
    assert read.of(foxglove.LOG)[0]['message'] == 'what about the scene?\nred'
    assert [one['answers'] for one in read.of(foxglove.SECONDS)] == [2, 2]


def test_every_second_has_its_image_as_it_was_its_audio_and_its_level(tmp_path, capsys):
    write_test_clip(tmp_path / 'a.mcap', 3)
    assert look(capsys, tmp_path / 'a.mcap', '--mcap', tmp_path / 'out.mcap')[0] == 0
    read, clip = Read(tmp_path / 'out.mcap'), read_clip(tmp_path / 'a.mcap')
    store = type_store()
    shown = [store.deserialize_cdr(data, IMAGE) for data in read.of(foxglove.IMAGES)]
    assert [one.data.tobytes() for one in shown] == [one.compressed()[1] for one in clip.images]
    assert [at_ns for at_ns, _ in read.topics[foxglove.IMAGES]] == [
        image.stamp_ns for image in clip.images
    ]
    played = b''.join(base64.b64decode(one['data']) for one in read.of(foxglove.AUDIO))
    expected = np.concatenate([samples for _, samples in clip.audio])
    assert np.abs(np.frombuffer(played, '<i2') / 32767 - expected).max() < 1e-4
    levels = [one['level_dbfs'] for one in read.of(foxglove.SECONDS)]
    assert levels == pytest.approx([20 * np.log10(0.4 / np.sqrt(2))] * 3, abs=0.1)


def test_answers_in_a_bag_stand_on_the_image_from_then_on_and_frame_their_seconds(
    tmp_path, capsys
):
    write_bag_with_answers(tmp_path / 'a.mcap', make_answer(START_S + 3, 'green'))
    status, said, err = look(capsys, tmp_path / 'a.mcap', '--mcap', tmp_path / 'out.mcap')
    assert (status, err) == (0, '') and '1 answers' in said
    read, half = Read(tmp_path / 'out.mcap'), NS // 2
    frames = {ns: one['points'] for ns, one in read.topics[foxglove.ANNOTATIONS]}
    framed = [bool(frames[(START_S + i) * NS + half]) for i in range(4)]
    assert framed == [False, True, True, False]
    assert read.texts_at((START_S + 2) * NS + half) == ['2 s, an answer rests on it']
    given_ns = (START_S + 3) * NS + NS // 4
    assert read.texts_at(given_ns) == ['2 s, an answer rests on it', 'which?', 'green']
    assert read.texts_at((START_S + 3) * NS + half)[1:] == ['which?', 'green']


@pytest.mark.parametrize('shift_s', [-1000, 10**6])
def test_an_answer_whose_stamp_is_of_another_clock_is_told_at_the_end_of_its_window(
    tmp_path, capsys, shift_s
):
    answer = make_answer(START_S + 3)
    answer.header.stamp.sec += shift_s
    write_bag_with_answers(tmp_path / 'a.mcap', answer)
    assert look(capsys, tmp_path / 'a.mcap', '--mcap', tmp_path / 'out.mcap')[0] == 0
    (told,) = Read(tmp_path / 'out.mcap').topics[foxglove.ANSWERS]
    assert told[0] == (START_S + 3) * NS


def test_a_script_in_an_answer_stays_text_and_no_answer_is_a_warning(tmp_path, capsys):
    script = '<script>alert("1")</script>\n\u202e 什么'
    answers = make_answer(START_S + 2, script), make_answer(START_S + 3, '', reason='timed out')
    write_bag_with_answers(tmp_path / 'a.mcap', *answers)
    assert look(capsys, tmp_path / 'a.mcap', '--mcap', tmp_path / 'out.mcap')[0] == 0
    read = Read(tmp_path / 'out.mcap')
    assert [one['text'] for one in read.of(foxglove.ANSWERS)] == [script, '']
    assert [one['level'] for one in read.of(foxglove.LOG)] == [foxglove.INFO, foxglove.WARNING]
    assert read.of(foxglove.LOG)[1]['message'].endswith('(timed out)')


def test_answers_that_cannot_be_read_are_told_and_the_rest_is_written(tmp_path, capsys):
    answer = make_answer(START_S + 3)
    write_bag_with_answers(tmp_path / 'a.mcap', answer, serialize_message(answer)[:60])
    status, said, err = look(capsys, tmp_path / 'a.mcap', '--mcap', tmp_path / 'out.mcap')
    assert (status, err) == (0, '1 answers are damaged.\n') and ' 1 answers' in said
    as_db3(tmp_path / 'a.mcap', tmp_path / 'a.db3')  # as of Humble, which holds no definitions
    status, said, err = look(capsys, tmp_path / 'a.db3', '--mcap', tmp_path / 'out.mcap')
    assert status == 0 and '4 with an image, 0 answers' in said and '--answers' in err


def test_a_damaged_image_is_told_and_a_raw_one_becomes_a_jpeg(tmp_path, capsys):
    bag = writing.Recording(tmp_path / 'a.mcap', {})
    store, pixels = type_store(), np.full((48, 64, 3), 90, np.uint8)
    for i, size in enumerate((48, 47, 48)):
        header = writing.make_header(store, (START_S + i) * NS, '')
        data = pixels[:size].reshape(-1)  # the second is cut
        raw = store.types[RAW_IMAGE](header, 48, 64, 'rgb8', 0, 64 * 3, data)
        bag.write('/camera', RAW_IMAGE, START_S * NS, store.serialize_cdr(raw, RAW_IMAGE))
    bag.close()
    status, said, _ = look(capsys, tmp_path / 'a.mcap', '--mcap', tmp_path / 'out.mcap')
    assert status == 0 and '3 seconds, 2 with an image' in said
    read = Read(tmp_path / 'out.mcap')
    assert [one['has_image'] for one in read.of(foxglove.SECONDS)] == [True, False, True]
    (told,) = read.of(foxglove.LOG)
    assert told['level'] == foxglove.WARNING and told['message'].startswith('1 s: ')
    shown = store.deserialize_cdr(read.of(foxglove.IMAGES)[0], IMAGE)
    assert shown.data.tobytes().startswith(b'\xff\xd8\xff') and shown.format == 'jpeg'


def test_a_part_of_a_bag_has_its_seconds_and_answers_alone(asked, tmp_path, capsys):
    out, bag = tmp_path / 'out.mcap', tmp_path / '1.mcap'
    arguments = ('--answers', tmp_path / 'run', '--questions', tmp_path / 'questions.json')
    assert look(capsys, bag, '--mcap', out, '--start', 1, '--seconds', 1, *arguments)[0] == 0
    read = Read(out)
    assert [one['second'] for one in read.of(foxglove.SECONDS)] == [START_S + 101]
    assert not read.of(foxglove.ANSWERS)  # they were given at the end, a second later
    assert look(capsys, bag, '--mcap', out, '--start', 1, '--seconds', 2, *arguments)[0] == 0
    assert [one['text'] for one in Read(out).of(foxglove.ANSWERS)] == ['green', 'high']


def test_what_is_written_does_not_depend_on_how_much_of_the_bag_is_in_memory(
    tmp_path, capsys, monkeypatch
):
    write_test_clip(tmp_path / 'a.mcap', 5)
    assert look(capsys, tmp_path / 'a.mcap', '--mcap', tmp_path / 'whole.mcap')[0] == 0
    monkeypatch.setattr(recordings, 'BLOCK_S', 1)
    monkeypatch.setattr(recordings, 'HOURS_S', 7)
    assert look(capsys, tmp_path / 'a.mcap', '--mcap', tmp_path / 'parts.mcap')[0] == 0
    assert Read(tmp_path / 'parts.mcap').topics == Read(tmp_path / 'whole.mcap').topics


def test_every_message_is_of_the_schema_beside_it(asked, tmp_path, capsys):
    out = tmp_path / 'out.mcap'
    arguments = ('--answers', tmp_path / 'run', '--questions', tmp_path / 'questions.json')
    assert look(capsys, tmp_path / '0.mcap', '--mcap', out, *arguments)[0] == 0
    read = Read(out)
    assert set(read.topics) == {*foxglove.SCHEMAS, foxglove.IMAGES}
    for topic, messages in read.topics.items():
        schema = read.schemas[topic]
        if topic == foxglove.IMAGES:
            assert (schema.name, schema.encoding) == (IMAGE, 'ros2msg')
            continue
        assert schema.encoding == 'jsonschema'
        for at_ns, message in messages:
            check_schema(message, json.loads(schema.data), topic)
            if 'timestamp' in message:
                told_ns = message['timestamp']['sec'] * NS + message['timestamp']['nsec']
                assert told_ns == at_ns
    with pytest.raises(AssertionError):
        check_schema({'timestamp': 1}, foxglove.SCHEMAS[foxglove.LOG][1], '')


@pytest.mark.parametrize(
    'arguments, expected',
    [
        (('--mcap', 'out.bag'), 'ends in .mcap'),
        (('--mcap', 'a.mcap'), 'is one of the files to be read'),
        (('--mcap', 'no/out.mcap'), 'no folder'),
        (('--out', 'a.png', '--answers', 'run'), '--mcap'),
        (('--mcap', 'out.mcap', '--answers', 'nothing'), 'no run'),
        (('--mcap', 'out.mcap', '--answers', 'run'), 'none of its answers is about'),
    ],
)
def test_what_cannot_be_written_is_told_in_a_line_and_nothing_is_left(
    asked, tmp_path, capsys, monkeypatch, arguments, expected
):
    write_test_clip(tmp_path / 'a.mcap', 1)
    before = sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    questions = () if '--answers' not in arguments else ('--questions', 'questions.json')
    status, _, err = look(capsys, 'a.mcap', *arguments, *questions)
    assert status == 2 and expected in err and err.count('\n') == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before
