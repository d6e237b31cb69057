# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The page in a real browser, end to end: answers, seconds, times, CPU; and its screenshots.

    python -m benchmarks.web                  # build/web.json and a table
    python -m benchmarks.web --screenshots    # docs/web_*.png

Headless Chromium plays held-out clips as its camera and microphone; each is started so that its
seconds are the robot's (a short tone before each clip tells when it began). Questions are typed
into the page, and its answers are compared with those that the same model gives about the bag.
`cpu_one` and `cpu_eight` are of the node `web`, in percent of a core, with this page and with
seven more that only look; `cpu_none` is without any page.
"""

import argparse
import asyncio
import json
import math
import os
import socket
import statistics
import tempfile
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
import numpy as np
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from std_srvs.srv import Trigger

from benchmarks.browser import CHROMIUM, Browser, read_scene, write_camera, write_microphone
from minicpmo_ros.errors import Error
from minicpmo_ros.evaluation.questions import QuestionSet
from minicpmo_ros.evaluation.runner import Core, Variant, answer_all
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.msg import Answer, Status
from minicpmo_ros.ros.audio_input import audio_types
from minicpmo_ros.ros.framework.lifecycle import LATCHED
from minicpmo_ros.ros.framework.main import run_program
from minicpmo_ros.ros.replay.demo import executable
from minicpmo_ros.units import NS
from minicpmo_ros.web.server import STATIC

ROOT = Path(__file__).parents[1]
CLIPS = ROOT / 'demo' / 'clips'
NAMESPACE, TOKEN = '/web_test', 'token'
LEAD_S, TONE_AT_S, TONE_S, TAIL_S = 2.0, 0.5, 0.05, 3.0
PHASE_S, TRIES = 0.06, 6  # how far from a whole second a clip may begin
CPU_S, PAGES = 20.0, 8
SHOWN_UNITS = 24  # in the window, on the screenshots
TIMEOUT_S = 60.0


class Watcher(Node):
    """Follows the graph while a thread spins it."""

    def __init__(self):
        super().__init__('web_test', namespace=NAMESPACE)
        self.status, self.answers, self.tone_ns = None, {}, None
        self.read = set()  # seconds that the window has had
        audio_type, _ = audio_types()
        self.create_subscription(Status, 'llm/status', self._on_status, LATCHED)
        self.create_subscription(Answer, 'llm/answer', self._on_answer, 10)
        self.create_subscription(audio_type, 'audio', self._on_audio, 100)
        self._reset = self.create_client(Trigger, 'llm/reset')
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        try:
            self._executor.spin()
        except ExternalShutdownException:
            pass

    def close(self) -> None:
        """End the thread and the node."""
        self._executor.shutdown()
        self._thread.join()
        self.destroy_node()

    def _on_status(self, message) -> None:
        self.status = message
        self.read.update(message.seconds)

    def _on_answer(self, message) -> None:
        self.answers[message.id] = message

    def _on_audio(self, message) -> None:
        """Note when a tone begins, by the stamp."""
        samples = np.frombuffer(message.audio.data, '<i2') / 32768  # (n,)
        loud = np.flatnonzero(np.abs(samples) > 0.5)
        if len(loud) and self.tone_ns is None:
            stamp = message.header.stamp
            self.tone_ns = stamp.sec * NS + stamp.nanosec + int(loud[0]) * NS // 16_000

    def reset_window(self) -> None:
        """Empty the window, and wait for that."""
        done = self._reset.call_async(Trigger.Request())
        wait_for(done.done, 'the reset')

    def now_s(self) -> float:
        """Return the time of the graph."""
        return self.get_clock().now().nanoseconds / NS


def wait_for(condition, what: str, timeout_s: float = TIMEOUT_S):
    """Wait until `condition()` is true and return its value."""
    end_s = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > end_s:
            raise Error(f'waited {timeout_s:g} s for {what}')
        time.sleep(0.005)
    return value


class Page:
    """The page with a clip as its camera and microphone."""

    def __init__(self, folder: Path, address: str, clip: Path, watcher: Watcher):
        images, samples = read_scene(clip)
        self.n_seconds, self.watcher = len(images), watcher
        lead = np.zeros(int(16_000 * LEAD_S), np.float32)
        at, n = int(16_000 * TONE_AT_S), int(16_000 * TONE_S)
        lead[at : at + n] = 0.9 * np.sign(np.sin(2 * np.pi * 1000 / 16_000 * np.arange(n)))
        tail = np.zeros(int(16_000 * TAIL_S), np.float32)
        shown = [images[0]] * int(LEAD_S) + images + [images[-1]] * int(TAIL_S)
        write_camera(folder / 'camera.y4m', shown)
        write_microphone(folder / 'microphone.wav', np.concatenate((lead, samples, tail)))
        self.browser = Browser(folder, folder / 'camera.y4m', folder / 'microphone.wav')
        self.browser.look(1280, 900, False)
        self.browser.open(address)
        self.browser.wait('document.getElementById("state").textContent === "Ready"')
        self._delay_s = 0.3  # from the click to the first sample

    def start(self) -> None:
        """Start camera and microphone."""
        self.watcher.tone_ns = None
        self.browser.evaluate('document.getElementById("senses-start").click()')

    def stop(self) -> None:
        """Stop them."""
        self.browser.evaluate('document.getElementById("senses-stop").click()')

    def play_once(self) -> float:
        """Play the clip so that it begins with a second; return how far off it began, seconds."""
        for _ in range(TRIES):
            begin_s = math.ceil(self.watcher.now_s() + self._delay_s + LEAD_S + 0.3)
            self._wait_until(begin_s - LEAD_S - self._delay_s)
            self.start()
            tone_ns = wait_for(lambda: self.watcher.tone_ns, 'the tone')
            found_s = tone_ns / NS - TONE_AT_S + LEAD_S
            off_s = found_s - round(found_s)
            self._delay_s += found_s - begin_s
            if abs(off_s) <= PHASE_S:
                self._play_from(round(found_s))
                return off_s
            self.stop()
        raise Error(f'the clip never began within {PHASE_S} s of a whole second')

    def _wait_until(self, time_s: float) -> None:
        wait_for(lambda: self.watcher.now_s() >= time_s, 'a time')

    def _play_from(self, begin_s: int) -> None:
        """Let the window hold the clip alone, which begins then."""
        watcher, end_s = self.watcher, begin_s + self.n_seconds
        wait_for(lambda: watcher.status.window_end.sec >= begin_s, 'the second before the clip')
        watcher.reset_window()
        self._wait_until(end_s - 0.03)
        self.stop()
        wait_for(lambda: watcher.status.window_end.sec >= end_s, 'the last second')

    def ask(self, question: str, choices=()) -> tuple:
        """Type a question; return what the page shows, and after how many ms the first word."""
        browser, n = self.browser, len(self.watcher.answers)
        browser.evaluate(
            'document.getElementById("question").focus();'
            f'document.getElementById("choices").value = {json.dumps(", ".join(choices))}'
        )
        browser.type(question)
        browser.press('Enter')
        wait_for(lambda: len(self.watcher.answers) > n, 'an answer')
        (name,) = list(self.watcher.answers)[n:]
        card = f'document.querySelector(".own[data-id={name}]")'
        browser.wait(f'{card} !== null')
        shown = browser.evaluate(
            f'(({{dataset, children}}) => [children[1].textContent, Number(dataset.firstTokenMs),'
            f'parseFloat((dataset.firstWordMs || "nan"))])({card})'
        )
        return (*shown, self.watcher.answers[name])


def show_clip(address: str, clip: Path, questions: list, expected: dict, watcher, figures) -> None:
    """Play a clip, ask what is asked about it, and add to the figures."""
    with tempfile.TemporaryDirectory() as folder:
        page = Page(Path(folder), address, clip, watcher)
        try:
            figures['off_s'].append(page.play_once())
            before = set(watcher.read)
            bars = set(page.browser.evaluate(
                '[...document.querySelectorAll(".second")].map((e) => Number(e.dataset.second))'
            ))  # fmt: skip
            figures['seconds'].append((len(before & bars), len(before)))
            for question in questions:
                text, told_ms, word_ms, answer = page.ask(question.text, question.choices)
                is_equal = text.strip() == expected[question.id].strip()
                figures['equal'].append(is_equal)
                if not is_equal:
                    print(f'  {question.id}: {text!r}, of the bag {expected[question.id]!r}')
                figures['gap_ms'].append(abs(told_ms - answer.first_token_ms))
                if word_ms is not None:
                    figures['word_ms'].append(word_ms - answer.first_token_ms)
            figures['console'] += page.browser.console
            origin = address.partition('/?')[0].partition('://')[2]
            figures['foreign'] += [one for one in page.browser.requests if origin not in one]
        finally:
            page.browser.close()
        watcher.read.clear()


def cpu_of(pid: int, seconds: float = CPU_S) -> float:
    """Return the CPU time of a process over some seconds, in percent of a core."""

    def spent_s() -> float:
        fields = Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')

    begun_s, spent = time.monotonic(), spent_s()
    time.sleep(seconds)
    return 100 * (spent_s() - spent) / (time.monotonic() - begun_s)


@contextmanager
def lookers(address: str, count: int):
    """Keep so many more pages open, which read all that they are sent and send the clock back."""
    loop = asyncio.new_event_loop()
    base, _, query = address.partition('/?')

    async def look(session) -> None:
        url = f'{base}/ws?{query}'
        async with session.ws_connect(url, headers={'Origin': base}, max_msg_size=0) as page:
            async for message in page:
                if message.type == aiohttp.WSMsgType.TEXT and '"clock"' in message.data:
                    clock = json.loads(message.data)
                    await page.send_json({**clock, 'page_ms': 1e3 * time.monotonic()})

    async def look_all() -> None:
        async with aiohttp.ClientSession() as session:
            await asyncio.gather(*(look(session) for _ in range(count)))

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    looking = asyncio.run_coroutine_threadsafe(look_all(), loop)
    try:
        yield
    finally:
        looking.cancel()
        time.sleep(0.2)
        loop.call_soon_threadsafe(loop.stop)


def measure_cpu(address: str, pid: int, clip: Path, watcher: Watcher) -> dict:
    """Return the CPU of the node without a page, with one and with eight, and what was dropped."""
    found = {'cpu_none': cpu_of(pid)}
    with tempfile.TemporaryDirectory() as folder:
        page = Page(Path(folder), address, clip, watcher)
        try:
            page.start()
            wait_for(lambda: watcher.status.units >= 3, 'three seconds')
            found['cpu_one'] = cpu_of(pid)
            with lookers(address, PAGES - 1):
                found['cpu_eight'] = cpu_of(pid)
        finally:
            page.browser.close()
    return found | {'units_dropped': int(watcher.status.units_dropped)}


@contextmanager
def served(model_dir: str):
    """Run the graph and the node web; yield the address, the process of web and a Watcher."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    parameters = ('senses:=true', f'port:={port}', f'token:={TOKEN}')
    given = [part for one in parameters for part in ('-p', one)]
    live = ('-p', f'model_dir:={model_dir}')
    watcher = Watcher()
    with (
        closing(watcher),
        executable('live', *live, namespace=NAMESPACE),
        executable('web', *given, namespace=NAMESPACE) as web,
    ):
        wait_for(lambda: watcher.status and watcher.status.state == Status.READY, 'the model')
        wait_for(lambda: is_open(port), 'the page')
        yield f'http://127.0.0.1:{port}/?t={TOKEN}', web, watcher


