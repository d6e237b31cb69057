# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Node `vision_encoder`: subscribes to the camera, publishes one ImageEmbedding a second.

The newest image of each second is encoded; the others are not even decoded.
"""

import weakref
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from minicpmo_ros.config import TILE_RULES, VISION
from minicpmo_ros.encoders.siglip.encoder import VisionEncoder
from minicpmo_ros.errors import InputError
from minicpmo_ros.ggml.runtime import Backend
from minicpmo_ros.media.image.tiling import MIN_AREA, Crop, TileRule, reserved_area
from minicpmo_ros.memory.proc import give_back
from minicpmo_ros.msg import ImageEmbedding
from minicpmo_ros.pace.governor import Governor
from minicpmo_ros.ros.encoder_node import EncoderNode, SliceHook
from minicpmo_ros.ros.framework.loading import MODEL_PARAMETERS, thread_count
from minicpmo_ros.ros.framework.main import run
from minicpmo_ros.ros.framework.parameters import ANY_TIME, Parameter
from minicpmo_ros.ros.image_input import PARAMETERS as INPUT_PARAMETERS
from minicpmo_ros.ros.image_input import CameraInputs, ImageInput, camera_topics
from minicpmo_ros.ros.looking import LookServer
from minicpmo_ros.ros.messages import image_message
from minicpmo_ros.ros.stamps import stamps_parameter
from minicpmo_ros.streams import Status
from minicpmo_ros.streams.cameras import CameraPipelines
from minicpmo_ros.streams.image import KEPT, ImagePipeline
from minicpmo_ros.streams.on_demand import VisionOnDemand
from minicpmo_ros.streams.pairing import cameras_of
from minicpmo_ros.streams.time import Arrival, Instant, StreamClock
from minicpmo_ros.units import NS

# Seconds whose newest images may wait while another is encoded.
INBOX_SECONDS = 4
# An encoder slower than the seconds come drops older ones than this, or it would stay late.
MAX_BEHIND_S = 1
GOVERNED_BEHIND_S = 2  # the governor lets it catch up
LATE = (
    'they come over half a second after their second was over, or after newer ones. Look at the '
    'network, and at the stamps of the camera'
)


@dataclass
class VisionState:
    """The worker's state."""

    pipeline: ImagePipeline
    encoder: VisionOnDemand
    space: str
    pause: SliceHook
    is_governed: bool = False
    clock: StreamClock = field(default_factory=StreamClock)
    newest_ns: int | None = None  # stamp of the newest image, since a restart
    over: Instant | None = None  # when the first image of that second came


