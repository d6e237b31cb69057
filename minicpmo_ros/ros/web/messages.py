# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Messages of the graph as what the page is sent: dicts of texts and finite numbers.

A number that is not finite becomes None; a time becomes seconds.
"""

import math

import numpy as np
from PIL import Image

from minicpmo_ros.media.image.compressed import encode_jpeg
from minicpmo_ros.msg import Alert, AlertState, Answer, ImageEmbedding, Speech, Status
from minicpmo_ros.web.requests import HEADER, IMAGE

INPUT_STATES = {
    ImageEmbedding.OK: 'ok',
    ImageEmbedding.EMPTY: 'empty',
    ImageEmbedding.LOST: 'lost',
    ImageEmbedding.OVERLOADED: 'overloaded',
    ImageEmbedding.SKIPPED: 'skipped',
}
LLM_STATES = {Status.UNLOADED: 'unloaded', Status.LOADING: 'loading', Status.READY: 'ready',
              Status.FAILED: 'failed'}  # fmt: skip
ALERT_KINDS = {
    Alert.BEGIN: 'begin',
    Alert.ONGOING: 'ongoing',
    Alert.END: 'end',
    Alert.UNKNOWN: 'unknown',
    Alert.CHANGE: 'change',
    Alert.DESCRIBED: 'described',
}
ALERT_STATES = {AlertState.UNKNOWN: 'unknown', AlertState.INACTIVE: 'inactive',
                AlertState.ACTIVE: 'active'}  # fmt: skip
FINISHES = {Answer.STOP: 'stop', Answer.LENGTH: 'length', Answer.CANCELLED: 'cancelled',
            Answer.ERROR: 'error'}  # fmt: skip
TURNS = {Speech.STARTED: 'started', Speech.ENDED: 'ended', Speech.DISCARDED: 'discarded'}
NOT_SHOWN = ('header', 'data', 'model', 'picture')
WIDEST, JPEG_QUALITY = 640, 80  # of an image that is shown, pixels


def fields_of(message, leave_out: tuple = NOT_SHOWN) -> dict:
    """Return the fields of a message as a dict; a field that is a message becomes a dict too."""
    types = message.get_fields_and_field_types()
    return {name: plain(getattr(message, name)) for name in types if name not in leave_out}


def plain(value):
    """Return the value of a field as the page is sent it."""
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if hasattr(value, 'nanosec'):
        return round(value.sec + 1e-9 * value.nanosec, 3)
    if hasattr(value, 'get_fields_and_field_types'):
        return fields_of(value)
    if isinstance(value, (str, bool, int)):
        return value
    return [plain(item) for item in value]


def seen(message) -> dict:
    """Return an ImageEmbedding of ~/seen."""
    fields = fields_of(message)
    return fields | {'type': 'seen', 'status': INPUT_STATES.get(message.status, '?')}


def heard(message) -> dict:
    """Return an AudioEmbedding of ~/heard."""
    fields = fields_of(message)
    return fields | {'type': 'heard', 'status': INPUT_STATES.get(message.status, '?')}


def status(message: Status) -> dict:
    """Return what the llm says of itself."""
    fields = fields_of(message, ('header',))
    return fields | {'type': 'status', 'state': LLM_STATES.get(message.state, '?')}


def answer(message: Answer) -> dict:
    """Return an answer."""
    fields = fields_of(message)
    return fields | {'type': 'answer', 'finish': FINISHES.get(message.finish, '?')}


def alert(message: Alert) -> dict:
    """Return what a standing question tells."""
    at_s = plain(message.header.stamp)
    kind = ALERT_KINDS.get(message.kind, '?')
    return fields_of(message) | {'type': 'alert', 'at': at_s, 'kind': kind}


def alert_states(message) -> dict:
    """Return what all standing questions say now."""
    states = [
        fields_of(one) | {'state': ALERT_STATES.get(one.state, '?')} for one in message.alerts
    ]
    return {'type': 'alert_states', 'alerts': states}


def speech(message: Speech) -> dict:
    """Return a turn of speech."""
    return fields_of(message) | {'type': 'speech', 'kind': TURNS.get(message.kind, '?')}


def shown_size(width: int, height: int) -> tuple:
    """Return (width, height) in which an image of this size is shown."""
    scale = min(1.0, WIDEST / max(width, height))
    return math.ceil(scale * width), math.ceil(scale * height)


def small(pixels) -> np.ndarray:
    """Return an image (H, W, 3) uint8 RGB no larger than it is shown."""
    image = Image.fromarray(pixels)
    image.thumbnail((WIDEST, WIDEST))
    return np.asarray(image)


def image(second: int, pixels) -> bytes:
    """Return the image (H, W, 3) uint8 RGB of a second as a binary message: header and JPEG."""
    return HEADER.pack(IMAGE, float(second)) + encode_jpeg(pixels, JPEG_QUALITY)