def is_open(port: int) -> bool:
    """Return whether something listens at a port."""
    with socket.socket() as probe:
        return probe.connect_ex(('127.0.0.1', port)) == 0


def measure(model_dir: str, n_clips: int, path: Path) -> None:
    """Measure everything; write the figures and print a table."""
    asked = QuestionSet.read(CLIPS / 'questions.json')
    clips = list(asked.clips)[:n_clips]
    asked = replace(
        asked,
        clips={clip: asked.clips[clip] for clip in clips},
        questions=tuple(q for q in asked.questions if q.clip in clips),
    )
    core = Core(ModelDirectory.open(model_dir))
    expected = answer_all(core, asked, [Variant()])[0].answers
    core.close()
    names = ('off_s', 'seconds', 'equal', 'gap_ms', 'word_ms', 'console', 'foreign')
    figures = {name: [] for name in names}
    with served(model_dir) as (address, web, watcher):
        for clip in clips:
            print(clip, flush=True)
            questions = [q for q in asked.questions if q.clip == clip]
            show_clip(address, CLIPS / clip, questions, expected, watcher, figures)
        cpu = measure_cpu(address, web.pid, CLIPS / clips[0], watcher)
    shown, read = map(sum, zip(*figures['seconds']))
    record = {
        'questions': len(figures['equal']),
        'answers_equal': round(statistics.mean(figures['equal']), 4),
        'seconds_shown': round(shown / read, 4),
        'first_token_gap_ms': round(max(figures['gap_ms']), 3),
        'first_word_later_ms': round(statistics.median(figures['word_ms']), 1),
        **{name: round(value, 2) for name, value in cpu.items()},
        'page_bytes': sum(file.stat().st_size for file in STATIC.iterdir()),
        'foreign_requests': len(figures['foreign']),
        'console_errors': len(figures['console']),
        'load': os.getloadavg()[0],
    }
    path.write_text(json.dumps(record, indent=1) + '\n')
    print('| figure | value |\n|---|---:|')
    print('\n'.join(f'| {name} | {value} |' for name, value in record.items()))


