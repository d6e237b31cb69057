# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Plays a file or bag on the topics of a camera and a microphone, for machines that have none.

Publishes `image/compressed`, `audio` (stamped 16-bit mono PCM at the file's own rate; a bag's at
16 kHz) and `audio_info` (latched), stamped in the node's time from the moment playing begins,
which is a whole second: the file's seconds are the stream's. With `stamps` recorded it plays a
bag as `ros2 bag play --clock` does: with its own stamps, which go back where it loops. A worker
reads ahead and encodes; a timer publishes what is due. An image is due at its stamp, a chunk
of audio at its end, as from a microphone.

/clock shows a time only after everything due by then is published. It never runs ahead of a slow
disk or a busy machine: simulated time is slow then. During a pause (`~/pause`) it stands still.
"""

import queue
import threading
import time
from dataclasses import dataclass, replace
from heapq import merge

import numpy as np
import rclpy
from rclpy.clock import Clock as RosClock
from rclpy.clock import ClockType
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage
from std_srvs.srv import SetBool

from minicpmo_ros.errors import Error, InputError
from minicpmo_ros.evaluation.bags.clip import Sources
from minicpmo_ros.evaluation.bags.media_source import LONGEST_GAP_S, MediaSource, open_source
from minicpmo_ros.media.audio.format import MEAN
from minicpmo_ros.media.files import why_short
from minicpmo_ros.ros.audio_input import audio_types, info_message
from minicpmo_ros.ros.framework.diagnostics import Awaited
from minicpmo_ros.ros.framework.faults import Throttle
from minicpmo_ros.ros.framework.lifecycle import LATCHED, SERVICE_QOS
from minicpmo_ros.ros.framework.main import run
from minicpmo_ros.ros.framework.parameters import Parameter, ParameterTable
from minicpmo_ros.ros.framework.topics import Topics, WithoutEvents
from minicpmo_ros.ros.messages import to_time
from minicpmo_ros.streams.relay import Rechunker
from minicpmo_ros.units import NS

# Of looks at what is due: each takes nearly a millisecond of CPU time, due or not.
SHORTEST_WAIT_S, LONGEST_WAIT_S = 0.01, 0.05
CLOCK_PERIOD_S = 0.02
ENDS_LOOK_PERIOD_S = 1.0  # for ends of topics that do not fit
LATE_S = 2.0  # by which what is played comes late, without a word
PATIENCE_S = 5.0  # after which it says what it waits for
# Of steady time between two looks at it; simulated time takes no part in longer stalls.
LONGEST_STEP_S = 0.1
ACKNOWLEDGED_WITHIN_S = 5.0  # by reliable subscribers, before the process ends
# Read ahead this much: enough for a slow disk, little enough for large images.
QUEUE_ITEMS = 64
# Deep enough to hold what a reliable subscriber has not acknowledged for about a second.
CAMERA_QOS = QoSProfile(depth=30, reliability=QoSReliabilityPolicy.RELIABLE)
MICROPHONE_QOS = QoSProfile(depth=100, reliability=QoSReliabilityPolicy.RELIABLE)
PARAMETERS = (
    Parameter('file', '', 'Video, audio file or bag (MCAP, sqlite3) to play', is_path=True),
    Parameter('image_topic', '', 'The camera to play, if a bag has several'),
    Parameter('audio_topic', '', 'The microphone to play, if a bag has several'),
    Parameter('audio_channel', MEAN, f'{MEAN} of the channels of the audio, or the number of one, '
              'from 0', or_number=True),
    Parameter('audio_format', '',
              'Format of raw audio in a bag without AudioInfo: rate in hertz, channels, sample '
              'format, such as 16000,1,S16LE; or mp3'),
    Parameter('stamps', 'now', 'now: the current time; recorded: as in the bag',
              choices=('now', 'recorded')),
    Parameter('loop', False, 'Start again at the end; stamps go on, recorded stamps go back'),
    Parameter('rate', 1.0, 'Speed; stamps keep the rate of the file', 'times real time', 0.1, 10),
    Parameter('wait_for_subscribers', False,
              'Begin when every topic that is played has a subscriber'),
    Parameter('wait_for_nodes', '',
              'Begin when these nodes have loaded and subscribed: names in the same namespace, '
              'separated by commas'),
    Parameter('exit_at_end', False, 'End the process after the last image and audio'),
    Parameter('fps', 0.0, 'The most images a second; 0: all', 'hertz', 0, 1000),
    Parameter('jpeg_quality', 90, 'JPEG quality of the images of a video', '', 1, 100),
    Parameter('chunk_ms', 100, 'Length of a piece of audio', 'milliseconds', 5, 10_000),
    Parameter('publish_clock', False, 'Publish /clock, for nodes with use_sim_time'),
)  # fmt: skip


@dataclass(frozen=True)
class Item:
    """A message with its stamp and due time, in nanoseconds from the first instant."""

    due_ns: int
    stamp_ns: int
    publisher: object
    message: object
    begin_ns: int = 0  # when its turn of the loop begins


class MediaPlayer(WithoutEvents, Node):
    """Plays one file; see the module for the topics."""

    _worker = None

    def __init__(self):
        super().__init__('media_player')
        self._options = ParameterTable(self, PARAMETERS).values()
        if not self._options.file:
            raise InputError('parameter file is empty; give a video, audio or bag: -p file:=CLIP')
        media = self._open()
        self._origin_ns = self._recorded_origin_ns(media)
        self._has_images, self._has_audio = media.images is not None, media.audio is not None
        self._audio_type, self._info_type = audio_types()
        topics = Topics(self)
        self._images = topics.publish(CompressedImage, 'image/compressed', CAMERA_QOS)
        self._audio = topics.publish(self._audio_type, 'audio', MICROPHONE_QOS)
        self._info = topics.publish(self._info_type, 'audio_info', LATCHED)
        topics.check()
        self._clock_publisher, self._stamp_clock = None, self.get_clock()
        if self._options.publish_clock:
            self._clock_publisher = self.create_publisher(Clock, '/clock', 10)
            # The system's: this node is where simulated time comes from.
            self._stamp_clock = RosClock()
        names = [name.strip() for name in self._options.wait_for_nodes.split(',')]
        self._awaited = Awaited(self, tuple(name for name in names if name))
        self._made_s, self._throttle = time.monotonic(), Throttle()
        for note in media.notes:
            self.get_logger().warning(note)
        self._queue = queue.Queue(QUEUE_ITEMS)  # of Item; then None or the Error that ended it
        self._next, self._damaged = None, 0  # parts of the file that cannot be decoded
        self._is_ended = self._is_paused = False
        self._begun_ns = None  # in the node's time, or the bag's
        self._position_ns = 0  # of playing, from the first instant
        self._turn_ns = 0  # position at which this turn of the loop began
        self._looked_s = self._clocked_s = 0.0  # monotonic
        self._stop = threading.Event()
        self._worker = threading.Thread(target=self._read, name='media_player', daemon=True)
        self._worker.start()
        # Steady, or simulated time would have to run before the node that makes it run.
        self._steady = RosClock(clock_type=ClockType.STEADY_TIME)
        self._due_timer = self.create_timer(SHORTEST_WAIT_S, self._on_timer, clock=self._steady)
        self._topics = topics
        self.create_timer(ENDS_LOOK_PERIOD_S, self._look, clock=self._steady)
        self.create_service(SetBool, '~/pause', self._on_pause, qos_profile=SERVICE_QOS)

    def destroy_node(self):
        """Stop reading, then destroy; also called if the constructor failed."""
        if self._worker is not None:
            self._stop.set()
            self._worker.join(timeout=1.0)
        super().destroy_node()

    def _recorded_origin_ns(self, media: MediaSource) -> int | None:
        if self._options.stamps == 'now':
            return None
        if media.origin_ns is None:
            raise InputError(
                f'{self._options.file}: only a bag has recorded stamps; set stamps to now'
            )
        return media.origin_ns

    def _open(self) -> MediaSource:
        o = self._options
        sources = Sources(o.image_topic, o.audio_topic, o.audio_channel, o.audio_format)
        return open_source(o.file, o.jpeg_quality, sources, self._on_damage, o.fps)

    def _on_damage(self, damage: str) -> None:
        self._damaged += 1
        if self._throttle.allows('damage'):
            self.get_logger().warning(
                f'{damage} What cannot be decoded is left out: {self._damaged} so far.'
            )

    def _look(self) -> None:
        """Log mismatched topic ends, and what playing waits for."""
        self._topics.problems()
        reason = self._begun_ns is None and self._waits_for()
        is_long = time.monotonic() - self._made_s > PATIENCE_S
        if reason and is_long and self._throttle.allows('waiting'):
            self.get_logger().warning(f'playing has not begun: it waits for {reason}')

    def _waits_for(self) -> str:
        """Return what playing waits for; '' if nothing is missing."""
        if self._options.wait_for_subscribers or self._options.wait_for_nodes:
            played = [self._images] * self._has_images + [self._audio] * self._has_audio
            if missing := self._awaited.missing(played):
                return missing
        if self._origin_ns is None and not self._stamp_clock.now().nanoseconds:
            return (
                'simulated time, which does not run: nobody publishes /clock. Start who does, or '
                'set publish_clock to true here, or use_sim_time to false'
            )
        return '' if self._next or self._is_ended else 'the file to be read'

    # The worker: reads, encodes, queues in the order of falling due.
    def _read(self) -> None:
        end = None
        try:
            begin_ns = self._read_once(0)
            while self._options.loop and begin_ns and not self._stop.is_set():
                begin_ns = self._read_once(begin_ns)
        except Exception as error:  # the timer tells it, and ends the process
            end = error if isinstance(error, Error) else InputError(f'reading failed: {error!r}')
        self._put(end)

    def _read_once(self, begin_ns: int) -> int:
        """Queue the whole file from `begin_ns` on; return where it ends."""
        end_ns, media, streams = begin_ns, self._open(), []
        if media.images is not None:
            streams.append(self._image_items(media, begin_ns))
        if media.audio is not None:
            streams.append(self._audio_items(media, begin_ns))
        skipped_ns = last_ns = 0
        for item in merge(*streams, key=lambda item: item.due_ns):
            if self._stop.is_set():
                return end_ns
            last_ns = max(last_ns, item.due_ns - begin_ns)
            gap_ns = item.due_ns - skipped_ns - end_ns
            if gap_ns > LONGEST_GAP_S * NS:
                skipped_ns += gap_ns
                self.get_logger().warning(
                    f'the stamps jump ahead by {gap_ns / NS:.0f} s after {end_ns / NS:.1f} s of '
                    'playing; what follows is played at once'
                )
            moved_ns = skipped_ns if self._origin_ns is None else 0
            item = replace(
                item, due_ns=item.due_ns - skipped_ns, stamp_ns=item.stamp_ns - moved_ns
            )
            self._put(item)
            shown_ns = media.image_ns if item.publisher is self._images else 0
            end_ns = max(end_ns, item.due_ns + shown_ns)
        last_ns += int(NS / self._options.fps) if self._options.fps else 0  # left out behind it
        short = why_short(self._options.file, last_ns, media.told_ns)
        if short:
            self.get_logger().warning(short, once=True)
        return end_ns

    def _image_items(self, media: MediaSource, begin_ns: int):
        for offset_ns, name, data in media.images:
            message = CompressedImage(format=name)
            message.data.frombytes(data)
            at_ns = begin_ns + offset_ns
            own_ns = at_ns if self._origin_ns is None else at_ns - media.shift_ns
            yield Item(at_ns, own_ns, self._images, message, begin_ns)

    def _audio_items(self, media: MediaSource, begin_ns: int):
        rate_hz = media.rate_hz
        info = info_message(self._info_type, rate_hz)
        yield Item(begin_ns, begin_ns, self._info, info, begin_ns)
        for offset_ns, samples in rechunked(media.audio, rate_hz, self._options.chunk_ms):
            message = self._audio_type()
            message.audio.data.frombytes(to_s16(samples).tobytes())
            end_ns = offset_ns + len(samples) * NS // rate_hz
            yield Item(begin_ns + end_ns, begin_ns + offset_ns, self._audio, message, begin_ns)
        if media.mixer is not None and media.mixer.problem:
            self.get_logger().warning(f'{self._options.file}: {media.mixer.problem}', once=True)

    def _put(self, item) -> None:
        while not self._stop.is_set():
            try:
                return self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue

    # The executor: publishes what is due.
    def _on_timer(self) -> None:
        self._publish_due()
        if self.context.ok():
            self._due_timer.timer_period_ns = int(self._wait_s() * NS)
            self._due_timer.reset()  # or the new period would begin after the next look

    def _wait_s(self) -> float:
        """Return how long nothing falls due, within the bounds of waiting."""
        wait_s = LONGEST_WAIT_S
        if self._begun_ns is not None and not self._is_paused:
            if self._clock_publisher is not None:
                wait_s = CLOCK_PERIOD_S - (self._looked_s - self._clocked_s)
            if self._next is not None:
                due_ns = self._next.due_ns - self._position_ns
                wait_s = min(wait_s, due_ns / NS / self._options.rate)
            elif not self._is_ended:
                wait_s = SHORTEST_WAIT_S  # the file is being read
        return max(wait_s, SHORTEST_WAIT_S)

    def _publish_due(self) -> None:
        if self._begun_ns is None and not self._begin():
            return
        self._next = self._next or self._take()
        self._advance()
        self._tell_late()
        while self._next is not None and self._next.due_ns <= self._position_ns:
            self._turn_ns = self._next.begin_ns
            self._publish(self._next)
            self._next = self._take()
        if self._next is not None and self._next.begin_ns <= self._position_ns:
            self._turn_ns = self._next.begin_ns
        if self._clock_publisher is not None and self.context.ok():
            self._publish_clock()

    def _tell_late(self) -> None:
        late_s = (self._position_ns - self._next.due_ns) / NS if self._next else 0
        if late_s > LATE_S and self._throttle.allows('late'):
            self.get_logger().warning(
                f'what is played comes {late_s:.1f} s late: the file is not read and encoded as '
                'fast as it is played. Set fps to 5, or give a smaller video'
            )

    def _publish_clock(self) -> None:
        if self._looked_s - self._clocked_s >= CLOCK_PERIOD_S:
            self._clocked_s = self._looked_s
            self._clock_publisher.publish(Clock(clock=to_time(self._time_ns(self._position_ns))))

    def _advance(self) -> None:
        now_s = time.monotonic()
        passed_s, self._looked_s = now_s - self._looked_s, now_s
        if self._clock_publisher is not None:
            is_reading = self._next is None and not self._is_ended
            passed_s = 0.0 if is_reading else min(passed_s, LONGEST_STEP_S)
        if not self._is_paused:
            self._position_ns += int(passed_s * self._options.rate * 1e9)

    def _time_ns(self, position_ns: int) -> int:
        """Return the time of a position: it goes on in a loop, or with recorded stamps back."""
        turn_ns = 0 if self._origin_ns is None else self._turn_ns
        return self._begun_ns + position_ns - turn_ns

    def _on_pause(self, request, response):
        if self._begun_ns is not None:
            self._advance()  # by what has passed since the last look, as it was until now
        self._is_paused, response.success = request.data, True
        return response

    def _begin(self) -> bool:
        self._next = self._next or self._take()
        if self._next is None or self._waits_for():
            return False
        self._looked_s = time.monotonic()
        if self._origin_ns is not None:
            self._begun_ns = self._origin_ns
        else:
            now_ns = self._stamp_clock.now().nanoseconds
            self._begun_ns = -(-now_ns // NS) * NS
            self._position_ns = int((now_ns - self._begun_ns) * self._options.rate)
        self.get_logger().info(f'playing {self._options.file}')
        return True

    def _take(self):
        try:
            item = self._queue.get_nowait()
        except queue.Empty:
            return None
        if isinstance(item, Error):
            raise item
        if item is None:
            self._is_ended = True
            self.get_logger().info('played to the end')
            if self._options.exit_at_end:
                self._wait_until_acknowledged()
                rclpy.try_shutdown()
        return item

    def _wait_until_acknowledged(self) -> None:
        """Wait for the last messages to arrive: the end of the process would lose them."""
        until_s = time.monotonic() + ACKNOWLEDGED_WITHIN_S
        for publisher in (self._images, self._audio):
            left_s = max(0.0, until_s - time.monotonic())
            if not publisher.wait_for_all_acked(Duration(seconds=left_s)):
                self.get_logger().warning(
                    f'a subscriber of {publisher.topic_name} has not acknowledged the last '
                    f'messages within {ACKNOWLEDGED_WITHIN_S:g} s; it may lack them'
                )

    def _publish(self, item: Item) -> None:
        if hasattr(item.message, 'header'):
            item.message.header.stamp = to_time(self._time_ns(item.stamp_ns))
        item.publisher.publish(item.message)


def to_s16(samples):
    """Return samples (n,) float32 in [-1, 1] as int16."""
    return np.clip(np.rint(samples * 32767.0), -32768, 32767).astype('<i2')  # (n,)


def rechunked(pieces, rate_hz: int, chunk_ms: int):
    """Return (stamp_ns, samples) of `chunk_ms` each of pieces of any length; a gap ends one."""
    rechunker = Rechunker(rate_hz, chunk_ms)
    for stamp_ns, samples in pieces:
        yield from rechunker.push(stamp_ns, samples)
    yield from rechunker.flush()


def main(args=None) -> int:
    """Run the player until it is interrupted or, with exit_at_end, until the end."""
    return run(lambda: [MediaPlayer()], args)


if __name__ == '__main__':
    raise SystemExit(main())
