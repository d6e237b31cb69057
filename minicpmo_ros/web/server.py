# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Serves the page and its WebSocket from a thread of its own.

Who may connect: who knows the token (in the printed address), from a page of this server (Origin)
that was fetched under a name of this machine (Host; another name could be a foreign page's that
was made to point here). The static files hold nothing secret and need no token.

Every page has a bounded queue. What has a key is replaced by newer data of this key; what has none
is sent in order. The server sends its clock every second and a page sends it back with its own: so
the server can date what the page sends, and a page that has not answered for PATIENCE_S is
let go.
"""

import asyncio
import json
import logging
import secrets
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from urllib.parse import quote

from minicpmo_ros.errors import EngineError, Error, InputError
from minicpmo_ros.web.requests import (
    ClockEcho,
    ServerOptions,
    check_place,
    number_asked,
    read_binary,
    read_text,
    refusal,
    split_address,
    tls_context,
    why_not_served,
)

STATIC = Path(__file__).parent / 'static'
TYPES = {
    '.html': 'text/html',
    '.css': 'text/css',
    '.js': 'text/javascript',
    '.svg': 'image/svg+xml',
}
HEADERS = {
    'Content-Security-Policy': "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    'Referrer-Policy': 'no-referrer',  # the address holds the token
    'X-Content-Type-Options': 'nosniff',
    'Cache-Control': 'no-store',
}
LOOPBACK = ('127.0.0.1', 'localhost', '::1')
PATIENCE_S, CLOCK_PERIOD_S, START_TIMEOUT_S = 5.0, 1.0, 10.0
MAX_MESSAGE_BYTES = 4 * 2**20  # from a page
MAX_WAITING_BYTES = 4 * 2**20  # to a page
MESSAGE_BYTES = 256  # that a waiting message takes beside its data
MAX_MALFORMED = 50  # messages, then the page is let go
ECHOES = 16  # of the clock; the quickest of them is the most exact
log = logging.getLogger(__name__)
http_log = logging.getLogger(f'{__name__}.http')  # aiohttp's


class Page:
    """One open page; all but `send` and `time_ns` is for the server's thread."""

    def __init__(self, server, number: int, socket, transport):
        self.number = number
        self._server, self._socket, self._transport = server, socket, transport
        self._waiting, self._bytes, self._count = {}, 0, 0  # {key: data}
        self._bell = asyncio.Event()
        self._echoes = deque(maxlen=ECHOES)  # (time there and back, offset of the page's clock)
        self.answered_s = monotonic()  # when it last answered the clock
        self._malformed = 0
        self.is_open = True

    def send(self, message: dict | bytes, key: str = '') -> None:
        """Send a message to this page; from any thread."""
        data = encode(message)
        self._server.call(lambda: self.put(data, key))

    def time_ns(self, page_ms: float) -> int | None:
        """Return a time of the page in the server's time, in nanoseconds; None: not known yet."""
        quickest = self._quickest
        return None if quickest is None else int(1e6 * (page_ms + quickest[1]))

    @property
    def round_trip_ms(self) -> float | None:
        """Return the shortest time there and back; half of it is the error of `time_ns`."""
        return None if self._quickest is None else self._quickest[0]

    @property
    def _quickest(self) -> tuple | None:
        return min(tuple(self._echoes), default=None)

    @property
    def n_waiting(self) -> int:
        """Return how many messages wait to be sent."""
        return len(self._waiting)

    def put(self, data: str | bytes, key: str = '') -> None:
        """Queue encoded data; of a page that was let go it is dropped."""
        if not self.is_open:
            return
        self._count += 1
        key = key or self._count
        replaced = self._waiting.pop(key, None)
        self._bytes += _cost(data) - (_cost(replaced) if replaced is not None else 0)
        self._waiting[key] = data
        if self._bytes > MAX_WAITING_BYTES:
            self.let_go('it does not read what it is sent')
        self._bell.set()

    def echo(self, echo: ClockEcho, now_ms: float) -> None:
        """Note that the page has answered the clock."""
        spent_ms = now_ms - echo.server_ms
        if not 0 <= spent_ms < 1e3 * PATIENCE_S:
            raise InputError('server_ms is not a time that was sent within the last seconds.')
        self.answered_s = monotonic()
        self._echoes.append((spent_ms, now_ms - spent_ms / 2 - echo.page_ms))

    def refuse(self, reason: str, number: int | None = None) -> None:
        """Tell the page why its message does nothing.

        number: of the question that was refused, if the message was one.
        """
        self.put(encode({'type': 'refused', 'reason': reason, 'number': number}))

    def count_malformed(self) -> None:
        """Count a message that is none of the protocol; let the page go if that goes on."""
        self._malformed += 1
        if self._malformed > MAX_MALFORMED:
            self.let_go(f'{self._malformed} of its messages were malformed')

    def check(self) -> None:
        """Let the page go if it has not answered for too long; once a second."""
        if monotonic() - self.answered_s > PATIENCE_S:
            self.let_go(f'it has not answered for {PATIENCE_S:g} s')

    def let_go(self, reason: str) -> None:
        """Close the connection at once, whatever waits."""
        if self.is_open:
            self.is_open = False
            self._waiting.clear()
            log.warning('page %d is let go: %s', self.number, reason)
            self._transport.abort()
            self._bell.set()

    async def send_all(self) -> None:
        """Send what is queued until the page is closed."""
        while self.is_open:
            await self._bell.wait()
            self._bell.clear()
            while self._waiting and self.is_open:
                data = self._waiting.pop(next(iter(self._waiting)))
                self._bytes -= _cost(data)
                send = self._socket.send_str if isinstance(data, str) else self._socket.send_bytes
                try:
                    await asyncio.wait_for(send(data), PATIENCE_S)
                except (asyncio.TimeoutError, ConnectionError):
                    self.let_go(f'nothing could be sent for {PATIENCE_S:g} s')