class VisionNode(EncoderNode):
    """See the module."""

    INPUTS = ('image', 'image/compressed')
    INBOX_CAPACITY = INBOX_SECONDS
    INPUT_NAME, MODEL_ROLE = 'image', 'vision'
    ONE_A_SECOND = True
    PARAMETERS = (
        *MODEL_PARAMETERS,
        *INPUT_PARAMETERS,
        stamps_parameter('image'),
        Parameter('cameras', '', 'Names of several cameras, as a list or separated by commas: '
                  'each second has the image of each, from NAME/image or NAME/image/compressed; '
                  'empty: one, on image or image/compressed', or_list=True),
        Parameter('vision.max_tiles', VISION.max_tiles,
                  'The most tiles an image is cut into, in addition to the overview; 1: '
                  'overview only. Each tile costs 64 positions of the context',
                  '', 1, 16),
        Parameter('vision.area', VISION.area,
                  'The area of the overview, as a share of the square image that the model was '
                  'trained with (448x448 in MiniCPM-o). Time falls with it, and so does what can '
                  'be recognised', '', MIN_AREA, 1.0, when=ANY_TIME),
        Parameter('vision.governor', VISION.governor,
                  'Where the machine is too slow, less is seen of the seconds before one is lost: '
                  'first the area of the overview goes down and tiles are left out, then the rate '
                  'of images; both come back when there is time. Not with simulated time'),
        Parameter('vision.crop', VISION.crop,
                  'The part of the image that is seen, x0 y0 x1 y1 as shares of its width and '
                  'height from the top left; empty: all. "0 0.25 1 1" leaves out the upper '
                  'quarter'),
        Parameter('vision.sharp_every', VISION.sharp_every,
                  'Every so many seconds the overview has all of the area, whatever vision.area '
                  'says; 0: never', 'seconds', 0, 3600),
        Parameter('vision.look_tiles', VISION.look_tiles,
                  'The most tiles of an image that a question looks at in tiles; 0: questions '
                  'cannot look closer, and memory is reserved for images of vision.area alone',
                  'tiles', 0, 16),
        Parameter('vision.tile_rule', VISION.tile_rule,
                  'How the grid of tiles is chosen: as MiniCPM-o was trained (minicpm), or by the '
                  'rule of BlueLM-V-3B (relaxed), LLaVA-NeXT (llava_next) or InternVL 1.5 '
                  '(internvl)', choices=TILE_RULES),
        Parameter('vision.tile_alpha', VISION.tile_alpha,
                  'Of the rule relaxed: a grid of more tiles must show this share more of the '
                  "image's pixels", '', 0.01, 1.0),
        Parameter('vision.batch', VISION.batch,
                  'The most tiles that are computed together; memory is reserved for them',
                  'tiles', 1, 16),
        Parameter('vision.release_after_s', 0.0,
                  'After this time without an image to encode, the weights are released. They '
                  'are loaded again for the next image, whose embedding is late by that time; '
                  '0: the weights stay', 'seconds', 0.0, 86_400.0),
        Parameter('vision.unchanged_threshold', VISION.unchanged_threshold,
                  'An image uses the last embedding again if no colour of its 32x32 thumbnail '
                  'differs by this much. If an image uses a part of the levels, as at night, that '
                  'part of the threshold counts, but more than its noise; 0: never',
                  'levels of 255', 0, 255),
    )  # fmt: skip

    _cameras = ()  # names, of several

    def __init__(self, arbiter=None, budget=None):
        self._state = lambda: None  # a weak reference: only the worker owns it
        self._dropped = deque(maxlen=1000)  # seconds whose images were dropped
        self._reached = None  # the second of the newest image
        self._count = 0  # of images
        super().__init__('vision_encoder', ImageEmbedding, arbiter, budget)
        self._looks = LookServer(self)

    def on_setup(self, options) -> None:
        """Check the names of the cameras; then as EncoderNode."""
        self._cameras = cameras_of(options.cameras)
        if self._cameras and options.vision_max_tiles > 1:
            raise InputError(
                f'cameras are {", ".join(self._cameras)} and vision.max_tiles is '
                f'{options.vision_max_tiles}: images of several cameras are not cut into tiles. '
                'Set vision.max_tiles to 1'
            )
        topics = [camera_topics(name).values() for name in self._cameras]
        self.INPUTS = tuple(topic for pair in topics for topic in pair) or VisionNode.INPUTS
        self.topics.check(self.INPUTS)
        super().on_setup(options)

    def load(self, options, model, pause) -> VisionState:
        """Load the encoder."""
        backend = Backend(options.device, thread_count(options.threads), options.rpc_servers)
        batch = min(options.vision_batch, options.vision_max_tiles)
        largest_area = reserved_area(
            options.vision_area, options.vision_max_tiles, options.vision_look_tiles
        )
        load = partial(VisionEncoder.load, model.vision_path, backend, batch, area=largest_area)
        encoder = VisionOnDemand(
            lambda between: self._budget.load('vision', model, partial(load, between=between)),
            options.vision_release_after_s,
        )
        is_governed = options.vision_governor and not self.get_clock().ros_time_is_active
        is_governed &= not self._cameras
        make_pipeline = partial(
            ImagePipeline,
            encoder,
            options.vision_max_tiles,
            options.vision_unchanged_threshold,
            max_behind=GOVERNED_BEHIND_S if is_governed else MAX_BEHIND_S,
            device=lambda second: self._device(state, second),
            is_too_late=pause.is_too_late,
            look_device=pause.device_for_question,
            tile_rule=TileRule(options.vision_tile_rule, options.vision_tile_alpha),
            area=options.vision_area,
            crop=Crop.parse(options.vision_crop),
            largest_area=largest_area,
            sharp_every=options.vision_sharp_every,
        )
        if self._cameras:
            pipeline = CameraPipelines(self._cameras, make_pipeline)
        else:
            pipeline = make_pipeline()
        state = VisionState(pipeline, encoder, model.space, pause, is_governed)
        self._state = weakref.ref(state)
        return state

    @contextmanager
    def _device(self, state: VisionState, second: int):
        """Hold the device for an image; tell the governor what it cost."""
        governor, pause = state.pipeline.governor, state.pause
        # Loading the weights is no measure of the machine.
        is_measured = state.is_governed and state.encoder.is_loaded
        governor.latest_s = self._arbiter.unit_deadline_s
        with pause.device(second) as between:

            def check() -> None:
                between()
                if is_measured:
                    governor.check(pause.worked_s)

            yield check
        if is_measured:
            governor.note(pause.worked_s, pause.late_s, state.pipeline.area_of(second))

    def diagnose(self, report) -> None:
        """Report what is seen of a second, late images, and whether the weights are in memory."""
        super().diagnose(report)
        state = self._state()
        if state is not None:
            governor = state.pipeline.governor
            report.tell('area of the overview', governor.pace.area)
            report.tell('one image in seconds', governor.pace.period_s)
            report.tell('seconds left out', self._given[Status.SKIPPED])
            if governor.is_lowered:
                report.warn(f'{governor.cause}: {seen(governor)}')
            report.count('late images', state.pipeline.late, LATE)
            report.tell('weights', 'in memory' if state.encoder.is_loaded else 'released')
            report.tell('weights released', state.encoder.releases)
            report.tell('newest return of the weights [ms]', state.encoder.reload_ms)

    def open_input(self, options):
        """Subscribe to the camera."""
        if self._cameras:
            return CameraInputs(self, options, self.on_image, self._cameras)
        return ImageInput(self, options, self.on_image)

    def on_stop(self) -> None:
        """Unsubscribe; refuse who waits for a look."""
        super().on_stop()
        self._looks.close()

    def on_image(self, stamp_ns: int, make_image) -> None:
        """Put an image into the inbox: `make_image()` decodes it, in the worker.

        With several cameras it comes as (name of the camera, make_image).
        """
        stamp_ns = self.stamps.stamp_ns(stamp_ns)
        arrival, second = self.arrival(stamp_ns, make_image), stamp_ns // NS
        # The first image of a second ends the second before; the others are not urgent, and waking
        # the worker costs as much as all the rest of an unused image.
        wakes, self._reached = second != self._reached, second
        self._count += 1
        # Of each camera the newest images wait.
        key = second, make_image[0] if self._cameras else '', self._count % KEPT
        share = 1 / KEPT / max(1, len(self._cameras))
        for dropped in self.worker.inbox.put(arrival, key, share, wakes):
            self._dropped.append(dropped.stamp_ns // NS)

    # The worker.
    def encode(self, state: VisionState, arrival: Arrival) -> None:
        """Offer one image to the pipeline."""
        stamp_ns = arrival.stamp_ns
        if state.clock.stands_still(stamp_ns, arrival.at):
            stood_s = stamp_ns / NS
            self.tell('stamps', f'the stamps of the images stand still at {stood_s:.3f} s; '
                      'the times of their arrival are taken')  # fmt: skip
            stamp_ns = state.clock.time_ns(arrival.at)
        state.clock.arrive(arrival.stamp_ns, arrival.at)
        state.pipeline.offer(stamp_ns, arrival.content, as_needed=True)
        if state.newest_ns is None or stamp_ns // NS > state.newest_ns // NS:
            state.over = arrival.at
        state.newest_ns = stamp_ns

    def restart(self, state: VisionState, second: int) -> None:
        """Publish what is left of the time before; continue with this second."""
        if state.newest_ns is not None:
            newest = state.newest_ns // NS
            # A second that the new time begins with is yet to come.
            over = newest - 1 if newest == second else newest
            self._publish_seconds(state, state.pipeline.close(over))
        state.pipeline.restart(second)
        state.newest_ns = None
        self._dropped.clear()

    def tick(self, state: VisionState, now: Instant) -> None:
        """Publish the seconds that are over; release the weights if they are idle."""
        self._looks.work(state)
        state.pipeline.area = self._area_now(state.pipeline.largest_area)
        self._publish_what_is_over(state, now)
        if state.encoder.release_when_idle():
            give_back()

    def _publish_what_is_over(self, state: VisionState, now: Instant) -> None:
        """Encode and publish the seconds that are over, even if no later image has come."""
        if state.newest_ns is not None:
            self._note_dropped(state)
            state.pause.over = state.over
            self._publish_seconds(state, state.pipeline.advance(state.newest_ns))
            state.pause.over = now
        if self.holds_back_input or state.pipeline.next_second is None:
            return
        over = state.clock.last_over(now)
        if over < state.pipeline.next_second - 2:  # simulated time went back, and no image came
            self.restart(state, over + 1)
        self._publish_seconds(state, state.pipeline.close(over))

    def _area_now(self, largest: float) -> float:
        """Return vision.area, or what memory was reserved for."""
        wanted = self.get_parameter('vision.area').value
        if wanted > largest:
            self.tell('area', f'vision.area stays {largest:g}: there is no memory for {wanted:g}, '
                      'because vision.look_tiles is 0. Clean up and configure the node '
                      'again')  # fmt: skip
        return min(wanted, largest)

    def _note_dropped(self, state: VisionState) -> None:
        """Mark the seconds reached whose images were dropped, so that they are OVERLOADED."""
        for _ in range(len(self._dropped)):
            second = self._dropped.popleft()
            if second <= state.newest_ns // NS:
                state.pipeline.drop(second)
            else:
                self._dropped.append(second)

    def _publish_seconds(self, state: VisionState, seconds: list) -> None:
        for encoded in seconds:
            if encoded.reason:
                # Each kind of fault is logged; its details follow a colon.
                self.tell(encoded.reason.partition(':')[0], encoded.reason)
            message, governor = image_message(state.space, encoded), state.pipeline.governor
            message.period_s, message.slowed = governor.pace.period_s, governor.cause
            self.publish(message)


def seen(governor: Governor) -> str:
    """Return in words what is seen of a second."""
    pace = governor.pace
    every = '' if pace.period_s == 1 else f', every {pace.period_s} s'
    return f'images are seen at an area of {pace.area:g}{every}'


def main(args=None) -> int:
    """Run the node."""
    return run(lambda: [VisionNode()], args)


if __name__ == '__main__':
    raise SystemExit(main())
