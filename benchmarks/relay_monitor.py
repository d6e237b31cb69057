# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What benchmarks/relay.py runs beside the graph, at one end of a bad network: it looks and asks.

    python -m benchmarks.relay_monitor NAMESPACE robot|brain

It reads `ask N QUESTION` (or an empty question) and `end` from standard input, and prints JSON: an
answer for each question with its age by this machine's clock, and at the end what was seen.
"""

import json
import queue
import sys
import threading
import time

import rclpy
from audio_common_msgs.msg import AudioDataStamped
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CompressedImage

from minicpmo_ros.msg import AudioEmbedding, ImageEmbedding, Status
from minicpmo_ros.ros.framework.lifecycle import LATCHED
from minicpmo_ros.ros.messages import stamp_ns_of
from minicpmo_ros.srv import Ask
from minicpmo_ros.units import NS

DEEP = QoSProfile(depth=1000)


class Robot(Node):
    """Notes the seconds that the relay sends."""

    def __init__(self, namespace: str):
        super().__init__('robot_monitor', namespace=namespace)
        self.images, self.audio = {}, set()  # second: bytes; seconds
        self.create_subscription(CompressedImage, 'relay/image/compressed', self._on_image, DEEP)
        self.create_subscription(AudioDataStamped, 'relay/audio', self._on_audio, DEEP)

    def _on_image(self, message) -> None:
        self.images[stamp_ns_of(message) // NS] = len(message.data)

    def _on_audio(self, message) -> None:
        self.audio.add(stamp_ns_of(message) // NS)

    def seen(self) -> dict:
        """Return it."""
        return {'images': self.images, 'audio': sorted(self.audio)}


class Brain(Node):
    """Notes what the encoders have made of it, and what was read; asks."""

    def __init__(self, namespace: str):
        super().__init__('brain_monitor', namespace=namespace)
        self.of_kind = {'images': set(), 'audio': set()}  # seconds with content
        self.read, self.status, self.ends = set(), None, []  # ends: (time, window_end)
        for kind, name, topic in (
            (ImageEmbedding, 'images', 'vision_encoder/seen'),
            (AudioEmbedding, 'audio', 'streaming_encoder/heard'),
        ):
            self.create_subscription(
                kind, topic, lambda message, name=name: self._on_second(name, message), DEEP
            )
        self.create_subscription(Status, 'llm/status', self._on_status, LATCHED)
        self._client = self.create_client(Ask, 'llm/ask')

    def _on_second(self, name: str, message) -> None:
        if message.status == message.OK:
            self.of_kind[name].add(message.second)

    def _on_status(self, message) -> None:
        self.read.update(message.seconds)
        self.status = message
        if not self.ends or self.ends[-1][1] != message.window_end.sec:
            self.ends.append((time.time(), message.window_end.sec))

    def ask(self, number: int, question: str) -> None:
        """Ask; the answer is printed, with the age of its newest second when it was asked."""
        asked_s = time.time()

        def tell(future) -> None:
            answer = future.result().answer
            told = {
                'number': number,
                'text': answer.text,
                'success': future.result().success,
                'age_s': asked_s - answer.window_end.sec,
                'stale': answer.stale,
                'reason': future.result().reason,
            }
            print(json.dumps(told), flush=True)

        request = Ask.Request(question=question, max_tokens=8)
        self._client.call_async(request).add_done_callback(tell)

    def seen(self) -> dict:
        """Return it."""
        status = self.status
        counts = {name: getattr(status, name) for name in ('units_read', 'units_dropped', 'late')}
        of_kind = {name: sorted(seconds) for name, seconds in self.of_kind.items()}
        return {**of_kind, 'read': sorted(self.read), 'ends': self.ends, **counts}


def main() -> None:
    """Look until told to end."""
    namespace, role = sys.argv[1:]
    rclpy.init(args=[])
    node, lines = (Robot if role == 'robot' else Brain)(namespace), queue.Queue()
    threading.Thread(target=lambda: [lines.put(line) for line in sys.stdin], daemon=True).start()
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    ready = False
    while True:
        executor.spin_once(timeout_sec=0.05)
        if role == 'brain' and not ready and node.status and node.status.units_read:
            ready = True
            print(json.dumps({'ready': True}), flush=True)
        while not lines.empty():
            verb, _, rest = lines.get().strip().partition(' ')
            if verb == 'end':
                print(json.dumps(node.seen()), flush=True)
                return
            number, _, question = rest.partition(' ')
            node.ask(int(number), question)


if __name__ == '__main__':
    main()
