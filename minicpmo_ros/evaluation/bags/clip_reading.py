# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Read clips from bags of any length, without ROS; only what the asked windows need is kept.

A clip has images (sensor_msgs/CompressedImage or Image) and audio (of ros-drivers'
audio_common_msgs AudioDataStamped or AudioData, with AudioInfo; of mgonzs13's AudioStamped or
Audio), each on one topic of any name, or on the one that Sources names; either may lack. Stamps
are those of the headers; a message without a stamp, or with a stamp of zero, is taken to end when
it was recorded.

Of each second the newest image is kept, because the vision encoder takes that one. Audio is
resampled to 16 kHz mono as one stream, so that a window's samples do not depend on what else was
asked. Messages may be stored out of order by up to ORDER_S. Of a damaged bag all that can be read
is returned, and `losses` says what was lost.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.bags.bags import Bag
from minicpmo_ros.evaluation.bags.clip import (
    ARRAY_DEFINITIONS,
    ARRAYS,
    AUDIO,
    AUDIO_INFO,
    DEFINITIONS,
    IMAGE,
    LONGEST_WINDOW_S,
    PLAIN_ARRAYS,
    PLAIN_AUDIO,
    RAW_IMAGE,
    Clip,
    Kept,
    Sources,
    type_store,
)
from minicpmo_ros.evaluation.bags.ordering import (
    ORDER_S,
    AudioReading,
    LogOffset,
    Stamped,
    two_clocks,
)
from minicpmo_ros.media.audio.format import AudioFormat, chunk_of, parse_channel
from minicpmo_ros.media.image.raw import stated_encoding
from minicpmo_ros.units import NS

IMAGE_KINDS = (IMAGE, RAW_IMAGE)
AUDIO_KINDS = (AUDIO, ARRAYS, PLAIN_AUDIO, PLAIN_ARRAYS)  # of one recording, the first is taken
STAMPED = (*IMAGE_KINDS, AUDIO, ARRAYS)
KINDS = (*IMAGE_KINDS, *AUDIO_KINDS, AUDIO_INFO)
BEGIN_NS = 5 * NS  # of a bag, in which all that matters has come once
MARGIN_NS = 10 * NS  # around a window, for what was recorded late
# Types of other packages that may be what somebody asks about; ours are about such.
SENSED = re.compile(r'^(?!minicpmo_ros/).*(audio|sound|image|video|ffmpeg|theora)', re.IGNORECASE)


def read_clip(path, windows=None, sources: Sources | None = None) -> Clip:
    """Read a bag, as bags.Bag finds it; InputError where no image and no audio is in it.

    windows: of ((start_s, end_s), relative) as questions have them; None: all that is there, with
    all images. sources: InputError where the bag has no such, or several and none is named.
    """
    with read_windows(path, windows, sources) as kept:
        return kept.clip()


def read_windows(path, windows, sources: Sources | None = None, by_index=False) -> Kept:
    """Read a bag once, as read_clip; the caller takes clips of some of its windows, and closes.

    by_index: read only the begin of the bag and what was recorded around the windows, if stamps
    are as far from the moments of recording there as at the begin; the samples of resampled audio
    then depend a little on the windows, and counts of messages are not compared.
    """
    first_s = None
    try:
        while True:
            reading = Reading(path, windows, sources or Sources(), first_s, by_index)
            try:
                kept = reading.read()
                if reading.is_sure:
                    return kept
                kept.close()
                first_s, by_index = None, False
            except _BeginsEarlier:  # only windows that count from the begin make it matter
                first_s = reading.first_s
    except OSError as error:
        raise InputError(f'{path}: it cannot be read ({error.strerror or error}).') from error


@contextmanager
def first_day(path, sources: Sources | None, tell: Callable[[str], None]) -> Iterator[Clip]:
    """Yield the first LONGEST_WINDOW_S seconds of a bag as a Clip that lies on the disk.

    tell(sentence): called if the bag goes on behind them. InputError where it is damaged.
    """
    with read_windows(path, [((0, LONGEST_WINDOW_S), True)], sources) as kept:
        clip = kept.clip_on_disk()
        if clip.losses:
            raise InputError(f'{path}: {" ".join(clip.losses)}')
        behind_s = kept.end_s - kept.first_s - LONGEST_WINDOW_S
        if behind_s > 0:
            tell(
                f'{path}: its first {LONGEST_WINDOW_S // 3600} h are read; it goes on for '
                f'{behind_s} s, which are left out. Give them as a bag of their own.'
            )
        yield clip


class _BeginsEarlier(Exception):
    """A stamp before the second that relative windows were counted from."""


