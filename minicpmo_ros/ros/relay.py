# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Node `relay`: sends what a weak robot sees and hears to the machine that runs the model.

It reads the robot's camera and microphone as the encoders do. It publishes one JPEG a second on
`~/image/compressed`, the newest before the second's end, and 16 kHz on `~/audio`, with their
stamps: what `live.launch.py` reads. A JPEG of the wanted size is sent as it came. All together
takes at most `max_mbit`: before that is exceeded, quality and size of the images go down, and
that is told.

Both topics are reliable with a short history: what the network loses is sent again while it is
among the newest, and what is older is dropped, never queued.
"""

import time
from dataclasses import dataclass, field
from functools import partial

from rclpy.qos import QoSProfile
from sensor_msgs.msg import CompressedImage

from minicpmo_ros.errors import Error, InputError
from minicpmo_ros.media.audio.format import parse_channel
from minicpmo_ros.media.audio.log_mel import SAMPLE_RATE_HZ
from minicpmo_ros.media.audio.stream import AudioDecoder
from minicpmo_ros.media.image.compressed import is_jpeg
from minicpmo_ros.ros.audio_input import INBOX_S, AudioInput, cost_s
from minicpmo_ros.ros.audio_input import PARAMETERS as AUDIO_PARAMETERS
from minicpmo_ros.ros.framework.clock import NodeTime, read_until
from minicpmo_ros.ros.framework.faults import Throttle
from minicpmo_ros.ros.framework.lifecycle import ManagedNode
from minicpmo_ros.ros.framework.main import run
from minicpmo_ros.ros.framework.parameters import ANY_TIME, Parameter
from minicpmo_ros.ros.framework.threads import TICK_S, Inbox, Worker
from minicpmo_ros.ros.image_input import PARAMETERS as IMAGE_PARAMETERS
from minicpmo_ros.ros.image_input import ImageInput
from minicpmo_ros.ros.messages import to_time
from minicpmo_ros.ros.voice.sound_output import AudioTopic
from minicpmo_ros.streams.relay import (
    CANDIDATES,
    JpegFitter,
    NewestOfSecond,
    RateRule,
    Rechunker,
    to_pcm,
    wire_bytes,
)
from minicpmo_ros.streams.time import LIMITS, Arrival, SampleClock
from minicpmo_ros.units import NS

IMAGE_OUT_QOS = QoSProfile(depth=1)
CHUNK_MS = 32  # 1024 bytes: one packet, also in a VPN
AUDIO_OUT_QOS = QoSProfile(depth=1000 // CHUNK_MS)  # a second
CHUNK_BYTES = SAMPLE_RATE_HZ * CHUNK_MS // 1000 * 2
AUDIO_BYTES_PER_S = 1000 / CHUNK_MS * wire_bytes(CHUNK_BYTES)
PARAMETERS = (
    *IMAGE_PARAMETERS,
    *AUDIO_PARAMETERS,
    Parameter('max_mbit', 0.75, 'The most that is sent in a second, with what the network adds. '
              'Audio takes 0.3; images get the rest', 'Mbit/s', 0.35, 1000.0, when=ANY_TIME),
    Parameter('image.quality', 80, 'JPEG quality of images that do not come as JPEG of their '
              'wanted size, if max_mbit allows it', '', 1, 100),
    Parameter('image.longest_side', 640, 'Larger images are made smaller, to this width or '
              'height', 'pixels', 32, 8192),
)  # fmt: skip


@dataclass
class RelayState:
    """The worker's state."""

    channel: int | None
    fitter: JpegFitter
    rule: RateRule
    images: NewestOfSecond = field(default_factory=NewestOfSecond)
    pieces: Rechunker = field(default_factory=lambda: Rechunker(SAMPLE_RATE_HZ, CHUNK_MS))
    decoder: AudioDecoder | None = None
    clock: SampleClock = field(default_factory=SampleClock)
    heard: object = None  # Instant of the newest chunk; None: the audio has stopped


