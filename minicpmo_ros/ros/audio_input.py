# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Subscribes to the topic `audio`, whatever its publisher's message type.

Two incompatible packages are called `audio_common_msgs`, so the package is imported only when a
publisher exists, and the graph says which type is published:

- ros-drivers: `AudioData` and `AudioDataStamped` do not contain their format; it comes from
  `AudioInfo` on `audio_info`, or from the parameters;
- mgonzs13: `Audio` and `AudioStamped` contain their format, and the samples in one of several
  arrays.
"""

import time
from collections import deque

from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.qos import (
    QoSDurabilityPolicy,
    QoSProfile,
    QoSReliabilityPolicy,
)
from rclpy.type_support import check_for_type_support

from minicpmo_ros.errors import InputError
from minicpmo_ros.media.audio.format import CODINGS, MEAN, AudioFormat, chunk_of, sample_bytes
from minicpmo_ros.ros.framework.parameters import Parameter
from minicpmo_ros.ros.framework.threads import Poller
from minicpmo_ros.ros.framework.topics import LOOK_AGAIN_PERIOD_S, LOOK_PERIOD_S, type_among
from minicpmo_ros.ros.messages import stamp_ns_of

# Audio and its format come on two topics, in any order.
EARLY_CHUNKS = 200
EARLY_BYTES = 4_000_000
FIND_FORMAT_S = 2.0  # until it is told that the format is missing: nodes find each other slowly
# Chunks that may wait in the middleware: two seconds at 10 ms each.
AUDIO_QOS = QoSProfile(depth=200, reliability=QoSReliabilityPolicy.BEST_EFFORT)
# How much audio may wait for a worker. Bytes count as audio of at least this rate (48 kHz, 8
# channels, 32 bit), so that a wrong format does not fill the memory.
INBOX_S = 20.0
MOST_BYTES_PER_S = 1_600_000
SHORTEST_CHUNK_S = 0.005  # an empty message takes memory too
PARAMETERS = (
    Parameter('audio.sample_rate', 0, 'Sample rate of `audio`; 0: as audio_info says', 'hertz',
              0, 384_000),
    Parameter('audio.channels', 1,
              'Number of channels of `audio`; used only if audio.sample_rate is given', '', 1, 32),
    Parameter('audio.sample_format', 'S16LE',
              'Sample format of `audio`; used only if audio.sample_rate is given'),
    Parameter('audio.coding_format', 'wave',
              'Coding of `audio`; used only if audio.sample_rate is given', choices=CODINGS),
    Parameter('audio.channel', MEAN,
              f'{MEAN} of the channels, or the number of one channel, counted from 0. For an '
              'array microphone, choose the channel with the processed voice', or_number=True),
)  # fmt: skip
PACKAGE = 'audio_common_msgs/msg/'
# Of each type of audio: a field that the package of another author lacks.
AUDIO_TYPES = {
    f'{PACKAGE}AudioDataStamped': 'audio',
    f'{PACKAGE}AudioStamped': 'audio',
    f'{PACKAGE}AudioData': 'data',
    f'{PACKAGE}Audio': 'audio_data',
}
INFO_TYPE = f'{PACKAGE}AudioInfo'
NEED_INFO = (f'{PACKAGE}AudioDataStamped', f'{PACKAGE}AudioData')  # do not say what they hold


def installed_type(name: str) -> tuple:
    """Return (the class of a message of audio_common_msgs, '') or (None, why there is none)."""
    try:
        import audio_common_msgs.msg as messages
    except ImportError as error:
        return None, f'audio needs the package audio_common_msgs: {error}'
    message_type = getattr(messages, name.rsplit('/', 1)[1], None)
    field = AUDIO_TYPES.get(name, 'sample_rate')
    if message_type is None or field not in message_type.get_fields_and_field_types():
        author = 'mgonzs13' if hasattr(messages, 'AudioDataStamped') else 'ros-drivers'
        return None, (
            f'the installed audio_common_msgs has no {name}: it is another package of that name. '
            f'Install the one of {author}'
        )
    try:
        check_for_type_support(message_type)
    except Exception as error:  # of rclpy, of its generators or of the loader
        return None, f'{name} cannot be taken, its type support is not there: {error!r}'
    return message_type, ''


def audio_types() -> tuple:
    """Return the classes AudioDataStamped and AudioInfo; raise InputError without them."""
    found = [installed_type(f'{PACKAGE}AudioDataStamped'), installed_type(INFO_TYPE)]
    for _, problem in found:
        if problem:
            raise InputError(f'no audio can be published: {problem}')
    return tuple(message_type for message_type, _ in found)


def info_message(info_type, rate_hz: int, channels: int = 1):
    """Return the AudioInfo of raw 16-bit audio."""
    return info_type(
        channels=channels,
        sample_rate=rate_hz,
        sample_format='S16LE',
        bitrate=rate_hz * 16 * channels,
        coding_format='wave',
    )


def cost_s(audio_format: AudioFormat, size: int) -> float:
    """Return as how many seconds a chunk of `size` bytes counts while it waits."""
    return max(audio_format.duration_s(size), size / MOST_BYTES_PER_S, SHORTEST_CHUNK_S)


class AudioInput:
    """Subscription to `topic` that calls `on_chunk(stamp_ns or None, data, AudioFormat)`.

    options: those of PARAMETERS; None: the format always comes with the audio.
    """

    def __init__(self, node, options, on_chunk, topic: str = 'audio'):
        self._node, self._on_chunk, self._topic = node, on_chunk, topic
        self._format = None
        # By audio_info, what the bytes are.
        self._is_told = options is None or not options.audio_sample_rate
        if not self._is_told:
            sample_bytes(options.audio_sample_format)  # known, or InputError
            self._format = AudioFormat(
                options.audio_sample_rate,
                options.audio_channels,
                options.audio_sample_format,
                options.audio_coding_format,
            )
        self._audio = self._info = None  # (what is subscribed to, subscription)
        self._taken = ''  # of AUDIO_TYPES
        self._early = deque(maxlen=EARLY_CHUNKS)  # (stamp_ns, data) that came before their format
        self._early_since_s, self._told_s = 0.0, -60.0
        self._poller = Poller(node, node.time.now)
        self._looking = node.ticks.every(LOOK_PERIOD_S, self._look)
        self._look()

    @property
    def waiting(self) -> str:
        """A sentence on what received audio waits for, and what to do; or ''."""
        if not self._early:
            return ''
        return (
            'audio comes in, and waits for its format: publish AudioInfo on '
            f'{self._node.resolve_topic_name(self._info_topic)}, remap that name to where it is '
            'published (launch argument audio_info_topic), or set audio.sample_rate'
        )

    @property
    def read_until(self):
        """The Instant until which all that arrived has been called back; None: none yet."""
        return self._poller.read_until

    def look_every(self, period_s: float) -> None:
        """Look for audio so often; for any thread."""
        self._poller.period_s = period_s

    @property
    def _info_topic(self) -> str:
        return f'{self._topic}_info'

    def close(self) -> None:
        """Unsubscribe."""
        self._node.ticks.end(self._looking)
        self._poller.close()

    def _look(self) -> None:
        """Subscribe to the topics published by now."""
        self._audio = self._subscribed(self._audio, self._wanted_audio())
        if self._is_told:
            self._info = self._subscribed(self._info, self._wanted_info())
        is_found = self._audio is not None and (self._info is not None or not self._is_told)
        self._looking.period_s = LOOK_AGAIN_PERIOD_S if is_found else LOOK_PERIOD_S

    def _subscribed(self, current, wanted):
        """Subscribe as wanted if that has changed; return (wanted, subscription) or None."""
        if wanted is None or (current is not None and current[0] == wanted):
            return current
        if current is not None:
            self._poller.unsubscribe(current[1])
        message_type, topic = wanted[:2]
        try:
            return wanted, self._poller.subscribe(*wanted)
        except rclpy_implementation.RCLError as error:
            # In one process DDS reads a topic as one type: others here may have to leave it first.
            self._tell(f'{topic} cannot be read as {message_type.__name__} yet: {error}')
            return None

    def _publishers(self, topic: str):
        return self._node.get_publishers_info_by_topic(self._node.resolve_topic_name(topic))

    def _wanted_audio(self):
        """Return how to subscribe to `audio`; None: keep the subscription, or none yet."""
        handlers = dict(
            zip(
                AUDIO_TYPES,
                (self._on_stamped, self._on_stamped_arrays, self._on_plain, self._on_arrays),
            )
        )
        types = sorted({info.topic_type for info in self._publishers(self._topic)})
        taken = [name for name in AUDIO_TYPES if name in types]
        if types and not taken:
            self._tell(
                f'audio is published as {", ".join(types)}; taken are {", ".join(AUDIO_TYPES)}'
            )
        if not taken:
            return None
        stats = self._node.topics.input_stats.get(self._node.resolve_topic_name(self._topic))
        readable = [name for name in taken if installed_type(name)[0]] or taken
        self._taken = type_among(readable, self._taken, stats.age_s() if stats else 0.0)
        message_type = self._message_type(self._taken)
        found = message_type, self._topic, handlers[self._taken], AUDIO_QOS
        return found if message_type else None

    def _wanted_info(self):
        """Return how to subscribe to `audio_info`; None: keep the subscription, or none yet."""
        given = [info.qos_profile for info in self._publishers(self._info_topic)]
        message_type = given and self._message_type(INFO_TYPE)
        if not message_type:
            return None
        # Only a latched subscription gets the last message of a latched publisher, but it does not
        # match a volatile one; nor does a reliable subscription match a best-effort publisher.
        latched = all(qos.durability == QoSDurabilityPolicy.TRANSIENT_LOCAL for qos in given)
        reliable = all(qos.reliability == QoSReliabilityPolicy.RELIABLE for qos in given)
        qos = QoSProfile(
            depth=1,
            durability=QoSDurabilityPolicy['TRANSIENT_LOCAL' if latched else 'VOLATILE'],
            reliability=QoSReliabilityPolicy['RELIABLE' if reliable else 'BEST_EFFORT'],
        )
        return message_type, self._info_topic, self._on_info, qos

    def _message_type(self, name: str):
        """Return the class of a message; if there is none, log why and return None."""
        message_type, problem = installed_type(name)
        if problem:
            self._tell(f'{name} is published, but {problem}')
        return message_type

    def _on_info(self, message) -> None:
        self._format = AudioFormat(
            message.sample_rate,
            message.channels,
            message.sample_format,
            message.coding_format,
            message.bitrate,
        )
        while self._early:
            self._on_chunk(*self._early.popleft(), self._format)

    def _on_stamped(self, message) -> None:
        # A publisher without a clock sends a stamp of zero.
        self._take(stamp_ns_of(message) or None, message.audio.data)

    def _on_plain(self, message) -> None:
        self._take(None, message.data)

    def _on_stamped_arrays(self, message) -> None:
        self._take_arrays(stamp_ns_of(message) or None, message.audio)

    def _on_arrays(self, message) -> None:
        self._take_arrays(None, message)

    def _take_arrays(self, stamp_ns, audio) -> None:
        try:
            data, audio_format = chunk_of(audio)
        except InputError as error:
            return self._tell(str(error))
        self._on_chunk(stamp_ns, data, audio_format)

    def _take(self, stamp_ns, data) -> None:
        if self._format is None:
            self._early_since_s = self._early_since_s if self._early else time.monotonic()
            self._early.append((stamp_ns, data))
            while sum(len(waiting) for _, waiting in self._early) > EARLY_BYTES:
                self._early.popleft()
            if time.monotonic() - self._early_since_s > FIND_FORMAT_S:
                self._tell(self.waiting)
            return
        self._on_chunk(stamp_ns, data, self._format)

    def _tell(self, text: str) -> None:
        if time.monotonic() - self._told_s > 10.0:
            self._told_s = time.monotonic()
            self._node.get_logger().warning(text)
