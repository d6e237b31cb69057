# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Subscribes to the camera: `image` or `image/compressed`, never both at a time.

Each topic is read as the type it is published as: that is a source (ImageSource). With
image_transport auto, the first source that delivers readable colour images is used. It is tried
and judged by its images; one that is silent, grey although the camera has colours, or unreadable
is left for a better one, and that is logged. Grey images are used if no source has colours. If no
source is usable, all are tried in turn.

An image is passed on undecoded, as its stamp and a callable: only one image of each second is
ever decoded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image

from minicpmo_ros.media.image.compressed import decode_as_needed, is_grey
from minicpmo_ros.media.image.raw import AUTO, MEANINGS, decode_image, stated_encoding
from minicpmo_ros.media.image.tiling import Decoded
from minicpmo_ros.ros.framework.parameters import Parameter
from minicpmo_ros.ros.framework.threads import Poller
from minicpmo_ros.ros.framework.topics import LOOK_AGAIN_PERIOD_S, LOOK_PERIOD_S, SILENT_S
from minicpmo_ros.ros.messages import stamp_ns_of

TYPES = {'compressed': CompressedImage, 'raw': Image}  # the preferred first
TOPICS = {'compressed': 'image/compressed', 'raw': 'image'}
NAMES = {'compressed': 'sensor_msgs/msg/CompressedImage', 'raw': 'sensor_msgs/msg/Image'}
COLORLESS = ('mono8', 'mono16', '8UC1', '16UC1 (grey)', '32FC1 (grey)')
# What a fast camera brings between two looks; only the newest of a second is decoded.
IMAGE_QOS = QoSProfile(depth=5, reliability=QoSReliabilityPolicy.BEST_EFFORT)
PARAMETERS = (
    Parameter('image_transport', 'auto',
              'raw: `image`; compressed: `image/compressed`; auto: the first that gives a '
              'readable colour image, trying compressed before raw',
              choices=('auto', 'raw', 'compressed')),
    Parameter('image.single_channel', AUTO,
              'What 16UC1 and 32FC1 are: grey, as of thermal and infrared cameras, or depth, '
              'which is refused; auto: depth if the topic has depth, disparity, distance or range '
              'in its name',
              choices=MEANINGS),
)  # fmt: skip
UNREADABLE_IN_A_ROW = 2  # one may be damaged on the way
GOOD, GREY, BAD = range(3)
_OF_NO_COLOR = ('mono', '8UC1', '16UC1', '32FC1')


@dataclass
class ImageSource:
    """A topic as one type; any thread may judge it."""

    topic: str  # image or image/compressed
    kind: str  # raw or compressed
    verdict: int = GOOD  # until it is judged
    reason: str = ''
    judged: int = 0  # the newer, the higher
    failed: int = 0  # images in a row


@dataclass(frozen=True)
class CameraImage:
    """An image as it came; called with `needed` (see decode_as_needed), it decodes itself."""

    source: ImageSource
    message: object  # CompressedImage or Image
    decode: Callable

    def __call__(self, needed):
        """Return it as Decoded, and judge its source by it; for the worker."""
        return self.decode(self.source, self.message, needed)


