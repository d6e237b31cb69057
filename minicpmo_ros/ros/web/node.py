# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Node `web`: a page in the browser that shows what the robot sees and hears, and asks it.

It is a client of the topics, services and actions of the other nodes. What it subscribes to is
polled (framework/threads.py); the server has a thread of its own (web/server.py). With the
parameter `senses`, the camera and the microphone of the page are the robot's: they are published
on `image/compressed`, `audio` and `audio_info`. For programs that only show images, `~/view` has
the encoded images with the newest answer drawn on them, while somebody subscribes.
"""

import threading
from collections import deque

from rclpy.node import Node
from rclpy.qos import QoSProfile

from minicpmo_ros.client.client import Client
from minicpmo_ros.errors import InputError
from minicpmo_ros.msg import (
    Alert,
    AlertStates,
    Answer,
    AudioEmbedding,
    ImageEmbedding,
    Speech,
    Status,
)
from minicpmo_ros.ros.alerts import EVENT_QOS
from minicpmo_ros.ros.framework.clock import NodeTime, Ticks
from minicpmo_ros.ros.framework.faults import faults_of
from minicpmo_ros.ros.framework.lifecycle import LATCHED
from minicpmo_ros.ros.framework.main import run
from minicpmo_ros.ros.framework.parameters import Parameter, ParameterTable
from minicpmo_ros.ros.framework.threads import Poller
from minicpmo_ros.ros.framework.topics import LOOK_AGAIN_PERIOD_S, Topics, WithoutEvents
from minicpmo_ros.ros.image_input import PARAMETERS as INPUT_PARAMETERS
from minicpmo_ros.ros.image_input import ImageInput
from minicpmo_ros.ros.web import messages as shown
from minicpmo_ros.ros.web.upstream import (
    CHANGEABLE,
    LLM,
    SensePublisher,
    SettingsClient,
    ViewPublisher,
    describe,
)
from minicpmo_ros.srv import PauseAlerts
from minicpmo_ros.units import NS
from minicpmo_ros.web import requests
from minicpmo_ros.web.server import Hooks, Page, ServerOptions, WebServer

PARAMETERS = (
    Parameter('host', '127.0.0.1',
              'Address to listen at; 127.0.0.1: this machine alone. A browser gives camera and '
              'microphone only to https, or to a page of its own machine (ssh -L)'),
    Parameter('port', 8080, 'Port to listen at; 0: a free one', '', 0, 65_535),
    Parameter('hosts', '',
              'Further names or addresses by which browsers reach this machine, separated by '
              'commas; requests under another name are refused'),
    Parameter('token', '', 'Whoever opens the page must know it; empty: a new one at each start'),
    Parameter('certificate', '', 'PEM file of a certificate, for https; empty: http',
              is_path=True),
    Parameter('key', '', 'PEM file of its private key; empty: it is in the same file',
              is_path=True),
    Parameter('max_pages', 8, 'The most pages that may be open; further ones are refused', '',
              1, 100),
    Parameter('senses', False,
              "The camera and the microphone of the page are the robot's: they are published on "
              'image/compressed, audio and audio_info'),
    Parameter('view_font', '',
              'TrueType or OpenType file for the text on ~/view; empty: a font of Latin letters',
              is_path=True),
    *INPUT_PARAMETERS,
)  # fmt: skip
# What is shown of the past to a page that opens.
KEPT_SECONDS, KEPT_EVENTS, KEPT_IMAGES = 240, 50, 90
MAX_QUESTIONS = 2  # of a page, that are not answered yet
ANSWER_TIMEOUT_S = 120.0
IMAGES, AUDIO, VOICE = 'vision_encoder', 'streaming_encoder', 'voice'
DEEP = QoSProfile(depth=20)
MEDIA_LIMIT_S = 30.0  # a page's time that far off the node's is wrong
NO_SENSES = 'This node takes no camera and microphone (parameter senses).'
TAKEN = 'Another page is the camera and the microphone. Stop them there, or close it.'


class WebNode(WithoutEvents, Node):
    """See the module."""

    server = _poller = _images = None
    _n_pages = 0

    def __init__(self):
        super().__init__('web')
        self._options = options = ParameterTable(self, PARAMETERS).values()
        self.topics, self._faults = Topics(self), faults_of(self)
        self.ticks = Ticks(self)
        self.clock_problem, self.time = '', NodeTime(self)
        self._posted = deque()
        self._bell = self.create_guard_condition(self._run_posted)
        self._memory = PageMemory()
        self._asked = {}  # (page number, its number of a question): Stream
        self._senses = SensePublisher(self) if options.senses else None
        self._newest_images = deque(maxlen=4)  # (stamp_ns, make_image)
        self._view = ViewPublisher(self, options.view_font)
        self.client = Client(self, LLM)
        self._settings = SettingsClient(self, self._tell_parameters)
        self._pausing = self.create_client(PauseAlerts, f'{LLM}/pause_alerts')
        self.server = WebServer(
            ServerOptions(
                options.host,
                options.port,
                options.token,
                options.certificate,
                options.key,
                tuple(name.strip() for name in options.hosts.split(',') if name.strip()),
                options.max_pages,
            ),
            Hooks(
                lambda: self.get_clock().now().nanoseconds,
                self._welcome,
                self._on_request,
                lambda count: self.post(lambda: self._look_who_looks(count)),
                self._on_closed,
            ),
        )
        self.server.start()
        self._subscribe()
        self.ticks.every(LOOK_AGAIN_PERIOD_S, self._look)
        self.get_logger().info(f'the page is at {self.server.address}')

    def destroy_node(self):
        """End the server and what it uses; also called if the constructor failed."""
        for part in (self.server, self._images, self._poller):
            if part is not None:
                part.close()
        if hasattr(self, 'client') and not self.client.is_closed:
            self.client.destroy()
        super().destroy_node()

    # For the server's thread.
    def post(self, call) -> None:
        """Run `call` on the executor's thread; from any thread."""
        self._posted.append(call)
        if self.context.ok():
            self._bell.trigger()

    def _run_posted(self) -> None:
        while self._posted:
            call = self._posted.popleft()
            with self._faults.guard('posted'):
                call()

    # From the graph to the pages: in the poller's thread.
    def _subscribe(self) -> None:
        self._poller = Poller(self)
        for message_type, topic, convert, qos in (
            (Status, f'{LLM}/status', shown.status, LATCHED),
            (AudioEmbedding, f'{AUDIO}/heard', shown.heard, DEEP),
            (Alert, f'{LLM}/alerts', shown.alert, EVENT_QOS),
            (AlertStates, f'{LLM}/alerts/state', shown.alert_states, LATCHED),
            (Speech, f'{VOICE}/speech', shown.speech, DEEP),
        ):
            self._poller.subscribe(
                message_type, topic, lambda message, convert=convert: self.tell(convert(message)),
                qos,
            )  # fmt: skip
        self._poller.subscribe(Answer, f'{LLM}/answer', self._on_answer, DEEP)
        self._poller.subscribe(ImageEmbedding, f'{IMAGES}/seen', self._on_seen, DEEP)

    def tell(self, message: dict) -> None:
        """Show a message on all pages, and on those that open later."""
        self.server.broadcast(message, self._memory.keep(message))

    def _on_seen(self, message: ImageEmbedding) -> None:
        self.tell(shown.seen(message))
        stamp_ns = message.picture_stamp.sec * NS + message.picture_stamp.nanosec
        images = list(self._newest_images)
        if message.status != message.OK or not images:
            return
        # The one that was encoded; where arrival replaces the stamps, the newest.
        at_ns, make_image = min(images, key=lambda image: abs(image[0] - stamp_ns))
        pixels = shown.small(make_image(shown.shown_size).pixels)
        if self._view.is_wanted:
            self._view.show(at_ns, message, pixels)
        if self._n_pages:
            binary = shown.image(message.second, pixels)
            self._memory.keep_image(message.second, binary)
            self.server.broadcast(binary, 'image')

    def _on_answer(self, message: Answer) -> None:
        self.tell(shown.answer(message))
        self._view.take_answer(message)

    def _look(self) -> None:
        self._look_who_looks(self._n_pages)
        if self._n_pages:
            self._settings.read()  # llm may be new, or have been set by others
        self.topics.problems()  # tells them in the log

    def _look_who_looks(self, n_pages: int) -> None:
        """Read images only while somebody looks: a page, or a subscriber of ~/view."""
        if n_pages and not self._n_pages:
            self._settings.read()
        self._n_pages = n_pages
        is_looked_at = n_pages > 0 or self._view.is_wanted
        if is_looked_at and self._images is None:
            self._images = ImageInput(
                self,
                self._options,
                lambda stamp_ns, make: self._newest_images.append((stamp_ns, make)),
            )
        elif not is_looked_at and self._images is not None:
            self._images.close()
            self._images = None
            self._newest_images.clear()

    # From the pages to the graph: in the server's thread.
    def _welcome(self) -> list:
        hello = {'type': 'hello', 'senses': self._senses is not None}
        hello['parameters'] = [describe(row) for row in CHANGEABLE]
        return [(hello, ''), *self._memory.all()]

    def _on_request(self, page: Page, request) -> None:
        if isinstance(request, requests.Media):
            self._publish(page, request)
        elif isinstance(request, requests.Asked):
            self._ask(page, request)
        elif isinstance(request, requests.Cancelled):
            if stream := self._asked.get((page.number, request.number)):
                stream.cancel()
        elif isinstance(request, requests.ParameterChange):
            rows = {row.name: row for row in CHANGEABLE}
            if request.node != LLM or request.name not in rows:
                raise InputError(f'{request.name} of {request.node} may not change from here.')
            self.post(lambda: self._settings.write(request, rows[request.name], page))
        else:
            self.post(lambda: self._pause(page, request))

    def _publish(self, page: Page, media) -> None:
        if self._senses is None or not self._senses.is_for(page):
            reason = NO_SENSES if self._senses is None else TAKEN
            page.send({'type': 'senses', 'reason': reason}, 'senses')
            return
        stamp_ns = page.time_ns(media.page_ms)
        if stamp_ns is None:
            return  # the clocks have not been compared yet
        if abs(stamp_ns - self.get_clock().now().nanoseconds) > MEDIA_LIMIT_S * NS:
            raise InputError('The time of the image or audio is not of now.')
        # From this thread: to wake the executor for each costs more than all the rest.
        self._senses.publish(media.kind, stamp_ns, media.data)

    def _ask(self, page: Page, asked) -> None:
        key = page.number, asked.number
        n_open = sum(number == page.number for number, _ in list(self._asked))
        if key in self._asked or n_open >= MAX_QUESTIONS:
            raise InputError(
                f'{n_open} questions of this page are not answered yet, at most {MAX_QUESTIONS} '
                'may be. Wait, or cancel one.'
            )

        def on_text(text: str) -> None:
            page.send({'type': 'delta', 'number': asked.number, 'text': text})

        stream = self.client.stream(
            asked.question,
            on_text,
            timeout_s=ANSWER_TIMEOUT_S,
            choices=list(asked.choices),
            remember=asked.remember,
        )
        self._asked[key] = stream
        stream.future.add_done_callback(lambda future: self._on_answered(page, key, stream))

    def _on_answered(self, page: Page, key: tuple, stream) -> None:
        self._asked.pop(key, None)
        error = stream.future.exception()
        reply = {'type': 'answered', 'number': key[1], 'reason': str(error) if error else ''}
        answer = stream.answer or getattr(error, 'answer', None)
        reply['answer'] = shown.answer(answer) if answer is not None else None
        page.send(reply)

    def _on_closed(self, page: Page) -> None:
        for (number, _), stream in list(self._asked.items()):
            if number == page.number:
                stream.cancel()
        if self._senses is not None:
            self._senses.leave(page)

    def _pause(self, page: Page, request) -> None:
        if not self._pausing.service_is_ready():
            page.send({'type': 'refused', 'reason': self.client.describe()})
            return
        future = self._pausing.call_async(
            PauseAlerts.Request(id=request.rule, paused=request.paused)
        )
        future.add_done_callback(
            lambda done: (
                done.result().success
                or page.send({'type': 'refused', 'reason': done.result().reason})
            )
        )

    def _tell_parameters(self, values: dict) -> None:
        self.tell({'type': 'parameters', 'node': LLM, 'values': values})


