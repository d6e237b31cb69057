# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What a camera costs by its rate: CPU time of the process `live` with nano.

    make build && source environment/env.sh && python -m benchmarks.camera

For each camera a `live` of its own is started, and a camera in a process of its own publishes
640x480 at the pace of real time: JPEG at 5, 30 and 120 Hz, raw rgb8 at 30 Hz. Every second shows
another picture, so that each is decoded, encoded and read. CPU time, not wall time: the machine
may be busy. Writes build/camera.json.
"""

import argparse
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import rclpy
from ament_index_python.packages import get_package_prefix
from PIL import Image as PillowImage
from rclpy.node import Node
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image

from minicpmo_ros.msg import ImageEmbedding, Status
from minicpmo_ros.ros.framework.lifecycle import LATCHED
from minicpmo_ros.ros.messages import to_time

NAMESPACE = '/camera_cost'
CAMERAS = {  # name: (kind, rate in Hz)
    'none': ('', 0),
    'JPEG, 5 Hz': ('jpeg', 5),
    'JPEG, 30 Hz': ('jpeg', 30),
    'JPEG, 120 Hz': ('jpeg', 120),
    'raw, 30 Hz': ('raw', 30),
}
WARM_UP_S, WIDTH, HEIGHT = 4, 640, 480
MOST_RATIO, MOST_MS = 1.4, 150.0  # of 30 Hz to 5 Hz, and of all
BEST_EFFORT = QoSProfile(depth=5, reliability=QoSReliabilityPolicy.BEST_EFFORT)


def message_of(kind: str, number: int):
    """Return a picture that differs from number to number."""
    rng = np.random.default_rng(number)
    small = rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)
    picture = PillowImage.fromarray(small).resize((WIDTH, HEIGHT), PillowImage.BICUBIC)
    if kind == 'raw':
        message = Image(encoding='rgb8', width=WIDTH, height=HEIGHT, step=3 * WIDTH)
        message.data.frombytes(picture.tobytes())
        return message
    file, message = io.BytesIO(), CompressedImage(format='rgb8; jpeg compressed bgr8')
    noisy = np.asarray(picture) + rng.normal(0, 5, (HEIGHT, WIDTH, 1))  # a camera's; 60 kB
    PillowImage.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, 'JPEG', quality=90)
    message.data.frombytes(file.getvalue())
    return message


def publish(kind: str, rate_hz: float) -> None:
    """Be the camera, until a signal."""
    rclpy.init()
    node = Node('camera', namespace=NAMESPACE)
    raw = kind == 'raw'
    topic = 'image' if raw else 'image/compressed'
    publisher = node.create_publisher(Image if raw else CompressedImage, topic, BEST_EFFORT)
    messages = [message_of(kind, number) for number in range(4)]
    begun_s, count = time.monotonic(), 0
    while rclpy.ok():
        now_ns = time.time_ns()
        message = messages[now_ns // 10**9 % len(messages)]
        message.header.stamp = to_time(now_ns)
        publisher.publish(message)
        count += 1
        time.sleep(max(0.0, begun_s + count / rate_hz - time.monotonic()))


def cpu_ms(pid: int) -> dict:
    """Return the CPU time of a process, in milliseconds: of its main thread and of all."""
    spent = {}
    for name, stat in ('main', f'task/{pid}/stat'), ('all', 'stat'):
        fields = Path(f'/proc/{pid}/{stat}').read_text().rpartition(')')[2].split()
        ticks = int(fields[11]) + int(fields[12])
        spent[name] = 1e3 * ticks / os.sysconf('SC_CLK_TCK')
    return spent


def start(*arguments: str) -> subprocess.Popen:
    """Start a program."""
    return subprocess.Popen(list(arguments), stdout=subprocess.DEVNULL)


def measure(kind: str, rate_hz: float, seconds: int) -> dict:
    """Return what `live` costs beside a camera: CPU ms a second, main thread and all."""
    node = Node('watch', namespace=NAMESPACE)
    status, seen = [], []
    node.create_subscription(Status, 'llm/status', status.append, LATCHED)
    node.create_subscription(ImageEmbedding, 'vision_encoder/embedding', seen.append, 10)

    def wait(condition, timeout_s=120) -> None:
        end_s = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > end_s:
                raise SystemExit('gave up waiting for `live`')
            rclpy.spin_once(node, timeout_sec=0.2)

    def live_for(seconds: float) -> float:
        begun_s = time.monotonic()
        while (left_s := begun_s + seconds - time.monotonic()) > 0:
            rclpy.spin_once(node, timeout_sec=left_s)
        return time.monotonic() - begun_s

    prefix = Path(get_package_prefix('minicpmo_ros'))
    parameters = prefix / 'share/minicpmo_ros/config/nano.yaml'
    processes = [
        start(str(prefix / 'lib/minicpmo_ros/live'), '--ros-args', '-r', f'__ns:={NAMESPACE}',
              '--params-file', str(parameters), '--log-level', 'warn')
    ]  # fmt: skip
    try:
        wait(lambda: status and status[-1].state == Status.READY)
        if kind:
            processes.append(start(sys.executable, __file__, '--be', kind, str(rate_hz)))
            wait(lambda: any(message.tokens for message in seen))
        live_for(WARM_UP_S)
        seen.clear()
        before = cpu_ms(processes[0].pid)
        spent_s = live_for(seconds)
        after = cpu_ms(processes[0].pid)
    finally:
        for process in processes:
            process.send_signal(signal.SIGINT)
            process.wait(20)
        node.destroy_node()
    encoded = sum(1 for message in seen if message.tokens and not message.reused)
    row = {name: (ms - before[name]) / spent_s for name, ms in after.items()}
    return {**row, 'encoded': encoded / spent_s, 'seconds': spent_s}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--be', nargs=2, help=argparse.SUPPRESS)
    parser.add_argument('--seconds', type=int, default=20, help='measured for each camera')
    parser.add_argument('--only', nargs='*', default=list(CAMERAS), help='names of cameras')
    options = parser.parse_args()
    if options.be:
        with contextlib.suppress(KeyboardInterrupt):
            publish(options.be[0], float(options.be[1]))
        return
    rclpy.init()
    rows = {name: measure(*CAMERAS[name], options.seconds) for name in options.only}
    base_ms = rows.get('JPEG, 5 Hz', {}).get('all')
    print('| camera, 640x480 | CPU ms/s | over 5 Hz | main thread | pictures encoded/s |')
    print('|---|---:|---:|---:|---:|')
    for name, row in rows.items():
        ratio = f'{row["all"] / base_ms:.2f}' if base_ms else ''
        print(
            f'| {name} | {row["all"]:.0f} | {ratio} | {row["main"]:.0f} | {row["encoded"]:.2f} |'
        )
    print(f'aims: 30 Hz at most {MOST_RATIO} times 5 Hz, all at most {MOST_MS:.0f} ms/s; '
          f'load {os.getloadavg()[0]:.1f}')  # fmt: skip
    out = Path('build/camera.json')
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(rows, indent=1) + '\n')
    rclpy.shutdown()


if __name__ == '__main__':
    main()
