# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Drives a headless Chromium by its DevTools protocol, with fake devices from files.

The calls wait for what they want: a test needs no event loop. What the page writes to the
console, what it throws and what it requests is kept.
"""

import asyncio
import base64
import io
import json
import os
import shutil
import signal
import subprocess
import threading
import time
import wave
from pathlib import Path

import aiohttp
import av
import numpy as np
from PIL import Image

from minicpmo_ros.evaluation.bags.media_source import open_source

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser'))), None)
FLAGS = (
    '--headless=new',
    '--no-sandbox',
    '--disable-gpu',
    '--disable-dev-shm-usage',
    '--no-first-run',
    '--disable-background-networking',
    '--autoplay-policy=no-user-gesture-required',
    '--remote-debugging-port=0',
)
TIMEOUT_S = 60.0


class Browser:
    """A browser with one page; `close` ends it. `camera`: a y4m file, `microphone`: a WAV file.

    flags: further ones of Chromium.
    """

    def __init__(
        self, folder: Path, camera: Path | None = None, microphone: Path | None = None, flags=()
    ):
        self.console, self.requests, self._replies, self._number = [], [], {}, 0
        flags = [*FLAGS, *flags, f'--user-data-dir={folder / "browser"}']
        if camera is not None:
            flags += [
                '--use-fake-ui-for-media-stream',
                '--use-fake-device-for-media-stream',
                f'--use-file-for-fake-video-capture={camera.resolve()}',
                f'--use-file-for-fake-audio-capture={microphone.resolve()}',
            ]
        self._process = subprocess.Popen(
            [CHROMIUM, *flags, 'about:blank'],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        port_file = folder / 'browser' / 'DevToolsActivePort'
        self._until(lambda: port_file.exists() and port_file.read_text().count('\n'), 'Chromium')
        port = port_file.read_text().splitlines()[0]
        self._run(self._connect(port))
        for domain in ('Page', 'Runtime', 'Network', 'Log'):
            self.call(f'{domain}.enable')

    @property
    def cpu_s(self) -> float:
        """The CPU time of the browser's own process so far."""
        fields = Path(f'/proc/{self._process.pid}/stat').read_text().rsplit(')', 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')

    def open(self, address: str) -> None:
        """Open an address."""
        self.call('Page.navigate', url=address)
        self.wait('document.readyState === "complete"')

    def evaluate(self, expression: str):
        """Return the value of a JavaScript expression (a promise: its value) in the page."""
        reply = self.call(
            'Runtime.evaluate', expression=expression, returnByValue=True, awaitPromise=True,
            userGesture=True,
        )  # fmt: skip
        if 'exceptionDetails' in reply:
            raise AssertionError(f'{expression}: {reply["exceptionDetails"]}')
        return reply['result'].get('value')

    def wait(self, expression: str, timeout_s: float = TIMEOUT_S):
        """Wait until an expression is true in the page, and return its value."""
        return self._until(lambda: self.evaluate(expression), expression, timeout_s)

    def type(self, text: str) -> None:
        """Type a text into what has the focus."""
        self.call('Input.insertText', text=text)

    def press(self, key: str, modifiers: int = 0) -> None:
        """Press a key, such as Enter, Tab, ArrowLeft or ' '."""
        known = {'Enter': ('\r', 13), 'Tab': ('', 9), ' ': (' ', 32), 'ArrowLeft': ('', 37),
                 'ArrowUp': ('', 38), 'ArrowRight': ('', 39), 'ArrowDown': ('', 40),
                 'End': ('', 35)}  # fmt: skip
        text, code = known[key]
        named = dict(key=key, code=key if key != ' ' else 'Space', windowsVirtualKeyCode=code)
        named['modifiers'] = modifiers
        down = {'type': 'keyDown', 'text': text} if text else {'type': 'rawKeyDown'}
        self.call('Input.dispatchKeyEvent', **down, **named)
        self.call('Input.dispatchKeyEvent', type='keyUp', **named)

    def look(self, width: int, height: int, is_dark: bool) -> None:
        """Give the page a size, and light or dark colours."""
        self.call(
            'Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1,
            mobile=width < 500,
        )  # fmt: skip
        scheme = {'name': 'prefers-color-scheme', 'value': 'dark' if is_dark else 'light'}
        self.call('Emulation.setEmulatedMedia', features=[scheme])

    def screenshot(self, path: Path) -> None:
        """Write the whole page as PNG."""
        size = self.call('Page.getLayoutMetrics')['cssContentSize']
        clip = {'x': 0, 'y': 0, 'width': size['width'], 'height': size['height'], 'scale': 1}
        image = self.call(
            'Page.captureScreenshot', format='png', clip=clip, captureBeyondViewport=True
        )
        path.write_bytes(base64.b64decode(image['data']))

    def call(self, method: str, **parameters) -> dict:
        """Call a method of the DevTools protocol and return its result."""
        reply = self._run(self._call(method, parameters))
        if 'error' in reply:
            raise AssertionError(f'{method}: {reply["error"]}')
        return reply['result']

    def close(self) -> None:
        """End the browser and all its processes."""
        try:
            self._run(self._session.close(), 5.0)
        finally:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=5.0)

    def _run(self, coroutine, timeout_s: float = TIMEOUT_S):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout_s)

    def _until(self, condition, what: str, timeout_s: float = TIMEOUT_S):
        end_s = time.monotonic() + timeout_s
        while not (value := condition()):
            if time.monotonic() > end_s:
                raise AssertionError(f'waited {timeout_s} s for {what}; console: {self.console}')
            time.sleep(0.02)
        return value

    async def _connect(self, port: str) -> None:
        self._session = aiohttp.ClientSession()
        async with self._session.get(f'http://127.0.0.1:{port}/json/list') as reply:
            pages = [one for one in await reply.json() if one['type'] == 'page']
        self._socket = await self._session.ws_connect(
            pages[0]['webSocketDebuggerUrl'], max_msg_size=0
        )
        self._reading = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        async for message in self._socket:
            event = json.loads(message.data)
            if 'id' in event:
                self._replies.pop(event['id']).set_result(event)
            elif event['method'] == 'Network.requestWillBeSent':
                self.requests.append(event['params']['request']['url'])
            elif event['method'] == 'Network.webSocketCreated':
                self.requests.append(event['params']['url'])
            elif event['method'] == 'Runtime.exceptionThrown':
                self.console.append(event['params']['exceptionDetails'])
            elif event['method'] == 'Runtime.consoleAPICalled':
                self.console.append([one.get('value') for one in event['params']['args']])
            elif event['method'] == 'Log.entryAdded':
                self.console.append(event['params']['entry'])

    async def _call(self, method: str, parameters: dict) -> dict:
        self._number += 1
        self._replies[self._number] = reply = self._loop.create_future()
        await self._socket.send_str(
            json.dumps({'id': self._number, 'method': method, 'params': parameters})
        )
        return await reply


