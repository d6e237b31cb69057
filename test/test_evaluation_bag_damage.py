# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Damaged bags: whatever of a recording is lost is told, whatever was done to the file."""

import io
import random
import sqlite3
import struct

import lz4.frame
import mcap.writer
import pytest
import zstandard
from mcap.writer import CompressionType, IndexType
from scored_clips import START_S

from minicpmo_ros.evaluation.bags.bags import Bag
from minicpmo_ros.evaluation.bags.mcap_file import CHANNEL, CHUNK, DATA_END, HEAD, MAGIC, SCHEMA

NS = 10**9
KINDS = {'/camera': 'sensor_msgs/msg/CompressedImage', '/tf': 'tf2_msgs/msg/TFMessage'}
COUNT = 120
FORMS = {  # of a file: chunk size (0: none), compression, checksums
    'zstd': (4096, CompressionType.ZSTD, True),
    'lz4': (4096, CompressionType.LZ4, True),
    'plain': (4096, CompressionType.NONE, True),
    'no checksums': (4096, CompressionType.NONE, False),
    'no chunks': (0, CompressionType.NONE, False),
}


def stored():
    """120 messages of two topics, (topic, log_ns, data), that do not compress."""
    numbers = random.Random(0)
    for i in range(COUNT):
        topic = '/tf' if i % 3 else '/camera'
        yield topic, START_S * NS + i * NS // 10, b'\0\1\0\0' + numbers.randbytes(150 + i)


def mcap_file(form, has_index=True):
    chunk_size, compression, has_crcs = FORMS[form]
    file = io.BytesIO()
    writer = mcap.writer.Writer(
        file,
        chunk_size=chunk_size or 4096,
        compression=compression,
        use_chunking=chunk_size > 0,
        enable_crcs=has_crcs,
        index_types=IndexType.ALL if has_index else IndexType.NONE,
        use_statistics=has_index,
        repeat_channels=has_index,
        repeat_schemas=has_index,
        use_summary_offsets=has_index,
    )
    writer.start('ros2', 'test')
    channels = {
        topic: writer.register_channel(topic, 'cdr', writer.register_schema(kind, 'ros2msg', b''))
        for topic, kind in KINDS.items()
    }
    for topic, log_ns, data in stored():
        writer.add_message(channels[topic], log_ns, data, log_ns)
    writer.finish()
    return file.getvalue()


def cut_in_records(data):
    """Split into records up to the end of the data, and what follows."""
    parts, at = [], len(MAGIC)
    while data[at] != DATA_END:
        size = HEAD.size + HEAD.unpack_from(data, at)[1]
        parts.append(data[at : at + size])
        at += size
    return parts, data[at:]


def read(path, data=None):
    if data is not None:
        path.write_bytes(data)
    bag = Bag(path)
    return [(m.topic, m.log_ns, m.data) for m in bag.messages()], bag.losses


def is_told(path, data):
    """Whether all was read as it was stored, or the bag says that something is lost."""
    found, losses = read(path, data)
    return losses or found == list(stored())


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('has_index', [True, False])
def test_a_whole_file_is_read_without_a_word(tmp_path, form, has_index):
    assert read(tmp_path / 'a.mcap', mcap_file(form, has_index)) == (list(stored()), [])


@pytest.mark.parametrize('form', FORMS)
def test_whatever_is_cut_off_is_told(tmp_path, form):
    whole, numbers = mcap_file(form), random.Random(1)
    for _ in range(40):
        size = numbers.randrange(len(whole))
        assert is_told(tmp_path / 'a.mcap', whole[:size]), size


@pytest.mark.parametrize('form', [form for form in FORMS if FORMS[form][2]])
def test_whatever_a_flipped_byte_costs_is_told(tmp_path, form):
    whole, numbers = mcap_file(form), random.Random(2)
    for _ in range(150):
        at, bit = numbers.randrange(len(whole)), numbers.randrange(1, 256)
        damaged = bytearray(whole)
        damaged[at] ^= bit
        assert is_told(tmp_path / 'a.mcap', damaged), (at, bit)


