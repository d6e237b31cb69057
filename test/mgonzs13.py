# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""mgonzs13's audio_common_msgs beside that of ros-drivers: built apart, for child processes.

Run as a program in that environment, this is a microphone of his: it waits for a listener and
publishes a second of the same tone in each kind of array, the first in stereo.
"""

import sys

import overlays

FIRST = 2_000_000
RATE_HZ = 16_000
# (array, PortAudio's number, full scale, channels)
KINDS = (
    ('int16_data', 8, 2**15, 2),
    ('float32_data', 1, 1, 1),
    ('int32_data', 2, 2**31, 1),
    ('int8_data', 16, 128, 1),
    ('uint8_data', 32, 128, 1),
)


def environment() -> dict:
    """Build the package once; give what a child process needs to have it in front."""
    return overlays.environment('mgonzs13', 'audio_common_msgs')


def second_of(array: str, number: int, scale: float, channels: int):
    """Give an Audio message of a second of a tone."""
    import numpy as np
    from audio_common_msgs.msg import Audio

    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE_HZ) / RATE_HZ)
    audio, values = Audio(), np.repeat(tone * scale, channels)
    audio.info.format, audio.info.channels, audio.info.rate = number, channels, RATE_HZ
    audio.info.chunk = RATE_HZ
    into = getattr(audio.audio_data, array)
    values = values + 128 if array == 'uint8_data' else values
    values = values if array == 'float32_data' else np.rint(values)
    into.frombytes(values.astype(into.typecode).tobytes())
    return audio


def main(namespace: str) -> None:
    """Publish, then wait to be ended."""
    import rclpy
    from audio_common_msgs.msg import AudioStamped
    from rclpy.qos import QoSProfile

    rclpy.init()
    node = rclpy.create_node('microphone', namespace=namespace)
    publisher = node.create_publisher(AudioStamped, 'audio', QoSProfile(depth=50))
    messages = [AudioStamped(audio=second_of(*kind)) for kind in (*KINDS, KINDS[0])]
    while not publisher.get_subscription_count():
        rclpy.spin_once(node, timeout_sec=0.05)
    for i, message in enumerate(messages):
        message.header.stamp.sec = FIRST + i
        publisher.publish(message)
    rclpy.spin(node)


if __name__ == '__main__':
    main(sys.argv[1])
