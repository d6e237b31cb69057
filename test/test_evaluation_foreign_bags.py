# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Recordings of other makers: names, definitions and encodings as other recorders write them."""

import sqlite3
from contextlib import closing
from dataclasses import replace

import mcap.writer
import numpy as np
import pytest
from scored_clips import COLORS, START_S, jpeg, sound

from minicpmo_ros.cli.main import main
from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.bags import writing
from minicpmo_ros.evaluation.bags.clip import (
    AUDIO,
    AUDIO_INFO,
    PLAIN_AUDIO,
    RAW_IMAGE,
    Sources,
    type_store,
)
from minicpmo_ros.evaluation.bags.clip_reading import read_clip, read_windows
from minicpmo_ros.evaluation.bags.media_source import open_source
from minicpmo_ros.units import NS

SECONDS = 3


def write(path, name=lambda kind: kind, form='ros2msg', encoding='cdr', texts=None, info=None):
    """Write what a robot sends in an MCAP file, with names and definitions of types as given.

    info: what AudioInfo says otherwise.
    """
    types = type_store()
    shots = [(i * NS + NS // 2, jpeg(COLORS[i])) for i in range(SECONDS)]
    with path.open('wb') as file:
        writer, channels = mcap.writer.Writer(file), {}
        writer.start('ros2')
        for kind, topic in writing.TOPICS.items():
            schema = writer.register_schema(name(kind), form, (texts or {}).get(kind, b''))
            channels[kind] = writer.register_channel(topic, encoding, schema)
        for log_ns, kind, message in writing.clip_messages(types, START_S, shots, sound(SECONDS)):
            if kind == AUDIO_INFO:
                message = replace(message, **(info or {}))
            data = bytes(types.serialize_cdr(message, kind))
            writer.add_message(channels[kind], log_ns, data, log_ns)
        writer.finish()
    return path


def is_whole(clip):
    """Whether all of it was read, without a word about losses."""
    heard = sum(len(samples) for _, samples in clip.audio)
    return len(clip.images) == SECONDS and heard == 16000 * SECONDS and not clip.losses


@pytest.mark.parametrize(
    'name',
    (
        lambda kind: kind.replace('/msg/', '/'),  # as ROS 1 and the first ROS 2 have it
        lambda kind: kind.replace('/msg/', '::msg::dds_::') + '_',  # in DDS
        lambda kind: kind.replace('/', '::'),
    ),
)
def test_a_type_is_known_by_its_names_of_other_recorders(tmp_path, name):
    assert is_whole(read_clip(write(tmp_path / 'a.mcap', name, 'omgidl')))


@pytest.mark.parametrize(
    'texts',
    (
        {AUDIO: b'garbage ~~ !!', AUDIO_INFO: b'uint8 a\nuint8 a'},
        {AUDIO: b'std_msgs/Header header\nother/Thing audio'},
        {AUDIO: b'\xff\xfe\n'},
        {PLAIN_AUDIO: b'uint8[] buffer', AUDIO_INFO: b'uint8 channels\nuint32 rate'},
        {AUDIO_INFO: b'string channels\nuint32 sample_rate\nstring sample_format\n'
         b'uint32 bitrate\nstring coding_format'},
    ),
)  # fmt: skip
def test_a_definition_that_is_none_or_lacks_what_is_needed_is_not_believed(tmp_path, texts):
    assert is_whole(read_clip(write(tmp_path / 'a.mcap', texts=texts)))


def test_a_recording_of_ros_1_in_mcap_is_told_with_what_to_do(tmp_path):
    path = write(tmp_path / 'a.mcap', lambda kind: kind.replace('/msg/', '/'), 'ros1msg', 'ros1')
    with pytest.raises(InputError, match="in 'ros1'; cdr is read. Convert the .bag of ROS 1"):
        read_clip(path)


@pytest.mark.parametrize(
    'told, words',
    [
        ({'coding_format': 'opus'}, "coded as 'opus'"),
        ({'sample_format': ''}, "sample format is ''"),
        ({'sample_rate': 0}, 'rate of 0 Hz'),
    ],
)
def test_a_format_of_audio_that_is_not_read_costs_the_audio_alone(tmp_path, told, words):
    path = write(tmp_path / 'a.mcap', info=told)
    clip = read_clip(path)
    (loss,) = clip.losses
    assert len(clip.images) == SECONDS and not clip.audio
    assert words in loss and '--audio-format 16000,1,S16LE' in loss
    given = read_clip(path, sources=Sources(audio_format='16000,1,S16LE'))
    assert is_whole(given)


def test_a_raw_image_that_cannot_be_decoded_is_left_out_by_the_player_and_told(tmp_path):
    path, types = tmp_path / 'a.mcap', type_store()
    with path.open('wb') as file:
        writer = mcap.writer.Writer(file)
        writer.start('ros2')
        schema = writer.register_schema(RAW_IMAGE, 'ros2msg', b'')
        channel = writer.register_channel('/camera/image_raw', 'cdr', schema)
        for second in range(4):
            at_ns = (START_S + second) * NS
            width = 63 if second == 1 else 64  # a width that its encoding cannot have
            image = types.types[RAW_IMAGE](
                header=writing.make_header(types, at_ns, 'camera'), height=48, width=width,
                encoding='yuv422', is_bigendian=0, step=2 * width,
                data=np.full(96 * width, 128, np.uint8),
            )  # fmt: skip
            writer.add_message(channel, at_ns, bytes(types.serialize_cdr(image, RAW_IMAGE)), at_ns)
        writer.finish()
    told = []
    played = list(open_source(str(path), on_damage=told.append).images)
    assert [offset_ns // NS for offset_ns, _, _ in played] == [0, 2, 3]
    assert len(told) == 1 and 'a.mcap: The image is 63x48 yuv422' in told[0]


def test_types_that_are_not_read_are_told_in_one_sentence(tmp_path):
    path = write(tmp_path / 'a.mcap', lambda kind: 'foxglove.RawAudio', 'protobuf', 'protobuf')
    with pytest.raises(InputError) as told:
        read_clip(path)
    assert str(told.value).count('not read; read are') == 1
    assert '/audio: foxglove.RawAudio; /audio_info: foxglove.RawAudio; /image' in str(told.value)


def test_a_folder_without_a_recording_says_where_one_is_or_should_be(tmp_path):
    (tmp_path / 'monday').mkdir()
    write(tmp_path / 'monday' / 'a.mcap')
    with pytest.raises(InputError, match='Give one of the folders in it: monday'):
        read_clip(tmp_path)
    (tmp_path / 'metadata.yaml').write_text(
        'rosbag2_bagfile_information: {relative_file_paths: [gone_0.mcap]}'
    )
    with pytest.raises(InputError, match='metadata.yaml names gone_0.mcap'):
        read_clip(tmp_path)


def test_an_empty_file_is_told_as_such_alone_and_as_a_part(tmp_path):
    (tmp_path / 'bag_1.mcap').touch()
    with pytest.raises(InputError, match=r'it is empty \(0 bytes\)'):
        read_clip(tmp_path / 'bag_1.mcap')
    write(tmp_path / 'bag_0.mcap')
    (tmp_path / 'metadata.yaml').write_text(
        'rosbag2_bagfile_information: {relative_file_paths: [bag_0.mcap, bag_1.mcap]}'
    )
    (loss,) = read_clip(tmp_path).losses
    assert loss.startswith('bag_1.mcap: it is empty (0 bytes)')


def test_seconds_that_no_machine_has_room_for_are_refused(tmp_path, capsys):
    path = write(tmp_path / 'a.mcap')
    for more in (('--seconds', '0'), ('--seconds', str(10**20)), ('--start', '-1')):
        assert main(['look', str(path), '--out', str(tmp_path / 'a.png'), *more]) == 2
        assert '--seconds from 1 to 86400' in capsys.readouterr().err


@pytest.mark.parametrize(
    'told',
    (
        'relative_file_paths: [a.mcap], compression_mode: MESSAGE, compression_format: zstd',
        'relative_file_paths: *bomb, compression_mode: *bomb, topics_with_message_count: '
        '[{topic_metadata: {name: *bomb, type: *bomb}, message_count: 1}]',
        'relative_file_paths: [[1], {a: 1}, 3, ""]',
        'relative_file_paths: [a.mcap], topics_with_message_count: '
        '[{topic_metadata: {name: /x, type: sensor_msgs/msg/Image}, message_count: .inf}]',
    ),
)
def test_what_metadata_tell_wrongly_loses_and_costs_nothing(tmp_path, told):
    """bomb: nine lists of nine lists, nine times; as a text it would have no room."""
    write(tmp_path / 'a.mcap')
    lines = [
        'l0: &l0 [x]',
        *(f'l{i}: &l{i} [{", ".join([f"*l{i - 1}"] * 9)}]' for i in range(1, 9)),
    ]
    lines += [f'l9: &bomb [{", ".join(["*l8"] * 9)}]', f'rosbag2_bagfile_information: {{{told}}}']
    (tmp_path / 'metadata.yaml').write_text('\n'.join(lines))
    assert is_whole(read_clip(tmp_path))


def test_metadata_too_large_to_be_any_are_told(tmp_path):
    write(tmp_path / 'a.mcap')
    with (tmp_path / 'metadata.yaml').open('wb') as file:
        file.truncate(2**35)
    assert read_clip(tmp_path).losses == (
        'metadata.yaml cannot be read; topics are taken from the files.',
    )


@pytest.mark.parametrize('by_index', (False, True))
def test_a_row_that_holds_no_bytes_costs_itself_only(tmp_path, by_index):
    path, types = tmp_path / 'a.db3', type_store()
    shots = [(i * NS + NS // 2, jpeg(COLORS[i])) for i in range(SECONDS)]
    with closing(sqlite3.connect(path)) as db:
        db.execute('CREATE TABLE topics (id INTEGER PRIMARY KEY, name, type)')
        db.execute('CREATE TABLE messages (id INTEGER PRIMARY KEY, topic_id, timestamp, data)')
        db.execute('CREATE INDEX timestamp_idx ON messages (timestamp)')
        for number, (kind, topic) in enumerate(writing.TOPICS.items()):
            db.execute('INSERT INTO topics VALUES (?, ?, ?)', (number, topic, kind))
        numbers = {kind: number for number, kind in enumerate(writing.TOPICS)}
        for log_ns, kind, message in writing.clip_messages(types, START_S, shots, sound(SECONDS)):
            row = numbers[kind], log_ns, bytes(types.serialize_cdr(message, kind))
            db.execute('INSERT INTO messages (topic_id, timestamp, data) VALUES (?, ?, ?)', row)
        for odd in ("'a text'", 'NULL'):
            db.execute(
                f'UPDATE messages SET data = {odd} WHERE id = (SELECT min(id) FROM messages '
                "WHERE typeof(data) = 'blob' AND topic_id = ?)", (numbers[AUDIO],)
            )  # fmt: skip
        db.commit()
    window = ((0, SECONDS), True)
    with read_windows(path, [window], by_index=by_index) as kept:
        clip = kept.clip([window])
    assert len(clip.images) == SECONDS
    assert sum(len(samples) for _, samples in clip.audio) == 16000 * SECONDS - 2 * 1600
    assert clip.losses == ('a.db3: 2 messages are damaged: they hold no bytes.',)
