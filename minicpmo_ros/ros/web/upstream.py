# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What goes from the node into the graph: camera and microphone of a page, parameters, a view."""

from functools import partial
from time import monotonic

from rcl_interfaces.msg import ParameterType
from rcl_interfaces.srv import GetParameters, SetParameters
from rclpy.parameter import Parameter as RosParameter
from sensor_msgs.msg import CompressedImage

from minicpmo_ros.media.audio.log_mel import SAMPLE_RATE_HZ
from minicpmo_ros.media.image.caption import Caption, Captioner
from minicpmo_ros.media.image.compressed import encode_jpeg
from minicpmo_ros.ros.audio_input import audio_types, info_message
from minicpmo_ros.ros.framework.lifecycle import LATCHED
from minicpmo_ros.ros.framework.parameters import ANY_TIME, Parameter
from minicpmo_ros.ros.llm_options import PARAMETERS
from minicpmo_ros.ros.messages import to_time
from minicpmo_ros.ros.playback.player import CAMERA_QOS, MICROPHONE_QOS
from minicpmo_ros.ros.web.messages import JPEG_QUALITY, plain
from minicpmo_ros.web import requests
from minicpmo_ros.web.server import Page

LLM = 'llm'
FREE_AFTER_S = 2.0  # without an image or audio of a page, another may be the camera
CHANGEABLE = tuple(row for row in PARAMETERS if row.when == ANY_TIME)


class SensePublisher:
    """Publishes the camera and the microphone of one page at a time as the robot's."""

    def __init__(self, node):
        self._node, self._page, self._sent_s = node, None, 0.0  # whose they are, and since when
        self._audio_type, info_type = audio_types()
        self._images = node.topics.publish(CompressedImage, 'image/compressed', CAMERA_QOS)
        self._audio = node.topics.publish(self._audio_type, 'audio', MICROPHONE_QOS)
        info = node.topics.publish(info_type, 'audio_info', LATCHED)
        info.publish(info_message(info_type, SAMPLE_RATE_HZ))

    def is_for(self, page: Page) -> bool:
        """Return whether the camera and the microphone are this page's: the first that sends."""
        now_s = monotonic()
        if self._page is not page:
            if self._page is not None and now_s - self._sent_s < FREE_AFTER_S:
                return False
            self._page = page
        self._sent_s = now_s
        return True

    def leave(self, page: Page) -> None:
        """Let another page be the camera."""
        if self._page is page:
            self._page = None

    def publish(self, kind: int, stamp_ns: int, data: bytes) -> None:
        """Publish an image or audio."""
        if kind == requests.IMAGE:
            message, publisher = CompressedImage(format='jpeg'), self._images
            message.data.frombytes(data)
        else:
            message, publisher = self._audio_type(), self._audio
            message.audio.data.frombytes(data)
        message.header.stamp = to_time(stamp_ns)
        publisher.publish(message)


class ViewPublisher:
    """Publishes the encoded image of each second with the newest answer drawn on it.

    It is for programs that show images, and know none of our messages; and nothing is drawn, nor
    published, while nobody subscribes. All methods but `is_wanted` are for one thread.
    """

    def __init__(self, node, font_file: str):
        """Raise InputError if the file is no font; '': Pillow's own."""
        self._captioner = Captioner(font_file)
        self._publisher = node.topics.publish(CompressedImage, '~/view', CAMERA_QOS)
        self._shown, self._answer = None, None  # (stamp_ns, ImageEmbedding, pixels); Answer

    @property
    def is_wanted(self) -> bool:
        """Whether somebody subscribes."""
        return self._publisher.get_subscription_count() > 0

    def show(self, stamp_ns: int, seen, pixels) -> None:
        """Publish an image (H, W, 3) uint8 RGB; seen: the message of ~/seen about it."""
        self._shown = stamp_ns, seen, pixels
        self._publish()

    def take_answer(self, answer) -> None:
        """Draw this answer from now on, and at once on the image that is shown."""
        self._answer = answer
        if self._shown is not None:
            self._publish()

    def _publish(self) -> None:
        if not self.is_wanted:
            self._shown = None
            return
        stamp_ns, seen, pixels = self._shown
        message = CompressedImage(format='jpeg')
        message.header.stamp = to_time(stamp_ns)
        captioned = self._captioner.draw(pixels, caption_of(seen, self._answer))
        message.data.frombytes(encode_jpeg(captioned, JPEG_QUALITY))
        self._publisher.publish(message)


def caption_of(seen, answer) -> Caption:
    """Return what is drawn on an image; seen: ImageEmbedding, answer: Answer or None."""
    tiles = (seen.tiles_wide, seen.tiles_high)
    told = [f'{seen.source_width} x {seen.source_height}']
    told += [f'{tiles[0]} x {tiles[1]} tiles'] if all(tiles) else []
    told += ['like the one before'] if seen.reused else []
    if answer is None:
        return Caption(', '.join(told), tiles=tiles)
    said = answer.text or answer.reason
    is_evidence = seen.second in answer.seconds
    return Caption(', '.join(told), (answer.question, said), is_evidence, tiles)


class SettingsClient:
    """Reads and changes the parameters of the llm node that may change at any time."""

    def __init__(self, node, tell):
        self._tell = tell
        self._getting = node.create_client(GetParameters, f'{LLM}/get_parameters')
        self._setting = node.create_client(SetParameters, f'{LLM}/set_parameters')
        self._read = None  # what was asked for last

    def read(self) -> None:
        """Tell the values, if the node is there."""
        if self._read is not None:
            self._getting.remove_pending_request(self._read)  # of a node that may be gone
        if self._getting.service_is_ready():
            names = [row.name for row in CHANGEABLE]
            self._read = self._getting.call_async(GetParameters.Request(names=names))
            self._read.add_done_callback(partial(self._on_read, names))

    def write(self, change, row: Parameter, page: Page) -> None:
        """Change one, and tell the values."""
        if not self._setting.service_is_ready():
            page.send({'type': 'refused', 'reason': f'There is no {change.node}.'})
            return
        value = float(change.value) if _is_float(row, change.value) else change.value
        message = RosParameter(row.name, value=value).to_parameter_msg()
        future = self._setting.call_async(SetParameters.Request(parameters=[message]))
        future.add_done_callback(partial(self._on_written, page))

    def _on_read(self, names: list, future) -> None:
        values = future.result().values
        if len(values) == len(names):
            self._tell({name: _value_of(value) for name, value in zip(names, values)})

    def _on_written(self, page: Page, future) -> None:
        for result in future.result().results:
            if not result.successful:
                page.send({'type': 'refused', 'reason': result.reason})
        self.read()


def _is_float(row: Parameter, value) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(row.default, float) and is_number


def _value_of(value):
    """Return a ParameterValue as the page is sent it."""
    fields = {
        ParameterType.PARAMETER_BOOL: value.bool_value,
        ParameterType.PARAMETER_INTEGER: value.integer_value,
        ParameterType.PARAMETER_DOUBLE: value.double_value,
        ParameterType.PARAMETER_STRING: value.string_value,
    }
    return plain(fields.get(value.type, ''))


def describe(row: Parameter) -> dict:
    """Return what the page needs to show a parameter."""
    return {
        'node': LLM,
        'name': row.name,
        'kind': type(row.default).__name__,
        'what': row.description,
        'unit': row.unit,
        'minimum': row.minimum,
        'maximum': row.maximum,
        'choices': list(row.choices),
    }
