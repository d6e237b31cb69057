# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""mgonzs13's audio_common_msgs beside that of ros-drivers: built apart, for child processes.

Run as a program in that environment, this is a microphone of his: it waits for a listener and
publishes a second of the same tone in each kind of array, the first in stereo.
"""

import fcntl
import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
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
    source, place = ROOT / 'overlay' / 'mgonzs13', ROOT / 'build' / 'mgonzs13'
    place.mkdir(parents=True, exist_ok=True)
    texts = [path.read_bytes() for path in sorted(source.rglob('*')) if path.is_file()]
    key = hashlib.sha256(b'\0'.join([*texts, sys.version.encode()])).hexdigest()
    prefix, done = place / 'install', place / 'built'
    with open(place / 'lock', 'w') as lock, open(place / 'log', 'a') as log:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists() or done.read_text() != key:
            make = (
                ['cmake', '-S', source, '-B', place / 'build', f'-DCMAKE_INSTALL_PREFIX={prefix}',
                 '-DBUILD_TESTING=OFF', f'-DPython3_EXECUTABLE={sys.executable}'],
                ['cmake', '--build', place / 'build', '-j2', '--target', 'install'],
            )  # fmt: skip
            for command in make:
                subprocess.run(command, check=True, stdout=log, stderr=log)
            done.write_text(key)
    (module,) = prefix.rglob('audio_common_msgs/__init__.py')
    in_front = {
        'PYTHONPATH': str(module.parents[1]),
        'LD_LIBRARY_PATH': str(prefix / 'lib'),
        'AMENT_PREFIX_PATH': str(prefix),
    }
    return {
        name: ':'.join(filter(None, (path, os.environ.get(name))))
        for name, path in in_front.items()
    }


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
