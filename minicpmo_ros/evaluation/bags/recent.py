# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The newest messages, kept in memory within a time and a number of bytes, and written to a bag.

A message leaves when it is older than `keep_s`, or when newer ones need its room. Some messages
hold until the next one of their topic comes: the format of audio, a latched state. Of these the
last one that has left stays at hand, for the messages behind it cannot be read without it. In a
bag it comes first, stamped as the first message, so that nobody who plays it waits for an hour.

No clock and no thread: times come with the messages. If they go back, what was kept is dropped, as
its times would be mixed with the new ones. A time that leaps ahead drops nothing until it has gone
on from there: it may be a single wrong /clock, and what came meanwhile is then dated before it.
"""

import os
from collections import deque
from typing import NamedTuple

from minicpmo_ros.documents import FULL
from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.bags.writing import Recording
from minicpmo_ros.units import NS

OVERHEAD_BYTES = 512  # of a message beside its data: Python's objects
BACK_NS = NS  # a clock that is corrected by less has not gone back, and has not leapt ahead


class KeptMessage(NamedTuple):
    """A message as it came."""

    topic: str
    kind: str  # such as sensor_msgs/msg/Image
    log_ns: int  # when it came
    data: bytes  # CDR
    holds: bool = False  # until the next one of its topic

    @property
    def size_bytes(self) -> int:
        """Return what it takes in memory."""
        return len(self.data) + OVERHEAD_BYTES


class RecentMessages:
    """The messages of the newest `keep_s` seconds in at most `max_bytes`; for one thread."""

    def __init__(self, keep_s: float, max_bytes: int):
        self._keep_ns, self._max_bytes = int(keep_s * NS), max_bytes
        self._messages, self._held = deque(), {}  # oldest first; {topic: the last that has left}
        self.size_bytes = 0  # of both
        self._cut_ns = -1  # when the newest message came that left for want of room
        self._begun_ns = -1  # when the first one came after time went back
        self._now_ns = self._leapt_ns = None  # newest time that is certain; one far ahead of it
        self.refused = 0  # larger than all the room

    def add(self, message: KeptMessage) -> str:
        """Keep a message; return what was dropped because of it and is not old, or ''."""
        now_ns = self._certain_ns(message.log_ns)
        told = self._turn_back(message.log_ns) if self._is_back(message.log_ns) else ''
        if self._messages:  # in order, although the clock was corrected a little
            message = message._replace(log_ns=max(message.log_ns, self._messages[-1].log_ns))
        if message.size_bytes > self._max_bytes:
            self.refused += 1
            return (
                f'a message of {message.topic} has {len(message.data)} bytes, keep_mib is '
                f'{self._max_bytes / 2**20:g}: it is not kept. Raise keep_mib'
            )
        self._messages.append(message)
        self.size_bytes += message.size_bytes
        self._drop_until(now_ns - self._keep_ns)
        while self.size_bytes > self._max_bytes:
            self._make_room()
        return told

    def expire(self, now_ns: int) -> None:
        """Drop what has become too old."""
        self._drop_until(self._certain_ns(now_ns) - self._keep_ns)

    def since(self, begin_ns: int = 0) -> list:
        """Return the messages that came since then; before them, what still holds there."""
        found, held = [], dict(self._held)
        for message in self._messages:
            if message.log_ns >= begin_ns:
                found.append(message)
            elif message.holds:
                held[message.topic] = message
        if not found:
            return []
        first_ns = found[0].log_ns
        return [message._replace(log_ns=first_ns) for message in held.values()] + found

    def lacks(self, begin_ns: int) -> bool:
        """Return whether messages since then have left for want of room."""
        return self._cut_ns >= begin_ns

    def began_anew(self, begin_ns: int) -> bool:
        """Return whether time went back since then, and what came before was dropped."""
        return self._begun_ns > begin_ns

    def _certain_ns(self, now_ns: int) -> int:
        """Take a time; return the newest that is certain: not one that has only just leapt."""
        leapt_ns = self._leapt_ns
        if leapt_ns is not None and abs(now_ns - leapt_ns) < BACK_NS:
            return self._now_ns
        if leapt_ns is not None and now_ns > leapt_ns:  # time has gone on from there
            self._now_ns = leapt_ns
        elif leapt_ns is not None:
            self._messages = deque(
                message._replace(log_ns=min(message.log_ns, self._now_ns))
                for message in self._messages
            )
        is_leap = self._now_ns is not None and now_ns > self._now_ns + BACK_NS
        self._leapt_ns = now_ns if is_leap else None
        self._now_ns = self._now_ns if is_leap else now_ns
        return self._now_ns

    def _drop_until(self, begin_ns: int) -> None:
        while self._messages and self._messages[0].log_ns < begin_ns:
            self._drop_oldest()

    def _is_back(self, now_ns: int) -> bool:
        return bool(self._messages) and now_ns < self._messages[-1].log_ns - BACK_NS

    def _turn_back(self, now_ns: int) -> str:
        count, back_s = len(self._messages), (self._messages[-1].log_ns - now_ns) / NS
        while self._messages:
            self._drop_oldest()
        self._cut_ns, self._begun_ns = -1, now_ns
        return f'time went back by {back_s:.1f} s: the {count} messages kept before are dropped'

    def _make_room(self) -> None:
        held = sum(message.size_bytes for message in self._held.values())
        if held > self._max_bytes // 2:  # what holds has no right to all the room
            self.size_bytes -= self._held.pop(next(iter(self._held))).size_bytes
        else:
            self._cut_ns = self._drop_oldest()

    def _drop_oldest(self) -> int:
        """Drop the oldest message, or hold it; return when it came."""
        gone = self._messages.popleft()
        replaced = self._held.get(gone.topic) if gone.holds else gone
        if gone.holds:
            self._held[gone.topic] = gone
        if replaced is not None:
            self.size_bytes -= replaced.size_bytes
        return gone.log_ns


def write_bag(path, definitions: dict, messages: list) -> None:
    """Write messages to a new MCAP file, on the disk when this returns; or leave none.

    Raises InputError where there is a file already, or no room or right to write one.
    """
    recording = Recording(path, definitions)
    try:
        for message in messages:
            recording.write(message.topic, message.kind, message.log_ns, message.data)
        recording.close()
        with open(path, 'rb') as file:
            os.fsync(file.fileno())
    except OSError as error:
        recording.discard()
        remedy = 'Free some room, or name a file on another disk' if error.errno in FULL else ''
        remedy = remedy or 'Check the disk'
        raise InputError(
            f'{path} could not be written: {error.strerror or error}. {remedy}, and call again: '
            'the messages are still kept.'
        ) from error
    except BaseException:
        recording.discard()
        raise