def screenshots(model_dir: str, folder: Path) -> None:
    """Write docs/web_*.png: the page after three questions, wide and narrow, light and dark."""
    with served(model_dir) as (address, _, watcher), tempfile.TemporaryDirectory() as scratch:
        page = Page(Path(scratch), address, CLIPS / '010.mcap', watcher)
        try:
            page.start()
            wait_for(lambda: watcher.status.units >= SHOWN_UNITS, 'the window to fill')
            page.ask('what shape is shown now?')
            page.ask('who says "red", a man or a woman?')
            page.ask('what color is the shape when you hear "red"?', ('red', 'yellow', 'black'))
            page.browser.evaluate('document.activeElement.blur()')
            for width, is_dark in ((1280, False), (1280, True), (360, False), (360, True)):
                page.browser.look(width, 900, is_dark)
                page.browser.wait(f'innerWidth === {width}')
                time.sleep(0.5)  # until it is painted
                path = folder / f'web_{width}_{"dark" if is_dark else "light"}.png'
                page.browser.screenshot(path)
                shrink(path)
                print(path)
        finally:
            page.browser.close()


def shrink(path: Path) -> None:
    """Write a PNG in 256 colours."""
    from PIL import Image

    Image.open(path).convert('RGB').quantize(256, Image.Quantize.FASTOCTREE).save(
        path, optimize=True
    )


def main() -> int:
    """Measure, or write the screenshots."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model-dir', default=str(ROOT / 'models' / 'nano'))
    parser.add_argument('--clips', type=int, default=6, help='how many, %(default)s')
    parser.add_argument('--json', type=Path, default=ROOT / 'build' / 'web.json')
    parser.add_argument('--screenshots', action='store_true', help='write docs/web_*.png instead')
    arguments = parser.parse_args()
    if CHROMIUM is None:
        raise SystemExit('Chromium is not installed: sudo apt install chromium')

    def work() -> None:
        if arguments.screenshots:
            screenshots(arguments.model_dir, ROOT / 'docs')
        else:
            measure(arguments.model_dir, arguments.clips, arguments.json)

    return run_program('web', work)


if __name__ == '__main__':
    raise SystemExit(main())
