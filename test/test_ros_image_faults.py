# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Nothing that a camera's topic brings ends the node, fills its memory or stays untold."""

import struct
import time
import zlib
from pathlib import Path

import pytest
from image_encodings import encode
from ros_source import FIRST, jpeg, picture_of, time_of
from sensor_msgs.msg import CompressedImage, Image

from minicpmo_ros.msg import ImageEmbedding

NS = 10**9
TOLD_AGAIN_S = 10
MOST_MORE_MIB = 64  # one picture of 16384 x 16384 alone is 768
PICTURE = picture_of(0)


def image(encoding='rgb8', width=64, height=48, step=None, n_bytes=None) -> Image:
    """Give a raw picture that may lie; step and data agree unless told."""
    step = 3 * width if step is None else step
    message = Image(encoding=encoding, width=width, height=height, step=step)
    message.data.frombytes(bytes(step * height if n_bytes is None else n_bytes))
    return message


def compressed(data: bytes, name='jpeg') -> CompressedImage:
    message = CompressedImage(format=name)
    message.data.frombytes(data)
    return message


def png_bomb(side: int) -> bytes:
    """A PNG of a hundred kB that claims side x side pixels, and unpacks to many of them."""

    def chunk(kind, data):
        check = zlib.crc32(kind + data)
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', check)

    header = struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(20_000_000), 1)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', rows)


def good_raw() -> Image:
    raw = encode(PICTURE, 'bayer_grbg16', padding=6, is_bigendian=True)
    message = image(raw.encoding, raw.width, raw.height, raw.step, 0)
    message.is_bigendian = True
    message.data.frombytes(raw.data)
    return message


# What is wrong: (the message, what the warning says).
RAW = {
    '0x0': (lambda: image(width=0, height=0), '0x0; sides of 2 to 8192'),
    '1x1': (lambda: image(width=1, height=1), '1x1; sides of 2 to 8192'),
    '20000x1': (lambda: image(width=20_000, height=1), '20000x1; sides of 2 to 8192'),
    '1x20000': (lambda: image(width=1, height=20_000), '1x20000; sides of 2 to 8192'),
    'aspect': (lambda: image(width=2000, height=50), '2000x50; one side may be at most 20'),
    '16k claim': (lambda: image(width=16_384, height=16_384, n_bytes=99), '16384x16384; sides'),
    '8k claim': (lambda: image(width=8192, height=8192, n_bytes=99), '8192x8192 rgb8 with a step'),
    'short': (lambda: image(n_bytes=99), 'rgb8 with a step of 192 bytes and 99 bytes'),
    'short rows': (lambda: image(step=99), 'rgb8 with a step of 99 bytes'),
    'misspelt': (lambda: image('RGB8'), "'RGB8'; allowed are rgb8"),
    'empty name': (lambda: image(''), "''; allowed are rgb8"),
    'no data': (lambda: image(n_bytes=0), 'rgb8 with a step of 192 bytes and 0 bytes'),
}
COMPRESSED = {
    'bomb': (lambda: compressed(png_bomb(9000), 'png'), '9000x9000; sides of 2 to 8192'),
    'large bomb': (lambda: compressed(png_bomb(60_000), 'png'), 'has more than 178956970 pixels'),
    'truncated': (lambda: compressed(jpeg(PICTURE)[:-150]), '(JPEG, 160x120) is damaged or cut'),
    'text': (lambda: compressed(b'a stop sign', 'text'), "11 bytes that begin with b'a stop s'"),
    'zero bytes': (lambda: compressed(b''), 'has 0 bytes'),
    'header alone': (lambda: compressed(jpeg(PICTURE)[:20]), '20 bytes that begin with'),
    'depth': (
        lambda: compressed(bytes(12) + jpeg(PICTURE), '16UC1; compressedDepth png'),
        'compressed depth',
    ),
}


def peak_mib(process) -> float:
    """Give the most memory a process has had."""
    status = Path(f'/proc/{process.popen.pid}/status').read_text()
    return int(status.split('VmHWM:')[1].split()[0]) / 1024


def show(graph, publisher, seen, second: int, message) -> None:
    """Publish a picture of a second, and go on when the second before it has been given."""
    message.header.stamp = time_of(second * NS)
    publisher.publish(message)
    graph.spin_until(lambda: seen and seen[-1].second >= second - 1, f'second {second - 1}')


@pytest.mark.parametrize(
    'topic, kind, faults, good',
    [
        ('image', Image, RAW, good_raw),
        ('image/compressed', CompressedImage, COMPRESSED, lambda: compressed(jpeg(PICTURE))),
    ],
    ids=['raw', 'compressed'],
)
def test_every_bad_picture_is_told_and_survived(graph, tiny_model_dir, topic, kind, faults, good):
    rule = f'qos_overrides.{graph.namespace}/image.subscription'
    lossless = ('-p', f'{rule}.reliability:=reliable', '-p', f'{rule}.depth:=20')
    process = graph.start(
        'vision_encoder', '-p', f'model_dir:={tiny_model_dir}', *graph.lossless, *lossless
    )
    seen = []
    graph.create_subscription(ImageEmbedding, 'vision_encoder/embedding', seen.append, 50)
    camera = graph.create_publisher(kind, topic, 20)
    graph.spin_until(camera.get_subscription_count, 'the node')
    second, begin_s = FIRST, time.monotonic()
    for _ in range(2):
        show(graph, camera, seen, second, good())
        second += 1
    before_mib = peak_mib(process)
    lost = {}
    for name, (make, _) in faults.items():
        for _ in range(2):
            show(graph, camera, seen, second, make())
            lost[second] = name
            second += 1
    show(graph, camera, seen, second, good())
    show(graph, camera, seen, second + 1, good())
    statuses = {message.second: message.status for message in seen}
    assert {s: name for s, name in lost.items() if statuses[s] != ImageEmbedding.LOST} == {}
    assert statuses[FIRST] == statuses[second] == ImageEmbedding.OK
    assert (seen[-1].source_width, seen[-1].source_height) == (160, 120)
    assert peak_mib(process) < before_mib + MOST_MORE_MIB
    most = 1 + (time.monotonic() - begin_s) // TOLD_AGAIN_S
    for name, (_, words) in faults.items():
        assert 1 <= process.log.count(words) <= most, name
    assert 'Traceback' not in process.log
    assert process.end() == 0
