# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The robot's own speech: does it take itself for somebody, and how soon is it silent?

    python -m benchmarks.speaking

self_turns     turns of speech in a minute of the robot's own, heard with an echo 2 dB above a
               person's level through a room of 40 ms delay and a long decaying tail: by what
               `listen` is. `always` is the ratio's other side
muted_s        how many seconds of that minute and the tail behind it half_duplex does not hear
echo_left_db   what barge_in leaves of that minute, against what the microphone hears
own_words_left_s  seconds of that minute in which the window hears anything of it with barge_in, by
               room; half_duplex hears nothing
question_kept  share of the energy of eight questions into that minute that the window hears, of
               what the echo canceller leaves of them, by room
echo_ms_per_s  processor time of barge_in for a second of audio
interruptions_found  of eight questions asked into that minute with barge_in, by room
stop_ms        from a stop to the last sound that is given out, the most of ten, espeak-ng speaking

Writes build/voice.json, beside what else is there.
"""

import json
import threading
import time
from pathlib import Path

import numpy as np

from benchmarks.voice_sounds import QUESTIONS, ROOMS, echo_of, own_speech, say
from minicpmo_ros.media.audio.log_mel import SAMPLE_RATE_HZ
from minicpmo_ros.speech.self_speech import TAIL_S, EchoRemover, ResidueGate, SelfSpeech
from minicpmo_ros.speech.speaker import Speaker
from minicpmo_ros.speech.synthesis import ESPEAK, make_synthesiser
from minicpmo_ros.units import NS
from minicpmo_ros.voice.detector import FRAME, load_detector
from minicpmo_ros.voice.turns import TurnFinder, TurnKind, TurnOptions

OUT = Path(__file__).resolve().parent.parent / 'build' / 'voice.json'
SPEECH_S, STOPS, INTERRUPTIONS = 60, 10, 8
ECHO_DELAY_MS, CHUNK = 40, 640


def self_turns(rng) -> dict:
    """Return {listen: turns of its own}, what half_duplex leaves out, and what barge_in leaves."""
    said, spans = own_speech(SPEECH_S)
    said = np.concatenate([said, np.zeros(3 * SAMPLE_RATE_HZ, np.float32)])
    heard, speech = echo_of(rng, said, 'long'), SelfSpeech(TAIL_S)
    for begin_ns, end_ns in spans:
        speech.tell(begin_ns, True)
        speech.tell(end_ns, False)
    begun_s = time.process_time()
    clean = without_echo(said, heard, learns_room=True)
    spent_s, turns = time.process_time() - begun_s, {}
    for listen, samples in (
        ('always', heard),
        ('half_duplex', speech.silence(0, heard, SAMPLE_RATE_HZ)),
        ('barge_in', speech.silence(0, heard, SAMPLE_RATE_HZ, clean)),
    ):
        finder = TurnFinder(load_detector(), TurnOptions())
        finder.robot_speaks = speech.speaks_at
        events = finder.push(0, samples) + finder.stop('the end')
        turns[listen] = sum(event.kind is TurnKind.STARTED for event in events)
    muted_ms = speech.duration_ms(0, len(heard) * NS // SAMPLE_RATE_HZ)
    return {
        'self_turns': turns,
        'muted_s': muted_ms / 1e3,
        'echo_left_db': float(10 * np.log10(np.mean(clean**2) / np.mean(heard**2))),
        'echo_ms_per_s': 1e3 * spent_s / (len(heard) / SAMPLE_RATE_HZ),
    }


def interruptions_found(rng) -> dict:
    """Return how many of eight questions asked into the robot's speech start, by room.

    And how much the window hears of its own words, and of the questions.
    """
    said, _ = own_speech(SPEECH_S)
    questions = np.zeros(len(said), np.float32)
    begins, at = [], 8 * SAMPLE_RATE_HZ
    for text in QUESTIONS[:INTERRUPTIONS]:
        part = say(text, 'en-gb+f3')
        questions[at : at + len(part)] = part
        begins.append((at, at + len(part)))
        at += len(part) + 3 * SAMPLE_RATE_HZ
    found, kept, own_s = {}, {}, {}
    asked = np.concatenate([np.arange(begin, end) for begin, end in begins])
    for room in ROOMS:
        echo = echo_of(rng, said, room)
        own_s[room] = np.count_nonzero(windowed(without_echo(said, echo))) / SAMPLE_RATE_HZ
        clean = without_echo(said, echo + questions)
        kept[room] = float(np.sum(windowed(clean)[asked] ** 2) / np.sum(clean[asked] ** 2))
        finder = TurnFinder(load_detector(), TurnOptions())
        finder.robot_speaks = lambda stamp_ns: True
        events = finder.push(0, without_echo(said, echo + questions, learns_room=True))
        starts = [e.start_ns / NS for e in events if e.kind is TurnKind.STARTED]
        found[room] = sum(
            any(begin - 0.3 * SAMPLE_RATE_HZ < start * SAMPLE_RATE_HZ < end for start in starts)
            for begin, end in begins
        )
    return {'interruptions_found': found, 'own_words_left_s': own_s, 'question_kept': kept}


def without_echo(said, heard, learns_room: bool = False) -> np.ndarray:
    """Return what the echo canceller leaves, (n,), of what was heard while this was said.

    learns_room: as for node `voice`; a window hears without.
    """
    remover, clean = EchoRemover(ECHO_DELAY_MS, learns_room), []
    for at in range(0, len(said), CHUNK):
        begin_ns = at * NS // SAMPLE_RATE_HZ
        remover.play(begin_ns, said[at : at + CHUNK])
        clean.append(remover.hear(begin_ns, heard[at : at + CHUNK])[1])
    return np.concatenate(clean)


def windowed(clean: np.ndarray) -> np.ndarray:
    """Return what of it a window hears, (n,)."""
    gate = ResidueGate(load_detector(), FRAME)
    return gate.listen(clean)


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
    figures = {**self_turns(rng), **interruptions_found(rng), 'stop_ms': round(stop_ms(rng), 1)}
    before = json.loads(OUT.read_text()) if OUT.exists() else {}
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({**before, **figures}, indent=1) + '\n')
    print('| the robot speaks | |\n|---|---:|')
    for listen, turns in figures['self_turns'].items():
        print(f'| turns of its own in a minute, listen {listen} | {turns} |')
    for room, count in figures['interruptions_found'].items():
        print(f'| interruptions found of {INTERRUPTIONS}, {room} tail | {count} |')
        own_s, kept = (figures[name][room] for name in ('own_words_left_s', 'question_kept'))
        print(f'| seconds of its own words in the window, {room} tail | {own_s:.2f} |')
        print(f'| of the questions into them the window hears, {room} tail | {kept:.0%} |')
    print(f'| echo that barge_in leaves | {figures["echo_left_db"]:.1f} dB |')
    print(f'| barge_in, ms per second of audio | {figures["echo_ms_per_s"]:.1f} |')
    print(f'| seconds that half_duplex leaves out | {figures["muted_s"]:.1f} |')
    print(f'| longest time to silence | {figures["stop_ms"]:.0f} ms |')


if __name__ == '__main__':
    main()
