# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The server of the page: who may connect, what it may send, and who is let go."""

import asyncio
import json
import logging
import re
import shutil
import socket
import ssl
import subprocess
import time
import tracemalloc
from contextlib import suppress
from urllib.parse import urlsplit

import pytest

from minicpmo_ros.errors import BusyError, InputError

aiohttp = pytest.importorskip('aiohttp')

from minicpmo_ros.msg import AudioEmbedding, ImageEmbedding  # noqa: E402
from minicpmo_ros.ros.web import messages  # noqa: E402
from minicpmo_ros.web import server as module  # noqa: E402
from minicpmo_ros.web.requests import HEADER, IMAGE, Asked, Media  # noqa: E402
from minicpmo_ros.web.server import STATIC, Hooks, ServerOptions, WebServer  # noqa: E402

TOKEN = 'the-token'
MOST_BYTES = 100_000
MOST_OF_A_PAGE_BYTES = 8 * 2**20
ASK = {'type': 'ask', 'number': 1, 'question': 'what is it?'}


class Served:
    """A server, what it was sent, and ways to connect to it."""

    def __init__(self, **options):
        self.requests, self.closed, self.refuses = [], [], False
        hooks = Hooks(
            time.time_ns,
            lambda: [({'type': 'hello'}, '')],
            self._on_request,
            on_closed=self.closed.append,
        )
        self.server = WebServer(ServerOptions(port=0, token=TOKEN, **options), hooks)
        self.server.start()
        self.base = self.server.address.partition('/?')[0]

    def _on_request(self, page, request):
        if self.refuses:
            raise InputError('Two questions wait already.')
        self.requests.append((page, request))

    def connect(self, session, origin=None, **headers):
        headers['Origin'] = origin or self.base
        return session.ws_connect(f'{self.base}/ws?t={TOKEN}', headers=headers, max_msg_size=0)


@pytest.fixture
def served():
    """Give a running server."""
    served = Served()
    yield served
    served.server.close()


def run(work):
    """Run `work(session)` with a client."""

    async def body():
        async with aiohttp.ClientSession() as session:
            return await asyncio.wait_for(work(session), 60.0)

    return asyncio.run(body())


async def read_until(socket, kind):
    """Read messages until one of this type, or the end; answer the clock, as a page does."""
    async for message in socket:
        if message.type == aiohttp.WSMsgType.TEXT:
            told = json.loads(message.data)
            if told['type'] == 'clock':
                await socket.send_json({**told, 'page_ms': 5.0})
            if told['type'] == kind:
                return told
    return None


@pytest.mark.parametrize(
    'query, headers, status',
    [
        (f'?t={TOKEN}', {}, 200),
        (f'?t={TOKEN}', {'Host': 'localhost:9999'}, 200),  # by ssh -L
        ('?t=wrong', {}, 403),
        ('', {}, 403),
        ('?t=%ff%00', {}, 403),
        (f'?t={TOKEN}', {'Host': 'evil.example'}, 403),  # its name leads here: DNS rebinding
        (f'?t={TOKEN}', {'Host': 'robot'}, 200),
    ],
)
def test_the_page_is_given_to_who_knows_the_token_and_this_machine(query, headers, status):
    served = Served(names=('robot',))

    async def get(session):
        async with session.get(f'{served.base}/{query}', headers=headers) as reply:
            return reply.status, reply.headers, await reply.text()

    found, told, text = run(get)
    served.server.close()
    assert found == status and TOKEN not in text
    assert "default-src 'none'" in told['Content-Security-Policy']
    assert told['Referrer-Policy'] == 'no-referrer'


@pytest.mark.parametrize(
    'origin',
    ['http://evil.example', 'null', 'http://127.0.0.1:1', 'http://localhost.evil.example'],
)
def test_a_foreign_page_cannot_connect(served, origin):
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        run(lambda session: served.connect(session, origin))
    assert refused.value.status == 403


def test_no_file_beside_the_pages_own_is_given(served):
    async def get(session):
        statuses = []
        for path in ('/server.py', '/..%2fserver.py', '/%2e%2e/server.py', '/static/page.js'):
            async with session.get(f'{served.base}{path}') as reply:
                statuses.append(reply.status)
        return statuses

    assert set(run(get)) == {404}


