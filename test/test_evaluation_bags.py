# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Recordings as they are found: of real damaged bags what is whole is read, the rest is told."""

import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import lz4.frame
import mcap.writer
import numpy as np
import pytest
import yaml
import zstandard
from mcap.writer import CompressionType
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import get_types_from_msg
from scored_clips import START_S, jpeg, write_raw_images

from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.bags import bags, clip, writing
from minicpmo_ros.evaluation.bags.bags import Bag
from minicpmo_ros.evaluation.bags.clip import (
    AUDIO,
    AUDIO_INFO,
    IMAGE,
    Sources,
    type_store,
)
from minicpmo_ros.evaluation.bags.clip_reading import read_clip, read_windows
from minicpmo_ros.units import NS

SECONDS = 6
PLUGINS = {'mcap': StoragePlugin.MCAP, 'db3': StoragePlugin.SQLITE3}


def rows():
    """What a small robot sends in six seconds: (log_ns, kind, message) and a type of its own."""
    types = type_store()
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, 16000 * SECONDS)
    shots = [(i * NS + NS // 2, jpeg((40 * i, 99, 9))) for i in range(SECONDS)]
    return types, list(writing.clip_messages(types, START_S, shots, noise))


def write(folder, plugin, compression=None, more=()):
    types, messages = rows()
    writer = Writer(folder, version=9, storage_plugin=PLUGINS[plugin])
    if compression is not None:
        writer.set_compression(compression, CompressionFormat.ZSTD)
    with writer:
        connections = {
            kind: writer.add_connection(topic, kind, typestore=types)
            for kind, topic in writing.TOPICS.items()
        }
        for log_ns, kind, message in [*messages, *more]:
            writer.write(connections[kind], log_ns, types.serialize_cdr(message, kind))
    return folder


def holds(clip, shots=SECONDS, samples=16000 * SECONDS):
    return len(clip.images) == shots and sum(len(s) for _, s in clip.audio) == samples


@pytest.mark.parametrize('plugin', PLUGINS)
@pytest.mark.parametrize('compression', [None, *list(CompressionMode)[1:]])
def test_whole_bags_are_read_whole(tmp_path, plugin, compression):
    if plugin == 'db3' and compression is CompressionMode.STORAGE:
        pytest.skip('SQLite has no compression of its own')
    folder = write(tmp_path / 'bag', plugin, compression)
    clip = read_clip(folder)
    assert holds(clip) and not clip.losses
    assert [shot.stamp_ns for shot in clip.images] == [
        START_S * NS + i * NS + NS // 2 for i in range(SECONDS)
    ]


@pytest.mark.parametrize('plugin', PLUGINS)
def test_without_metadata_the_files_tell_the_topics(tmp_path, plugin):
    folder = write(tmp_path / 'bag', plugin)
    (folder / 'metadata.yaml').unlink()
    clip = read_clip(folder)
    assert holds(clip) and clip.losses == (
        'metadata.yaml is missing; topics are taken from the files.',
    )
    (folder / 'metadata.yaml').write_text('rosbag2_bagfile_information: [')
    assert 'cannot be read' in read_clip(folder).losses[0]
    (storage,) = folder.glob(f'*.{plugin}')
    assert holds(read_clip(storage)) and not read_clip(storage).losses


def data_end(data):
    """Where the records of an MCAP file end and its index begins: opcode 15, length 4."""
    return data.rindex(b'\x0f\x04\x00\x00\x00\x00\x00\x00\x00')


def test_an_mcap_that_was_not_closed_is_read_as_far_as_it_goes(tmp_path):
    path = write(tmp_path / 'bag', 'mcap') / 'bag.mcap'
    whole = path.read_bytes()
    end = data_end(whole)
    path.write_bytes(whole[:end])
    clip = read_clip(path)
    assert holds(clip) and 'not closed' in clip.losses[0]
    path.write_bytes(whole[:-40])  # only the index is cut: nothing is lost
    assert holds(read_clip(path)) and not read_clip(path).losses
    path.write_bytes(whole[: end // 2])
    clip = read_clip(path)
    assert 2 <= len(clip.images) < SECONDS and f'of {end // 2}' in clip.losses[0]


def write_chunks(path, compression):
    """As rosbag2 writes: chunks with checksums."""
    types, messages = rows()
    with path.open('wb') as file:
        writer = mcap.writer.Writer(file, chunk_size=32768, compression=compression)
        writer.start('ros2')
        channels = {}
        for log_ns, kind, message in messages:
            if kind not in channels:
                schema = writer.register_schema(kind, 'ros2msg', b'')
                channels[kind] = writer.register_channel(writing.TOPICS[kind], 'cdr', schema)
            data = bytes(types.serialize_cdr(message, kind))
            writer.add_message(channels[kind], log_ns, data, log_ns)
        writer.finish()


@pytest.mark.parametrize('compression', CompressionType)
def test_a_damaged_chunk_is_skipped_and_told(tmp_path, compression):
    path = tmp_path / 'a.mcap'
    write_chunks(path, compression)
    assert holds(read_clip(path)) and not read_clip(path).losses
    whole, at, chunks = bytearray(path.read_bytes()), 8, []
    while whole[at] != 15:  # the end of the data; records are opcode, length, content
        length = int.from_bytes(whole[at + 1 : at + 9], 'little')
        chunks += [at + 9 + length // 2] if whole[at] == 6 else []
        at += 9 + length
    whole[chunks[2] : chunks[2] + 64] = b'\xa5' * 64
    path.write_bytes(whole)
    clip = read_clip(path)
    assert len(chunks) > 4 and sum(len(s) for _, s in clip.audio) > 16000 * SECONDS * 0.6
    assert 'is damaged' in clip.losses[0]
    assert all('are missing' in loss for loss in clip.losses[1:])  # by the file's statistics


@pytest.mark.parametrize('plugin', PLUGINS)
def test_a_file_compressed_as_a_whole_is_read(tmp_path, plugin):
    folder = write(tmp_path / 'bag', plugin)
    (storage,) = folder.glob(f'*.{plugin}')
    packed = storage.with_name(storage.name + '.zstd')
    packed.write_bytes(zstandard.compress(storage.read_bytes()))
    storage.unlink()
    assert holds(read_clip(folder)) and not read_clip(folder).losses
    cut = packed.read_bytes()
    packed.write_bytes(cut[: len(cut) * 9 // 10])
    clip = read_clip(folder)
    assert 'its end is missing' in clip.losses[0]
    assert 0 < sum(len(s) for _, s in clip.audio) < 16000 * SECONDS


def test_a_split_bag_is_read_in_order_and_a_missing_part_is_named(tmp_path):
    folder = write(tmp_path / 'bag', 'mcap')
    types, messages = rows()
    (folder / 'bag.mcap').unlink()
    names = [f'bag_{i}.mcap' for i in range(13)]
    for i, name in enumerate(names):
        part = [m for m in messages if m[0] // (NS // 2) == START_S * 2 + i]
        shutil.rmtree(tmp_path / 'part', ignore_errors=True)
        with Writer(tmp_path / 'part', version=9, storage_plugin=StoragePlugin.MCAP) as writer:
            connections = {
                kind: writer.add_connection(topic, kind, typestore=types)
                for kind, topic in writing.TOPICS.items()
            }
            for log_ns, kind, message in part:
                writer.write(connections[kind], log_ns, types.serialize_cdr(message, kind))
        shutil.move(tmp_path / 'part' / 'part.mcap', folder / name)
    metadata = yaml.safe_load((folder / 'metadata.yaml').read_text())
    metadata['rosbag2_bagfile_information']['relative_file_paths'] = names
    (folder / 'metadata.yaml').write_text(yaml.safe_dump(metadata))
    stamps = [stamp for stamp, _ in read_clip(folder).audio]
    assert stamps == sorted(stamps) and not read_clip(folder).losses
    (folder / 'bag_10.mcap').unlink()
    clip = read_clip(folder)
    assert clip.losses[0] == 'bag_10.mcap: named by metadata.yaml, but not there.'
    assert clip.losses[1] == '5 of 60 messages of /audio are missing, by metadata.yaml.'
    assert sum(len(s) for _, s in clip.audio) < 16000 * SECONDS


@pytest.mark.parametrize('has_metadata', (True, False))
@pytest.mark.parametrize('copy', ('bag.db3', 'bag.mcap.zst', 'bag.mcap', 'bag.db3.zstd'))
def test_a_copy_beside_a_recording_is_not_read_as_more_of_it(tmp_path, copy, has_metadata):
    plugin = 'db3' if copy == 'bag.mcap' else 'mcap'
    folder = write(tmp_path / 'bag', plugin)
    of_copy = write(tmp_path / 'copy', 'db3' if '.db3' in copy else 'mcap')
    data = next(of_copy.glob('copy.*')).read_bytes()
    packed = zstandard.ZstdCompressor().compress(data)
    (folder / copy).write_bytes(packed if 'zst' in copy else data)
    if not has_metadata:
        (folder / 'metadata.yaml').unlink()
    read = read_clip(folder)
    assert holds(read)
    left_out = copy if has_metadata or plugin == 'mcap' else 'bag.db3'
    assert [loss for loss in read.losses if 'left out' in loss] == [
        f'{left_out}: is left out, as it has the name of '
        f'{"bag.db3" if left_out == "bag.mcap" else "bag.mcap"}, which is read.'
    ]


def test_a_file_that_the_metadata_do_not_name_is_not_read_where_all_others_are_there(tmp_path):
    folder, other = write(tmp_path / 'bag', 'mcap'), write(tmp_path / 'other', 'mcap')
    shutil.copy(other / 'other.mcap', folder)
    read = read_clip(folder)
    assert holds(read)
    assert read.losses == ('other.mcap: is left out, as metadata.yaml does not name it.',)


def test_parts_are_read_in_the_order_of_every_number_in_their_names(tmp_path):
    names = ['run.1_2.mcap', 'run.1_10.mcap', 'run.2_1.mcap']
    for name in names:
        shutil.copy(write(tmp_path / name[:-5], 'mcap') / name, tmp_path / name)
    assert [file.name for file in Bag(tmp_path).files] == names


def test_stamps_out_of_order_are_put_in_order(tmp_path):
    types, messages = rows()
    folder = tmp_path / 'bag'
    with Writer(folder, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connections = {
            kind: writer.add_connection(topic, kind, typestore=types)
            for kind, topic in writing.TOPICS.items()
        }
        for log_ns, kind, message in sorted(messages, key=lambda m: -m[0]):
            writer.write(connections[kind], log_ns, types.serialize_cdr(message, kind))
    clip = read_clip(folder)
    for stamps in ([s.stamp_ns for s in clip.images], [s for s, _ in clip.audio]):
        assert stamps == sorted(stamps)


@pytest.mark.parametrize('kept', [IMAGE, AUDIO])
def test_a_bag_with_one_sense_only_is_read(tmp_path, monkeypatch, kept):
    written = writing.clip_messages

    def some(*arguments):
        return (row for row in written(*arguments) if row[1] in (kept, AUDIO_INFO))

    monkeypatch.setattr(writing, 'clip_messages', some)
    clip = read_clip(write(tmp_path / 'bag', 'mcap'))
    assert holds(clip, *((SECONDS, 0) if kept == IMAGE else (0, 16000 * SECONDS)))


def test_unknown_types_and_broken_messages_do_no_harm(tmp_path):
    folder = write(tmp_path / 'bag', 'db3')
    (storage,) = folder.glob('*.db3')
    with sqlite3.connect(storage) as database:
        database.execute("UPDATE topics SET type = 'my_robot/msg/Mystery' WHERE name = '/audio'")
        database.execute(
            "UPDATE messages SET data = x'0001000005' WHERE id = (SELECT min(messages.id) FROM "
            "messages JOIN topics ON topic_id = topics.id WHERE name = '/image/compressed')"
        )
    clip = read_clip(folder)
    assert holds(clip, SECONDS - 1, 0)
    assert clip.losses == (
        '60 of 60 messages of /audio are missing, by metadata.yaml.',
        '1 messages of /image/compressed are damaged.',
    )


def test_of_a_malformed_sqlite_the_whole_pages_are_read(tmp_path):
    folder = write(tmp_path / 'bag', 'db3')
    (storage,) = folder.glob('*.db3')
    data = bytearray(storage.read_bytes())
    middle = len(data) // 2 // 4096 * 4096
    data[middle : middle + 8192] = b'\xff' * 8192
    storage.write_bytes(data)
    clip = read_clip(folder)
    assert 0 < sum(len(s) for _, s in clip.audio) < 16000 * SECONDS
    assert any('lost' in loss or 'damaged' in loss for loss in clip.losses)
    storage.write_bytes(data[:4096])
    with pytest.raises(InputError, match='cannot be read|lost'):
        read_clip(folder)


def test_reading_leaves_nothing_beside_a_bag_that_was_recorded_with_a_log_written_ahead(tmp_path):
    """As rosbag2's preset `resilient` records."""
    folder = write(tmp_path / 'bag', 'db3')
    (storage,) = folder.glob('*.db3')
    with sqlite3.connect(storage) as connection:
        connection.execute('PRAGMA journal_mode = WAL')
    connection.close()
    before = sorted(folder.iterdir())
    clip = read_clip(folder)
    assert len(clip.images) == SECONDS and not clip.losses
    assert sorted(folder.iterdir()) == before
    with sqlite3.connect(storage) as recorder:  # and while it is recorded, all of it is read
        rows = recorder.execute('SELECT topic_id, timestamp, data FROM messages').fetchall()
        recorder.execute(
            'INSERT INTO messages (topic_id, timestamp, data) VALUES (?, ?, ?)', rows[0]
        )
        recorder.commit()
        assert len(list(Bag(folder).messages())) == len(rows) + 1
    recorder.close()


def test_hidden_files_beside_a_recording_are_no_part_of_it(tmp_path):
    folder = write(tmp_path / 'bag', 'mcap')
    (storage,) = folder.glob('*.mcap')
    (folder / 'metadata.yaml').unlink()
    shutil.copy(storage, folder / f'.{storage.name}.Xy12ab')  # that rsync is copying
    (folder / f'._{storage.name}').write_bytes(b'\0\5\x16\7' + bytes(4092))  # of macOS
    clip = read_clip(folder)
    assert sum(len(samples) for _, samples in clip.audio) == 16000 * SECONDS
    assert clip.losses == ('metadata.yaml is missing; topics are taken from the files.',)


def test_a_bag_whose_images_begin_long_after_its_audio_is_read_by_its_index(tmp_path):
    path = tmp_path / 'late.mcap'
    images = [(3600 * NS + i * NS, jpeg((40, 99, 9))) for i in range(3)]
    writing.write_clip(path, START_S, images, np.zeros(16000 * 5))
    for begin_s, n_images in ((0, 0), (3600, 2)):
        window = ((begin_s, begin_s + 2), True)
        with read_windows(path, [window], by_index=True) as kept:
            clip = kept.clip([window])
        assert len(clip.images) == n_images and not clip.losses


def test_what_is_no_bag_is_refused(tmp_path):
    for path, why in ((tmp_path / 'no', 'no such bag'), (tmp_path, 'no .mcap or .db3')):
        with pytest.raises(InputError, match=why):
            Bag(path)
    (tmp_path / 'a.txt').write_text('a')
    with pytest.raises(InputError, match='not a bag'):
        Bag(tmp_path / 'a.txt')


def test_a_bag_without_messages_and_one_that_cannot_be_opened_are_refused_in_words(
    tmp_path, monkeypatch
):
    with Writer(tmp_path / 'empty', version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        for kind, topic in writing.TOPICS.items():
            writer.add_connection(topic, kind, typestore=type_store())
    with pytest.raises(InputError, match='neither images'):
        read_clip(tmp_path / 'empty')
    path = write(tmp_path / 'bag', 'mcap') / 'bag.mcap'
    bag = Bag(path)
    path.unlink()  # between finding and reading it
    monkeypatch.setattr('minicpmo_ros.evaluation.bags.clip_reading.Bag', lambda _: bag)
    with pytest.raises(InputError, match='cannot be read'):
        read_clip(path)


@pytest.mark.parametrize('relative', [True, False])
def test_a_window_of_a_bag_is_what_the_whole_bag_has_there(tmp_path, relative):
    folder = write(tmp_path / 'bag', 'mcap')
    whole, shift_s = read_clip(folder), START_S * (not relative)
    part = read_clip(folder, [((1 + shift_s, 3 + shift_s), relative)])
    assert part.first_s == whole.first_s == START_S
    one, other = (clip.between(START_S + 1, START_S + 3) for clip in (whole, part))
    assert [s.stamp_ns for s in one.images] == [s.stamp_ns for s in other.images]
    assert [stamp for stamp, _ in one.audio] == [stamp for stamp, _ in other.audio]
    for (_, a), (_, b) in zip(one.audio, other.audio):
        assert np.array_equal(a, b)
    assert len(part.images) == 2 and len(part.audio) < len(whole.audio)


def test_what_relative_windows_count_from_may_be_stored_late(tmp_path):
    types, messages = rows()
    folder = tmp_path / 'bag'
    with Writer(folder, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connections = {
            kind: writer.add_connection(topic, kind, typestore=types)
            for kind, topic in writing.TOPICS.items()
        }
        for log_ns, kind, message in sorted(messages, key=lambda m: -m[0]):
            writer.write(connections[kind], log_ns, types.serialize_cdr(message, kind))
    part = read_clip(folder, [((0, 2), True)])
    assert part.first_s == START_S and len(part.images) == 2


LONG_S = 240


def test_a_long_bag_is_read_in_little_memory(tmp_path):
    """Raw images of 220 MB: a window's own are held, or one after the other of all."""
    path = tmp_path / 'long.mcap'
    write_raw_images(path, LONG_S)
    code = (
        'import resource, sys\n'
        'from minicpmo_ros.evaluation.bags.clip_reading import read_windows\n'
        'peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n'
        'before = peak()\n'
        'for span in (100, 110), (0, 1000):\n'
        '    with read_windows(sys.argv[1], [(span, True)]) as kept:\n'
        '        print(sum(image.rgb().any() == 0 for image in kept.clip_on_disk().images))\n'
        '        print(len(kept.clip().images) if span[0] else 0)\n'
        'print(peak() - before)'
    )
    told = subprocess.run(
        [sys.executable, '-c', code, path], check=True, capture_output=True, text=True
    ).stdout.split()
    size_mib = path.stat().st_size / 2**20
    assert told[:4] == ['10', '10', str(LONG_S), '0']
    assert size_mib > 200 and float(told[4]) < size_mib / 2


def test_a_clip_on_the_disk_has_the_pieces_of_one_in_memory(tmp_path):
    path = Path(__file__).parents[1] / 'demo/clips/000.mcap'
    with read_windows(path, [((0, 1000), True)]) as kept:
        here, there = kept.clip(), kept.clip_on_disk()
        assert len(there.images) == len(here.images) and len(there.audio) == len(here.audio)
        for one, other in zip(here.images, there.images):
            assert one.stamp_ns == other.stamp_ns and one.compressed() == other.compressed()
        for (begin_ns, samples), (other_ns, others) in zip(here.audio, there.audio):
            assert begin_ns == other_ns and np.array_equal(samples, others)
        assert there.images[-1].stamp_ns == there.images[1:][-1].stamp_ns
        assert there.first_s == here.first_s


def write_messages(path, rows, types=None):
    """Write (topic, log_ns, kind, message) as they come, without definitions."""
    types, channels = types or type_store(), {}
    with path.open('wb') as file:
        writer = mcap.writer.Writer(file)
        writer.start('ros2')
        for topic, log_ns, kind, message in rows:
            if topic not in channels:
                schema = writer.register_schema(kind, 'ros2msg', b'')
                channels[topic] = writer.register_channel(topic, 'cdr', schema)
            writer.add_message(
                channels[topic], log_ns, bytes(types.serialize_cdr(message, kind)), 0
            )
        writer.finish()
    return path


def test_one_of_several_cameras_and_microphones_is_taken_by_name(tmp_path):
    _, messages = rows()
    named = {
        IMAGE: ('/color/compressed', '/depth/compressed'),
        AUDIO: ('/left', '/right'),
        AUDIO_INFO: ('/left_info', '/right_info'),
    }
    doubled = [
        (topic, log_ns, kind, message)
        for log_ns, kind, message in messages
        for topic in named[kind]
        if not (topic == '/right' and log_ns % NS)  # of this one there is less
    ]
    path = write_messages(tmp_path / 'two.mcap', doubled)
    with pytest.raises(InputError, match='/color, /depth; .* Choose by image_topic'):
        read_clip(path)
    with pytest.raises(InputError, match='/left, /right; .* Choose by audio_topic'):
        read_clip(path, sources=Sources('/color'))
    for image in ('/color', '/depth/compressed'):
        assert holds(read_clip(path, sources=Sources(image, '/left')))
    assert holds(read_clip(path, sources=Sources('/color', '/right')), samples=1600 * SECONDS)
    for wrong, told in (
        (('/x', '/left'), '/color/compressed, /depth'),
        (('/color', '/x'), '/left'),
    ):
        with pytest.raises(
            InputError, match=f'_topic is /x, but .* on {told}.* Name one of these'
        ):
            read_clip(path, sources=Sources(*wrong))


def test_the_format_of_the_chosen_microphone_is_its_own(tmp_path):
    _, messages = rows()
    other = type_store().types[AUDIO_INFO](2, 48000, 'S32LE', 0, 'wave')
    named = {
        IMAGE: '/image/compressed',
        AUDIO: '/mic',
        AUDIO_INFO: '/mic_info',
    }
    told = [('/other_info', START_S * NS, AUDIO_INFO, other)]
    told += [(named[kind], log_ns, kind, message) for log_ns, kind, message in messages]
    path = write_messages(tmp_path / 'two.mcap', told)
    assert holds(read_clip(path, sources=Sources(audio_topic='/mic')))
    with pytest.raises(InputError, match='2 formats'):
        read_clip(path)


@pytest.mark.parametrize('kind', [clip.ARRAYS, clip.PLAIN_ARRAYS])
def test_sound_of_the_other_audio_common_msgs_is_read(tmp_path, kind):
    """Both packages have an AudioData and an AudioInfo, which differ."""
    types = type_store(None, clip.ARRAY_DEFINITIONS)
    audio, data, info = (
        types.types[name] for name in (clip.PLAIN_ARRAYS, clip.PLAIN_AUDIO, clip.AUDIO_INFO)
    )
    none = [np.zeros(0, t) for t in ('<f4', '<i4', '<i2', 'i1', 'u1')]
    tone = np.rint(8000 * np.sin(np.arange(16000) / 9)).astype('<i2')  # (16000,)
    told = []
    for i in range(2):
        message = audio(data(*none[:2], tone, *none[3:]), info(8, 1, 16000, 16000))
        if kind == clip.ARRAYS:
            header = writing.make_header(types, (START_S + i) * NS, 'microphone')
            message = types.types[kind](header, message)
        told.append(('/audio', (START_S + i + 1) * NS, kind, message))
    empty = audio(data(*none), info(8, 1, 16000, 0))
    if kind == clip.ARRAYS:
        empty = types.types[kind](
            writing.make_header(types, (START_S + 2) * NS, 'microphone'), empty
        )
    told.append(('/audio', (START_S + 2) * NS, kind, empty))
    found = read_clip(write_messages(tmp_path / 'a.mcap', told, types))
    assert found.first_s == START_S and '1 of 3 chunks of audio' in found.losses[0]
    heard = np.concatenate([samples for _, samples in found.audio])
    np.testing.assert_allclose(heard, np.tile(tone, 2) / 32768, atol=1e-6)


def test_sound_and_pictures_of_types_that_are_not_read_are_told(tmp_path):
    types, messages = rows()
    topics = {**writing.TOPICS, AUDIO: '/audio'}
    told = [(topics[kind], log_ns, kind, m) for log_ns, kind, m in messages]
    video = 'foxglove_msgs/msg/CompressedVideo'
    types.register(get_types_from_msg('uint8[] data', video))
    told.append(('/front', START_S * NS, video, types.types[video](np.zeros(3, np.uint8))))
    (loss,) = read_clip(write_messages(tmp_path / 'a.mcap', told, types)).losses
    assert loss.startswith(f'/front: {video} is not read; read are ')


@pytest.mark.parametrize('plugin', PLUGINS)
def test_what_is_compressed_is_seen_without_metadata(tmp_path, plugin):
    """rosbag2's --compression-mode message, and the file alone, or a file by another name."""
    folder = write(tmp_path / 'bag', plugin, CompressionMode.MESSAGE)
    (storage,) = folder.glob(f'*.{plugin}')
    assert holds(read_clip(storage)) and not read_clip(storage).losses
    for pack, suffix in ((zstandard.compress, '.zstd'), (lz4.frame.compress, '.lz4')):
        packed = tmp_path / f'{storage.name}{suffix}'
        packed.write_bytes(pack(storage.read_bytes()))
        assert holds(read_clip(packed)) and not read_clip(packed).losses
        packed = packed.rename(tmp_path / f'monday{suffix}.bin')
        assert holds(read_clip(packed))


def test_a_renamed_bag_is_whole(tmp_path):
    folder = write(tmp_path / 'bag', 'mcap')
    (folder / 'bag.mcap').rename(folder / 'monday.mcap')
    assert holds(read_clip(folder)) and not read_clip(folder).losses


def test_a_bag_of_ros_1_is_named_as_one(tmp_path):
    (tmp_path / 'a.bag').write_bytes(b'#ROSBAG V2.0\n' + bytes(100))
    with pytest.raises(InputError, match='bag of ROS 1. Convert it: rosbags-convert --src a.bag'):
        read_clip(tmp_path / 'a.bag')


@pytest.mark.parametrize(
    'head, words',
    [
        (
            b'version https://git-lfs.github.com/spec/v1\noid sha256:0',
            'git-lfs pointer.*git lfs pull',
        ),
        (b'<!DOCTYPE html><html>404</html>', 'web page.*download link'),
        (b'\x1f\x8b\x08' + bytes(30), 'gzip.*gunzip'),
        (b'PK\x03\x04' + bytes(30), 'ZIP archive.*Unpack it'),
    ],
)
def test_what_came_instead_of_a_bag_is_said(tmp_path, head, words):
    (tmp_path / 'alone.mcap').write_bytes(head)
    for path in (tmp_path, tmp_path / 'alone.mcap'):
        with pytest.raises(InputError, match=words):
            read_clip(path)
    folder = write(tmp_path / 'bag', 'mcap')
    (folder / 'bag_1.mcap').write_bytes(head)
    assert any(re.search(words, loss) for loss in read_clip(folder).losses)


@pytest.mark.parametrize('journal', ['WAL', 'DELETE'])
def test_what_a_killed_recorder_left_beside_a_database_is_used(tmp_path, journal):
    """rosbag2 writes with a log (its preset "resilient"); a copy of a bag has both files."""
    folder = write(tmp_path / 'bag', 'db3')
    (storage,) = folder.glob('*.db3')
    (folder / 'metadata.yaml').unlink()
    database = sqlite3.connect(storage, isolation_level=None)
    database.execute(f'PRAGMA journal_mode={journal}')
    database.execute('PRAGMA cache_size=2')  # so that what is not committed reaches the file
    database.execute('BEGIN')
    if journal == 'WAL':  # moved into the log: all of them
        database.execute('UPDATE messages SET timestamp = timestamp + 1')
        database.execute('COMMIT')
    else:  # a deletion that was not finished: they are there still
        database.execute('DELETE FROM messages WHERE id > 3')
    left = tmp_path / 'left'
    shutil.copytree(folder, left)
    assert [path.suffix for path in left.iterdir()] != ['.db3']
    database.close()
    for path in left.glob('*-shm'):
        path.unlink()
    before = {path.name: path.read_bytes() for path in left.iterdir()}
    left.chmod(0o555)
    bag = Bag(left)
    logged = [message.log_ns % 10 for message in bag.messages()]
    assert len(logged) == 67 and set(logged) == {1 if journal == 'WAL' else 0}
    assert len(bag.losses) == 1  # that the metadata are missing
    left.chmod(0o755)
    assert {name: (left / name).read_bytes() for name in before} == before


def test_a_database_with_a_byte_that_is_no_text_costs_itself_only(tmp_path):
    folder = write(tmp_path / 'bag', 'db3')
    (storage,) = folder.glob('*.db3')
    data = bytearray(storage.read_bytes())
    data[data.index(b'CREATE TABLE topics') + 8] = 0xE1
    storage.write_bytes(data)
    with pytest.raises(InputError, match='cannot be read .*; all is lost'):
        read_clip(folder)


def test_json_in_an_mcap_is_told_as_not_read(tmp_path):
    """As Foxglove's websocket bridge stores it: the type's name is ours, the bytes are not."""
    path = tmp_path / 'a.mcap'
    with path.open('wb') as file:
        writer = mcap.writer.Writer(file)
        writer.start('')
        schema = writer.register_schema(IMAGE, 'jsonschema', b'{}')
        channel = writer.register_channel('/camera', 'json', schema)
        writer.add_message(channel, 0, b'{}', 0)
        writer.finish()
    with pytest.raises(InputError, match="1 messages of /camera are in 'json'; cdr is read"):
        read_clip(path)


def test_a_compressed_file_unpacks_to_a_bounded_size(tmp_path, monkeypatch):
    """A few bytes that stand for gigabytes: what lies within the bound is read."""
    monkeypatch.setattr(bags, 'UNPACKED_BYTES', 2**20)
    folder = write(tmp_path / 'bag', 'mcap')
    plain = (folder / 'bag.mcap').read_bytes()
    packed = tmp_path / 'a.mcap.zstd'
    packed.write_bytes(zstandard.compress(plain[: data_end(plain)] + bytes(2**29)))
    unpacked = []
    monkeypatch.setattr(bags.Path, 'unlink', lambda path, **_: unpacked.append(path))
    clip = read_clip(packed)
    assert holds(clip) and 'only so much was tried' in clip.losses[0]
    monkeypatch.undo()
    (copy,) = unpacked
    assert copy.stat().st_size < 2**20 + 100 * packed.stat().st_size + 2**20
    copy.unlink()
