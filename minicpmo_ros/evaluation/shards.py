# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A run that is cut into shards, for as many machines as there are, and joined again.

A shard is a run about some of the bags, in a folder of its own. Which bags, a hash of their names
decides, so that every machine knows it alone. Every answer of a shard says at which place it
stands in the whole run (`at`), so that joining needs neither the questions nor the memory for
all answers, and every answer that is missing or there twice is found.
"""

import fcntl
import hashlib
import json
import re
import shutil
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from minicpmo_ros.documents import appearing, differences
from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.results import ANSWERS, COSTS, FORMAT, HEAD

if TYPE_CHECKING:  # joining needs no model, nor the memory that its libraries take
    from minicpmo_ros.evaluation.replay import ReplayPlan

MOST_SHARDS = 100_000
MOST_NAMED = 8  # shards, in a sentence
FOLDER = 'shards'  # of the run's folder
BUFFERS_BYTES = 2**25  # of all shards together while they are joined
LEAST_BUFFER, MOST_BUFFER = 2**12, 2**20
AT_ONCE = 2**16  # places of the run that are looked up together
NOBODY = 2**32 - 1

# The lines that Results writes, to the byte. A quote inside a JSON string has a backslash before
# it, so that the tail cannot be a part of an answer, nor can a line that a kill has cut have one.
_STRING = rb'"[^"\\\x00-\x1f]*(?:\\(?:["\\/bfnrt]|u[0-9a-f]{4})[^"\\\x00-\x1f]*)*"'
_LINE = re.compile(
    rb'\{"id": ' + _STRING + rb', "text": ' + _STRING + rb', "asked": "[0-9a-f]{64}", '
    rb'"at": (\d{1,10})\}\n'
)
_TAIL = re.compile(rb', "at": \d+\}\n\Z')
_TAIL_BEGINS = b', "at": '


@dataclass(frozen=True)
class Shard:
    """Number `index` of `count`, from 0."""

    index: int
    count: int

    def __post_init__(self):
        """Check."""
        if not 0 <= self.index < self.count <= MOST_SHARDS:
            raise InputError(
                f'{self} is no shard: 0/N to N-1/N are, with N from 1 to {MOST_SHARDS}.'
            )

    @classmethod
    def parse(cls, text: str) -> 'Shard':
        """Read 3/64; raises InputError."""
        found = re.fullmatch(r'(\d{1,6})/(\d{1,6})', text)
        if found is None:
            raise InputError(
                f'{text!r} is no shard; its number from 0 and how many, such as 3/64.'
            )
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        """Return it as it is given."""
        return f'{self.index}/{self.count}'

    def folder(self, out: Path) -> Path:
        """Where it is kept below the folder of the whole run."""
        digits = max(3, len(str(self.count)))
        return Path(out) / FOLDER / f'{self.index:0{digits}}-of-{self.count:0{digits}}'

    def takes(self, clip: str) -> bool:
        """Return whether a bag is of this shard, whatever other bags there are."""
        digest = hashlib.sha256(clip.encode()).digest()
        return int.from_bytes(digest[:8], 'big') % self.count == self.index

    def cut(self, plan: 'ReplayPlan', facts: dict) -> tuple:
        """Return the plan of this shard, the facts of its run, and {clip: place of its first}.

        plan, facts: of the whole run. What its questions are together, such as the room that the
        longest needs, holds for all: a shard answers as the whole run does.
        """
        places, at = {}, 0
        for clip, asked in plan.questions.by_clip().items():
            if self.takes(clip):
                places[clip] = at
            at += len(asked)
        mine = tuple(q for q in plan.questions.questions if q.clip in places)
        refused = {q.id: plan.refused[q.id] for q in mine if q.id in plan.refused}
        me = {'index': self.index, 'count': self.count, 'answers': len(mine)}
        asked = replace(plan.questions, questions=mine)
        return (
            replace(plan, questions=asked, refused=refused),
            {**facts, 'shard': me},
            places,
        )


@dataclass(frozen=True)
class Joined:
    """What was put together."""

    shards: int
    answers: int
    software: tuple = ()  # of the starts of the shards, as JSON texts; more than one: they differ

    def sentences(self, out: Path) -> list:
        """Return what is to be told of a run that was put together in this folder."""
        told = [f'{self.answers} answers of {self.shards} shards: {out}']
        if len(self.software) > 1:
            told.append(
                'The shards were answered with different software, which may differ rarely in an '
                f'answer: {"; ".join(self.software)}'
            )
        return told


class _Part:
    """A shard's folder, as far as joining needs it."""

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / ANSWERS
        self.head, self.begin = self._read_head()
        self.shard, self.expected = self._read_shard()

    def _read_head(self) -> tuple:
        """Return the facts, and where the answers begin."""
        begin = 0
        try:
            with self.path.open('rb') as file:
                for line in file:
                    begin += len(line)
                    if head := _parsed(line):
                        break
                else:
                    raise InputError(f'{self.folder}: nothing has been answered in it yet.')
        except OSError as error:
            raise InputError(f'{self.path}: it cannot be read ({error.strerror}).') from error
        if head.get('format') != FORMAT:
            raise InputError(f'{self.path}: it does not begin with the format {FORMAT!r}: no run.')
        return head, begin

    def _read_shard(self) -> tuple:
        told = self.head.get('shard')
        names = ('index', 'count', 'answers')
        if not isinstance(told, dict) or not all(type(told.get(n)) is int for n in names):
            raise InputError(f'{self.folder}: it is a whole run and no shard.')
        return Shard(told['index'], told['count']), told['answers']

    @property
    def whole(self) -> dict:
        """The head of the run that it is a part of."""
        return {name: value for name, value in self.head.items() if name != 'shard'}

    def places(self) -> array:
        """Check every answer and return their places; InputError where one is damaged."""
        found, at = array('I'), self.begin
        with self.path.open('rb') as file:
            self._require_ended(file)
            file.seek(self.begin)
            for line in file:
                if not line.endswith(b'\n'):
                    line += b'\n'  # the last one; a kill may have cut no more than its end
                matched = _LINE.fullmatch(line)
                if matched and _is_utf8(line):
                    found.append(min(int(matched[1]), NOBODY))
                elif _TAIL.search(line):
                    raise InputError(f'{self.path}: the answer at byte {at} is damaged.')
                at += len(line)
        return found

    def _require_ended(self, file) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f'{self.folder}: a replay is writing there. Wait for its end.'
            ) from error
        except OSError:
            pass  # a file system without locks