class ImageChoice:
    """Chooses among the sources that are there."""

    def __init__(self):
        self._sources, self._count = {}, 0
        self.taken: ImageSource | None = None

    def choose(self, present: list) -> ImageSource | None:
        """Return the source to take, of [(topic, kind)] in order of preference; None: none.

        One that goes away stays taken until there is another: while its camera starts again, its
        subscription stays, or the camera's first images would be lost with it.
        """
        if not present:
            self._sources = {}
            return None
        self._sources = {key: self._sources.get(key) or self._new(key) for key in present}
        taken, sources = self.taken, list(self._sources.values())
        if any(source is taken for source in sources):
            best = min(source.verdict for source in sources)
            if best == BAD and taken.judged == 0:
                return taken  # until it is known to be no better
        self.taken = min(
            sources,
            key=lambda source: (source.verdict, source.judged * (source.verdict == BAD)),
        )
        if self.taken is not taken and self.taken.verdict == BAD:
            self.taken.judged = 0  # it is tried again
        return self.taken

    def _new(self, key: tuple) -> ImageSource:
        """Return a source that is not judged: a camera that comes back may have been mended."""
        taken = self.taken
        if taken is None or (taken.topic, taken.kind) != key:
            return ImageSource(*key)
        taken.verdict, taken.reason, taken.judged, taken.failed = GOOD, '', 0, 0
        return taken

    def others(self) -> list:
        """Return the sources that are there beside the one taken."""
        return [source for source in self._sources.values() if source is not self.taken]

    def judge(self, source: ImageSource, verdict: int, reason: str = '') -> bool:
        """Note what a source gives; return whether that is new."""
        self._count += 1
        is_new = verdict != source.verdict or not source.judged
        source.verdict, source.reason, source.judged = verdict, reason, self._count
        source.failed = 0
        return is_new

    def fail(self, source: ImageSource, reason: str) -> bool:
        """Note an image that cannot be read; return whether the source is judged by it."""
        source.failed += 1
        if source.failed < UNREADABLE_IN_A_ROW:
            return False
        failed = source.failed
        is_new = self.judge(source, BAD, reason)
        source.failed = failed
        return is_new


def camera_topics(camera: str) -> dict:
    """Return {kind: topic} of a camera; '': the only one."""
    return {kind: f'{camera}/{topic}'.lstrip('/') for kind, topic in TOPICS.items()}


class CameraInputs:
    """Subscriptions to several cameras; `on_image(stamp_ns, (name, make_image))`."""

    def __init__(self, node, options, on_image, names: tuple):
        def take(name: str, stamp_ns: int, make_image) -> None:
            on_image(stamp_ns, (name, make_image))

        self._inputs = [ImageInput(node, options, partial(take, name), name) for name in names]

    @property
    def read_until(self):
        """As ImageInput; of the camera that is read last."""
        known = [each.read_until for each in self._inputs]
        return None if None in known else min(known, key=lambda instant: instant.steady_s)

    def close(self) -> None:
        """Unsubscribe."""
        for each in self._inputs:
            each.close()


