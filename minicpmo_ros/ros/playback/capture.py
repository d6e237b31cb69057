# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Node `media_capture`: publishes a camera and a microphone that have no ROS driver.

`source` is an RTSP camera or a V4L2 device, `microphone` a device of PortAudio. Each is read in a
thread of its own; what cannot be opened, or is lost, is tried again after a wait that grows, and
the log and /diagnostics say why. Images come on `image/compressed` or, with image_format raw, on
`image`; audio on `audio`, with its format on `audio_info`. Stamps are the node's time at which
something was captured, as far as that can be known (media/live_clock.py).
"""

import threading
import time
from collections.abc import Callable

from sensor_msgs.msg import CompressedImage, Image

from minicpmo_ros.errors import Error, InputError
from minicpmo_ros.media.live_source import (
    LiveAudio,
    LiveImage,
    LiveOptions,
    LiveSource,
    read_credentials,
)
from minicpmo_ros.media.microphone import AudioBlock, Microphone
from minicpmo_ros.ros.audio_input import audio_types, info_message
from minicpmo_ros.ros.framework.faults import Throttle
from minicpmo_ros.ros.framework.lifecycle import LATCHED, ManagedNode
from minicpmo_ros.ros.framework.main import run
from minicpmo_ros.ros.framework.parameters import Parameter
from minicpmo_ros.ros.messages import to_time
from minicpmo_ros.ros.playback.player import CAMERA_QOS, MICROPHONE_QOS, to_s16

FIRST_WAIT_S = 1.0  # before it is tried again; doubled each time
PATIENCE_S = 2.0  # with a device that does not notice its own silence
MOST_WAITING = 100  # messages for the executor
JPEG, RAW = 'jpeg', 'raw'
PARAMETERS = (
    Parameter('source', '', 'Camera: rtsp://HOST/PATH, rtsps://HOST/PATH, or a V4L2 device such '
              'as /dev/video0; empty: none'),
    Parameter('microphone', '', 'Microphone of this machine: default, or a name or number of '
              'python -m sounddevice; empty: the audio of the source, if it has any',
              or_number=True),
    Parameter('source_audio', True, 'Publish the audio of the source, where no microphone is '
              'given'),
    Parameter('credentials_file', '', 'File with one line, user:password, for the source. In '
              'source itself everybody on the graph could read them'),
    Parameter('transport', 'tcp', 'How RTSP brings images and audio; udp loses some on a busy '
              'network', choices=('tcp', 'udp')),
    Parameter('timeout_s', 10.0, 'How long a source may take to answer, and be silent, before it '
              'is opened again', 'seconds', 0.5, 300.0),
    Parameter('reconnect_max_s', 30.0, 'The longest wait before a source is opened again; the '
              'first is 1 s, and each is twice the one before', 'seconds', 1.0, 3600.0),
    Parameter('rate_hz', 5.0, 'The most images a second; 0: all', 'hertz', 0.0, 1000.0),
    Parameter('image_format', JPEG, 'jpeg: on image/compressed, as the camera made it where it '
              'sends JPEG; raw: rgb8 on image', choices=(JPEG, RAW)),
    Parameter('jpeg_quality', 90, 'JPEG quality of images that come in another coding', '',
              1, 100),
    Parameter('size', '', 'Of a V4L2 device: size of the images, such as 1280x720; empty: as it '
              'is set'),
    Parameter('pixel_format', '', 'Of a V4L2 device: coding of the images, such as mjpeg or '
              'yuyv422; empty: the first that it has'),
    Parameter('latency_ms', 0.0, 'Known time between an instant and its arrival here, of the '
              'source; subtracted from the stamps', 'milliseconds', 0.0, 10_000.0),
    Parameter('microphone_rate_hz', 0, "Sample rate of the microphone; 0: the device's own",
              'hertz', 0, 192_000),
    Parameter('frame_id', '', 'frame_id of the images'),
)  # fmt: skip


class DeviceReader(threading.Thread):
    """Opens a device and hands on what it gives, again and again, until it is stopped.

    `open_device()` returns what has `read()` and `close()`; `take(device, item)` is called for
    each item, in this thread. `title`: its name for people. `before`: whose device it was.
    """

    def __init__(self, node, title: str, open_device: Callable, take: Callable, before=None):
        super().__init__(name=node.get_name(), daemon=True)
        self._node, self.title, self._before = node, title, before
        self._open_device, self._take, self._is_stopped = open_device, take, threading.Event()
        self.problem = 'it has not been opened yet'
        self.n_items = self.losses = 0
        self.newest_s = time.monotonic()  # when something came, or it was begun
        self.device = None  # the open one

    @property
    def is_stopped(self) -> bool:
        """Whether nothing of it counts any more."""
        return self._is_stopped.is_set()

    def stop(self) -> None:
        """Let the thread end soon."""
        self._is_stopped.set()

    def run(self) -> None:
        """Read the device until it is lost; wait; again."""
        if self._before is not None:
            self._before.join()
        longest_s, wait_s = self._node.options.reconnect_max_s, FIRST_WAIT_S
        while not self.is_stopped:
            n_before = self.n_items
            problem = self._read()
            if self.n_items > n_before:
                self.losses += 1
                wait_s = FIRST_WAIT_S
            if not self.is_stopped:
                self.problem = problem
                self._node.get_logger().warning(f'{problem}. It is tried again in {wait_s:g} s')
            self._is_stopped.wait(wait_s)
            wait_s = min(2 * wait_s, longest_s)

    def _read(self) -> str:
        """Read until it is stopped or the device lost; return why."""
        try:
            self.device = self._open_device()
            for item in self.device.read():
                if self.is_stopped:
                    break
                self.newest_s, self.n_items = time.monotonic(), self.n_items + 1
                if self.problem:
                    self.problem = ''
                    self._node.get_logger().info(f'{self.title}: it is there')
                self._take(self.device, item)
            return 'it was stopped'
        except Error as error:
            return str(error)
        except Exception as error:
            self._node.faults.tell(self.title, error, starts_anew=False)
            return f'{self.title}: {error!r}'
        finally:
            device, self.device = self.device, None
            if device is not None:
                device.close()


class MediaCapture(ManagedNode):
    """See the module."""

    PARAMETERS = PARAMETERS
    ROLE = 'camera and microphone'
    options = _live = _images = _audio = _info = None
    _readers = ()
    _told_format = None  # (rate_hz, channels)

    def __init__(self):
        self._waiting = self._dropped = 0  # messages for the executor; that were too many
        super().__init__('media_capture')
        self._throttle = Throttle()
        self.ticks.every(1.0, self._look)

    # The lifecycle.
    def on_setup(self, options) -> None:
        """Check what is asked for, and make the publishers of it."""
        if not options.source and not options.microphone:
            raise InputError(
                'source and microphone are empty; give at least one of them, such as '
                '-p source:=rtsp://HOST/PATH or -p microphone:=default'
            )
        self.options, self._live = options, live_options(options)
        if options.source:
            self._live.check()
        if options.microphone or self._live.wants_audio:
            self._audio_type, self._info_type = audio_types()
            self._audio = self.topics.publish(self._audio_type, 'audio', MICROPHONE_QOS)
            self._info = self.topics.publish(self._info_type, 'audio_info', LATCHED)
        if options.source:
            is_raw = self._live.wants_pixels
            kind, topic = (Image, 'image') if is_raw else (CompressedImage, 'image/compressed')
            self._images = self.topics.publish(kind, topic, CAMERA_QOS)

    def on_start(self) -> None:
        """Begin to read."""
        self._told_format, options = None, self.options
        wanted = []
        if options.source:
            wanted.append((self._live.name, self._open_source, self._take))
        if options.microphone:
            title = f'microphone {options.microphone!r}'
            wanted.append((title, self._open_microphone, self._hear))
        before = {reader.title: reader for reader in self._readers}
        self._readers = tuple(
            DeviceReader(self, *each, before=before.get(each[0])) for each in wanted
        )
        for reader in self._readers:
            reader.start()

    def on_stop(self) -> None:
        """Let the devices go."""
        for reader in self._readers:
            reader.stop()

    def on_release(self) -> None:
        """Remove the publishers."""
        for publisher in (self._images, self._audio, self._info):
            if publisher is not None:
                self.destroy_publisher(publisher)
        self._images = self._audio = self._info = None

    def join(self, timeout_s: float) -> None:
        """Wait for the devices to be given back."""
        until_s = time.monotonic() + timeout_s
        for reader in self._readers:
            reader.join(max(0.0, until_s - time.monotonic()))

    def diagnose(self, report) -> None:
        """Report what each device has given, and what is wrong with it."""
        for reader in self._readers:
            report.tell(f'{reader.title}: pieces', reader.n_items)
            report.count(f'{reader.title}: losses', reader.losses)
            for name in ('damaged', 'late', 'lost'):
                if (count := getattr(reader.device, name, None)) is not None:
                    report.tell(f'{reader.title}: {name}', count)
            if self.state == 'active' and (problem := reader.problem or self._silence(reader)):
                report.error(problem)
        report.count('messages dropped', self._dropped, 'the machine is too slow to publish them')

    def _look(self) -> None:
        """Tell the log of a device that hangs."""
        for reader in self._readers:
            silence = '' if reader.problem or reader.is_stopped else self._silence(reader)
            if silence and self._throttle.allows(reader.title):
                self.get_logger().warning(silence)

    def _silence(self, reader: DeviceReader) -> str:
        silent_s = time.monotonic() - reader.newest_s
        if silent_s <= self.options.timeout_s + PATIENCE_S:
            return ''
        return f'{reader.title}: nothing has come for {silent_s:.0f} s. Was it unplugged?'

    # The readers' threads.
    def _now_ns(self) -> int:
        return self.get_clock().now().nanoseconds

    def _open_source(self) -> LiveSource:
        return LiveSource(self._live, self._now_ns)

    def _open_microphone(self) -> Microphone:
        options = self.options
        return Microphone(options.microphone, options.microphone_rate_hz, self._now_ns)

    def _take(self, source: LiveSource, item: LiveImage | LiveAudio) -> None:
        if isinstance(item, LiveAudio):
            self._publish_audio(item.stamp_ns, to_s16(item.samples), item.rate_hz, 1)
            return
        if item.pixels is None:
            message = CompressedImage(format='jpeg')
            message.data.frombytes(item.jpeg)
        else:
            height, width, _ = item.pixels.shape
            message = Image(height=height, width=width, encoding='rgb8', step=3 * width)
            message.data.frombytes(item.pixels.tobytes())
        message.header.frame_id = self.options.frame_id
        message.header.stamp = to_time(item.stamp_ns)
        self._publish(lambda: self._images, message)

    def _hear(self, microphone: Microphone, block: AudioBlock) -> None:
        rate_hz, channels = microphone.rate_hz, microphone.channels
        self._publish_audio(block.stamp_ns, block.samples, rate_hz, channels)

    def _publish_audio(self, stamp_ns: int, samples, rate_hz: int, channels: int) -> None:
        if self._told_format != (rate_hz, channels):
            self._told_format = rate_hz, channels
            info = info_message(self._info_type, rate_hz, channels)
            self._publish(lambda: self._info, info)
        message = self._audio_type()
        message.header.stamp = to_time(stamp_ns)
        message.audio.data.frombytes(samples.astype('<i2').tobytes())
        self._publish(lambda: self._audio, message)

    def _publish(self, publisher_of: Callable, message) -> None:
        """Let the executor publish a message, if the publisher is there by then."""
        if self._waiting >= MOST_WAITING:
            self._dropped += 1
            return
        self._waiting += 1
        self.post(lambda: self._publish_now(publisher_of(), message))

    def _publish_now(self, publisher, message) -> None:
        self._waiting -= 1
        if publisher is not None and self.state == 'active':
            publisher.publish(message)


def live_options(options) -> LiveOptions:
    """Return how the source is read, by the node's parameters."""
    path = options.credentials_file
    is_device = options.source.startswith('/')
    return LiveOptions(
        address=options.source,
        credentials=read_credentials(path) if path else '',
        transport=options.transport,
        timeout_s=options.timeout_s,
        rate_hz=options.rate_hz,
        wants_pixels=options.image_format == RAW,
        jpeg_quality=options.jpeg_quality,
        wants_audio=options.source_audio and not options.microphone and not is_device,
        latency_ms=options.latency_ms,
        size=options.size,
        pixel_format=options.pixel_format,
    )


def main(args=None) -> int:
    """Run the node."""
    return run(lambda: [MediaCapture()], args)


if __name__ == '__main__':
    raise SystemExit(main())
