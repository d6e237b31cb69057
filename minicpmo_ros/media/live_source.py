# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Reads a live camera with PyAV: RTSP (H.264, H.265, JPEG, with or without audio) and V4L2.

`LiveSource` opens one and gives what it sends, dated by LiveClock: images, of which no more are
converted than are asked for, and audio as 16-bit samples of one channel. JPEG is passed on as it
came. Whatever goes wrong raises an InputError that says what to do; the camera may be there again
a moment later, and then another LiveSource reads it.

No address is opened but that of the source, and no text here has its password.
"""

import errno
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

import av
import numpy as np

from minicpmo_ros.errors import InputError, in_words
from minicpmo_ros.media.audio.stream import ChannelMixer
from minicpmo_ros.media.files import UNREADABLE, samples_of
from minicpmo_ros.media.image.compressed import encode_jpeg
from minicpmo_ros.media.image.tiling import check_size
from minicpmo_ros.media.live_clock import LiveClock
from minicpmo_ros.units import NS

SCHEMES = ('rtsp', 'rtsps')
PROTOCOLS = 'rtp,srtp,udp,tcp,tls,rtsp,rtsps,crypto'
V4L2, DEVICE = 'v4l2', re.compile(r'/dev/\S+')
# A source begins with a burst of what it has kept: until it is over nothing can be dated.
BURST_NS = NS // 2
# Images that come later than that are not decoded, up to one that needs none before it.
LATE_NS = NS
DAMAGED = (av.error.InvalidDataError, ValueError)
HIDDEN, ESCAPED = '***@', 'a password has %2F for each /, or is in the file credentials_file'
IN_PATH = re.compile(r'((?:pass\w*|pwd|token)=)[^&/?#]*', re.IGNORECASE)  # a secret
HUFFMAN = b'\xff\xc4'  # marker of the tables that some cameras leave out of their JPEG


@dataclass(frozen=True)
class LiveOptions:
    """How a source is read."""

    address: str  # rtsp://..., rtsps://... or /dev/...
    credentials: str = ''  # user:password
    transport: str = 'tcp'  # of RTSP: tcp or udp
    timeout_s: float = 10.0  # of connecting, and of silence
    rate_hz: float = 5.0  # the most images a second; 0: all
    wants_pixels: bool = False  # images as arrays, not as JPEG
    jpeg_quality: int = 90
    wants_audio: bool = True
    latency_ms: float = 0.0  # between an instant and its arrival here
    size: str = ''  # of V4L2, such as 1280x720
    pixel_format: str = ''  # of V4L2, such as mjpeg

    @property
    def is_device(self) -> bool:
        """Whether it is a device of this machine."""
        return DEVICE.fullmatch(self.address) is not None

    @property
    def name(self) -> str:
        """The address as it may be told: without a password."""
        return _told(self.address)

    def check(self) -> None:
        """Raise InputError if it is no address of a source."""
        if self.is_device:
            return
        try:
            parts = urlsplit(self.address)
            if parts.scheme in SCHEMES and parts.hostname and parts.port != 0:
                return
            what = ''
        except ValueError:
            what = '. Its host or port is none'
            if '@' in self.address:
                what += f': {ESCAPED}'
        raise InputError(
            f'source is {self.name!r}; it takes rtsp://HOST/PATH, rtsps://HOST/PATH, or a device '
            f'such as /dev/video0{what}. media_player plays files'
        )


@dataclass(frozen=True)
class LiveImage:
    """An image; either `jpeg` or `pixels`, (H, W, 3) uint8 RGB."""

    stamp_ns: int
    jpeg: bytes = b''
    pixels: np.ndarray | None = None


@dataclass(frozen=True)
class LiveAudio:
    """A piece of audio of one channel."""

    stamp_ns: int  # of its first sample
    rate_hz: int
    samples: np.ndarray  # (n,) float32 in [-1, 1]


class LiveSource:
    """An open source. `now_ns()`: the time in which it is dated. Belongs to one thread."""

    def __init__(self, options: LiveOptions, now_ns: Callable[[], int]):
        options.check()
        self._options, self._now_ns = options, now_ns
        self._container = _open(options)
        streams = self._container.streams
        self._video = streams.video[0] if streams.video else None
        self._audio = streams.audio[0] if streams.audio and options.wants_audio else None
        if self._video is None and self._audio is None:
            self.close()
            raise InputError(f'{options.name}: it has no images and no audio that can be decoded')
        if self._video is not None:
            # Threads of frames would hold several back.
            self._video.codec_context.thread_type = 'SLICE'
        latency_ns = int(options.latency_ms * 1e6)
        self._clocks = {stream: LiveClock(latency_ns) for stream in self._streams}
        self._mixer = ChannelMixer()
        self._next_ns = self._newest_ns = None  # counts of images
        self._is_late = False
        self.damaged = self.late = 0  # pieces that could not be decoded; images left out as late

    @property
    def has_images(self) -> bool:
        """Whether images come."""
        return self._video is not None

    @property
    def has_audio(self) -> bool:
        """Whether audio comes, and is wanted."""
        return self._audio is not None

    def read(self) -> Iterator[LiveImage | LiveAudio]:
        """Yield what comes; raise InputError when nothing comes any more."""
        begun_ns, held = None, []
        for stream, count_ns, content in self._items():
            begun_ns = begun_ns or self._now_ns()
            held.append((stream, count_ns, content))
            if self._now_ns() - begun_ns < BURST_NS:
                continue
            for item in held:
                yield self._dated(*item)
            held.clear()

    def close(self) -> None:
        """Let go of it."""
        self._container.close()

    @property
    def _streams(self) -> list:
        return [stream for stream in (self._video, self._audio) if stream is not None]

    def _dated(self, stream, count_ns: int, content) -> LiveImage | LiveAudio:
        stamp_ns = self._clocks[stream].stamp_ns(count_ns)
        if stream is self._audio:
            return LiveAudio(stamp_ns, *content)
        is_jpeg = isinstance(content, bytes)
        return LiveImage(stamp_ns, content) if is_jpeg else LiveImage(stamp_ns, pixels=content)

    def _items(self) -> Iterator[tuple]:
        """Yield (stream, count_ns, content): (rate_hz, samples), JPEG bytes, or pixels."""
        for packet in self._packets():
            late_ns = 0
            if (count_ns := _count_ns(packet)) is not None:
                late_ns = self._clocks[packet.stream].note(count_ns, self._now_ns())
            try:
                if packet.stream is self._audio:
                    yield from self._heard(packet)
                elif not self._leaves_out(packet, late_ns):
                    yield from self._seen(packet)
            except DAMAGED:
                self.damaged += 1

    def _packets(self) -> Iterator:
        name = self._options.name
        try:
            for packet in self._container.demux(self._streams):
                if packet.size:  # the last ones only end the stream
                    yield packet
        except (av.error.FFmpegError, OSError) as error:
            raise InputError(f'{name}: {_why(error, self._options, has_come=True)}') from None
        raise InputError(f'{name}: it has ended')

    def _heard(self, packet) -> Iterator[tuple]:
        for frame in packet.decode():
            if (count_ns := _count_ns(frame)) is not None:
                yield self._audio, count_ns, (frame.sample_rate, samples_of(frame, self._mixer))

    def _leaves_out(self, packet, late_ns: int) -> bool:
        """Return whether there is no time for an image; the next that stands alone is decoded."""
        if late_ns > LATE_NS:
            self._is_late = True
        elif packet.is_keyframe:
            self._is_late = False
        self.late += self._is_late
        return self._is_late

    def _seen(self, packet) -> Iterator[tuple]:
        if (jpeg := self._jpeg_of(packet)) is not None:
            if self._is_due(count_ns := _count_ns(packet)):
                yield self._video, count_ns, jpeg
            return
        for frame in packet.decode():
            if not self._is_due(count_ns := _count_ns(frame)):
                continue
            check_size(frame.width, frame.height)
            pixels = frame.to_ndarray(format='rgb24')  # (H, W, 3)
            if not self._options.wants_pixels:
                pixels = encode_jpeg(pixels, self._options.jpeg_quality)
            yield self._video, count_ns, pixels

    def _jpeg_of(self, packet) -> bytes | None:
        """Return an image that can be passed on as it came; else None."""
        if self._options.wants_pixels or packet.stream.codec_context.name != 'mjpeg':
            return None
        jpeg = bytes(packet)
        return jpeg if HUFFMAN in jpeg else None

    def _is_due(self, count_ns: int | None) -> bool:
        """Return whether an image is given, so that no more are than are wanted."""
        if count_ns is None:
            return False
        has_gone_back = self._newest_ns is not None and count_ns < self._newest_ns
        self._newest_ns = count_ns
        if not self._options.rate_hz:
            return True
        if not has_gone_back and self._next_ns is not None and count_ns < self._next_ns:
            return False
        step_ns = int(NS / self._options.rate_hz)
        self._next_ns = count_ns - count_ns % step_ns + step_ns
        return True


def read_credentials(path: str) -> str:
    """Return user:password of a file; raise InputError if it holds something else."""
    try:
        text = Path(path).expanduser().read_text(encoding='utf-8-sig').strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f'credentials_file {path}: it cannot be read ({in_words(error)})'
        ) from None
    if ':' not in text or '\n' in text:
        raise InputError(f'credentials_file {path}: one line is expected, user:password')
    return text


def _open(options: LiveOptions):
    """Return the open container; raise InputError."""
    settings, format_name = _settings(options)
    if format_name == V4L2 and not any(V4L2 in name.split(',') for name in av.formats_available):
        raise InputError(
            f'{options.name}: this build of PyAV has no V4L2 (pip install --force-reinstall '
            'av). Or run a camera driver of ROS (sudo apt install ros-$ROS_DISTRO-v4l2-camera)'
        )
    begun_s, timeout_s = time.monotonic(), options.timeout_s
    try:
        return av.open(
            _address(options), format=format_name, options=settings, timeout=(timeout_s, timeout_s)
        )
    except UNREADABLE as error:
        # FFmpeg may call an answer that did not come damaged data.
        is_late = time.monotonic() - begun_s >= timeout_s
        why = _why(TimeoutError() if is_late else error, options)
        why += f'. If a / before the @ is of the password: {ESCAPED}' * (HIDDEN in options.name)
        raise InputError(f'{options.name}: {why}') from None


def _settings(options: LiveOptions) -> tuple:
    """Return ({name: text} for FFmpeg, name of its format)."""
    if not options.is_device:
        return {
            'rtsp_transport': options.transport,
            'protocol_whitelist': PROTOCOLS,
            'allowed_media_types': 'video+audio' if options.wants_audio else 'video',
        }, 'rtsp'
    given = {'video_size': options.size, 'input_format': options.pixel_format}
    return {name: text for name, text in given.items() if text}, V4L2


def _address(options: LiveOptions) -> str:
    if options.is_device:
        return options.address
    scheme, rest = options.address.split('://', 1)
    scheme = scheme.lower()  # FFmpeg knows no other
    if not options.credentials:
        return f'{scheme}://{rest}'
    user, _, password = options.credentials.partition(':')
    host, slash, path = rest.partition('/')
    host = host.rpartition('@')[2]  # without a user of its own
    return f'{scheme}://{quote(user, "")}:{quote(password, "")}@{host}{slash}{path}'


def _told(address: str) -> str:
    """Return an address without all that may be a user and a password.

    A password may have a / or @ that is not escaped, and may stand in the path.
    """
    begin, rest = re.fullmatch(r'([\w+.-]*:/+|/*)(.*)', address, re.DOTALL).groups()
    user, _, place = rest.rpartition('@')
    if '/' not in user:
        rest = place
    elif ':' in user:  # USER:12/34@HOST, which may as well be HOST:12/PATH@2
        rest = HIDDEN + place
    return begin + IN_PATH.sub(r'\1***', rest)


def _count_ns(piece) -> int | None:
    """Return the time of a packet or frame as its stream counts; None: it does not say."""
    if piece.pts is None:
        return None
    return piece.pts * piece.time_base.numerator * NS // piece.time_base.denominator


def _why(error: Exception, options: LiveOptions, has_come: bool = False) -> str:
    """Return why a source cannot be read, and what to do; never FFmpeg's text with the address."""
    if isinstance(error, av.error.HTTPUnauthorizedError | av.error.HTTPForbiddenError):
        return (
            'the camera asks for a user and a password, or refuses those that it got. Write '
            'user:password into a file and set credentials_file to it'
        )
    if isinstance(error, av.error.HTTPNotFoundError):
        return (
            'the camera has no stream of this path. Its manual or its page in the browser tells '
            'the path, which stands behind the port'
        )
    if isinstance(error, av.error.ExitError | TimeoutError):
        what = 'nothing more came' if has_come else 'it did not answer'
        return (
            f'{what} within {options.timeout_s:g} s. Is it on, is the network up? On a network '
            'without UDP set transport to tcp; timeout_s says how long is waited'
        )
    number = getattr(error, 'errno', None)
    text = getattr(error, 'strerror', None) or type(error).__name__
    known = OF_DEVICES if options.is_device else OF_HOSTS
    return known.get(number, f'it cannot be read ({text})')


OF_HOSTS = {
    errno.ECONNREFUSED: 'nobody listens there (connection refused). Is the camera on, and is the '
    'port right? RTSP has 554 if none is given',
    errno.EIO: 'there is no connection, or no host of this name. Try its address in numbers, and '
    'ping it',
    errno.EHOSTUNREACH: 'there is no way to this host. Is it in the same network?',
    errno.ENETUNREACH: 'there is no way to this host. Is the network up?',
}
OF_DEVICES = {
    errno.ENOENT: 'there is no such device. v4l2-ctl --list-devices tells which there are; a '
    'container needs --device',
    errno.EACCES: 'this user may not read it. sudo usermod -aG video $USER, and log in again',
    errno.EBUSY: 'another program reads it (fuser -v tells which). End that program',
    errno.ENODEV: 'it is no camera, or it was unplugged',
    errno.ENOTTY: 'it is no camera. v4l2-ctl --list-devices tells which there are',
    errno.EINVAL: 'it does not take these settings. v4l2-ctl --list-formats-ext tells which size '
    'and pixel_format it has; a camera often has a second device that gives no images',
}
