# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What is no camera is told with what to do, and no password is."""

import re
import time

import pytest
from rtsp_camera import flashes, needs_rtsp_server

from minicpmo_ros.errors import InputError
from minicpmo_ros.media.live_source import LiveImage, LiveOptions, LiveSource, read_credentials

NO_CAMERA = {
    'clip.mp4': 'it takes rtsp://HOST/PATH',
    'http://user:s3cr3t@camera/video': 'it takes rtsp://HOST/PATH',
    'rtsp:///live': 'it takes rtsp://HOST/PATH',
    'rtsp://user:s3cr3t@127.0.0.1:9/live': 'nobody listens there',
    'rtsp://camera.invalid/live': 'no host of this name',
    'RTSP://127.0.0.1:9/live': 'nobody listens there',
    'rtsp://user:s3c@r3t@127.0.0.1:9/live': 'nobody listens there',
    'rtsp://user:s3cr3t/r3t@127.0.0.1:9/live': '@127.0.0.1:9/live.*%2F for each /',
    'rtsp://127.0.0.1:9/s3cr3t@camera/live': r'rtsp://\*\*\*@camera/live: nobody listens there',
    'rtsp://127.0.0.1:9/s3c@r3t@camera/live': r'rtsp://\*\*\*@camera/live: nobody listens there',
    'rtsp://us@er:s3c@r3t/r3t@camera/live': r'rtsp://\*\*\*@camera/live: .*%2F for each /',
    'rtsp://127.0.0.1:9/user=a&password=s3cr3t&channel=1': r'password=\*\*\*&channel=1: nobody',
    'rtsp://127.0.0.1:9/live@2?pwd=s3cr3t': r'rtsp://\*\*\*@2\?pwd=\*\*\*: nobody',
    'rtsp:/user:s3cr3t@camera/live': 'it takes rtsp://HOST/PATH',
    'user:s3cr3t@camera/live': 'it takes rtsp://HOST/PATH',
    'rtsp://camera.invalid/live@2': 'rtsp://camera.invalid/live@2: .*no host of this name',
    'rtsp://camera:99999/live@2': '@2.*host or port is none',
    'rtsp://[::1/live': 'host or port is none',
    '/dev/video97': 'there is no such device',
    '/dev/null': 'it is no camera',
}


@pytest.mark.parametrize('address', NO_CAMERA)
def test_what_is_no_camera_is_told_without_a_password(address):
    with pytest.raises(InputError, match=NO_CAMERA[address]) as raised:
        LiveSource(LiveOptions(address), time.time_ns)
    assert not re.search('s3c|r3t', str(raised.value))


@pytest.mark.parametrize('text', [None, '', 'no colon', 'user:one\nuser:two', 'user:\udc80'])
def test_a_file_without_a_user_and_a_password_is_refused(tmp_path, text):
    file = tmp_path / 'credentials'
    if text is not None:
        file.write_bytes(text.encode(errors='surrogateescape'))
    with pytest.raises(InputError, match='credentials_file') as raised:
        read_credentials(str(file))
    assert 'Errno' not in str(raised.value)


def test_a_file_of_credentials_may_begin_with_a_mark_of_its_coding(tmp_path):
    (tmp_path / 'credentials').write_bytes('user:pass:wörd\r\n'.encode('utf-8-sig'))
    assert read_credentials(str(tmp_path / 'credentials')) == 'user:pass:wörd'


@needs_rtsp_server
def test_a_camera_with_a_password_says_what_it_wants(serve):
    server = serve(*flashes(4), credentials='robot:s3cr3t wörd')
    for path, user, password, words in (
        ('h264', '', '', 'asks for a user and a password'),
        ('h264', 'other:wr0ng@', '', 'asks for a user and a password'),
        ('h264', 'other:right@', 'robot:wr0ng', 'asks for a user and a password'),
        ('none', '', 'robot:s3cr3t wörd', 'has no stream of this path'),
    ):
        with pytest.raises(InputError, match=words) as raised:
            LiveSource(LiveOptions(server.url(path, user), password), time.time_ns)
        assert 'wr0ng' not in str(raised.value)
    options = LiveOptions(server.url(user='other:one@'), 'robot:s3cr3t wörd', wants_audio=False)
    source = LiveSource(options, time.time_ns)
    assert isinstance(next(source.read()), LiveImage) and not source.has_audio
    source.close()
