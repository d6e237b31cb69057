# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""rosbag2 recordings as they are found: read what can be read, say what was lost.

A Bag is a .mcap or .db3 file, or a folder of them (a split recording), with or without its
metadata.yaml, compressed or not. It is read from begin to end, so that neither an index nor a
clean end is needed. What is missing or damaged stands in `losses`, a sentence each, once the
messages have been read, and `topics` has all that were found. Formats: https://mcap.dev/spec and
rosbag2's sqlite3 schema.
"""

import io
import os
import shutil
import sqlite3
import struct
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from minicpmo_ros.errors import InputError

SUFFIXES = ('.mcap', '.db3')
COMPRESSED = ('.zstd', '.zst')
LARGEST_RECORD_BYTES = 2**30  # a length above this is damage, not data
LARGEST_DATABASE_BYTES = 2**40
LONGEST_SKIP = 4096  # rows a damaged page of SQLite can hold, generously
METADATA = 'metadata.yaml'


@dataclass(frozen=True)
class Message:
    """One message as it was recorded."""

    topic: str
    kind: str  # such as sensor_msgs/msg/Image
    log_ns: int  # when it was received
    data: bytes  # CDR


class Bag:
    """A recording; raises InputError where there is none."""

    def __init__(self, path):
        self.path = Path(path)
        self.losses, self.topics = [], {}  # {topic: kind}
        self.definitions = {}  # kind: text of its definition, where the bag has it
        self._metadata = self._read_metadata()
        self.files = self._find_files()

    def messages(self, kinds=None) -> Iterator[Message]:
        """Give the messages of some kinds (None: all) in the order in which they were stored."""
        self.losses = list(self._missing)
        for file in self.files:
            with _Uncompressed(file, self._lose) as plain:
                yield from self._read_file(file, plain, kinds)

    def _read_file(self, file: Path, plain: Path, kinds) -> Iterator[Message]:
        suffix = file.suffixes[-2] if file.suffix in COMPRESSED else file.suffix
        read = _read_mcap if suffix == '.mcap' else _read_sqlite
        unreadable = Counter()
        for message in read(plain, kinds, self._meet, lambda why: self._lose(file, why)):
            if self._metadata.get('compression_mode', '').lower() == 'message':
                data = _decompressed(message.data)
                if data is None:
                    unreadable[message.topic] += 1
                    continue
                message = Message(message.topic, message.kind, message.log_ns, data)
            yield message
        for topic, count in unreadable.items():
            self._lose(file, f'{count} messages of {topic} could not be decompressed')

    def _meet(self, topic: str, kind: str, definition: str = '') -> None:
        self.topics[topic] = kind
        if definition:
            self.definitions[kind] = definition

    def _lose(self, file: Path, why: str) -> None:
        self.losses.append(f'{file.name}: {why}.')

    def _read_metadata(self) -> dict:
        path = self.path / METADATA
        if not self.path.is_dir() or not path.is_file():
            return {}
        try:
            found = yaml.safe_load(path.read_text(encoding='utf-8'))
            return dict(found['rosbag2_bagfile_information'])
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
            return {'damaged': True}

    def _find_files(self) -> list:
        """Give the storage files in their order; notes what is missing."""
        self._missing = []
        if self.path.is_file():
            if not _is_storage(self.path):
                raise InputError(
                    f'{self.path}: it is not a bag. A .mcap or .db3 file, or a folder of '
                    'them, is expected.'
                )
            return [self.path]
        if not self.path.is_dir():
            raise InputError(f'{self.path}: there is no such bag.')
        found = sorted(filter(_is_storage, self.path.iterdir()), key=_split_number)
        if not self._metadata or 'damaged' in self._metadata:
            state = 'cannot be read' if self._metadata else 'is missing'
            self._missing.append(f'{METADATA} {state}; topics are taken from the files.')
        names = {file.name for file in found}
        for told in self._metadata.get('relative_file_paths') or []:
            name = Path(str(told)).name
            # The name without the compression's suffix is told by some versions.
            if not any(name == n or n.startswith(f'{name}.') for n in names):
                self._missing.append(f'{name}: named by {METADATA}, but not there.')
        if not found:
            raise InputError(f'{self.path}: the folder has no .mcap or .db3 file.')
        return found


def _is_storage(path: Path) -> bool:
    suffixes = path.suffixes[-2:] if path.suffix in COMPRESSED else path.suffixes[-1:]
    return path.is_file() and bool(suffixes) and suffixes[0] in SUFFIXES


def _split_number(path: Path) -> tuple:
    """Order name_2.mcap before name_10.mcap."""
    stem = path.name.split('.')[0]
    number = stem.rpartition('_')[2]
    return (int(number) if number.isdigit() else -1, path.name)


class _Uncompressed:
    """Give a storage file in plain, as far as it goes; a copy in plain is removed afterwards."""

    def __init__(self, file: Path, lose):
        self._file, self._lose, self._copy = file, lose, None

    def __enter__(self):
        if self._file.suffix not in COMPRESSED:
            return self._file
        handle, name = tempfile.mkstemp(suffix=''.join(self._file.suffixes[-2:-1]))
        self._copy = Path(name)
        with os.fdopen(handle, 'wb') as out, self._file.open('rb') as source:
            why = _decompress_file(source, out)
        if why:
            kept = self._copy.stat().st_size
            self._lose(self._file, f'could be decompressed up to byte {kept} ({why})')
        return self._copy

    def __exit__(self, *_):
        if self._copy is not None:
            self._copy.unlink(missing_ok=True)


def _decompress_file(source, out) -> str:
    """Copy what can be decompressed; say why that is not all, or ''."""
    import zstandard

    unpacked = zstandard.ZstdDecompressor().decompressobj()
    try:
        while part := source.read(2**16):
            out.write(unpacked.decompress(part))
    except zstandard.ZstdError as error:
        return str(error)
    return '' if unpacked.eof else 'its end is missing'


def _decompressed(data: bytes):
    import zstandard

    try:
        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    except zstandard.ZstdError:
        return None


def _read_mcap(path: Path, kinds, meet, lose) -> Iterator[Message]:
    from mcap.records import Channel, Schema
    from mcap.records import Message as Record

    schemas, channels = {}, {}
    for record in _mcap_records(path, lose):
        if isinstance(record, Schema):
            schemas[record.id] = record
        elif isinstance(record, Channel):
            channels[record.id] = record
            schema = schemas.get(record.schema_id)
            if schema is not None:
                is_text = schema.encoding == 'ros2msg'
                text = schema.data.decode(errors='replace') if is_text else ''
                meet(record.topic, schema.name, text)
        elif isinstance(record, Record) and record.channel_id in channels:
            channel = channels[record.channel_id]
            schema = schemas.get(channel.schema_id)
            kind = schema.name if schema is not None else ''
            if kinds is None or kind in kinds:
                yield Message(channel.topic, kind, record.log_time, record.data)


def _mcap_records(path: Path, lose) -> Iterator:
    """Give the records up to the end or the damage, those inside chunks as if there were none."""
    from mcap.records import Chunk, DataEnd
    from mcap.stream_reader import StreamReader

    size, begin = path.stat().st_size, 0
    with path.open('rb') as file:
        reader = StreamReader(file, emit_chunks=True, record_size_limit=LARGEST_RECORD_BYTES)
        try:
            for record in reader.records:
                if isinstance(record, DataEnd):
                    return  # an index may follow or not
                if isinstance(record, Chunk):
                    where = f'the chunk at byte {begin} of {size}'
                    yield from _inside(record, lambda why, where=where: lose(f'{where} {why}'))
                else:
                    yield record
                begin = file.tell()
        except Exception as error:  # of damaged bytes the library raises almost anything
            if begin >= size > 0:
                lose('was not closed; what was stored before that is there')
                return
            lose(f'is cut or damaged at byte {begin} of {size} ({_reason(error)})')
            file.seek(begin)
            yield from _cut_chunk(file.read(LARGEST_RECORD_BYTES))


def _inside(chunk, lose) -> Iterator:
    """Give the records of a chunk; of a damaged one, those before the damage."""
    from mcap.stream_reader import breakup_chunk

    try:
        records = breakup_chunk(chunk, validate_crc=True)
    except Exception as error:  # as above
        lose(f'is damaged ({_reason(error)})')
        records = _salvaged(chunk)
    yield from records


def _cut_chunk(data: bytes) -> Iterator:
    """Give the records of a chunk of which the end is missing, if the data begin with one."""
    from mcap.data_stream import ReadDataStream
    from mcap.opcode import Opcode
    from mcap.records import Chunk

    head = struct.Struct('<BQ')  # opcode, length
    if len(data) > head.size and data[0] == Opcode.CHUNK:
        try:
            yield from _salvaged(Chunk.read(ReadDataStream(io.BytesIO(data[head.size :]))))
        except Exception:  # as above; the loss has been told
            return


def _salvaged(chunk) -> Iterator:
    from mcap.stream_reader import StreamReader

    plain = chunk.data if not chunk.compression else _salvaged_bytes(chunk)
    try:
        yield from StreamReader(io.BytesIO(plain), skip_magic=True).records
    except Exception:  # as above; the loss has been told
        return


def _salvaged_bytes(chunk) -> bytes:
    """Decompress as far as it goes, piece by piece."""
    import lz4.frame
    import zstandard

    makers = {
        'zstd': lambda: zstandard.ZstdDecompressor().decompressobj(),
        'lz4': lz4.frame.LZ4FrameDecompressor,
    }
    if chunk.compression not in makers:
        return b''
    decompressor, plain, step = makers[chunk.compression](), b'', 4096
    for at in range(0, len(chunk.data), step):
        try:
            plain += decompressor.decompress(chunk.data[at : at + step])
        except Exception:  # as above
            break
    return plain


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _read_sqlite(path: Path, kinds, meet, lose) -> Iterator[Message]:
    size, told = path.stat().st_size, _told_size(path)
    if size < told:
        lose(f'is cut at byte {size} of {told}')
        with tempfile.NamedTemporaryFile(suffix='.db3') as whole:
            # SQLite reads nothing of a file that is too short; zeros are merely damaged pages.
            shutil.copyfile(path, whole.name)
            os.truncate(whole.name, told)
            yield from _read_whole_sqlite(Path(whole.name), kinds, meet, lose)
    else:
        yield from _read_whole_sqlite(path, kinds, meet, lose)


def _told_size(path: Path) -> int:
    """Give how long a database is by its header (https://sqlite.org/fileformat.html, 1.3)."""
    with path.open('rb') as file:
        head = file.read(32)
    if len(head) < 32:
        return 0
    page_bytes, pages = struct.unpack('>H10xI', head[16:32])
    return min((page_bytes if page_bytes > 1 else 65536) * pages, LARGEST_DATABASE_BYTES)


def _read_whole_sqlite(path: Path, kinds, meet, lose) -> Iterator[Message]:
    try:
        connection = _open_sqlite(path)
        topics = {
            number: (name, kind)
            for number, name, kind in connection.execute('SELECT id, name, type FROM topics')
        }
    except sqlite3.Error as error:
        lose(f'its table of topics cannot be read ({error}); all is lost')
        return
    for topic, kind in topics.values():
        meet(topic, kind)
    last, skipped, lost = -1, 0, 0
    query = 'SELECT id, topic_id, timestamp, data FROM messages WHERE id > ? ORDER BY id'
    while skipped <= LONGEST_SKIP:
        try:
            for row in connection.execute(query, (last,)):
                (last, number, log_ns, data), skipped = row, 0
                topic, kind = topics.get(number, ('', ''))
                if kinds is None or kind in kinds:
                    yield Message(topic, kind, log_ns, bytes(data))
            break
        except sqlite3.Error as error:  # a damaged page: what lies behind it may be whole
            last, skipped, lost, why = last + 1, skipped + 1, lost + 1, error
    connection.close()
    if lost:
        rest = ' and all behind them' if skipped > LONGEST_SKIP else ''
        lose(f'{lost - (skipped > LONGEST_SKIP) * LONGEST_SKIP} messages{rest} are lost ({why})')


def _open_sqlite(path: Path) -> sqlite3.Connection:
    """Open for reading only, also where a journal was left or the folder cannot be written."""
    for mode in ('mode=ro', 'mode=ro&immutable=1'):
        try:
            connection = sqlite3.connect(f'{path.resolve().as_uri()}?{mode}', uri=True)
            connection.execute('SELECT count(*) FROM topics').fetchone()
            return connection
        except sqlite3.OperationalError as error:
            failure = error
    raise failure