class ImageInput:
    """Subscription to the camera that calls `on_image(stamp_ns, CameraImage)`.

    The image is called to be decoded; see ImagePipeline.offer with `as_needed`. `camera`: the name
    before its topics, of several; '': none.
    """

    def __init__(self, node, options, on_image, camera: str = ''):
        self._node, self._on_image = node, on_image
        self._topics = camera_topics(camera)
        self._transport, self._meaning = options.image_transport, options.image_single_channel
        self._choice, self._subscription, self._is_open = ImageChoice(), None, True
        self._told = set()
        self._poller = Poller(node, node.time.now)
        self._looking = node.ticks.every(LOOK_PERIOD_S, self._look)
        self._look()

    @property
    def read_until(self):
        """The Instant until which all that arrived has been called back; None: none yet."""
        return self._poller.read_until

    def close(self) -> None:
        """Unsubscribe."""
        self._is_open = False
        self._node.ticks.end(self._looking)
        self._poller.close()

    def _look(self) -> None:
        """Subscribe to the best of the topics published by now."""
        if not self._is_open:
            return
        self._judge_silence()
        before = self._choice.taken
        source = self._choice.choose(self._present())
        if source is None or source is before:
            return
        if self._subscription is not None:
            self._poller.unsubscribe(self._subscription)
        message_type = TYPES[source.kind]
        self._subscription = self._poller.subscribe(
            message_type, source.topic, partial(self._on_message, source), IMAGE_QOS
        )
        self._looking.period_s = LOOK_AGAIN_PERIOD_S
        if before is not None and before.reason:
            self._tell_once(
                f'{self._name(before)}: {before.reason.rstrip(".")}; '
                f'{self._name(source)} is taken instead',
                (before.topic, before.kind, before.verdict),
            )

    def _present(self) -> list:
        """Return [(topic, kind)] of the readable topics, the preferred first."""
        types = {topic: self._types_of(topic) for topic in self._topics.values()}
        found = [
            (topic, kind)
            for kind in TYPES
            for topic in types
            if self._transport in ('auto', kind) and NAMES[kind] in types[topic]
        ]
        if found or self._transport == 'auto':
            return found
        return [(self._topics[self._transport], self._transport)]  # before it is published

    def _types_of(self, topic: str) -> set:
        """Return the types that a topic is published as; log those that are no images."""
        name = self._node.resolve_topic_name(topic)
        types = {end.topic_type for end in self._node.get_publishers_info_by_topic(name)}
        for other in types - set(NAMES.values()):
            self._tell_once(
                f'{name} is published as {other}, which is not read; '
                f'{" and ".join(NAMES.values())} are. Set image_topic (or the remaps of image '
                'and image/compressed) to such a topic, or have image_transport republish this '
                'one as raw'
            )
        is_chosen = topic == self._topics.get(self._transport)
        if types and is_chosen and NAMES[self._transport] not in types:
            self._tell_once(
                f'{name} is published as {", ".join(sorted(types))}, and image_transport is '
                f'{self._transport}: set it to auto, or remap the name'
            )
        return types

    def _judge_silence(self) -> None:
        source = self._choice.taken
        stats = source and self._node.topics.input_stats.get(
            self._node.resolve_topic_name(source.topic)
        )
        # Where there is nothing else, it is waited for; /diagnostics tells of it.
        if stats and stats.age_s() > SILENT_S and self._choice.others():
            text = 'is silent' if stats.count else 'no image has come'
            self._choice.judge(source, BAD, f'{text} for {SILENT_S:.0f} s')

    def _on_message(self, source, message) -> None:
        # A publisher without a clock sends a stamp of zero: then the arrival is the stamp.
        stamp_ns = stamp_ns_of(message) or self._node.get_clock().now().nanoseconds
        self._on_image(stamp_ns, CameraImage(source, message, self._decode))

    def _decode(self, source, message, needed):
        """Return the decoded image of a message; see CameraImage."""
        is_raw, topic = source.kind == 'raw', self._node.resolve_topic_name(source.topic)
        stated = message.encoding if is_raw else message.format
        stated = stated_encoding(stated, topic, self._meaning)
        try:
            if is_raw:
                image = Decoded.whole(decode_image(message, stated))
                is_colorless = stated in COLORLESS
            else:
                image = decode_as_needed(message.data, stated, needed)
                is_colorless = is_grey(message.data) and not _is_mosaic(message.format)
        except Exception as error:
            if self._choice.fail(source, str(error)):
                self._node.post(self._look)
            raise
        verdict, reason = GOOD, ''
        if is_colorless and (source.kind == 'raw' or not _is_stated_grey(message.format)):
            verdict, reason = GREY, self._tell_grey(source, message)
        if self._choice.judge(source, verdict, reason):
            self._node.post(self._look)
        return image

    def _tell_grey(self, source, message) -> str:
        """Return why an image without colours may not be what the camera sees."""
        if source.kind == 'raw':
            return f'the images are grey ({message.encoding})'
        if not is_grey_of_color(message.format):
            return 'the images are grey'
        reason = f'the images are grey, of a colour camera ({message.format.strip()})'
        if not self._choice.others():
            self._tell_once(
                f'{self._name(source)}: {reason}. Publish raw images on '
                f'{self._node.resolve_topic_name(self._topics["raw"])} too, or set the encoding '
                '(pixel_format) of the driver to rgb8'
            )
        return reason

    def _name(self, source) -> str:
        return f'{self._node.resolve_topic_name(source.topic)} ({source.kind})'

    def _tell_once(self, text: str, key=None) -> None:
        if (key or text) not in self._told:
            self._told.add(key or text)
            self._node.get_logger().warning(text)


def _is_mosaic(stated_format: str) -> bool:
    given, _, how = stated_format.partition(';')
    return given.strip().startswith('bayer_') and how.strip().endswith('compressed')


def _is_stated_grey(stated_format: str) -> bool:
    return stated_format.strip().startswith(('mono', '16UC1'))


def is_grey_of_color(stated_format: str) -> bool:
    """Return whether a grey image comes from a colour camera, as CompressedImage.format tells.

    image_transport writes 'yuv422_yuy2; jpeg compressed mono8': what it was given, and what it
    made of it. Of a format that does not say what it was given, nothing is known: False.
    """
    given, separator, _ = stated_format.partition(';')
    given = given.strip()
    return bool(separator and given) and not given.startswith(_OF_NO_COLOR)
