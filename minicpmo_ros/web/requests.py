# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What a page may send to the server, checked completely before anything of it is used.

Where a server listens and who may connect is here, too: who knows the token, under a name of this
machine.

A text message is a JSON object with `type`: ask, cancel, set, pause or clock. A binary message is
one byte (its kind), the page's time as a little-endian float64 in milliseconds, and a JPEG or mono
16-bit samples of 16 kHz.
"""

import errno
import hmac
import json
import socket
import ssl
import struct
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from minicpmo_ros.documents import told
from minicpmo_ros.errors import InputError, in_words
from minicpmo_ros.media.audio.log_mel import SAMPLE_RATE_HZ

MAX_QUESTION, MAX_CHOICES, MAX_CHOICE, MAX_NAME = 4_000, 32, 200, 200  # characters, but CHOICES
MAX_AUDIO_BYTES = 2 * SAMPLE_RATE_HZ  # one second
LARGEST_NUMBER = 2**63
HEADER = struct.Struct('<Bd')
AUDIO, IMAGE = 1, 2
JPEG_BEGIN = b'\xff\xd8\xff'
NO_HOST = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EINVAL)


@dataclass(frozen=True)
class ServerOptions:
    """Where to listen, and for whom; a free port with port 0, a random token with ''."""

    host: str = '127.0.0.1'
    port: int = 8080
    token: str = ''
    certificate: str = ''  # files; '': no TLS
    key: str = ''
    names: tuple = ()  # by which this machine may be called, beside `host` and the loopback's
    max_pages: int = 8


@dataclass(frozen=True)
class Asked:
    """A question; `number` is the page's own."""

    number: int
    question: str
    choices: tuple = ()
    remember: bool = False


@dataclass(frozen=True)
class Cancelled:
    """The page does not want the answer to its question `number` any more."""

    number: int


@dataclass(frozen=True)
class ParameterChange:
    """A new value of a parameter of a node."""

    node: str
    name: str
    value: bool | int | float | str


@dataclass(frozen=True)
class Pause:
    """Pause the standing question `rule`, or let it go on."""

    rule: str
    paused: bool


@dataclass(frozen=True)
class ClockEcho:
    """The answer to the server's clock: its time, sent back, and the page's own."""

    server_ms: float
    page_ms: float


@dataclass(frozen=True)
class Media:
    """An image (JPEG) or audio (bytes of int16 little-endian) of the page's time `page_ms`.

    The time is that of the image, or of the first sample.
    """

    kind: int  # AUDIO or IMAGE
    page_ms: float
    data: bytes


def check_place(options: ServerOptions) -> None:
    """Raise InputError where it is not said where to listen: that would be everywhere."""
    if not options.host:
        raise InputError(
            'host is empty. Give 127.0.0.1 for this machine alone, 0.0.0.0 for all its networks.'
        )


def tls_context(options: ServerOptions) -> ssl.SSLContext | None:
    """Return what a server encrypts with; None: it does not. Raises InputError."""
    if not options.certificate:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(options.certificate, options.key or None)
    except (OSError, ValueError) as error:
        raise InputError(
            f'The certificate {options.certificate!r} with the key {options.key!r} cannot be '
            f'used: {in_words(error)}. Give two PEM files that belong together.'
        ) from error
    return context


def why_not_served(error: Exception, options: ServerOptions) -> Exception:
    """Return what is raised to who starts a server that `error` has ended."""
    if not isinstance(error, (OSError, UnicodeError)):
        return error
    remedy = 'Give another port, or 0 for a free one.'
    is_host = isinstance(error, (socket.gaierror, UnicodeError))
    if is_host or getattr(error, 'errno', None) in NO_HOST:
        remedy = (
            'Give as host an address of this machine: 127.0.0.1, 0.0.0.0 for all of them, or one '
            'that hostname -I lists.'
        )
    return InputError(
        f'The page cannot be served at {options.host}, port {options.port}: '
        f'{in_words(error)}. {remedy}'
    )


def refusal(host: str, given: str, names: tuple, token: str) -> str:
    """Return why a request is refused, or ''.

    host: its header Host; given: its token; names: by which this machine may be called.
    """
    if not host:
        return 'The request names no host (header Host).'
    name = split_address(f'//{host}').hostname
    if name is None:
        return f'The header Host is {told(host)}, which is no address.'
    if name not in names:
        return f'This machine is not known as {name!r} here: add that to the parameter hosts.'
    if not hmac.compare_digest(given.encode(errors='replace'), token.encode()):
        return 'The token is wrong: take the address that the node has printed.'
    return ''


