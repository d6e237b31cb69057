# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Subscribes to `speaker/state`, so that a node does not listen while the robot speaks."""

from rclpy.qos import QoSDurabilityPolicy, QoSProfile

from minicpmo_ros.media.audio.log_mel import SAMPLE_RATE_HZ
from minicpmo_ros.msg import SpeakerState
from minicpmo_ros.ros.framework.parameters import Parameter
from minicpmo_ros.ros.messages import stamp_ns_of
from minicpmo_ros.speech.self_speech import HALF_DUPLEX, LISTEN, TAIL_S, SelfSpeech

TOPIC = 'speaker/state'
# None may be missed: each begins or ends a time in which nobody listens.
STATE_QOS = QoSProfile(depth=20, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)
PARAMETERS = (
    Parameter('listen', HALF_DUPLEX, 'While the robot speaks (speaker/state): half_duplex hears '
              'silence instead of the microphone, always hears everything', choices=LISTEN),
    Parameter('listen_tail_s', TAIL_S, 'How long half_duplex goes on after the robot has spoken, '
              'while the room still sounds', 'seconds', 0.0, 10.0),
)  # fmt: skip


class SelfSpeechInput:
    """The SelfSpeech that a node hears of, from its start until `close`."""

    def __init__(self, node, options):
        self._speech = SelfSpeech(options.listen_tail_s)
        self._is_muted = options.listen == HALF_DUPLEX
        self._node = node
        self._subscription = node.topics.subscribe(SpeakerState, TOPIC, self._on_state, STATE_QOS)

    def close(self) -> None:
        """Unsubscribe."""
        self._node.topics.unsubscribe(self._subscription)

    def heard(self, begin_ns: int, samples):
        """Return samples (n,) float32 at 16 kHz as they are listened to; see the module."""
        if not self._is_muted:
            return samples
        return self._speech.silence(begin_ns, samples, SAMPLE_RATE_HZ)

    def muted_ms(self, begin_ns: int, end_ns: int) -> int:
        """Return how many milliseconds of a time are not listened to."""
        return self._speech.duration_ms(begin_ns, end_ns) if self._is_muted else 0

    def has_spoken(self, begin_ns: int, end_ns: int) -> bool:
        """Return whether the robot spoke in a time, or just before it."""
        return self._speech.duration_ms(begin_ns, end_ns) > 0

    def _on_state(self, message) -> None:
        self._speech.tell(stamp_ns_of(message), message.speaking)
