# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""GGUF headers are read as written, and every damaged one is refused in words."""

import os
import random
import struct
import time
import tracemalloc

import gguf
import numpy as np
import pytest
from whisper_files import random_tensors
from whisper_files import write as write_audio

from minicpmo_ros.encoders.whisper.encoder import AudioEncoder
from minicpmo_ros.errors import ModelFileError
from minicpmo_ros.ggml.gguf_file import StringArray, read_header
from minicpmo_ros.ggml.runtime import Backend
from minicpmo_ros.ggml.types import GgmlType

U8, U32, STRING, ARRAY, U64 = 0, 4, 8, 9, 10
HUGE = (1 << 64) - 1


def text(value, length=None):
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack('<Q', len(raw) if length is None else length) + raw


def entry(key, kind, payload):
    return text(key) + struct.pack('<I', kind) + payload


def array(element, count, payload=b''):
    return struct.pack('<IQ', element, count) + payload


def tensor(name='t', sides=(4,), kind=0, offset=0, n_dims=None):
    return (
        text(name)
        + struct.pack('<I', len(sides) if n_dims is None else n_dims)
        + struct.pack(f'<{len(sides)}Q', *sides)
        + struct.pack('<IQ', kind, offset)
    )


def file_of(entries=(), tensors=(), version=3, n_tensors=None, n_entries=None, data=64):
    head = b'GGUF' + struct.pack(
        '<IQQ',
        version,
        len(tensors) if n_tensors is None else n_tensors,
        len(entries) if n_entries is None else n_entries,
    )
    body = head + b''.join(entries) + b''.join(tensors)
    return body + b'\0' * (-len(body) % 32 + data)


GOOD = file_of([entry('a.b', U32, struct.pack('<I', 7))], [tensor()])
BAD = {
    'wrong magic': (b'GGML' + GOOD[4:], 'does not begin'),
    'empty': (b'', '0 bytes'),
    'too short': (GOOD[:20], '20 bytes'),
    'version 1': (file_of(version=1), 'version is 1'),
    'version 4': (file_of(version=4), 'version is 4'),
    'other byte order': (file_of(version=3 << 24), 'big-endian'),
    'version 256': (file_of(version=256), 'version is 256'),
    'cut in a key': (GOOD[:30], 'ends in the middle'),
    'cut in a tensor': (GOOD[:60], 'ends in the middle'),
    'cut in the data': (GOOD[:-60], 'cut short'),
    'many tensors': (file_of(n_tensors=1 << 40), 'claims'),
    'many entries': (file_of(n_entries=1 << 40), 'claims'),
    'long key': (file_of([text('a', 1 << 20)]), 'at most 65535'),
    'key longer than the file': (file_of([text('a', 5000)], data=0), 'middle of a metadata key'),
    'key of no length': (file_of([entry('', U8, b'\1')]), 'is empty'),
    'key with a zero': (file_of([entry('a\0b', U8, b'\1')]), 'zero byte'),
    'key not UTF-8': (file_of([entry(b'\xff\xfe', U8, b'\1')]), 'not UTF-8'),
    'key twice': (file_of([entry('a', U8, b'\1')] * 2), 'occurs twice'),
    'endless text': (file_of([entry('a', STRING, text('b', HUGE))]), 'bytes long'),
    'unknown value type': (file_of([entry('a', 13, b'\0' * 8)]), 'unknown type 13'),
    'huge array': (file_of([entry('a', ARRAY, array(U64, 1 << 61))]), 'middle of a'),
    'array of arrays': (file_of([entry('a', ARRAY, array(ARRAY, 1))]), 'only numbers and texts'),
    'array of unknowns': (file_of([entry('a', ARRAY, array(99, 1))]), 'only numbers and texts'),
    'many texts': (file_of([entry('a', ARRAY, array(STRING, HUGE))]), 'middle of a'),
    'endless text in an array': (
        file_of([entry('a', ARRAY, array(STRING, 2, text('x', HUGE)))]),
        'middle of a',
    ),
    'last text in an array too long': (
        file_of([entry('a', ARRAY, array(STRING, 1, text('x', 1 << 40)))]),
        'middle of a',
    ),
    'alignment 48': (
        file_of([entry('general.alignment', U32, struct.pack('<I', 48))]),
        'power of two',
    ),
    'alignment 0': (
        file_of([entry('general.alignment', U32, struct.pack('<I', 0))]),
        'power of two',
    ),
    'alignment of 2 MiB': (
        file_of([entry('general.alignment', U32, struct.pack('<I', 1 << 21))]),
        'power of two',
    ),
    'alignment in words': (
        file_of([entry('general.alignment', STRING, text('32'))]),
        'power of two',
    ),
    'tensor twice': (file_of(tensors=[tensor('t'), tensor('t', offset=32)]), 'occurs twice'),
    'tensor name too long': (file_of(tensors=[tensor('t' * 64)]), 'at most 63'),
    'no dimensions': (file_of(tensors=[tensor(sides=())]), '0 dimensions'),
    'five dimensions': (file_of(tensors=[tensor(sides=(1,) * 5)]), '5 dimensions'),
    'many dimensions': (file_of(tensors=[tensor(n_dims=1 << 31)]), 'dimensions'),
    'a side of zero': (file_of(tensors=[tensor(sides=(4, 0))]), 'claims the shape'),
    'sides that overflow': (
        file_of(tensors=[tensor(sides=(1 << 33, 1 << 33))]),
        'claims the shape',
    ),
    'sides that wrap to four': (
        file_of(tensors=[tensor(sides=(1 << 62, 4, 4, 1))]),
        'claims the shape',
    ),
    'unknown tensor type': (
        file_of(tensors=[tensor(kind=139)]),
        'the type 139, which .* another quantisation',
    ),
    'row of half a block': (file_of(tensors=[tensor(sides=(48,), kind=8)]), 'multiple of 32'),
    'crooked offset': (file_of(tensors=[tensor(offset=16)]), 'not a multiple of 32'),
    'offset outside': (file_of(tensors=[tensor(offset=1 << 60)]), 'cut short'),
    'overlap': (file_of(tensors=[tensor('t', (16,)), tensor('u', (4,), offset=32)]), 'overlap'),
}