@pytest.mark.parametrize('form', [form for form in FORMS if not FORMS[form][2]])
def test_without_checksums_lost_messages_are_told(tmp_path, form):
    """A message whose bytes have changed cannot be known; one that is not there can."""
    whole, numbers = mcap_file(form), random.Random(3)
    for _ in range(150):
        at, bit = numbers.randrange(len(whole)), numbers.randrange(1, 256)
        damaged = bytearray(whole)
        damaged[at] ^= bit
        found, losses = read(tmp_path / 'a.mcap', damaged)
        per_topic = [sum(topic == name for topic, *_ in found) for name in KINDS]
        assert losses or per_topic == [COUNT // 3, COUNT - COUNT // 3], (at, bit)


@pytest.mark.parametrize('form', FORMS)
def test_one_wrong_length_costs_one_record(tmp_path, form):
    """Of a chunk, its messages; of a message, itself and the one that its length runs into."""
    records, rest = cut_in_records(mcap_file(form))
    opcode = CHUNK if FORMS[form][0] else 5
    for wrong in (0, 3, 200, 2**20, 2**40, 2**63):
        place = [i for i, record in enumerate(records) if record[0] == opcode][2]
        damaged = list(records)
        damaged[place] = HEAD.pack(opcode, wrong) + records[place][HEAD.size :]
        found, losses = read(tmp_path / 'a.mcap', MAGIC + b''.join(damaged) + rest)
        most = 2 if opcode == 5 else COUNT // sum(r[0] == CHUNK for r in records) + 2
        assert losses and len(set(stored()) - set(found)) <= most, wrong
        assert set(found) <= set(stored()) or opcode == 5


@pytest.mark.parametrize('form', FORMS)
def test_records_in_another_order_or_left_out_lose_nothing_silently(tmp_path, form):
    records, rest = cut_in_records(mcap_file(form))
    head, body = records[:1], records[1:]
    numbers, path = random.Random(4), tmp_path / 'a.mcap'
    for _ in range(20):
        shuffled = numbers.sample(body, len(body))
        found, losses = read(path, MAGIC + b''.join(head + shuffled) + rest)
        assert sorted(found) == sorted(stored()) and not losses
    for i in range(len(body)):
        left = body[:i] + body[i + 1 :]
        assert is_told(path, MAGIC + b''.join(head + left) + rest)


def test_a_channel_that_stands_nowhere_is_told(tmp_path):
    records, rest = cut_in_records(mcap_file('no chunks', has_index=False))
    for opcode in (CHANNEL, SCHEMA):
        place = next(i for i, record in enumerate(records) if record[0] == opcode)
        left = records[:place] + records[place + 1 :]
        found, losses = read(tmp_path / 'a.mcap', MAGIC + b''.join(left) + rest)
        assert losses, opcode
        if opcode == CHANNEL:
            assert len(found) == COUNT - COUNT // 3 and '40 messages are lost' in losses[0]


def test_a_chunk_that_unpacks_to_far_more_than_it_tells_is_cut_off(tmp_path):
    """A few kilobytes that stand for a gigabyte: nothing of it is unpacked beyond the allowed."""
    for name, packed in (
        ('zstd', zstandard.ZstdCompressor(write_content_size=False).compress(bytes(2**28))),
        ('zstd', zstandard.compress(bytes(2**28))),
        ('lz4', lz4.frame.compress(bytes(2**28))),
    ):
        body = struct.pack('<QQQII', 0, 1, 1000, 0, len(name)) + name.encode()
        body += struct.pack('<Q', len(packed)) + packed
        records, rest = cut_in_records(mcap_file('zstd'))
        bomb = HEAD.pack(CHUNK, len(body)) + body
        found, losses = read(tmp_path / 'a.mcap', MAGIC + bomb + b''.join(records) + rest)
        assert found == list(stored()) and 'unpacks to more than 16777216 bytes' in losses[0]


def db3_file(path):
    with sqlite3.connect(path) as database:
        database.executescript(
            'CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT NOT NULL, type TEXT NOT NULL,'
            'serialization_format TEXT NOT NULL, offered_qos_profiles TEXT NOT NULL);'
            'CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER NOT NULL,'
            'timestamp INTEGER NOT NULL, data BLOB NOT NULL);'
            'CREATE INDEX timestamp_idx ON messages (timestamp ASC);'
        )
        for i, (topic, kind) in enumerate(KINDS.items(), 1):
            database.execute('INSERT INTO topics VALUES (?, ?, ?, "cdr", "")', (i, topic, kind))
        rows = [(1 + (topic == '/tf'), at, data) for topic, at, data in stored()]
        database.executemany(
            'INSERT INTO messages (topic_id, timestamp, data) VALUES (?, ?, ?)', rows
        )
    database.close()
    return path.read_bytes()


def test_what_is_lost_of_a_database_is_told(tmp_path):
    """A page overwritten, the end cut off; rows that are gone are counted by the index."""
    path, numbers = tmp_path / 'a.db3', random.Random(5)
    whole = db3_file(path)
    assert read(path) == (list(stored()), [])
    for page in range(len(whole) // 4096):
        for junk in (bytes(4096), numbers.randbytes(4096)):
            damaged = whole[: page * 4096] + junk + whole[page * 4096 + 4096 :]
            found, losses = read(path, damaged)
            assert losses or len(found) == COUNT, page
    for _ in range(20):
        size = numbers.randrange(len(whole))
        assert is_told(path, whole[:size]), size
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[numbers.randrange(len(whole))] ^= numbers.randrange(1, 256)
        found, losses = read(path, damaged)
        assert losses or len(found) == COUNT
