# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Tells speech as REP-155 has it, where hri_msgs is installed: voices of humans.

Published below humans/voices in the namespace of the node, for one anonymous voice: `tracked`
(hri_msgs/IdsList), and of the voice `is_speaking` (std_msgs/Bool) and, with a transcript, `speech`
(hri_msgs/LiveSpeech).
"""

from rclpy.qos import QoSProfile
from std_msgs.msg import Bool

from minicpmo_ros.ros.framework.lifecycle import LATCHED
from minicpmo_ros.ros.messages import to_time
from minicpmo_ros.voice.turns import TurnKind

VOICE = 'anonymous_voice'
ROOT = 'humans/voices'  # relative: who hears one of several robots is not another's voice
VOICE_QOS = QoSProfile(depth=10)


class Humans:
    """Publishes what is known of the voice; without hri_msgs nothing."""

    def __init__(self, node):
        try:
            from hri_msgs.msg import IdsList, LiveSpeech
        except ImportError:
            self._tracked = None
            return
        self._ids, self._live = IdsList, LiveSpeech
        self._tracked = node.topics.publish(IdsList, f'{ROOT}/tracked', LATCHED)
        self._speaking = node.topics.publish(Bool, f'{ROOT}/{VOICE}/is_speaking', VOICE_QOS)
        self._speech = node.topics.publish(LiveSpeech, f'{ROOT}/{VOICE}/speech', VOICE_QOS)

    def speaks(self, event) -> None:
        """Tell that a turn has started, ended or was discarded."""
        if self._tracked is None:
            return
        is_speaking = event.kind is TurnKind.STARTED
        ids = self._ids(ids=[VOICE] if is_speaking else [])
        ids.header.stamp = to_time(event.stamp_ns)
        self._tracked.publish(ids)
        self._speaking.publish(Bool(data=is_speaking))

    def said(self, event, text: str) -> None:
        """Tell what was said in a turn."""
        if self._tracked is None:
            return
        message = self._live(final=text, confidence=0.0)
        message.header.stamp = to_time(event.end_ns)
        self._speech.publish(message)