def split_address(text: str) -> SplitResult:
    """Return the parts of an address, none of them where it is no address."""
    try:
        return urlsplit(text)
    except ValueError:
        return urlsplit('')


def read_text(text: str):
    """Return the request of a text message; raise InputError with what is wrong in it."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        raise InputError('The message is not JSON.') from None
    kind = fields.get('type') if isinstance(fields, dict) else None
    if not isinstance(kind, str) or kind not in READERS:
        raise InputError(f'The message has no known type; there are {", ".join(READERS)}.')
    return READERS[kind](fields)


def number_asked(data: str | bytes):
    """Return the number that a page gave a question which is refused; None: it is none."""
    with suppress(ValueError, RecursionError, InputError):
        fields = json.loads(data) if isinstance(data, str) else None
        if isinstance(fields, dict) and fields.get('type') == 'ask':
            return _whole(fields, 'number')
    return None


def read_binary(data: bytes) -> Media:
    """Return the image or audio of a binary message; raise InputError if it is neither."""
    if len(data) <= HEADER.size:
        raise InputError(f'A binary message has over {HEADER.size} bytes, this one {len(data)}.')
    kind, page_ms = HEADER.unpack_from(data)
    content = data[HEADER.size :]
    if not abs(page_ms) < LARGEST_NUMBER:  # also not a number
        raise InputError('The time of a binary message is no number.')
    if kind == AUDIO:
        if len(content) % 2 or len(content) > MAX_AUDIO_BYTES:
            raise InputError(
                f'Audio comes as 16-bit samples, at most {MAX_AUDIO_BYTES} bytes at once; these '
                f'are {len(content)} bytes.'
            )
    elif kind != IMAGE:
        raise InputError(f'Binary messages are of kind {AUDIO} or {IMAGE}, not {kind}.')
    elif not content.startswith(JPEG_BEGIN):
        raise InputError('An image must be a JPEG.')
    return Media(kind, page_ms, content)


def _asked(fields: dict) -> Asked:
    choices = fields.get('choices', [])
    if not isinstance(choices, list) or len(choices) > MAX_CHOICES:
        raise InputError(f'choices must be a list of at most {MAX_CHOICES} texts.')
    texts = tuple(_text({'choices': choice}, 'choices', MAX_CHOICE) for choice in choices)
    if not all(texts):
        raise InputError('A choice must not be empty.')
    return Asked(
        _whole(fields, 'number'),
        _text(fields, 'question', MAX_QUESTION),
        texts,
        _truth(fields, 'remember', False),
    )


def _change(fields: dict) -> ParameterChange:
    value = fields.get('value')
    if isinstance(value, float) and not abs(value) < float('inf'):
        raise InputError('value must be a number.')
    if isinstance(value, int) and abs(value) >= LARGEST_NUMBER:
        raise InputError('value does not fit into 64 bits.')
    if isinstance(value, str):
        value = _text(fields, 'value', MAX_QUESTION)
    elif not isinstance(value, (bool, int, float)):
        raise InputError('value must be a number, a text, true or false.')
    return ParameterChange(_text(fields, 'node', MAX_NAME), _text(fields, 'name', MAX_NAME), value)


def _number(fields: dict, name: str) -> float:
    value = fields.get(name)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not abs(value) < LARGEST_NUMBER:  # also not a number
        raise InputError(f'{name} must be a number.')
    return float(value)


def _whole(fields: dict, name: str) -> int:
    value = _number(fields, name)
    if value != int(value):
        raise InputError(f'{name} must be a whole number.')
    return int(value)


def _truth(fields: dict, name: str, default: bool) -> bool:
    value = fields.get(name, default)
    if not isinstance(value, bool):
        raise InputError(f'{name} must be true or false.')
    return value


def _text(fields: dict, name: str, most: int) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or len(value) > most:
        raise InputError(f'{name} must be a text of at most {most} characters.')
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f'{name} holds half of a surrogate pair, which is no text.') from None
    if '\0' in value:  # messages of ROS end there
        raise InputError(f'{name} holds a NUL character.')
    return value


READERS = {
    'ask': _asked,
    'cancel': lambda fields: Cancelled(_whole(fields, 'number')),
    'set': _change,
    'pause': lambda fields: Pause(_text(fields, 'rule', MAX_NAME), _truth(fields, 'paused', True)),
    'clock': lambda fields: ClockEcho(_number(fields, 'server_ms'), _number(fields, 'page_ms')),
}