def test_a_message_of_ten_megabytes_closes_its_page_alone(served):
    async def work(session):
        other, big = await served.connect(session), await served.connect(session)
        with suppress(ConnectionError):  # it is closed before all of it is read
            await big.send_bytes(HEADER.pack(IMAGE, 0.0) + b'\xff\xd8\xff' + bytes(10 * 2**20))
        assert await read_until(big, 'never') is None
        await other.send_json({'type': 'nothing'})
        assert await read_until(other, 'refused')

    run(work)
    assert served.requests == []


def malformed(i):
    """Give one of many messages that are wrong."""
    return (
        '{',
        '[]',
        'null',
        '[' * 5000,
        json.dumps({'type': 'ask'}),
        json.dumps({'type': ['ask']}),
        json.dumps(ASK | {'number': 'x'}),
        json.dumps(ASK | {'number': 1e300}),
        json.dumps(ASK | {'question': 'x' * 5000}),
        json.dumps(ASK | {'question': '\ud800'}),
        json.dumps(ASK | {'question': 'a\0b'}),
        json.dumps(ASK | {'choices': [''] * 3}),
        json.dumps(ASK | {'choices': {'a': 1}}),
        json.dumps({'type': 'set', 'node': 'llm', 'name': 'seed', 'value': [1]}),
        '{"type": "set", "node": "llm", "name": "top_p", "value": NaN}',
        json.dumps({'type': 'clock', 'server_ms': 0, 'page_ms': 0}),
        b'',
        b'\x07' * 20,
        HEADER.pack(1, float('nan')) + b'\0\0',
        HEADER.pack(1, 0.0) + b'\0',
        HEADER.pack(1, 0.0) + bytes(2**16),
        HEADER.pack(2, 0.0) + b'<svg>',
    )[i % 22]


def test_each_malformed_message_is_refused_in_words_and_a_thousand_end_the_page(served):
    async def work(session):
        socket, told = await served.connect(session), []
        for i in range(22):
            message = malformed(i)
            await (socket.send_str if isinstance(message, str) else socket.send_bytes)(message)
            told.append((await read_until(socket, 'refused'))['reason'])
        with suppress(ConnectionError):
            for i in range(1000):
                message = malformed(i)
                await (socket.send_str if isinstance(message, str) else socket.send_bytes)(message)
        assert await read_until(socket, 'never') is None  # it is closed
        again = await served.connect(session)
        await again.send_json(ASK)
        await again.send_bytes(HEADER.pack(IMAGE, 7.0) + b'\xff\xd8\xff\xe0')
        while len(served.requests) < 2:
            await asyncio.sleep(0.01)
        return told

    told = run(work)
    assert all(text.endswith('.') and len(text) > 15 for text in told)
    assert [request for _, request in served.requests] == [
        Asked(1, 'what is it?'),
        Media(IMAGE, 7.0, b'\xff\xd8\xff\xe0'),
    ]


def test_a_page_whose_requests_are_refused_again_and_again_stays(served):
    served.refuses = True

    async def work(session):
        socket = await served.connect(session)
        for _ in range(200):
            await socket.send_json(ASK)
            told = await read_until(socket, 'refused')
            assert told['number'] == 1 and told['reason'].startswith('Two questions')

    run(work)


def test_of_fifty_connections_so_many_are_taken_as_are_allowed():
    served = Served(max_pages=8)

    async def work(session):
        taken, refused = [], []
        for _ in range(50):
            try:
                taken.append(await served.connect(session))
            except aiohttp.WSServerHandshakeError as error:
                refused.append(error.status)
        await taken.pop().close()
        while not served.closed:
            await asyncio.sleep(0.01)
        taken.append(await served.connect(session))  # there is room again
        return len(taken), refused

    assert run(work) == (8, [503] * 42)
    served.server.close()


class Transport:
    """Notes whether a connection was closed at once."""

    is_aborted = False

    def abort(self):
        self.is_aborted = True


def test_a_page_is_let_go_once_it_has_not_answered_for_five_seconds(monkeypatch):
    now_s = 100.0
    monkeypatch.setattr(module, 'monotonic', lambda: now_s)
    transport = Transport()
    page = module.Page(None, 0, None, transport)
    now_s += 5.0
    page.check()
    assert page.is_open
    page.echo(module.ClockEcho(server_ms=1000.0, page_ms=0.0), 1200.0)  # in the last moment
    now_s += 5.0
    page.check()
    assert page.is_open
    now_s += 0.01
    page.check()
    assert not page.is_open and transport.is_aborted
    page.put('more')
    assert not page.n_waiting  # nothing is kept for it


