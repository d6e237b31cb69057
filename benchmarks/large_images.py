# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""How much later audio is ready beside a camera of 4K than beside one of 640x480.

    make build && source environment/env.sh && python -m benchmarks.large_images

For each size a `live` with nano is started; a process publishes JPEG images, ten a second, each
second another one, and audio in chunks of 100 ms, at the pace of real time. How late a second of
audio is, is the time from its end to the arrival of its embedding. Wall time: run it on a machine
with nothing else to do, and read the load that is printed. p95_added_by_4k_ms goes to
build/vision.json. How much audio did not come at all is what the encoder reports as missing; with
Fast DDS's own settings an image of 4K is larger than the shared memory of its sender, which then
drops audio too. With ours none is lost:

    FASTDDS_DEFAULT_PROFILES_FILE=config/fastdds_large_images.xml python -m benchmarks.large_images
"""

import argparse
import contextlib
import io
import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import rclpy
from ament_index_python.packages import get_package_prefix
from audio_common_msgs.msg import AudioDataStamped, AudioInfo
from diagnostic_msgs.msg import DiagnosticArray
from PIL import Image
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CompressedImage

from benchmarks.camera import BEST_EFFORT, start
from benchmarks.tiles import OUT, add_to, table
from minicpmo_ros.msg import AudioEmbedding, ImageEmbedding, Status
from minicpmo_ros.ros.framework.lifecycle import LATCHED
from minicpmo_ros.ros.messages import to_time
from minicpmo_ros.units import NS

NAMESPACE, RATE_HZ, AUDIO_HZ = '/large_images', 10, 16_000
SIZES = {'none': None, '640x480': (640, 480), '3840x2160': (3840, 2160)}
WARM_UP_S = 5
MISSING = 'milliseconds of audio missing'


def jpeg_of(number: int, size: tuple) -> CompressedImage:
    """Return an image that differs from number to number."""
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 255, (54, 96, 3), dtype=np.uint8))
    file, message = io.BytesIO(), CompressedImage(format='rgb8; jpeg compressed bgr8')
    small.resize(size, Image.BICUBIC).save(file, 'JPEG', quality=90)
    message.data.frombytes(file.getvalue())
    return message


def publish(name: str) -> None:
    """Be camera and microphone, until a signal."""
    rclpy.init()
    node, size = Node('robot', namespace=NAMESPACE), SIZES[name]
    images = node.create_publisher(CompressedImage, 'image/compressed', BEST_EFFORT)
    audio = node.create_publisher(AudioDataStamped, 'audio', QoSProfile(depth=50))
    info = node.create_publisher(AudioInfo, 'audio_info', LATCHED)
    info.publish(AudioInfo(channels=1, sample_rate=AUDIO_HZ, sample_format='S16LE'))
    shown = [jpeg_of(number, size) for number in range(4)] if size else []
    rng, begun_s, count = np.random.default_rng(0), time.monotonic(), 0
    while rclpy.ok():
        now_ns = time.time_ns()
        chunk = AudioDataStamped()
        chunk.header.stamp = to_time(now_ns - NS // RATE_HZ)
        noise = rng.standard_normal(AUDIO_HZ // RATE_HZ) * 3000
        chunk.audio.data.frombytes(noise.astype('<i2').tobytes())
        audio.publish(chunk)
        if shown:
            message = shown[now_ns // NS % len(shown)]
            message.header.stamp = to_time(now_ns)
            images.publish(message)
        count += 1
        time.sleep(max(0.0, begun_s + count / RATE_HZ - time.monotonic()))


def measure(name: str, seconds: int) -> dict:
    """Return how late audio is beside a camera: ms, median and p95, and ms of preprocessing."""
    node, status, late_ms, seen = Node('watch', namespace=NAMESPACE), [], [], []
    node.create_subscription(Status, 'llm/status', status.append, LATCHED)
    node.create_subscription(ImageEmbedding, 'vision_encoder/embedding', seen.append, 10)

    def on_audio(message: AudioEmbedding) -> None:
        if message.tokens:
            late_ms.append((time.time_ns() - (message.second + 1) * NS) / 1e6)

    node.create_subscription(AudioEmbedding, 'streaming_encoder/embedding', on_audio, 10)
    missing_ms = [0.0]

    def on_diagnostics(message: DiagnosticArray) -> None:
        values = [value for status in message.status for value in status.values]
        missing_ms.extend(float(value.value) for value in values if value.key == MISSING)

    node.create_subscription(DiagnosticArray, '/diagnostics', on_diagnostics, 10)

    def spin(until, most_s: float) -> None:
        end_s = time.monotonic() + most_s
        while not until() and time.monotonic() < end_s:
            rclpy.spin_once(node, timeout_sec=0.2)

    prefix = Path(get_package_prefix('minicpmo_ros'))
    parameters = prefix / 'share/minicpmo_ros/config/nano.yaml'
    processes = [
        start(str(prefix / 'lib/minicpmo_ros/live'), '--ros-args', '-r', f'__ns:={NAMESPACE}',
              '--params-file', str(parameters), '--log-level', 'warn')
    ]  # fmt: skip
    try:
        spin(lambda: status and status[-1].state == Status.READY, 120)
        processes.append(start(sys.executable, '-m', 'benchmarks.large_images', '--be', name))
        spin(lambda: len(late_ms) > WARM_UP_S, 120)
        late_ms.clear()
        seen.clear()
        missing_ms[:] = missing_ms[-1:]
        spin(lambda: len(late_ms) >= seconds, 4 * seconds)
    finally:
        for process in processes:
            process.send_signal(signal.SIGINT)
            process.wait(20)
        node.destroy_node()
    if len(late_ms) < seconds:
        raise SystemExit(f'{len(late_ms)} of {seconds} seconds of audio came beside {name}')
    decode = [message.preprocess_ms for message in seen if message.tokens]
    median, p95 = np.percentile(late_ms, (50, 95))
    return {
        'median_ms': float(median),
        'p95_ms': float(p95),
        'image_preprocess_ms': float(np.median(decode)) if decode else 0.0,
        'images_encoded': len(decode),
        'audio_missing_ms': missing_ms[-1] - missing_ms[0],
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--be', choices=SIZES, help=argparse.SUPPRESS)
    parser.add_argument('--seconds', type=int, default=60, help='of audio, beside each camera')
    given = parser.parse_args()
    if given.be:
        with contextlib.suppress(KeyboardInterrupt):
            publish(given.be)
        return
    rclpy.init()
    rows = {name: measure(name, given.seconds) for name in SIZES}
    rclpy.shutdown()
    keys = next(iter(rows.values()))
    print(table(('camera', *keys), [(name, *row.values()) for name, row in rows.items()]))
    added = rows['3840x2160']['p95_ms'] - rows['640x480']['p95_ms']
    figures = {'p95_added_by_4k_ms': round(added, 1)}
    add_to(OUT, figures)
    print(json.dumps(figures), f'load {os.getloadavg()[0]:.1f}')


if __name__ == '__main__':
    main()