class RelayNode(ManagedNode):
    """See the module."""

    PARAMETERS = PARAMETERS
    INPUTS = ('image', 'image/compressed', 'audio')
    INPUTS_BESIDE = ('audio_info',)
    ROLE = 'relay'
    _camera = _microphone = _state = None

    def __init__(self):
        super().__init__('relay')
        self.time, self.worker, self._throttle = NodeTime(self), Worker(self, INBOX_S), Throttle()
        self._images = self.topics.publish(CompressedImage, '~/image/compressed', IMAGE_OUT_QOS)
        self._audio = AudioTopic(self, AUDIO_OUT_QOS)
        self._count = 0  # of images that came
        self._sent = dict.fromkeys(('images as they came', 'images encoded', 'chunks of audio'), 0)
        self._dropped = dict.fromkeys(('images dropped', 'chunks dropped', 'unreadable'), 0)
        self._bytes = self._told_bytes = 0
        self._told_s, self._lowered = time.monotonic(), ''

    # The lifecycle.
    def on_setup(self, options) -> None:
        """Start the worker."""
        if self._audio.problem:
            raise InputError(f'no audio can be sent: {self._audio.problem}')
        state = RelayState(
            parse_channel(options.audio_channel),
            JpegFitter(options.image_quality, options.image_longest_side),
            RateRule(options.max_mbit, time.monotonic()),
        )
        self._state, self._options = state, options
        self.worker.start(lambda stop: partial(self._work_once, state))

    def on_start(self) -> None:
        """Subscribe."""
        self._camera = ImageInput(self, self._options, self._on_image)
        self._microphone = AudioInput(self, self._options, self._on_chunk)

    def on_stop(self) -> None:
        """Unsubscribe."""
        for source in (self._camera, self._microphone):
            if source is not None:
                source.close()
        self._camera = self._microphone = None

    def on_release(self) -> None:
        """Stop the worker."""
        super().on_release()
        self._state = None

    def diagnose(self, report) -> None:
        """Report what is sent a second, how images are made small, and what is dropped."""
        now_s = time.monotonic()
        passed_s, sent = max(1e-3, now_s - self._told_s), self._bytes - self._told_bytes
        self._told_s, self._told_bytes = now_s, self._bytes
        report.tell('bytes a second', round(sent / passed_s))
        report.tell('bytes', self._bytes)
        for name, count in self._sent.items():
            report.tell(name, count)
        for name, why in (
            ('images dropped', 'max_mbit leaves no room for them. Raise it'),
            ('chunks dropped', 'audio comes faster than max_mbit allows. Raise it'),
            ('unreadable', 'the log says why'),
        ):
            report.count(name, self._dropped[name], why)
        report.count('inputs dropped', self.worker.inbox.dropped, 'the machine is too busy')
        if self._state is not None:
            report.tell('late images', self._state.images.late)
        if self._lowered:
            report.warn(self._lowered)
        if self._microphone is not None and self._microphone.waiting:
            report.warn(self._microphone.waiting)
        if self.state == 'active' and not self._images.get_subscription_count():
            report.warn(
                f'nobody subscribes to {self._images.topic_name}: start live.launch.py on the '
                'other machine with image_topic and audio_topic of this node; or the network is '
                'down, or lets no discovery through (docs/network.md)'
            )

    # Input.
    def _on_image(self, stamp_ns: int, image) -> None:
        self._count += 1
        key = 'image', stamp_ns // NS, self._count % CANDIDATES
        arrival = Arrival(stamp_ns, self.time.now(), image)
        self.worker.inbox.put((self._take_image, arrival), key, wakes=False)

    def _on_chunk(self, stamp_ns, data, audio_format) -> None:
        if len(data):
            arrived_ns = self.get_clock().now().nanoseconds
            arrival = Arrival(stamp_ns, self.time.now(), (arrived_ns, data, audio_format))
            cost = cost_s(audio_format, len(data))
            self.worker.inbox.put((self._take_chunk, arrival), cost=cost, wakes=False)

    # The worker.
    def _work_once(self, state: RelayState, inbox: Inbox) -> None:
        # All that came until these instants is in the inbox: a second is not over before that.
        seen, heard = (read_until(each, self.time) for each in (self._camera, self._microphone))
        state.rule.set_rate(self.get_parameter('max_mbit').value)
        for take, arrival in inbox.take(TICK_S):
            self._attempt(take, state, arrival)
        for images in state.images.due(seen):
            self._attempt(self._send_image, state, images)
        if state.heard is not None and heard.waited_s(state.heard) >= LIMITS.grace_s:
            self._attempt(self._end_audio, state)

    def _attempt(self, work, *arguments) -> None:
        try:
            work(*arguments)
        except Error as error:
            self._dropped['unreadable'] += 1
            if self._throttle.allows(work.__name__):
                self.get_logger().warning(str(error))

    def _take_image(self, state: RelayState, arrival: Arrival) -> None:
        for images in state.images.offer(arrival):
            self._attempt(self._send_image, state, images)

    def _send_image(self, state: RelayState, images: list) -> None:
        """Send the first of a second's images, the newest first, that can be read."""
        for i, arrival in enumerate(images):
            try:
                decoded = arrival.content(state.fitter.size)
                break
            except Error:
                if i + 1 == len(images):
                    raise
        now_s, source = time.monotonic(), arrival.content.message
        state.rule.audio_takes(AUDIO_BYTES_PER_S if state.heard is not None else 0)
        most, largest = state.rule.image_bytes(now_s), max(decoded.width, decoded.height)
        message = CompressedImage(header=source.header, format='jpeg')
        message.header.stamp = to_time(arrival.stamp_ns)
        if (
            isinstance(source, CompressedImage)
            and is_jpeg(source.data)
            and largest <= state.fitter.longest_side
            and len(source.data) <= most
        ):
            message.format, message.data = source.format, source.data
            kind, fitted = 'images as they came', None
        else:
            kind, fitted = 'images encoded', state.fitter.fit(decoded.pixels, most)
            if fitted is not None:
                message.data.frombytes(fitted.data)
        self._tell_lowered(state, decoded, fitted, most)
        if not len(message.data) or not state.rule.spend(len(message.data), now_s):
            self._dropped['images dropped'] += 1
            return
        self._count_sent(kind, len(message.data))
        self.post(lambda: self._images.publish(message))

    def _tell_lowered(self, state: RelayState, decoded, fitted, most: float) -> None:
        lowered = ''
        if fitted is not None and state.fitter.step:
            lowered = (
                f'images are sent in {fitted.width}x{fitted.height} at quality {fitted.quality}: '
                f'max_mbit leaves {most / 1e3:.0f} kB a second for one. Raise max_mbit, or '
                'lower image.longest_side or image.quality'
            )
        if bool(lowered) != bool(self._lowered):
            self.get_logger().warning(lowered or 'images are sent as wanted again')
        self._lowered = lowered

    def _take_chunk(self, state: RelayState, arrival: Arrival) -> None:
        stamp_ns, (arrived_ns, data, audio_format) = arrival.stamp_ns, arrival.content
        duration_ns = int(audio_format.duration_s(len(data)) * NS)
        if state.decoder is None or state.decoder.format != audio_format:
            self._end_audio(state)
            state.decoder = AudioDecoder(audio_format, state.channel)
        if stamp_ns is None:
            stamp_ns = state.clock.begin_ns(arrived_ns, duration_ns)
        begin_ns, samples = state.decoder.push(stamp_ns, data)
        state.clock.end_ns, state.heard = stamp_ns + duration_ns, arrival.at
        self._send_audio(state, state.pieces.push(begin_ns, samples))

    def _end_audio(self, state: RelayState) -> None:
        """Send what is left of a stream that has stopped."""
        if state.heard is None:
            return
        state.heard = None
        rest = state.decoder.flush()
        end_ns = state.clock.end_ns - len(rest) * NS // SAMPLE_RATE_HZ
        self._send_audio(state, state.pieces.push(end_ns, rest) + state.pieces.flush())
        state.clock.restart()

    def _send_audio(self, state: RelayState, pieces: list) -> None:
        for stamp_ns, samples in pieces:
            if state.rule.spend(2 * len(samples), time.monotonic()):
                self._count_sent('chunks of audio', 2 * len(samples))
                self._audio.play(to_pcm(samples), SAMPLE_RATE_HZ, stamp_ns)
            else:
                self._dropped['chunks dropped'] += 1

    def _count_sent(self, kind: str, size: int) -> None:
        self._sent[kind] += 1
        self._bytes += wire_bytes(size)


def main(args=None) -> int:
    """Run the node."""
    return run(lambda: [RelayNode()], args)


if __name__ == '__main__':
    raise SystemExit(main())
