# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The camera's topic: raw on `image` or compressed on `image/compressed`, never both.

A picture is handed on undecoded, as its stamp and a callable: of each second only one picture
is ever decoded.
"""

from functools import partial

from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image

from minicpmo_ros.media.picture import decode_compressed
from minicpmo_ros.media.raw_picture import decode_image
from minicpmo_ros.nodes.messages import stamp_ns_of
from minicpmo_ros.nodes.parameters import Parameter
from minicpmo_ros.nodes.polling import Poller

LOOK_PERIOD_S = 0.5
LOOK_AGAIN_PERIOD_S = 2.0  # a camera may come back with the other kind of pictures
# What a fast camera brings between two looks; only the newest of a second is decoded.
IMAGE_QOS = QoSProfile(depth=5, reliability=QoSReliabilityPolicy.BEST_EFFORT)
PARAMETERS = (
    Parameter('image_transport', 'auto',
              'raw: `image`; compressed: `image/compressed`; auto: the one that is published, '
              'compressed where both are',
              choices=('auto', 'raw', 'compressed')),
)  # fmt: skip


class PictureInput:
    """Subscription to the camera that gives `on_picture(stamp_ns, make_picture)`."""

    def __init__(self, node, options, on_picture):
        self._node, self._on_picture = node, on_picture
        self._transport = options.image_transport
        self._taken = self._subscription = None
        self._poller = Poller(node)
        self._looking = node.steady_timer(LOOK_PERIOD_S, self._look)
        self._look()

    def close(self) -> None:
        """Unsubscribe."""
        self._node.destroy_timer(self._looking)
        self._poller.close()

    def _look(self) -> None:
        """Subscribe to what is published by now."""
        wanted = next((name for name in ('compressed', 'raw') if self._wanted(name)), None)
        if wanted is None or wanted == self._taken:
            return
        if self._subscription is not None:
            self._poller.unsubscribe(self._subscription)
        if wanted == 'compressed':
            how = CompressedImage, 'image/compressed', self._on_compressed
        else:
            how = Image, 'image', self._on_raw
        self._taken, self._subscription = wanted, self._poller.subscribe(*how, IMAGE_QOS)
        self._looking.timer_period_ns = int(LOOK_AGAIN_PERIOD_S * 1e9)

    def _wanted(self, transport: str) -> bool:
        if self._transport != 'auto':
            return self._transport == transport
        topic = 'image' if transport == 'raw' else 'image/compressed'
        return self._node.count_publishers(self._node.resolve_topic_name(topic)) > 0

    def _on_compressed(self, message) -> None:
        make = partial(decode_compressed, message.data, message.format)
        self._on_picture(self._stamp_ns(message), make)

    def _on_raw(self, message) -> None:
        self._on_picture(self._stamp_ns(message), partial(decode_image, message))

    def _stamp_ns(self, message) -> int:
        # A stamp of zero is what a publisher sends that knows none: then it is the arrival.
        return stamp_ns_of(message) or self._node.get_clock().now().nanoseconds