class Reading:
    """One pass over a bag; kept: takes what is found, as Kept does."""

    def __init__(
        self,
        path,
        windows,
        sources: Sources,
        first_s: int | None = None,
        by_index: bool = False,
        kept=None,
    ):
        self._path, self._windows, self._sources = path, windows, sources
        self._is_relative = any(relative for _, relative in windows or ())
        self._guessed = self.first_s = first_s
        self._end_s = None  # of the newest second, wanted or not
        self._seconds = None  # that are kept; made once first_s is known
        self._found = {}  # of every kind of audio, and of IMAGE for all images: the topic
        self._by_index, self._begun_ns = by_index and windows is not None, None
        self._kept = kept or Kept(windows is not None)
        given = AudioFormat.parse(sources.audio_format)
        self._formats = {given} if given else set()  # told by AudioInfo, if not by the user
        self._formats_are_given, self._formats_are_own = given is not None, False
        channel, store = parse_channel(sources.audio_channel), self._kept.add_audio
        self._audio = {
            kind: AudioReading(path, formats, channel, store)
            for kind, formats in zip(AUDIO_KINDS, (self._formats, set(), self._formats, set()))
        }
        self._stamped, self._offsets = {}, {}  # by IMAGE or a kind of audio
        self._unreadable = Counter()

    def read(self) -> Kept:
        """Read it all."""
        try:
            return self._read()
        except BaseException:
            self._kept.close()
            raise

    def _read(self):
        for _ in self.steps(KINDS):
            pass
        losses = self._losses
        if not self._found:
            raise InputError(
                f'{self._path}: it has neither images ({", ".join(IMAGE_KINDS)}) nor audio '
                f'({", ".join(AUDIO_KINDS)}) that can be read. ' + ' '.join(losses)
            )
        self._tell_clocks(losses)
        if self.first_s is None:
            raise InputError(f'{self._path}: nothing of it can be used. ' + ' '.join(losses))
        self._kept.finish(losses, self.first_s, self._end_s)
        return self._kept

    def steps(self, kinds) -> Iterator[None]:
        """Read the messages of some kinds, and stop after each for what was found to be taken."""
        bag, stores = Bag(self._path), {}
        for message in bag.messages(kinds, self._wants if self._by_index else None):
            self._begun_ns = self._begun_ns or message.log_ns
            if self._is_wanted(message):
                self._decode(message, bag, stores)
                yield
        self._check_sources(bag.topics)
        losses = [*bag.losses, *_unread(bag.topics)]
        losses += [f'{n} messages of {name} are damaged.' for name, n in self._unreadable.items()]
        self._finish_stamps(losses)
        if self.heard:
            self._audio[self.heard].finish(self._keep, losses)
        self._losses = losses

    def _decode(self, message, bag: Bag, stores: dict) -> None:
        is_arrays = message.kind in (ARRAYS, PLAIN_ARRAYS)
        if is_arrays not in stores:
            known = ARRAY_DEFINITIONS if is_arrays else DEFINITIONS
            stores[is_arrays] = type_store(bag.definitions, known)
        try:
            told = stores[is_arrays].deserialize_cdr(message.data, message.kind)
        except Exception:  # of damaged bytes almost anything comes
            self._unreadable[message.topic] += 1
            return
        self._take(message, told)

    def _wants(self, first_ns: int, last_ns: int) -> bool:
        """Return whether what was recorded in a time may be of a window, or is the bag's begin."""
        medians = [offset.median_ns for offset in self._offsets.values()]
        has_begun = self.first_s is not None and self._begun_ns is not None
        is_early = not has_begun or first_ns <= self._begun_ns + BEGIN_NS
        if not medians or is_early:
            return True
        for (begin, end), relative in self._windows:
            shift_s = self.first_s if relative else 0
            low_ns, high_ns = (
                edge_ns + (shift_s + edge_s) * NS
                for edge_ns, edge_s in ((min(medians), begin), (max(medians), end))
            )
            if first_ns < high_ns + MARGIN_NS and low_ns - MARGIN_NS < last_ns:
                return True
        return False

    @property
    def is_sure(self) -> bool:
        """Whether nothing that the windows need can have been passed over."""
        return not self._by_index or (
            all(offset.spread_ns < MARGIN_NS for offset in self._offsets.values())
            and all(audio.is_heard for audio in self._audio.values())
        )

    @property
    def heard(self) -> str:
        """The kind of audio that is taken, of those that are there; ''."""
        return next((kind for kind in AUDIO_KINDS if kind in self._found), '')

    def _finish_stamps(self, losses: list) -> None:
        for sense, stamped in self._stamped.items():
            for stamp_ns, (message, told) in stamped.finish():
                self._place(stamp_ns, message, told)
            if stamped.strays:
                losses.append(
                    f'{stamped.strays} of {stamped.count} messages of {self._found[sense]} are '
                    'left out: their stamps are of another time than those around them.'
                )

    def _tell_clocks(self, losses: list) -> None:
        heard = self.heard
        if heard and IMAGE in self._found:
            offsets = (self._offsets.get(sense, LogOffset()) for sense in (IMAGE, heard))
            images, audio = offsets
            told = two_clocks(self._found[IMAGE], images, self._found[heard], audio)
            losses += [told] if told else []

    def _is_wanted(self, message) -> bool:
        """Return whether a message is on the topic that was named for its kind, if one was."""
        if message.kind in IMAGE_KINDS and self._sources.image_topic:
            return _camera(message.topic) == _camera(self._sources.image_topic)
        if message.kind in AUDIO_KINDS and self._sources.audio_topic:
            return message.topic == self._sources.audio_topic
        return True

    def _check_sources(self, there: dict) -> None:
        """Refuse names of topics that no image or audio is on; there: {topic: kind}."""
        for name, wanted, what, kinds in (
            ('image_topic', self._sources.image_topic, 'what is seen', IMAGE_KINDS),
            ('audio_topic', self._sources.audio_topic, 'what is heard', AUDIO_KINDS),
        ):
            found = sorted(topic for topic, kind in there.items() if kind in kinds)
            if wanted and _camera(wanted) not in map(_camera, found):
                told = f'on {", ".join(found)}. Name one of these' if found else 'not in the bag'
                raise InputError(f'{self._path}: {name} is {wanted}, but {what} is {told}.')

    def _take(self, message, told) -> None:
        if message.kind == AUDIO_INFO:
            self._take_info(message.topic, told)
            return
        is_image = message.kind in IMAGE_KINDS
        name = _camera(message.topic) if is_image else message.topic
        known = self._found.setdefault(IMAGE if is_image else message.kind, name)
        if known != name:
            what = 'image_topic' if is_image else 'audio_topic'
            raise InputError(
                f'{self._path}: {message.kind} is on {", ".join(sorted((known, name)))}; '
                f'one topic of it is allowed. Choose by {what}, or leave the others out.'
            )
        stamp_ns = 0
        if message.kind in STAMPED:
            stamp_ns = told.header.stamp.sec * NS + told.header.stamp.nanosec
        sense = IMAGE if is_image else message.kind
        if not stamp_ns:
            self._place(0, message, told)
            return
        self._offsets.setdefault(sense, LogOffset()).add(stamp_ns, message.log_ns)
        stamped = self._stamped.setdefault(sense, Stamped())
        for believed_ns, item in stamped.push(stamp_ns, message.log_ns, (message, told)):
            self._place(believed_ns, *item)

    def _place(self, stamp_ns: int, message, told) -> None:
        """Put a message at its stamp; 0: it has none."""
        if message.kind in IMAGE_KINDS:
            self._take_image(stamp_ns or message.log_ns, message.kind, told)
        else:
            self._take_audio(stamp_ns, message, told)

    def _take_info(self, topic: str, told) -> None:
        """Note a format; the one that belongs to the named topic displaces others."""
        if self._formats_are_given:
            return
        is_own = topic == f'{self._sources.audio_topic}_info'
        if is_own and not self._formats_are_own:
            self._formats.clear()
            self._formats_are_own = True
        if is_own or not self._formats_are_own:
            self._formats.add(
                AudioFormat(
                    told.sample_rate,
                    told.channels,
                    told.sample_format,
                    told.coding_format,
                    told.bitrate,
                )
            )

    def _take_audio(self, stamp_ns: int, message, told) -> None:
        audio = self._audio[message.kind]
        part = told.audio if message.kind in STAMPED else told
        if message.kind in (ARRAYS, PLAIN_ARRAYS):
            try:
                data, audio_format = chunk_of(part)
            except InputError as error:
                audio.refuse(error)
                return
            audio.formats.add(audio_format)
        else:
            data = part.data.tobytes()
        audio.push(stamp_ns, message.log_ns, data)
        audio.drain(self._keep, ORDER_S * NS)

    def _take_image(self, stamp_ns: int, kind: str, told) -> None:
        second = stamp_ns // NS
        if not self._keep(second, second + 1):
            return
        field = 'encoding' if kind == RAW_IMAGE else 'format'
        stated = stated_encoding(getattr(told, field), self._found[IMAGE])
        if stated != getattr(told, field):
            told = replace(told, **{field: stated})
        self._kept.put_image(stamp_ns, kind == RAW_IMAGE, told)

    def _keep(self, start_s: int, end_s: int) -> bool:
        """Return whether a window has any of the seconds [start_s, end_s), which are there."""
        if self.first_s is None or start_s < self.first_s:
            self.first_s, self._seconds = start_s, None
            if self._is_relative and self._guessed is not None:
                raise _BeginsEarlier
            self._guessed = start_s
        self._end_s = max(end_s, self._end_s or end_s)
        if self._windows is None:
            return True
        if self._seconds is None:
            self._seconds = set()
            for (begin, end), relative in self._windows:
                shift_s = self.first_s if relative else 0
                self._seconds.update(range(begin + shift_s, end + shift_s))
        return any(second in self._seconds for second in range(start_s, end_s))


def _camera(topic: str) -> str:
    """Return the name that a camera's raw and compressed images have in common."""
    return topic.removesuffix('/compressed')


def _unread(topics: dict) -> list:
    """Return which images and audio of a bag, {topic: kind}, are not read: a sentence, or none."""
    told = [
        f'{topic}: {kind}'
        for topic, kind in sorted(topics.items())
        if kind not in KINDS and SENSED.match(kind)
    ]
    verb = 'is' if len(told) == 1 else 'are'
    return [f'{"; ".join(told)} {verb} not read; read are {", ".join(KINDS)}.'] if told else []