@dataclass
class Hooks:
    """What the server calls, in its thread; nothing of it may block.

    `welcome()` returns the messages [(message, key)] that a new page is sent first.
    """

    now_ns: Callable[[], int]
    welcome: Callable[[], list]
    on_request: Callable[[Page, object], None]  # raises InputError: the page is told
    on_pages: Callable[[int], None] = field(default=lambda count: None)  # how many are open
    on_closed: Callable[[Page], None] = field(default=lambda page: None)


class WebServer:
    """See the module; `start` returns when it listens."""

    def __init__(self, options: ServerOptions, hooks: Hooks):
        self._options, self._hooks = options, hooks
        self._token = options.token or secrets.token_urlsafe(16)
        self._files = {path.name: path.read_bytes() for path in sorted(STATIC.iterdir())}
        self._loop, self._pages, self._count, self._port = asyncio.new_event_loop(), {}, 0, 0
        self._ended = None
        self._thread = threading.Thread(target=self._run, name='web', daemon=True)
        self._begun, self._error = threading.Event(), None

    @property
    def address(self) -> str:
        """The address to open in a browser; it holds the token."""
        scheme = 'https' if self._options.certificate else 'http'
        host = self._options.host
        host = '127.0.0.1' if host in ('0.0.0.0', '::') else host
        host = f'[{host}]' if ':' in host else host
        return f'{scheme}://{host}:{self._port}/?t={quote(self._token, safe="")}'

    @property
    def pages(self) -> tuple:
        """Return the open pages, the oldest first."""
        return tuple(self._pages.values())

    def start(self) -> None:
        """Begin to listen; raise InputError if that is not possible."""
        self._thread.start()
        if not self._begun.wait(START_TIMEOUT_S):
            raise EngineError(f'The server has not begun within {START_TIMEOUT_S:g} s.')
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Close all pages and end the thread."""
        self.call(lambda: self._ended.set())
        self._thread.join(timeout=1.0)

    def call(self, function: Callable[[], None]) -> None:
        """Run a function in the server's thread; from any thread."""
        with suppress(RuntimeError):  # it has ended
            self._loop.call_soon_threadsafe(function)

    def broadcast(self, message: dict | bytes, key: str = '') -> None:
        """Send a message to all pages; from any thread. With a key, it replaces an unsent one."""
        if self._pages:
            data = encode(message)
            self.call(lambda: [page.put(data, key) for page in self._pages.values()])

    # The thread.
    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except Exception as error:
            self._error = why_not_served(error, self._options)
        finally:
            self._begun.set()
            self._loop.close()

    async def _serve(self) -> None:
        try:
            from aiohttp import web
        except ImportError as error:
            raise InputError(
                f'The page needs the Python package aiohttp ({error}): pip install -r '
                'environment/requirements-web.txt, or apt install python3-aiohttp.'
            ) from None
        check_place(self._options)
        self._web = web
        self._ended = asyncio.Event()
        application = web.Application(client_max_size=1024)
        application.router.add_get('/', self._on_index)
        application.router.add_get('/ws', self._on_socket)
        application.router.add_get('/{name}', self._on_file)
        # Access is not logged: the addresses hold the token.
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.5, logger=http_log)
        await runner.setup()
        try:
            site = web.TCPSite(
                runner,
                self._options.host,
                self._options.port,
                ssl_context=tls_context(self._options),
            )
            await site.start()
            self._port = runner.addresses[0][1]
            self._begun.set()
            await self._tick_until_ended()
        finally:
            await runner.cleanup()

    async def _tick_until_ended(self) -> None:
        while not self._ended.is_set():
            clock = encode({'type': 'clock', 'server_ms': self._now_ms()})
            for page in list(self._pages.values()):
                page.check()
                page.put(clock, 'clock')
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._ended.wait(), CLOCK_PERIOD_S)
        for page in list(self._pages.values()):
            page.let_go('the node ends')

    def _now_ms(self) -> float:
        return self._hooks.now_ns() / 1e6

    # Requests.
    def _refusal(self, request) -> str:
        """Return why a request is refused, or ''."""
        names = (*LOOPBACK, self._options.host, *self._options.names)
        host, given = request.headers.get('Host', ''), request.query.get('t', '')
        return refusal(host, given, names, self._token)

    async def _on_index(self, request):
        if reason := self._refusal(request):
            return self._web.Response(status=403, text=reason, headers=HEADERS)
        return self._file('index.html')

    async def _on_file(self, request):
        name = request.match_info['name']
        if name not in self._files:
            return self._web.Response(status=404, text='There is no such file.', headers=HEADERS)
        return self._file(name)

    def _file(self, name: str):
        kind = TYPES[Path(name).suffix]
        return self._web.Response(
            body=self._files[name], content_type=kind, charset='utf-8', headers=HEADERS
        )

    async def _on_socket(self, request):
        reason = self._refusal(request)
        origin = split_address(request.headers.get('Origin', ''))
        if not reason and origin.netloc != request.headers.get('Host'):
            reason = 'Only a page of this server may connect: its Origin is another.'
        if reason:
            return self._web.Response(status=403, text=reason, headers=HEADERS)
        if len(self._pages) >= self._options.max_pages:
            return self._web.Response(
                status=503,
                text=f'{len(self._pages)} pages are open, the most that are allowed (max_pages).',
                headers=HEADERS,
            )
        socket = self._web.WebSocketResponse(max_msg_size=MAX_MESSAGE_BYTES, compress=False)
        page = Page(self, self._count, socket, request.transport)
        self._count += 1
        self._pages[page.number] = page  # before the first await: it counts
        sending = None
        try:
            await socket.prepare(request)
            self._hooks.on_pages(len(self._pages))
            for message, key in self._hooks.welcome():
                page.put(encode(message), key)
            sending = self._loop.create_task(page.send_all())
            await self._read(page, socket)
        finally:
            page.is_open = False
            del self._pages[page.number]
            if sending is not None:
                sending.cancel()
            self._hooks.on_closed(page)
            self._hooks.on_pages(len(self._pages))
        return socket

    async def _read(self, page: Page, socket) -> None:
        kinds = self._web.WSMsgType
        async for message in socket:
            request = None
            try:
                if message.type == kinds.TEXT:
                    request = read_text(message.data)
                elif message.type == kinds.BINARY:
                    request = read_binary(message.data)
                else:
                    return
                if isinstance(request, ClockEcho):
                    page.echo(request, self._now_ms())
                else:
                    self._hooks.on_request(page, request)
            except Error as error:
                page.refuse(str(error), number_asked(message.data))
                if request is None:
                    page.count_malformed()
            except Exception as error:  # the page goes on, and so do the others
                log.exception('a message of a page failed unexpectedly')
                reason = f'Unforeseen: {error!r}. The log of the node says where.'
                page.refuse(reason, number_asked(message.data))


def encode(message: dict | bytes) -> str | bytes:
    """Return a message as it is sent; a number that is not finite is a mistake."""
    if isinstance(message, bytes):
        return message
    return json.dumps(message, ensure_ascii=False, allow_nan=False, separators=(',', ':'))


def _cost(data: str | bytes) -> int:
    """Return how many bytes a waiting message takes, about."""
    return len(data) + MESSAGE_BYTES


def _tell_in_a_line(record: logging.LogRecord) -> bool:
    """Make one line of what a request that is no HTTP was refused for: a scanner sends many."""
    from aiohttp.http_exceptions import HttpProcessingError

    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, HttpProcessingError):
        record.msg, record.exc_info = 'a request that is no HTTP was refused: %s', None
        record.args = (' '.join(str(error).split())[:200],)
        record.levelno, record.levelname = logging.WARNING, 'WARNING'
    return True


http_log.addFilter(_tell_in_a_line)