class _Reader:
    """The answers of a shard in their order, with a buffer of so many bytes and no open file."""

    def __init__(self, part: _Part, n_bytes: int):
        self._path, self._at, self._n_bytes = part.path, part.begin, n_bytes
        self._chunk, self._begin = b'', 0

    def take(self, count: int) -> Iterator[bytes]:
        """Yield the next `count` answers as the whole run has them."""
        while count:
            end = self._chunk.find(b'\n', self._begin) + 1
            if not end:
                self._fill()
                continue
            tail = self._chunk.rfind(_TAIL_BEGINS, self._begin, end)
            # As in _Part.places: what has a tail was found to be an answer.
            if tail > 0 and _TAIL.match(self._chunk, tail, end):
                yield self._chunk[self._begin : tail] + b'}\n'
                count -= 1
            self._begin = end

    def _fill(self) -> None:
        rest = self._chunk[self._begin :]
        with self._path.open('rb', buffering=0) as file:
            file.seek(self._at)
            chunk = file.read(self._n_bytes)
        if not chunk and not rest:
            raise InputError(f'{self._path}: it has become shorter meanwhile.')
        self._at += len(chunk)
        self._chunk, self._begin = rest + (chunk or b'\n'), 0


def join(out: Path, folders: list) -> Joined:
    """Write the run that these shards are together: to the byte the answers of one replay of all.

    Costs and starts follow each other shard by shard. Raises InputError, and writes nothing, where
    a shard is of another run, missing, there twice or not complete.
    """
    out = Path(out)
    parts = _parts(out, [Path(folder) for folder in folders])
    if (out / ANSWERS).exists():
        raise InputError(f'{out}: a run is there already. Name another folder, or remove it.')
    owners = _owners(parts)
    try:
        out.mkdir(parents=True, exist_ok=True)
        software = _join_heads(out / HEAD, parts)
        _concatenate(out / COSTS, [part.folder / COSTS for part in parts])
        _join_answers(out / ANSWERS, parts, owners)  # last: then the run is there
    except OSError as error:
        raise InputError(f'{out}: no run can be written there ({error.strerror}).') from error
    return Joined(len(parts), len(owners), tuple(sorted(software)))


