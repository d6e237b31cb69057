# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Text to sound by a synthesiser in a process of its own, with a deadline.

espeak-ng and Piper are under the GPL, so nothing of them is loaded here: text goes in by standard
input, sound comes back by standard output. A process that hangs is killed and told.
"""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import wave
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from minicpmo_ros.documents import read_bounded
from minicpmo_ros.errors import EngineError, InputError, in_words
from minicpmo_ros.process import end_with_parent

ESPEAK, PIPER = 'espeak-ng', 'piper'
ENGINES = (ESPEAK, PIPER, 'none')
ESPEAK_WPM = 165
BLOCK_S = 0.04
LEAD_S = 0.06  # that a block comes before its turn, so that a loudspeaker never runs dry


@dataclass(frozen=True)
class Sound:
    """Speech: samples (n,) int16, one channel."""

    samples: np.ndarray
    rate_hz: int

    @property
    def duration_s(self) -> float:
        """How long it is."""
        return len(self.samples) / self.rate_hz

    def play(self, output, halt) -> float:
        """Play it in blocks at its pace until `halt` comes; return which share was played.

        `halt(due_s)` waits until a monotonic time, or returns True if the sound is to stop before.
        """
        size, begun_s = max(1, round(BLOCK_S * self.rate_hz)), time.monotonic()
        for at in range(0, len(self.samples), size):
            if halt(begun_s + at / self.rate_hz - LEAD_S):
                break
            output.play(self.samples[at : at + size], self.rate_hz)
        else:
            halt(begun_s + self.duration_s)
        return (time.monotonic() - begun_s) / max(self.duration_s, 1e-3)


class Synthesiser:
    """Speaks one text at a time; `stop` may be called from another thread.

    command: program and arguments; it reads text from standard input. rate_hz: of its raw output
    of 16-bit samples; 0: it writes a WAV file.
    """

    def __init__(self, command: list[str], deadline_s: float, rate_hz: int = 0):
        self._command, self._deadline_s, self._rate_hz = command, deadline_s, rate_hz
        self._lock, self._process, self._is_stopped = threading.Lock(), None, False
        self.killed = 0  # processes that missed the deadline

    def speak(self, text: str) -> Sound | None:
        """Return the sound of a text; None if `stop` was called meanwhile.

        Raises EngineError with what to do if the program fails, gives no sound or hangs.
        """
        self._start()
        try:
            data, errors = self._process.communicate(
                ' '.join(text.replace('\0', ' ').split()).encode() + b'\n', self._deadline_s
            )
        except subprocess.TimeoutExpired:
            _kill(self._process)
            self._process.communicate()
            self.killed += 1
            raise EngineError(
                f'{self._name} had no sound after {self._deadline_s:g} s (synthesis_timeout_s) '
                'and was killed; its sentence is left out. If it is only slow, raise that time'
            ) from None
        finally:
            process, self._process = self._process, None
        if self._is_stopped:
            return None
        if process.returncode or not data:
            told = ' '.join(errors.decode(errors='replace').split())[-200:]
            raise EngineError(
                f'{self._name} gave no sound (exit code {process.returncode}): '
                f'{told or "it says nothing"}. Check the parameters engine and voice'
            )
        return self._sound_of(data)

    def _start(self) -> None:
        try:
            with self._lock:
                self._is_stopped = False
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    preexec_fn=end_with_parent,
                    start_new_session=True,
                )
        except OSError as error:
            raise EngineError(
                f'{self._name} cannot be started: {in_words(error)}. Install it, or set engine to '
                'none'
            ) from None

    def stop(self) -> None:
        """End the process at hand, if there is one."""
        with self._lock:
            self._is_stopped = True
            if self._process is not None and self._process.poll() is None:
                _kill(self._process)

    @property
    def _name(self) -> str:
        return PIPER if PIPER in self._command else Path(self._command[0]).name

    def _sound_of(self, data: bytes) -> Sound:
        if self._rate_hz:
            return Sound(np.frombuffer(data[: len(data) // 2 * 2], '<i2'), self._rate_hz)
        try:
            with wave.open(io.BytesIO(data)) as file:
                if file.getsampwidth() != 2 or file.getnchannels() != 1:
                    raise EngineError(f'{self._name} gave no 16-bit sound of one channel')
                # The length in the header of a WAV file that was streamed means nothing.
                return Sound(np.frombuffer(file.readframes(len(data)), '<i2'), file.getframerate())
        except (wave.Error, EOFError) as error:
            raise EngineError(f'{self._name} gave no WAV file: {error}') from None


def _kill(process) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)  # with what it has started itself
    except ProcessLookupError:
        pass


def make_synthesiser(
    engine: str, voice: str, rate: float, volume: float, deadline_s: float
) -> Synthesiser | None:
    """Return the Synthesiser of an engine; None for `none`.

    voice: of espeak-ng a name such as en-gb, of Piper the .onnx file of a voice. rate: 1 is the
    voice's own. volume: 0 to 1. Raises InputError, with what to install, if something is missing.
    """
    if engine == ESPEAK:
        return Synthesiser(_espeak(voice or 'en', rate, volume), deadline_s)
    if engine == PIPER:
        command, rate_hz = _piper(voice, rate, volume)
        return Synthesiser(command, deadline_s, rate_hz)
    return None


def _espeak(voice: str, rate: float, volume: float) -> list[str]:
    program = shutil.which(ESPEAK)
    if program is None:
        raise InputError(
            'espeak-ng is not installed, and the robot cannot speak. Install it (sudo apt install '
            'espeak-ng), or set engine to piper or none'
        )
    known = subprocess.run(
        [program, '-q', '-v', voice, 'a'], capture_output=True, timeout=10, check=False
    )
    if known.returncode or b'does not exist' in known.stderr:
        raise InputError(
            f'espeak-ng has no voice {voice!r}; espeak-ng --voices lists them, such as en-gb'
        )
    return [program, '--stdout', '--stdin', '-v', voice,
            '-s', str(round(ESPEAK_WPM * rate)), '-a', str(round(100 * volume))]  # fmt: skip


def _piper(voice: str, rate: float, volume: float) -> tuple:
    """Return (command, rate_hz)."""
    if find_spec(PIPER) is None:
        raise InputError(
            'Piper is not installed. Install it (pip install piper-tts), or set engine to '
            'espeak-ng'
        )
    path = Path(voice).expanduser()
    config = Path(f'{path}.json')
    if not voice or not path.is_file() or not config.is_file():
        raise InputError(
            f'voice is {voice!r}; Piper needs the .onnx file of a voice, and beside it the .json '
            'file of the same name. Or set engine to espeak-ng'
        )
    try:
        rate_hz = int(json.loads(read_bounded(config))['audio']['sample_rate'])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f'{config} does not say audio.sample_rate: {error!r}') from None
    command = [sys.executable, '-m', PIPER, '-m', str(path), '--output-raw',
               '--length-scale', f'{1 / rate:.3f}', '--volume', f'{volume:g}']  # fmt: skip
    return command, rate_hz
