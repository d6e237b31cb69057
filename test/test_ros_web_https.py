# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The page by https, with the user's own certificate, in a real browser; and what a file name may
hold. No model is loaded: the one that is named is in a folder whose name is a script, and empty.
"""

import re
import shutil
import subprocess

import pytest

pytest.importorskip('aiohttp')

from benchmarks.browser import CHROMIUM, Browser  # noqa: E402
from minicpmo_ros.msg import Status  # noqa: E402

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or shutil.which('openssl') is None,
    reason='Chromium or openssl is not installed: no page was opened by https',
)
SCRIPT = '<img src=x onerror="document.title=1"><b>model'
TRUST = ('--ignore-certificate-errors',)  # as after the user has accepted it


def test_by_https_the_page_lives_and_a_script_in_a_file_name_is_text(graph, tmp_path):
    model = tmp_path / SCRIPT
    model.mkdir()
    both = tmp_path / 'robot.pem'
    subprocess.run(
        ['openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2', '-keyout',
         both, '-out', tmp_path / 'certificate.pem', '-subj', '/CN=robot'],
        check=True, capture_output=True,
    )  # fmt: skip
    both.write_text(both.read_text() + (tmp_path / 'certificate.pem').read_text())
    graph.start('llm', '-p', f'model_dir:={model}')
    web = graph.start('web', '-p', 'port:=0', '-p', f'certificate:={both}', '-p', 'senses:=true')
    address = graph.spin_until(lambda: re.search(r'https://\S+', web.log), 'the address')[0]
    graph.spin_until(
        lambda: graph.status is not None and graph.status.state == Status.FAILED, 'the failure'
    )
    assert SCRIPT in graph.status.reason
    browser = Browser(tmp_path, flags=TRUST)
    try:
        browser.open(address)
        browser.wait(f'document.body.innerText.includes({SCRIPT!r})')
        assert browser.evaluate('document.querySelectorAll("img[src=x], b").length') == 0
        assert browser.evaluate('document.title').startswith('minicpmo_ros')
        # What camera and microphone need, from another machine as well.
        assert browser.evaluate('isSecureContext && location.protocol') == 'https:'
        assert browser.evaluate('typeof navigator.mediaDevices.getUserMedia') == 'function'
        origins = {one.partition('://')[::2] for one in browser.requests}
        host = address.partition('/?')[0].partition('://')[2]
        assert {scheme for scheme, _ in origins} == {'https', 'wss'}
        assert {rest.partition('/')[0] for _, rest in origins} == {host}
        assert browser.console == []
    finally:
        browser.close()
    assert web.end() == 0 and 'Traceback' not in web.log
