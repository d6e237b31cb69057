# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The `audio` topic, whatever its publisher's message type.

`audio_common_msgs` exists in two incompatible packages of one name, so it is imported when a
publisher is there, and the type is asked of the graph. `AudioData` and `AudioDataStamped` say
nothing of their format: it comes from `AudioInfo` on `audio_info`, or from the parameters.
"""

import time
from collections import deque
from dataclasses import dataclass

from rclpy.qos import (
    QoSDurabilityPolicy,
    QoSProfile,
    QoSReliabilityPolicy,
)

from minicpmo_ros.nodes.messages import stamp_ns_of
from minicpmo_ros.nodes.parameters import Parameter
from minicpmo_ros.nodes.polling import Poller

LOOK_PERIOD_S = 0.5
LOOK_AGAIN_PERIOD_S = 2.0  # a microphone may come back with another type or QoS
# Sound and its format come on two topics, in no certain order.
EARLY_CHUNKS = 200
# Chunks that may wait in the middleware: two seconds at 10 ms each.
AUDIO_QOS = QoSProfile(depth=200, reliability=QoSReliabilityPolicy.BEST_EFFORT)
PARAMETERS = (
    Parameter('audio.sample_rate', 0, 'Of the sound on `audio`; 0: as audio_info says', 'hertz',
              0, 384_000),
    Parameter('audio.channels', 1, 'Of the sound on `audio`, where audio.sample_rate is given',
              '', 1, 32),
    Parameter('audio.sample_format', 'S16LE',
              'Of the sound on `audio`, where audio.sample_rate is given'),
)  # fmt: skip


@dataclass(frozen=True)
class AudioFormat:
    """What the bytes of a chunk are."""

    sample_rate_hz: int
    channels: int
    sample_format: str
    coding_format: str = 'wave'


class AudioInput:
    """Subscription to `audio` that gives `on_chunk(stamp_ns or None, data, AudioFormat)`."""

    def __init__(self, node, options, on_chunk):
        self._node, self._on_chunk = node, on_chunk
        self._format = None
        self._is_told = not options.audio_sample_rate  # by audio_info, what the bytes are
        if options.audio_sample_rate:
            self._format = AudioFormat(
                options.audio_sample_rate, options.audio_channels, options.audio_sample_format
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
        handlers = {
            'audio_common_msgs/msg/AudioDataStamped': self._on_stamped,
            'audio_common_msgs/msg/AudioData': self._on_plain,
        }
        types = sorted({info.topic_type for info in self._publishers('audio')})
        taken = [name for name in handlers if name in types]
        if types and not taken:
            self._tell(
                f'audio is published as {", ".join(types)}; taken are {", ".join(handlers)}'
            )
        message_type = taken and self._message_type(taken[0])
        return (message_type, 'audio', handlers[taken[0]], AUDIO_QOS) if message_type else None

    def _wanted_info(self):
        """Give how to subscribe to `audio_info`, or None: as it is, or not at all yet."""
        given = [info.qos_profile for info in self._publishers('audio_info')]
        message_type = given and self._message_type('audio_common_msgs/msg/AudioInfo')
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
        try:
            import audio_common_msgs.msg as messages
        except ImportError as error:
            self._tell(f'audio needs the package audio_common_msgs: {error}')
            return None
        message_type = getattr(messages, name.rsplit('/', 1)[1], None)
        if message_type is None:
            self._tell(
                f'audio is published as {name}, which the installed audio_common_msgs lacks: '
                'it is another package of that name. Install the one of ros-drivers'
            )
        return message_type

    def _on_info(self, message) -> None:
        self._format = AudioFormat(
            message.sample_rate, message.channels, message.sample_format, message.coding_format
        )
        while self._early:
            self._on_chunk(*self._early.popleft(), self._format)

    def _on_stamped(self, message) -> None:
        # A stamp of zero is what a publisher sends that knows none.
        self._take(stamp_ns_of(message) or None, message.audio.data)

    def _on_plain(self, message) -> None:
        self._take(None, message.data)

    def _take(self, stamp_ns, data) -> None:
        if self._format is None:
            self._early.append((stamp_ns, data))
            self._tell(
                'sound comes in, and waits for its format: publish AudioInfo on '
                f'{self._node.resolve_topic_name("audio_info")} or set audio.sample_rate'
            )
            return
        self._on_chunk(stamp_ns, data, self._format)

    def _tell(self, text: str) -> None:
        if time.monotonic() - self._told_s > 10.0:
            self._told_s = time.monotonic()
            self._node.get_logger().warning(text)