def test_pages_that_do_not_answer_are_let_go_and_the_others_stay(served, monkeypatch):
    """By a clock that goes on a second whenever the page that answers has done so."""
    now_s = 1000.0
    monkeypatch.setattr(module, 'monotonic', lambda: now_s)
    monkeypatch.setattr(module, 'CLOCK_PERIOD_S', 0.02)

    async def work(session):
        nonlocal now_s
        good, silent = await served.connect(session), await served.connect(session)
        reading = asyncio.ensure_future(read_until(good, 'end'))
        while not served.closed:
            if all(page.answered_s == now_s for page in served.server.pages if page.number == 0):
                now_s += 1.0
            served.server.broadcast(b'\x02' + bytes(50_000), 'image')
            await asyncio.sleep(0.01)
        assert [page.number for page in served.closed] == [1]
        served.server.broadcast({'type': 'end'})
        assert await reading
        await silent.close()

    run(work)


def stalled(served) -> socket.socket:
    """Open a page that reads the head of the reply and never more; the buffers are small."""
    address = urlsplit(served.base)
    page = socket.socket()
    page.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    page.connect((address.hostname, address.port))
    page.sendall(
        f'GET /ws?t={TOKEN} HTTP/1.1\r\nHost: {address.netloc}\r\nOrigin: {served.base}\r\n'
        'Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n'
        'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n'.encode()
    )
    assert page.recv(12) == b'HTTP/1.1 101'
    return page