def write_camera(path: Path, images: list, images_per_s: int = 10, shown_s: float = 1.0) -> None:
    """Write images (H, W, 3) uint8 RGB as a y4m file, each shown for so long."""
    with av.open(str(path), 'w', format='yuv4mpegpipe') as file:
        stream = file.add_stream('wrapped_avframe', rate=images_per_s)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = 'yuv420p'
        for image in images:
            frame = av.VideoFrame.from_ndarray(image, 'rgb24').reformat(format='yuv420p')
            for _ in range(round(shown_s * images_per_s)):
                frame.pts = None
                file.mux(stream.encode(frame))
        file.mux(stream.encode())


def write_microphone(path: Path, samples: np.ndarray) -> None:
    """Write samples (n,) float32 of 16 kHz as a WAV file."""
    with wave.open(str(path), 'wb') as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(np.clip(32767 * samples, -32768, 32767).astype('<i2').tobytes())


def read_scene(path: Path) -> tuple:
    """Return the images [(H, W, 3) uint8 RGB], one a second, and samples (n,) of a clip."""
    media = open_source(str(path))
    images = [
        np.asarray(Image.open(io.BytesIO(data)).convert('RGB')) for _, _, data in media.images
    ]
    return images, np.concatenate([samples for _, samples in media.audio])