class PageMemory:
    """What a page that opens is shown of what came before; thread-safe."""

    def __init__(self):
        self._lock, self._newest = threading.Lock(), {}  # by type
        self._seconds = {name: {} for name in ('seen', 'heard')}  # message by second
        self._events = {name: deque(maxlen=KEPT_EVENTS) for name in ('answer', 'alert', 'speech')}
        self._images = {}  # binary by second

    def keep(self, message: dict) -> str:
        """Keep a message; return the key under which a newer one may replace it, '' for none."""
        kind = message['type']
        with self._lock:
            if kind in self._seconds:
                _put(self._seconds[kind], message['second'], message, KEPT_SECONDS)
                return ''
            if kind in self._events:
                self._events[kind].append(message)
                return ''
            self._newest[kind] = message
            return kind

    def keep_image(self, second: int, binary: bytes) -> None:
        """Keep the image of a second."""
        with self._lock:
            _put(self._images, second, binary, KEPT_IMAGES)

    def all(self) -> list:
        """Return [(message, key)] in the order in which a page takes them."""
        with self._lock:
            parts = (
                *(of_kind.values() for of_kind in self._seconds.values()),
                *self._events.values(),
                self._images.values(),
                self._newest.values(),
            )
            return [(message, '') for part in parts for message in part]


def _put(kept: dict, key, value, most: int) -> None:
    kept[key] = value
    while len(kept) > most:
        del kept[next(iter(kept))]


def main(args=None) -> int:
    """Run the node."""
    return run(lambda: [WebNode()], args)


if __name__ == '__main__':
    raise SystemExit(main())