@pytest.mark.parametrize('n_bytes', [40, 60_000, 1_000_000])
def test_a_page_that_stops_reading_costs_eight_mebibytes_at_most_and_is_let_go(
    served, monkeypatch, n_bytes
):
    """However small or large the messages are, and although no time passes."""
    monkeypatch.setattr(module, 'monotonic', lambda: 0.0)
    monkeypatch.setattr(module, 'PATIENCE_S', 1000.0)

    async def work(session):
        reader, page = await served.connect(session), stalled(served)

        async def send(n_bytes: int) -> None:
            """Send to both, and wait until the one that goes on reading has read it all."""
            n_messages, n_read = max(1, 30_000 // n_bytes), 0
            for _ in range(n_messages):
                served.server.broadcast(bytes(n_bytes))
            while n_read < n_messages:
                n_read += (await reader.receive()).type == aiohttp.WSMsgType.BINARY

        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        while served.server.pages[1].n_waiting < 10:
            await send(60_000)  # until the buffers of the socket are full
        while not served.closed:
            await send(n_bytes)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        (gone,) = served.closed
        assert peak - before <= MOST_OF_A_PAGE_BYTES
        assert gone.number == 1 and not gone.n_waiting and not gone.is_open
        page.close()

    run(work)


def test_what_waits_for_a_page_is_bounded(served, monkeypatch):
    monkeypatch.setattr(module, 'MAX_WAITING_BYTES', 100_000)

    async def work(session):
        await served.connect(session)
        await asyncio.sleep(0)
        for _ in range(20):  # at once: none of them can be sent meanwhile
            served.server.call(lambda: [page.put(bytes(10_000)) for page in served.server.pages])
        while not served.closed:
            await asyncio.sleep(0.01)

    run(work)


def test_of_what_has_a_key_the_newest_is_sent_and_of_the_rest_everything(served):
    async def work(session):
        socket = await served.connect(session)
        assert await read_until(socket, 'hello')

        def burst():
            for page in served.server.pages:
                for i in range(100):
                    page.put(module.encode({'type': 'status', 'i': i}), 'status')
                    page.put(module.encode({'type': 'delta', 'i': i}))
                page.put(module.encode({'type': 'end'}))

        served.server.call(burst)
        told = []
        async for message in socket:
            told.append(json.loads(message.data))
            if told[-1]['type'] == 'end':
                return told

    told = run(work)
    assert [one['i'] for one in told if one['type'] == 'delta'] == list(range(100))
    assert [one['i'] for one in told if one['type'] == 'status'] == [99]


def test_the_time_of_a_page_is_told_within_half_of_the_way_there_and_back(served):
    async def work(session):
        socket = await served.connect(session)
        async for message in socket:
            told = json.loads(message.data)
            if told['type'] == 'clock':
                # The page's clock began 1,000 s after the server's.
                page_ms = time.time_ns() / 1e6 - 1e6
                await socket.send_json({**told, 'page_ms': page_ms})
                await socket.send_json(ASK)
                break
        while not served.requests:
            await asyncio.sleep(0.01)

    run(work)
    page, _ = served.requests[0]
    error_ms = page.time_ns(500.0) / 1e6 - 1e6 - 500.0
    assert abs(error_ms) <= page.round_trip_ms / 2 + 1.0


def test_a_port_that_is_taken_and_a_certificate_that_is_none_are_told(served, tmp_path):
    port = int(served.base.rpartition(':')[2])
    with pytest.raises(InputError, match=f'{port}.*another port'):
        WebServer(ServerOptions(port=port), Hooks(None, None, None)).start()
    path = tmp_path / 'none.pem'
    path.write_text('nothing')
    options = ServerOptions(port=0, certificate=str(path))
    with pytest.raises(InputError, match='PEM'):
        WebServer(options, Hooks(None, None, None)).start()


def test_the_page_is_small_and_names_no_other_server():
    files = [path for path in STATIC.iterdir()]
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES
    for path in files:
        text = path.read_text().replace('http://www.w3.org/2000/svg', '')  # a name, not fetched
        assert 'http://' not in text and 'https://' not in text, path.name
        assert 'innerHTML' not in text and 'eval(' not in text, path.name


@pytest.mark.parametrize('kind', [AudioEmbedding, ImageEmbedding])
def test_the_page_has_words_for_every_state_of_an_input(kind):
    words = (STATIC / 'words.js').read_text()
    (of_inputs,) = re.findall(r'inputs: \{(.*?)\}', words)
    states = {name: getattr(kind, name) for name in dir(kind) if name.isupper()}
    for name, state in states.items():
        if isinstance(state, int):
            assert f'{messages.seen(kind(status=state))["status"]}:' in of_inputs, name


@pytest.fixture(scope='module')
def certificate(tmp_path_factory):
    """Give (certificate, key) of this machine, as a user makes them."""
    if shutil.which('openssl') is None:
        pytest.skip('openssl is not installed: https was not tried (apt install openssl)')
    folder = tmp_path_factory.mktemp('certificate')
    certificate, key = folder / 'robot.pem', folder / 'robot.key'
    subprocess.run(
        ['openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2',
         '-keyout', key, '-out', certificate, '-subj', '/CN=robot',
         '-addext', 'subjectAltName=IP:127.0.0.1'],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key


@pytest.mark.parametrize('is_one_file', [False, True], ids=['two files', 'one file'])
def test_with_a_certificate_page_and_connection_are_encrypted_and_nothing_else_is_served(
    certificate, tmp_path, is_one_file
):
    path, key = certificate
    trusted = ssl.create_default_context(cafile=str(path))
    if is_one_file:
        path = tmp_path / 'both.pem'
        path.write_text(''.join(file.read_text() for file in certificate))
    served = Served(certificate=str(path), key='' if is_one_file else str(key))
    assert served.server.address.startswith('https://127.0.0.1:')

    async def work(session):
        async with session.get(served.server.address, ssl=trusted) as reply:
            assert reply.status == 200 and '<title>' in await reply.text()
        url, headers = f'{served.base}/ws?t={TOKEN}', {'Origin': served.base}
        async with session.ws_connect(url, headers=headers, ssl=trusted) as page:
            assert await read_until(page, 'hello')
            await page.send_json(ASK)
            while not served.requests:
                await asyncio.sleep(0.01)
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            headers = {'Origin': 'https://evil.example'}
            await session.ws_connect(url, headers=headers, ssl=trusted)
        assert refused.value.status == 403
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await session.get(served.server.address)  # of whom nobody says that it is the robot
        with pytest.raises(aiohttp.ClientError):
            await session.get(served.server.address.replace('https:', 'http:'))

    run(work)
    served.server.close()


def test_a_key_of_another_certificate_is_told(certificate, tmp_path):
    other = tmp_path / 'other.key'
    subprocess.run(['openssl', 'genrsa', '-out', other, '2048'], check=True, capture_output=True)
    options = ServerOptions(port=0, certificate=str(certificate[0]), key=str(other))
    with pytest.raises(InputError, match='belong together'):
        WebServer(options, Hooks(None, None, None)).start()


HOST = 'Host: 127.0.0.1\r\n'
NO_REQUESTS = {
    'no host': ('GET /?t={token} HTTP/1.1\r\n\r\n', 400),
    'no host, old': ('GET /?t={token} HTTP/1.0\r\n\r\n', 403),
    'no address': ('GET /?t={token} HTTP/1.1\r\nHost: [::1\r\n\r\n', 403),
    'no name': ('GET /?t={token} HTTP/1.1\r\nHost: a\u2100b\r\n\r\n', 403),
    'no origin': ('GET /ws?t={token} HTTP/1.1\r\n' + HOST + 'Origin: http://[a\r\n\r\n', 403),
    'no path': ('GET http://[a/?t={token} HTTP/1.1\r\n' + HOST + '\r\n', 400),
    'no end': ('GET /' + 'a' * 20_000 + ' HTTP/1.1\r\n' + HOST + '\r\n', 400),
    'no HTTP': ('\x16\x03\x01 hello\r\n\r\n', 400),
}


@pytest.mark.parametrize('what', NO_REQUESTS)
def test_whatever_is_no_request_is_refused_in_a_line(served, caplog, what):
    text, status = NO_REQUESTS[what]
    address = urlsplit(served.base)
    with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
        connection.sendall(text.format(token=TOKEN).encode())
        reply = connection.makefile('rb').readline().decode()
    assert reply.split()[1] == str(status)
    for record in caplog.records:
        assert record.levelno < logging.ERROR and not record.exc_info, record.getMessage()
        assert len(record.getMessage().splitlines()) == 1


def test_a_message_that_nobody_foresaw_is_told_and_the_page_goes_on(served):
    def fail(page, request):
        if not served.requests:
            served.requests.append(request)
            raise ZeroDivisionError('nobody foresaw it')
        raise BusyError('There is no llm.')

    served.server.close()
    hooks = Hooks(time.time_ns, lambda: [], fail)
    served.server = WebServer(ServerOptions(port=0, token=TOKEN), hooks)
    served.server.start()
    served.base = served.server.address.partition('/?')[0]

    async def work(session):
        async with served.connect(session) as page:
            refused = ['There is no llm.'] * 2 * module.MAX_MALFORMED  # well formed, if in vain
            for reason in ('nobody foresaw it', *refused):
                await page.send_json(ASK)
                assert reason in (await read_until(page, 'refused'))['reason']

    run(work)


def test_a_time_beyond_all_numbers_is_refused_and_the_page_goes_on(served):
    async def work(session):
        async with served.connect(session) as page:
            for page_ms in (-1e308, 1e308, float('nan'), float('inf')):
                await page.send_bytes(HEADER.pack(IMAGE, page_ms) + b'\xff\xd8\xff')
                assert 'time' in (await read_until(page, 'refused'))['reason']

    run(work)


@pytest.mark.parametrize('token', ('a b', 'a&t=b#c', '50%', 'höher/?'))
def test_the_printed_address_opens_the_page_whatever_the_token(token):
    server = WebServer(ServerOptions(port=0, token=token), Hooks(time.time_ns, list, None))
    server.start()

    async def work(session):
        async with session.get(server.address) as reply:
            assert reply.status == 200

    run(work)
    server.close()


@pytest.mark.parametrize(
    'options, told',
    [
        (dict(host=''), 'host is empty.*127.0.0.1'),
        (dict(host='no.such.host.invalid'), 'as host an address of this machine'),
        (dict(host='a' * 80), 'as host an address of this machine'),
        (dict(host='192.0.2.1'), 'as host an address of this machine'),
        (dict(certificate='/no/such.pem'), "certificate '/no/such.pem'.*PEM"),
    ],
)
def test_a_server_that_cannot_listen_says_what_to_change(options, told):
    server = WebServer(ServerOptions(port=0, **options), Hooks(None, None, None))
    with pytest.raises(InputError, match=told):
        server.start()
