# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What a live second costs beside the model: messages, conversion, Python.

    make build && source environment/env.sh && python benchmarks/unit_overhead.py

The same seconds (a 1280x720 JPEG and a second of 48 kHz stereo in chunks of 100 ms) go
- through the core alone, in this process: its CPU time, and the parts of it spent in the model
  and in preparing (decoding, resizing, resampling, log-mel);
- through the installed executable `live` over DDS: the CPU time of that process.
The difference is what the graph adds. CPU time, not wall time: the machine may be busy.
Writes build/unit_overhead.json.
"""

import io
import json
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from minicpmo_ros.process import prepare

prepare()

import numpy as np  # noqa: E402
import rclpy  # noqa: E402
from ament_index_python.packages import get_package_prefix  # noqa: E402
from audio_common_msgs.msg import AudioDataStamped, AudioInfo  # noqa: E402
from PIL import Image  # noqa: E402
from rclpy.node import Node  # noqa: E402
from rclpy.qos import QoSProfile  # noqa: E402
from sensor_msgs.msg import CompressedImage  # noqa: E402

from minicpmo_ros.encoders.siglip.encoder import VisionEncoder  # noqa: E402
from minicpmo_ros.encoders.whisper.encoder import AudioEncoder  # noqa: E402
from minicpmo_ros.evaluation.bench.bench import Meter  # noqa: E402
from minicpmo_ros.families.minicpm_o_2_6 import ENGLISH  # noqa: E402
from minicpmo_ros.ggml.runtime import Backend  # noqa: E402
from minicpmo_ros.live.session import Session  # noqa: E402
from minicpmo_ros.llm.context import ContextOptions  # noqa: E402
from minicpmo_ros.media.audio.format import AudioFormat  # noqa: E402
from minicpmo_ros.media.audio.stream import AudioDecoder  # noqa: E402
from minicpmo_ros.media.image.compressed import decode_compressed  # noqa: E402
from minicpmo_ros.modelset.directory import ModelDirectory  # noqa: E402
from minicpmo_ros.msg import Status  # noqa: E402
from minicpmo_ros.ros.framework.lifecycle import LATCHED  # noqa: E402
from minicpmo_ros.ros.messages import to_time  # noqa: E402
from minicpmo_ros.streams.audio import AudioPipeline  # noqa: E402
from minicpmo_ros.streams.image import ImagePipeline  # noqa: E402
from minicpmo_ros.streams.pairing import Unit  # noqa: E402
from minicpmo_ros.synthetic.model import write_model  # noqa: E402

SECONDS, WARM_UP = 40, 5
RATE_HZ, CHUNKS, NS = 48_000, 10, 10**9
FIRST = 1_000_000


def jpeg_of(second: int) -> bytes:
    """Give a 1280x720 picture that differs from second to second."""
    rng = np.random.default_rng(second)
    small = rng.integers(0, 255, (18, 32, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize((1280, 720), Image.BICUBIC).save(file, 'JPEG', quality=90)
    return file.getvalue()


def pcm_of(second: int) -> list[bytes]:
    """Give a second of 16-bit stereo in chunks."""
    rng = np.random.default_rng(second)
    sound = (rng.standard_normal((RATE_HZ, 2)) * 3000).astype('<i2')
    return [part.tobytes() for part in np.split(sound, CHUNKS)]


INPUT = [(jpeg_of(i), pcm_of(i)) for i in range(WARM_UP + SECONDS + 1)]


def run_core(directory: Path) -> dict:
    """Give CPU ms a second of the core alone: all, model, preparing."""
    model, meter, backend = ModelDirectory.open(directory), Meter(), Backend('cpu', threads=1)
    vision = VisionEncoder.load(model.vision_path, backend)
    audio = AudioEncoder.load(model.audio_path, Backend('cpu', threads=1))
    image_pipeline, audio_pipeline = ImagePipeline(vision), AudioPipeline(audio)
    session = Session.load(model.llm_path, ENGLISH, None, ContextOptions(threads=1))
    vision.encode = meter.timed('model', vision.encode)
    audio_pipeline._encoder.step = meter.timed('model', audio_pipeline._encoder.step)
    session.context.decode = meter.timed('model', session.context.decode)
    decoder = AudioDecoder(AudioFormat(RATE_HZ, 2))
    close = meter.timed('preparing', image_pipeline.close)
    push = meter.timed('preparing', audio_pipeline.push)
    convert = meter.timed('preparing', decoder.push)
    started = 0.0
    waiting = {}
    for i, (jpeg, chunks) in enumerate(INPUT):
        if i == WARM_UP:
            meter.reset()
            started = time.process_time()
        second = FIRST + i
        image_pipeline.offer(second * NS, lambda jpeg=jpeg: decode_compressed(jpeg))
        heard = []
        for k, chunk in enumerate(chunks):
            heard += push(*convert(second * NS + k * NS // CHUNKS, chunk))
        for seen in close(second - 1):
            waiting[seen.second] = seen.rows
        for sound in heard:
            session.append(Unit(sound.second, waiting.pop(sound.second, None), (0, 0), sound.rows))
    total = 1e3 * (time.process_time() - started)
    session.close()
    per_second = {name: ms / (SECONDS + 1) for name, ms in meter.ms.items()}
    return {'core': total / (SECONDS + 1), **per_second}


class Robot(Node):
    """The camera and the microphone of the benchmark."""

    def __init__(self):
        super().__init__('robot', namespace='/overhead')
        deep = QoSProfile(depth=50)
        self.status = Status()
        self.pictures = self.create_publisher(CompressedImage, 'image/compressed', deep)
        self.sound = self.create_publisher(AudioDataStamped, 'audio', deep)
        info = self.create_publisher(AudioInfo, 'audio_info', LATCHED)
        info.publish(AudioInfo(channels=2, sample_rate=RATE_HZ, sample_format='S16LE'))
        self.create_subscription(Status, 'llm/status', self._on_status, LATCHED)

    def _on_status(self, message) -> None:
        self.status = message

    def wait(self, condition) -> None:
        """Spin until `condition()`, two minutes at most."""
        end_s = time.monotonic() + 120
        while not condition():
            if time.monotonic() > end_s:
                raise SystemExit(f'gave up; the newest status is {self.status}')
            rclpy.spin_once(self, timeout_sec=0.02)

    def publish(self, i: int) -> None:
        """Publish second i of the input."""
        jpeg, chunks = INPUT[i]
        picture = CompressedImage(format='jpeg')
        picture.header.stamp = to_time((FIRST + i) * NS)
        picture.data.frombytes(jpeg)
        self.pictures.publish(picture)
        for k, chunk in enumerate(chunks):
            sound = AudioDataStamped()
            sound.header.stamp = to_time((FIRST + i) * NS + k * NS // CHUNKS)
            sound.audio.data.frombytes(chunk)
            self.sound.publish(sound)


def cpu_ms(pid: int) -> float:
    """Give the CPU time a process has used, milliseconds."""
    fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return 1e3 * (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def run_graph(directory: Path) -> float:
    """Give CPU ms a second of the process `live`, fed as fast as it reads."""
    rclpy.init()
    robot = Robot()
    path = Path(get_package_prefix('minicpmo_ros')) / 'lib' / 'minicpmo_ros' / 'live'
    topics = {'image/compressed': ('depth:=20', 'reliability:=reliable'),
              'audio': ('reliability:=reliable',)}  # fmt: skip
    lossless = [
        part for topic, rules in topics.items() for rule in rules
        for part in ('-p', f'qos_overrides./overhead/{topic}.subscription.{rule}')
    ]  # fmt: skip
    process = subprocess.Popen(
        [str(path), '--ros-args', '-r', '__ns:=/overhead', '-p', f'model_dir:={directory}',
         '-p', 'device:=cpu', '-p', 'threads:=1', *lossless]
    )  # fmt: skip
    try:
        robot.wait(lambda: robot.status.state == Status.READY)
        for publisher in (robot.pictures, robot.sound):
            robot.wait(publisher.get_subscription_count)
        started = 0.0
        for i in range(len(INPUT)):
            if i == WARM_UP:
                started = cpu_ms(process.pid)
            robot.publish(i)
            robot.wait(lambda i=i: robot.status.units_read >= i)
        used = cpu_ms(process.pid) - started
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(5)
        robot.destroy_node()
        rclpy.shutdown()
    return used / (SECONDS + 1)


def main() -> None:
    """Measure, print, write."""
    with tempfile.TemporaryDirectory() as folder:
        directory = write_model(Path(folder) / 'tiny', 'tiny')
        row = run_core(directory)
        row['graph'] = run_graph(directory)
    row['overhead'] = row['graph'] - row['model'] - row['preparing']
    row['beside_the_model'] = row['graph'] - row['model']
    row['load'] = os.getloadavg()[0]
    print('| CPU of one live second | ms |\n|---|---:|')
    for name, value in row.items():
        print(f'| {name.replace("_", " ")} | {value:.1f} |')
    out = Path('build/unit_overhead.json')
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(row, indent=1) + '\n')


if __name__ == '__main__':
    main()