def _parts(out: Path, folders: list) -> list:
    """Read the heads and compare them; return the shards in their order."""
    if not folders:
        raise InputError(
            f'{out / FOLDER}: there is no shard to join. Give the folder that --out of `replay '
            '--shard` had, or name the folders of the shards behind it.'
        )
    parts = [_Part(folder) for folder in folders]
    first = parts[0]
    for part in parts[1:]:
        if differing := differences(first.whole, part.whole):
            raise InputError(
                f'{part.folder}: it is of another run than {first.folder}: {differing}.'
            )
        if part.shard.count != first.shard.count:
            raise InputError(
                f'{part.folder} is one of {part.shard.count} shards, {first.folder} one of '
                f'{first.shard.count}.'
            )
        part.head = first.head  # of ten thousand, one is kept
    by_index = {}
    for part in parts:
        other = by_index.setdefault(part.shard.index, part)
        if other is not part:
            raise InputError(f'{other.folder} and {part.folder} are both shard {part.shard}.')
    missing = [str(i) for i in range(first.shard.count) if i not in by_index]
    if missing:
        raise InputError(
            f'{len(missing)} of {first.shard.count} shards are missing: {_named(missing)}.'
        )
    return [part for _, part in sorted(by_index.items())]


def _owners(parts: list) -> np.ndarray:
    """Return whose the answer of every place is, (answers,) uint32: an index of parts."""
    count, incomplete = parts[0].head.get('count'), []
    if type(count) is not int or count != sum(part.expected for part in parts):
        raise InputError(
            f'{parts[0].path}: its head says that {count!r} questions were asked, the shards are '
            f'about {sum(part.expected for part in parts)}.'
        )
    owners = np.full(count, NOBODY, np.uint32)
    for index, part in enumerate(parts):
        places = np.frombuffer(part.places() or array('I'), np.uint32)
        if (places >= count).any():
            raise InputError(f'{part.path}: it has an answer behind the last of {count}.')
        twice = (places[1:] <= places[:-1]).any() or (owners[places] != NOBODY).any()
        if twice:
            raise InputError(
                f'{part.path}: it has answers twice or out of their order, as two replays leave '
                'them that write into one folder. Remove the folder and ask the shard again.'
            )
        owners[places] = index
        if len(places) < part.expected:
            incomplete.append(f'{part.shard} ({len(places)} of {part.expected} answers)')
    if incomplete:
        raise InputError(
            f'{len(incomplete)} of {len(parts)} shards are not complete: {_named(incomplete)}. '
            'Run them again; they resume.'
        )
    return owners


def _join_answers(path: Path, parts: list, owners: np.ndarray) -> None:
    n_bytes = min(max(BUFFERS_BYTES // len(parts), LEAST_BUFFER), MOST_BUFFER)
    readers = [_Reader(part, n_bytes) for part in parts]
    with appearing(path) as file:
        file.write((json.dumps(parts[0].whole, ensure_ascii=False) + '\n').encode())
        for begin in range(0, len(owners), AT_ONCE):
            some = owners[begin : begin + AT_ONCE]
            starts = np.flatnonzero(np.diff(some, prepend=NOBODY))
            counts = np.diff(starts, append=len(some))
            for owner, count in zip(some[starts].tolist(), counts.tolist()):
                file.writelines(readers[owner].take(count))


def _join_heads(path: Path, parts: list) -> set:
    """Write all starts and bags; return the software of the starts."""
    software = set()
    with appearing(path) as file:
        for part in parts:
            try:
                lines = (part.folder / HEAD).read_bytes().split(b'\n')
            except FileNotFoundError:
                continue
            for line in filter(None, map(_parsed, lines)):
                begun = line.get('begun')
                if isinstance(begun, dict):
                    begun['shard'] = str(part.shard)
                    software.add(json.dumps(begun.get('software'), sort_keys=True))
                file.write((json.dumps(line, ensure_ascii=False) + '\n').encode())
    return software


def _concatenate(path: Path, parts: list) -> None:
    """Write files of lines behind each other; a last line that a kill has cut is closed."""
    with appearing(path) as file:
        for part in parts:
            try:
                with part.open('rb') as opened:
                    shutil.copyfileobj(opened, file)
            except FileNotFoundError:
                continue
            file.write(b'\n')  # an empty line is no line


def _named(names: list) -> str:
    more = f' and {len(names) - MOST_NAMED} more' * (len(names) > MOST_NAMED)
    return ', '.join(names[:MOST_NAMED]) + more


def _is_utf8(line: bytes) -> bool:
    try:
        return line.isascii() or bool(line.decode())
    except UnicodeDecodeError:
        return False


def _parsed(line: bytes) -> dict:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