def write(path, content):
    path.write_bytes(content)
    return path


def test_what_was_written_is_read(tmp_path):
    path = tmp_path / 'a.gguf'
    writer = gguf.GGUFWriter(path, 'test')
    words = ['', 'ä', 'ein Wort', '<|im_end|>']
    writer.add_array('words', words)
    writer.add_array('numbers', [1.5, -2.0])
    writer.add_array('flags', [True, False])
    writer.add_uint64('big', 1 << 40)
    writer.add_float32('half', 0.5)
    writer.add_bool('yes', True)
    writer.add_tensor('x', np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor('y', np.arange(4, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    header = read_header(path)
    assert header.require('general.architecture', str) == 'test'
    assert list(header.require('words', StringArray)) == words
    assert header.metadata['words'][-1] == words[-1]
    assert header.require('numbers', np.ndarray).tolist() == [1.5, -2.0]
    assert header.metadata['flags'].tolist() == [True, False]
    assert header.require('big', int) == 1 << 40 and header.require('half', float) == 0.5
    assert header.metadata['yes'] is True
    x, y = header.tensors['x'], header.tensors['y']
    assert (x.shape, x.type, x.n_bytes) == ((2, 3), GgmlType.F32, 24)
    assert (y.shape, y.type, y.n_bytes) == ((4,), GgmlType.F16, 8)
    raw = path.read_bytes()
    assert raw[y.offset : y.offset + 8] == np.arange(4, dtype=np.float16).tobytes()


@pytest.mark.parametrize('name', BAD)
def test_a_damaged_header_is_refused_with_its_reason(tmp_path, name):
    content, reason = BAD[name]
    with pytest.raises(ModelFileError, match=reason) as caught:
        read_header(write(tmp_path / 'bad.gguf', content))
    assert caught.value.remedy


def test_the_good_one_beside_them_is_read(tmp_path):
    header = read_header(write(tmp_path / 'good.gguf', GOOD))
    assert header.metadata == {'a.b': 7} and header.tensors['t'].shape == (4,)


def test_every_truncation_is_refused(tmp_path):
    end = read_header(write(tmp_path / 'good.gguf', GOOD)).tensors['t']
    for length in range(end.offset + end.n_bytes):
        with pytest.raises(ModelFileError):
            read_header(write(tmp_path / 'cut.gguf', GOOD[:length]))


def test_what_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / 'fifo')
    (tmp_path / 'loop').symlink_to(tmp_path / 'loop')
    for path in (tmp_path, tmp_path / 'fifo', tmp_path / 'loop', tmp_path / 'none', '/dev/zero'):
        with pytest.raises(ModelFileError):
            read_header(path)


def test_a_disk_that_fails_is_told_with_the_file():
    with pytest.raises(ModelFileError, match='/proc/self/mem: it cannot be read'):
        read_header('/proc/self/mem')  # whose first bytes cannot be read, as those of a bad disk


def test_a_header_of_empty_texts_ends_soon(tmp_path):
    """A sparse file of 4 GiB may claim 2^29 texts of no length."""
    path = write(
        tmp_path / 'sparse.gguf', file_of([entry('a', ARRAY, array(STRING, 1 << 29))], data=0)
    )
    os.truncate(path, 4 << 30)
    started = time.process_time()
    with pytest.raises(ModelFileError, match='longer than 64 MiB'):
        read_header(path)
    assert time.process_time() - started < 5


def test_a_header_of_empty_texts_takes_less_than_four_times_its_bytes(tmp_path):
    n_texts = 1 << 20
    path = write(
        tmp_path / 'many.gguf',
        file_of([entry('e', ARRAY, array(STRING, n_texts, bytes(8 * n_texts)))]),
    )
    tracemalloc.start()
    try:
        assert len(read_header(path).metadata['e']) == n_texts
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Where each text begins, while that list grows, then as offsets; and the texts.
    assert peak_bytes < 4 * path.stat().st_size


def test_a_missing_or_mistyped_key_is_named(tmp_path):
    header = read_header(write(tmp_path / 'good.gguf', GOOD))
    with pytest.raises(ModelFileError, match='no c.d'):
        header.require('c.d', int)
    with pytest.raises(ModelFileError, match='a.b in its header is not a text'):
        header.require('a.b', str)
    assert header.require('a.b', float) == 7.0
    assert header.get('a.b', int) == 7 and header.get('c.d', str, 'x') == 'x'
    with pytest.raises(ModelFileError, match='a.b in its header is not a text'):
        header.get('a.b', str, 'x')


def test_a_vocabulary_of_the_published_size_costs_less_than_reading_its_texts(tmp_path):
    words = [f'token{i}' for i in range(151700)]
    raw = b''.join(map(text, words))
    entries = [entry(key, ARRAY, array(STRING, len(words), raw)) for key in ('tokens', 'merges')]
    path = write(tmp_path / 'words.gguf', file_of(entries))

    def walk():
        return read_header(path).metadata['merges'][151699]

    def read_texts():  # what walking must not do: make every text of both lists
        for _ in range(2):
            texts, at = [], 0
            while at < len(raw):
                end = at + 8 + int.from_bytes(raw[at : at + 8], 'little')
                texts.append(raw[at + 8 : end].decode())
                at = end
        return texts[-1]

    walked_s, read_s = [], []
    for _ in range(5):
        for function, times in ((walk, walked_s), (read_texts, read_s)):
            started = time.process_time()
            assert function() == words[-1]
            times.append(time.process_time() - started)
    # 0.35 was measured.
    assert min(walked_s) < min(read_s)


@pytest.fixture(scope='module')
def backend():
    backend = Backend('cpu')
    yield backend
    backend.close()


def test_the_file_to_be_mutated_loads(tmp_path, backend, audio_file):
    AudioEncoder.load(write(tmp_path / 'audio.gguf', audio_file), backend)


@pytest.mark.parametrize('seed', range(150))
def test_a_mutated_file_is_loaded_or_refused(tmp_path, backend, seed, audio_file):
    """Bits are flipped, fields overwritten and pieces cut out of the header."""
    content = bytearray(audio_file)
    chance = random.Random(seed)
    header_bytes = read_header(write(tmp_path / 'audio.gguf', audio_file)).data_offset
    for _ in range(chance.choice((1, 1, 2, 8))):
        place = chance.randrange(4, header_bytes)
        action = chance.randrange(4)
        if action == 0:
            content[place] ^= 1 << chance.randrange(8)
        elif action == 1:
            content[place : place + 8] = struct.pack(
                '<Q',
                chance.choice(
                    (0, 1, HUGE, 1 << 31, 1 << 63, chance.getrandbits(64), chance.getrandbits(16))
                ),
            )
        elif action == 2:
            del content[place : place + chance.randrange(1, 40)]
        else:
            del content[chance.randrange(len(content)) :]
            break
    try:
        AudioEncoder.load(write(tmp_path / 'mutated.gguf', content), backend)
    except ModelFileError as error:
        assert error.problem and error.remedy


@pytest.fixture(scope='module')
def audio_file(tmp_path_factory):
    path = tmp_path_factory.mktemp('fuzz') / 'audio.gguf'
    tensors = random_tensors(d=32, layers=1, ffn=64, width=32, seconds=1)
    content = write_audio(path, tensors).read_bytes()
    # The filter bank fills most of the header: without it the fields are hit more often.
    count_at = content.index(b'filters') + len('filters') + 8  # after the two types
    (count,) = struct.unpack_from('<Q', content, count_at)
    return content[:count_at] + bytes(8) + content[count_at + 8 + 4 * count :]
