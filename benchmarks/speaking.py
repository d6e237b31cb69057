# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The robot's own speech: does it take itself for somebody, and how soon is it silent?

    python -m benchmarks.speaking

self_turns   turns of speech in a minute of the robot's own, heard with an echo 2 dB above a
             person's level through a room of 40 ms delay and a decaying tail: by what `listen` is.
             `always` is the ratio's other side
muted_s      how many seconds of that minute and the tail behind it half_duplex does not hear
stop_ms      from a stop to the last sound that is given out, the most of ten, espeak-ng speaking

Writes build/voice.json, beside what else is there.
"""

import json
import threading
import time
from pathlib import Path

import numpy as np

from benchmarks.voice_sounds import QUESTIONS, SPEECH_RMS, say
from minicpmo_ros.media.audio.log_mel import SAMPLE_RATE_HZ
from minicpmo_ros.speech.self_speech import TAIL_S, SelfSpeech
from minicpmo_ros.speech.speaker import Speaker
from minicpmo_ros.speech.synthesis import ESPEAK, make_synthesiser
from minicpmo_ros.units import NS
from minicpmo_ros.voice.detector import load_detector
from minicpmo_ros.voice.turns import TurnFinder, TurnKind, TurnOptions

OUT = Path(__file__).resolve().parent.parent / 'build' / 'voice.json'
SPEECH_S, ECHO_DB, STOPS = 60, 2.0, 10
DELAY_S, DECAY_S, ROOM_S = 0.04, 0.056, 0.4


def own_speech(rng) -> tuple:
    """Return (what the microphone hears (n,), the spans (begin_ns, end_ns) of the speech)."""
    total = np.zeros((SPEECH_S + 3) * SAMPLE_RATE_HZ, np.float32)
    spans, at, number = [], SAMPLE_RATE_HZ, 0
    while at < SPEECH_S * SAMPLE_RATE_HZ:
        part = say(QUESTIONS[number % len(QUESTIONS)], 'en-us')
        part = part[: len(total) - at]
        total[at : at + len(part)] += part
        spans.append((at * NS // SAMPLE_RATE_HZ, (at + len(part)) * NS // SAMPLE_RATE_HZ))
        at, number = at + len(part) + SAMPLE_RATE_HZ // 4, number + 1
    times_s = np.arange(int(ROOM_S * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    room = rng.normal(size=len(times_s)) * np.exp(-times_s / DECAY_S)
    room = np.concatenate([np.zeros(int(DELAY_S * SAMPLE_RATE_HZ)), [4.0], room])
    size = 1 << (len(total) + len(room)).bit_length()
    echo = np.fft.irfft(np.fft.rfft(total, size) * np.fft.rfft(room, size), size)[: len(total)]
    loud = echo[np.abs(echo) > 1e-3 * np.abs(echo).max()]
    echo *= SPEECH_RMS * 10 ** (ECHO_DB / 20) / np.sqrt(np.mean(loud**2))
    return (echo + rng.normal(size=len(echo)) * 1e-4).astype(np.float32), spans


def self_turns(rng) -> dict:
    """Return {listen: turns of its own}, and how much half_duplex leaves out."""
    heard, spans = own_speech(rng)
    speech = SelfSpeech(TAIL_S)
    for begin_ns, end_ns in spans:
        speech.tell(begin_ns, True)
        speech.tell(end_ns, False)
    muted = speech.silence(0, heard, SAMPLE_RATE_HZ)
    turns = {}
    for listen, samples in (('always', heard), ('half_duplex', muted)):
        finder = TurnFinder(load_detector(), TurnOptions())
        events = finder.push(0, samples) + finder.stop('the end')
        turns[listen] = sum(event.kind is TurnKind.STARTED for event in events)
    muted_ms = speech.duration_ms(0, len(heard) * NS // SAMPLE_RATE_HZ)
    return {'self_turns': turns, 'muted_s': muted_ms / 1e3}


class _Output:
    newest_s = 0.0

    def play(self, samples, rate_hz) -> None:
        self.newest_s = time.monotonic()

    def silence(self) -> None:
        pass


def stop_ms(rng) -> float:
    """Return the longest time from a stop to the last sound and the state that tells it."""
    output, silent, speaking = _Output(), threading.Event(), threading.Event()

    def change(state) -> None:
        (speaking if state.is_speaking else silent).set()

    synthesiser = make_synthesiser(ESPEAK, '', 1.0, 1.0, 30.0)
    speaker, longest_s = Speaker(synthesiser, output, change, print), 0.0
    for number in range(STOPS):
        utterance = speaker.begin(str(number))
        speaker.add(utterance, ['This is a long sentence that somebody will interrupt soon.'] * 3)
        speaking.wait(60)
        time.sleep(rng.uniform(0.1, 1.5))
        silent.clear()
        stopped_s = time.monotonic()
        speaker.stop()
        silent.wait(60)
        longest_s = max(longest_s, time.monotonic() - stopped_s, output.newest_s - stopped_s)
        speaking.clear()
    speaker.close()
    return 1e3 * longest_s


def main() -> None:
    """Measure, print, write."""
    rng = np.random.default_rng(20)
    figures = {**self_turns(rng), 'stop_ms': round(stop_ms(rng), 1)}
    before = json.loads(OUT.read_text()) if OUT.exists() else {}
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({**before, **figures}, indent=1) + '\n')
    print('| the robot speaks | |\n|---|---:|')
    for listen, turns in figures['self_turns'].items():
        print(f'| turns of its own in a minute, listen {listen} | {turns} |')
    print(f'| seconds that half_duplex leaves out | {figures["muted_s"]:.1f} |')
    print(f'| longest time to silence | {figures["stop_ms"]:.0f} ms |')


if __name__ == '__main__':
    main()
