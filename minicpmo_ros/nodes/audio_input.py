# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The `audio` topic, whatever its publisher's message type.

`audio_common_msgs` exists in two incompatible packages of one name, so it is imported when a
publisher is there, and the type is asked of the graph:

- of ros-drivers: `AudioData` and `AudioDataStamped` say nothing of their format, it comes from
  `AudioInfo` on `audio_info`, or from the parameters;
- of mgonzs13: `Audio` and `AudioStamped` hold their format, and the samples in one of several
  arrays.
"""

import time
from collections import deque

from rclpy.qos import (
    QoSDurabilityPolicy,
    QoSProfile,
    QoSReliabilityPolicy,
)
from rclpy.type_support import check_for_type_support

from minicpmo_ros.errors import InputError
from minicpmo_ros.media.pcm import SampleFormat
from minicpmo_ros.media.sound import CODINGS, AudioFormat
from minicpmo_ros.media.sound_arrays import chunk_of
from minicpmo_ros.nodes.messages import stamp_ns_of
from minicpmo_ros.nodes.parameters import Parameter
from minicpmo_ros.nodes.polling import Poller

LOOK_PERIOD_S = 0.5
LOOK_AGAIN_PERIOD_S = 2.0  # a microphone may come back with another type or QoS
# Sound and its format come on two topics, in no certain order.
EARLY_CHUNKS = 200
EARLY_BYTES = 4_000_000
# Chunks that may wait in the middleware: two seconds at 10 ms each.
AUDIO_QOS = QoSProfile(depth=200, reliability=QoSReliabilityPolicy.BEST_EFFORT)
PARAMETERS = (
    Parameter('audio.sample_rate', 0, 'Of the sound on `audio`; 0: as audio_info says', 'hertz',
              0, 384_000),
    Parameter('audio.channels', 1, 'Of the sound on `audio`, where audio.sample_rate is given',
              '', 1, 32),
    Parameter('audio.sample_format', 'S16LE',
              'Of the sound on `audio`, where audio.sample_rate is given'),
    Parameter('audio.coding_format', 'wave',
              'Of the sound on `audio`, where audio.sample_rate is given', choices=CODINGS),
)  # fmt: skip
PACKAGE = 'audio_common_msgs/msg/'
# Of each type of sound: a field that the package of another author lacks.
SOUND_TYPES = {
    f'{PACKAGE}AudioDataStamped': 'audio',
    f'{PACKAGE}AudioStamped': 'audio',
    f'{PACKAGE}AudioData': 'data',
    f'{PACKAGE}Audio': 'audio_data',
}
INFO_TYPE = f'{PACKAGE}AudioInfo'
NEED_INFO = (f'{PACKAGE}AudioDataStamped', f'{PACKAGE}AudioData')  # do not say what they hold


def installed_type(name: str) -> tuple:
    """Give (the class of a message of audio_common_msgs, '') or (None, why there is none)."""
    try:
        import audio_common_msgs.msg as messages
    except ImportError as error:
        return None, f'audio needs the package audio_common_msgs: {error}'
    message_type = getattr(messages, name.rsplit('/', 1)[1], None)
    field = SOUND_TYPES.get(name, 'sample_rate')
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


def sound_types() -> tuple:
    """Give the classes AudioDataStamped and AudioInfo, for who plays; InputError without them."""
    found = [installed_type(f'{PACKAGE}AudioDataStamped'), installed_type(INFO_TYPE)]
    for _, problem in found:
        if problem:
            raise InputError(f'no sound can be published: {problem}')
    return tuple(message_type for message_type, _ in found)


class AudioInput:
    """Subscription to `audio` that gives `on_chunk(stamp_ns or None, data, AudioFormat)`."""

    def __init__(self, node, options, on_chunk):
        self._node, self._on_chunk = node, on_chunk
        self._format = None
        self._is_told = not options.audio_sample_rate  # by audio_info, what the bytes are
        if options.audio_sample_rate:
            SampleFormat.parse(options.audio_sample_format)
            self._format = AudioFormat(
                options.audio_sample_rate,
                options.audio_channels,
                options.audio_sample_format,
                options.audio_coding_format,
            )
        self._sound = self._info = None  # (what is subscribed to, subscription)
        self._early = deque(maxlen=EARLY_CHUNKS)  # (stamp_ns, data) that came before their format
        self._told_s = -60.0
        self._poller = Poller(node)
        self._looking = node.steady_timer(LOOK_PERIOD_S, self._look)
        self._look()

    def close(self) -> None:
        """Unsubscribe."""
        self._node.destroy_timer(self._looking)
        self._poller.close()

    def _look(self) -> None:
        """Subscribe to what is published by now."""
        self._sound = self._subscribed(self._sound, self._wanted_sound())
        if self._is_told:
            self._info = self._subscribed(self._info, self._wanted_info())
        if self._sound is not None and (self._info is not None or not self._is_told):
            self._looking.timer_period_ns = int(LOOK_AGAIN_PERIOD_S * 1e9)

    def _subscribed(self, current, wanted):
        """Subscribe as wanted, if that is anything new; give (wanted, subscription) or None."""
        if wanted is None or (current is not None and current[0] == wanted):
            return current
        if current is not None:
            self._poller.unsubscribe(current[1])
        return wanted, self._poller.subscribe(*wanted)

    def _publishers(self, topic: str):
        return self._node.get_publishers_info_by_topic(self._node.resolve_topic_name(topic))

    def _wanted_sound(self):
        """Give how to subscribe to `audio`, or None: as it is, or not at all yet."""
        handlers = dict(
            zip(
                SOUND_TYPES,
                (self._on_stamped, self._on_stamped_arrays, self._on_plain, self._on_arrays),
            )
        )
        types = sorted({info.topic_type for info in self._publishers('audio')})
        taken = [name for name in SOUND_TYPES if name in types]
        if types and not taken:
            self._tell(
                f'audio is published as {", ".join(types)}; taken are {", ".join(SOUND_TYPES)}'
            )
        if not taken:
            return None
        message_type = self._message_type(taken[0])
        return (message_type, 'audio', handlers[taken[0]], AUDIO_QOS) if message_type else None

    def _wanted_info(self):
        """Give how to subscribe to `audio_info`, or None: as it is, or not at all yet."""
        given = [info.qos_profile for info in self._publishers('audio_info')]
        message_type = given and self._message_type(INFO_TYPE)
        if not message_type:
            return None
        # A latched publisher is heard late only by a latched subscription, a plain one not
        # at all by it; and a best-effort one not at all by a reliable one.
        latched = all(qos.durability == QoSDurabilityPolicy.TRANSIENT_LOCAL for qos in given)
        reliable = all(qos.reliability == QoSReliabilityPolicy.RELIABLE for qos in given)
        qos = QoSProfile(
            depth=1,
            durability=QoSDurabilityPolicy['TRANSIENT_LOCAL' if latched else 'VOLATILE'],
            reliability=QoSReliabilityPolicy['RELIABLE' if reliable else 'BEST_EFFORT'],
        )
        return message_type, 'audio_info', self._on_info, qos

    def _message_type(self, name: str):
        """Give the class of a message, or None, and then tell why."""
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
        # A stamp of zero is what a publisher sends that knows none.
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
            self._early.append((stamp_ns, data))
            while sum(len(waiting) for _, waiting in self._early) > EARLY_BYTES:
                self._early.popleft()
            self._tell(
                'sound comes in, and waits for its format: publish AudioInfo on '
                f'{self._node.resolve_topic_name("audio_info")}, remap that name to where it is '
                'published (launch argument audio_info_topic), or set audio.sample_rate'
            )
            return
        self._on_chunk(stamp_ns, data, self._format)

    def _tell(self, text: str) -> None:
        if time.monotonic() - self._told_s > 10.0:
            self._told_s = time.monotonic()
            self._node.get_logger().warning(text)
