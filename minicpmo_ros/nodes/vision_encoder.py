# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Node `vision_encoder`: the camera in, one ImageEmbedding a second out.

Of each second the newest picture is encoded; the others are not even decoded.
"""

import weakref
from collections import deque
from dataclasses import dataclass, field
from functools import partial

from minicpmo_ros.encoders.siglip import VisionEncoder
from minicpmo_ros.ggml.runtime import Backend
from minicpmo_ros.live.on_demand import VisionOnDemand
from minicpmo_ros.live.pacing import NS, Arrival, Instant, StreamClock
from minicpmo_ros.live.seeing import UNCHANGED_THRESHOLD, Seeing
from minicpmo_ros.msg import ImageEmbedding
from minicpmo_ros.nodes.encoder_node import EncoderNode
from minicpmo_ros.nodes.loading import MODEL_PARAMETERS, thread_count
from minicpmo_ros.nodes.memory import give_back
from minicpmo_ros.nodes.messages import put_rows, to_time
from minicpmo_ros.nodes.parameters import Parameter
from minicpmo_ros.nodes.picture_input import PARAMETERS as INPUT_PARAMETERS
from minicpmo_ros.nodes.picture_input import PictureInput
from minicpmo_ros.nodes.spinning import run

# Seconds whose newest picture may wait while another is encoded.
INBOX_SECONDS = 4
# An encoder slower than the seconds come drops older ones than this, or it would stay late.
MAX_BEHIND_S = 1
LATE = (
    'they come over half a second after their second was over, or after newer ones. Look at the '
    'network, and at the stamps of the camera'
)


@dataclass
class Eye:
    """What the worker works with."""

    seeing: Seeing
    encoder: VisionOnDemand
    space: str
    clock: StreamClock = field(default_factory=StreamClock)
    newest_ns: int | None = None  # stamp of the newest picture, since a restart


class VisionNode(EncoderNode):
    """See the module."""

    INPUTS = ('image', 'image/compressed')
    INBOX_CAPACITY = INBOX_SECONDS
    MODEL_ROLE = 'vision'
    ONE_A_SECOND = True
    PARAMETERS = (
        *MODEL_PARAMETERS,
        *INPUT_PARAMETERS,
        Parameter('vision.max_tiles', 1, 'Pictures a frame is cut into at most, beside the '
                  'overview; 1: overview only. Each costs 64 positions of the context',
                  '', 1, 9),
        Parameter('vision.release_after_s', 0.0, 'Without a picture to encode for so long, the '
                  'weights leave memory, and return for the next one, whose embedding is late by '
                  'that; 0: they stay', 'seconds', 0.0, 86_400.0),
        Parameter('vision.unchanged_threshold', UNCHANGED_THRESHOLD, 'A picture reuses the last '
                  'embedding when no colour of its 32x32 thumbnail differs by as much; 0: never',
                  'levels of 255', 0, 255),
    )  # fmt: skip

    def __init__(self, arbiter=None, room=None):
        self._eye = lambda: None  # a weak reference: the worker's is the one that holds it
        self._dropped = deque(maxlen=1000)  # seconds whose pictures went unseen
        super().__init__('vision_encoder', ImageEmbedding, arbiter, room)

    def load(self, options, model, between) -> Eye:
        """Load the encoder."""
        backend = Backend(options.device, threads=thread_count(options.threads))
        load = partial(VisionEncoder.load, model.vision_path, backend, options.vision_max_tiles)
        encoder = VisionOnDemand(
            lambda between: self._room.load('vision', model, partial(load, between=between)),
            options.vision_release_after_s,
        )
        seeing = Seeing(
            encoder,
            options.vision_max_tiles,
            options.vision_unchanged_threshold,
            between,
            max_behind=MAX_BEHIND_S,
        )
        eye = Eye(seeing, encoder, model.space)
        self._eye = weakref.ref(eye)
        return eye

    def diagnose(self, report) -> None:
        """Write also whether the weights are in memory."""
        super().diagnose(report)
        eye = self._eye()
        if eye is not None:
            report.count('late pictures', eye.seeing.late, LATE)
            report.tell('weights', 'in memory' if eye.encoder.is_loaded else 'released')
            report.tell('weights released', eye.encoder.releases)
            report.tell('newest return of the weights [ms]', eye.encoder.reload_ms)

    def open_input(self, options):
        """Subscribe to the camera."""
        return PictureInput(self, options, self._on_picture)

    def _on_picture(self, stamp_ns: int, make_picture) -> None:
        arrival = self.arrival(stamp_ns, make_picture)
        for dropped in self.inbox.put(arrival, key=stamp_ns // NS):
            self._dropped.append(dropped.stamp_ns // NS)

    # The worker.
    def encode(self, eye: Eye, arrival: Arrival) -> None:
        """Take one picture."""
        stamp_ns = arrival.stamp_ns
        if eye.clock.stands_still(stamp_ns, arrival.at):
            stood_s = stamp_ns / NS
            self.tell('stamps', f'the stamps of the pictures stand still at {stood_s:.3f} s; '
                      'the times of their arrival are taken')  # fmt: skip
            stamp_ns = eye.clock.time_ns(arrival.at)
        eye.clock.arrive(arrival.stamp_ns, arrival.at)
        eye.seeing.offer(stamp_ns, arrival.content)
        eye.newest_ns = stamp_ns

    def restart(self, eye: Eye, second: int) -> None:
        """Give what is left of the time before; go on with this second."""
        if eye.newest_ns is not None:
            self._publish_seen(eye, eye.seeing.close(eye.newest_ns // NS))
        eye.seeing.restart(second)
        eye.newest_ns = None
        self._dropped.clear()

    def tick(self, eye: Eye, now: Instant) -> None:
        """Give the seconds that are over; give the weights back where none needs them."""
        self._give_what_is_over(eye, now)
        if eye.encoder.release_when_idle():
            give_back()

    def _give_what_is_over(self, eye: Eye, now: Instant) -> None:
        """Encode and publish the seconds that are over, also when no later picture has come."""
        if eye.newest_ns is not None:
            self._note_dropped(eye)
            self._publish_seen(eye, eye.seeing.advance(eye.newest_ns))
        if self.is_doubting or eye.seeing.next_second is None:
            return
        over = eye.clock.last_over(now)
        if over < eye.seeing.next_second - 2:  # simulated time went back, and no picture came
            self.restart(eye, over + 1)
        self._publish_seen(eye, eye.seeing.close(over))

    def _note_dropped(self, eye: Eye) -> None:
        """Say which seconds had pictures, of those that the stream has reached."""
        for _ in range(len(self._dropped)):
            second = self._dropped.popleft()
            if second <= eye.newest_ns // NS:
                eye.seeing.drop(second)
            else:
                self._dropped.append(second)

    def _publish_seen(self, eye: Eye, seconds: list) -> None:
        for seen in seconds:
            if seen.reason:
                # Each fault is told; what follows a colon are its details.
                self.tell(seen.reason.partition(':')[0], seen.reason)
            message = ImageEmbedding(model=eye.space, second=seen.second, status=int(seen.status))
            message.header.stamp = to_time(seen.second * NS)
            message.picture_stamp = to_time(seen.picture_stamp_ns)
            message.reused = seen.reused
            message.source_width, message.source_height = seen.source_width, seen.source_height
            message.tiles_wide, message.tiles_high = seen.tiles_wide, seen.tiles_high
            message.preprocess_ms, message.encode_ms = seen.preprocess_ms, seen.encode_ms
            if seen.rows is not None:
                put_rows(message, seen.rows)
            self.publish(message)


def main(args=None) -> int:
    """Run the node."""
    return run(lambda: [VisionNode()], args)


if __name__ == '__main__':
    raise SystemExit(main())
