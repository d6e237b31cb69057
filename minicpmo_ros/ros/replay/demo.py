# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Demonstrates the whole graph: plays a clip, asks about it, prints answers and a table.

It starts the installed `live` and `media_player` as the launch file does, in the namespace /demo,
and uses only their topics, service and action. The embedded model was never trained on the clip;
the clip's contents are printed, so that you can judge the answers. One more question is spoken
into the topic `audio`; nodes `voice` and `speaker` have it answered aloud, into a WAV file.
"""

import argparse
import signal
import statistics
import subprocess
import sys
import time
import wave
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from ament_index_python.packages import get_package_prefix, get_package_share_directory
from rclpy.node import Node
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from rclpy.utilities import remove_ros_args
from sensor_msgs.msg import CompressedImage

from minicpmo_ros.client.client import Client
from minicpmo_ros.errors import EngineError, Error, InputError, LateError
from minicpmo_ros.evaluation.questions import QuestionSet
from minicpmo_ros.msg import Answer, AudioEmbedding, ImageEmbedding, SpeakerState, Status
from minicpmo_ros.ros.audio_input import audio_types
from minicpmo_ros.ros.framework.lifecycle import LATCHED
from minicpmo_ros.ros.framework.main import run_program
from minicpmo_ros.ros.messages import to_time
from minicpmo_ros.ros.voice.self_speech import STATE_QOS
from minicpmo_ros.speech.sentences import is_speakable
from minicpmo_ros.speech.synthesis import ESPEAK, make_synthesiser
from minicpmo_ros.srv import Ask
from minicpmo_ros.units import NS
from minicpmo_ros.voice.detector import load_detector

NAMESPACE = '/demo'
CLIP = '010.mcap'
FAMILIES = ('scene', 'source', 'mislead')  # what is shown, what is heard, both at once
MAX_TOKENS = 16
READY_TIMEOUT_S, STREAM_TIMEOUT_S, ANSWER_TIMEOUT_S = 120.0, 60.0, 60.0
ATTEMPTS, ATTEMPT_S = 3, 15.0  # to have an answer said aloud
SPOKEN = 'color'  # one of the words that nano is to take for a question
LEAD_S, TRAIL_S, CHUNK_S = 0.6, 2.0, 0.04  # silence around it
IMAGE_S = 0.4
WAV = Path('build/answer.wav')
FINISH = {Answer.STOP: 'end', Answer.LENGTH: 'length', Answer.CANCELLED: 'cancelled'}


class Watcher(Node):
    """Keeps what the graph publishes, and asks."""

    def __init__(self):
        super().__init__('demo', namespace=NAMESPACE)
        # Before the client: once its status has come, the server has found both.
        self._service = self.create_client(Ask, 'llm/ask')
        self.client = Client(self)
        self.processes = []  # that must stay alive meanwhile
        self.seen, self.heard, self.prefill_ms = [], [], {}  # the last by the count of units read
        deep = QoSProfile(depth=10)
        self.image = None  # the newest that the camera gave
        self.create_subscription(Status, 'llm/status', self._on_status, LATCHED)
        self.create_subscription(
            CompressedImage, 'image/compressed', self._on_image, qos_profile_sensor_data
        )
        self.create_subscription(
            ImageEmbedding, 'vision_encoder/embedding', self.seen.append, deep
        )
        self.create_subscription(
            AudioEmbedding, 'streaming_encoder/embedding', self.heard.append, deep
        )

    def _on_image(self, message) -> None:
        self.image = message

    def _on_status(self, message) -> None:
        self.prefill_ms.setdefault(message.units_read, message.prefill_ms)

    def wait_until(self, condition, timeout_s: float, what: str) -> None:
        """Wait for `condition()`; raise Error when it is late, or a process has ended."""
        self.client.wait_until(unless_ended(self.processes, condition), timeout_s, what)

    def wait_until_ready(self) -> None:
        """Wait for the model; raise Error when it cannot be loaded."""
        ready = self.client.ready_async(READY_TIMEOUT_S)
        self.wait_until(ready.done, READY_TIMEOUT_S, 'loading the model')
        ready.result()

    def ask_by_service(self, question: str) -> Answer:
        """Ask by the service, which returns the whole answer at once."""
        self.wait_until(self._service.service_is_ready, ANSWER_TIMEOUT_S, 'finding the service')
        future = self._service.call_async(Ask.Request(question=question, max_tokens=MAX_TOKENS))
        self.wait_until(future.done, ANSWER_TIMEOUT_S, 'the answer')
        return checked(future.result())

    def ask_by_action(self, question: str, on_text) -> Answer:
        """Ask by the action and pass on the words as they come."""
        return self.client.stream(
            question, on_text, max_tokens=MAX_TOKENS, timeout_s=ANSWER_TIMEOUT_S
        ).result()


def unless_ended(processes, condition):
    """Return a condition that raises Error once one of the processes has ended."""

    def check():
        if any(process.poll() is not None for process in processes):
            raise Error('a process ended; see the log above')
        return condition()

    return check


def checked(reply) -> Answer:
    """Return the answer of a reply; raise EngineError with its reason where there is none."""
    if not reply.success:
        raise EngineError(f'no answer: {reply.reason}')
    return reply.answer


@contextmanager
def executable(name: str, *arguments: str, namespace: str = NAMESPACE, on_start=None):
    """Run an installed executable of this package; end it by SIGINT and wait for it.

    `on_start` is called in the new process.
    """
    path = Path(get_package_prefix('minicpmo_ros')) / 'lib' / 'minicpmo_ros' / name
    command = [str(path), '--ros-args', '-r', f'__ns:={namespace}', *arguments]
    # A session of its own: Ctrl-C in the terminal reaches this program, which ends the others.
    process = subprocess.Popen(command, start_new_session=True, preexec_fn=on_start)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            code = process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        if code:
            print(f'{name} ended with exit code {code}', file=sys.stderr)


def show_evidence(answer: Answer) -> None:
    """Print what an answer is based on."""
    seconds = answer.window_end.sec - answer.window_start.sec
    print(
        f'   [{FINISH.get(answer.finish, "error")}; based on {answer.units} units, '
        f'{seconds} s until {time.strftime("%H:%M:%S", time.localtime(answer.window_end.sec))}; '
        f'first token {answer.first_token_ms:.0f} ms]\n'
    )


def table(watcher: Watcher, answers: list[Answer]) -> str:
    """Return the measured figures as a markdown table."""
    seen = [m for m in watcher.seen if m.status == m.OK and not m.reused]
    heard = [m for m in watcher.heard if m.status == m.OK]
    if not seen or not heard:
        raise Error(
            f'{len(seen)} seconds were seen and {len(heard)} heard; the log above says why'
        )
    pre = median(m.preprocess_ms for m in seen) + median(m.preprocess_ms for m in heard)
    vision, audio = median(m.encode_ms for m in seen), median(m.encode_ms for m in heard)
    prefill = median(ms for read, ms in watcher.prefill_ms.items() if read)
    generation = median(a.tokens_per_second for a in answers if a.answer_tokens > 1)
    rows = (
        ('preprocessing', f'{pre:.1f} ms'),
        ('vision', f'{vision:.1f} ms'),
        ('audio', f'{audio:.1f} ms'),
        ('prefill', f'{prefill:.1f} ms'),
        ('whole unit', f'{pre + vision + audio + prefill:.1f} ms'),
        ('first token', f'{median(a.first_token_ms for a in answers):.1f} ms'),
        ('generation', f'{generation:.1f} tokens/s' if generation else 'one token an answer'),
        ('units in the window', f'{watcher.client.status.units}'),
        ('memory of the process', f'{watcher.client.status.memory_mib:.0f} MiB'),
    )
    lines = ['| one second of image and audio | |', '|---|---:|']
    return '\n'.join(lines + [f'| {name} | {value} |' for name, value in rows])


def median(values) -> float:
    """Return the median of numbers, 0 of none."""
    values = list(values)
    return statistics.median(values) if values else 0.0


def converse(watcher: Watcher, questions: tuple) -> list[Answer]:
    """Ask all but the last question by the service, the last one by the action."""
    answers = []
    for question in questions[:-1]:
        print(f'Q: {question}   (service)')
        answers.append(watcher.ask_by_service(question))
        print(f'A: {answers[-1].text}')
        show_evidence(answers[-1])
    print(f'Q: {questions[-1]}   (action, the words as they come)')
    print('A: ', end='', flush=True)
    answers.append(watcher.ask_by_action(questions[-1], partial(print, end='', flush=True)))
    print()
    show_evidence(answers[-1])
    return answers


class Ear:
    """A microphone into which somebody speaks, and the ears that hear the robot answer."""

    def __init__(self, watcher: Watcher):
        audio_type, info_type = audio_types()
        self._watcher, self._audio_type, self._info_type = watcher, audio_type, info_type
        self.answers, self.states, self.audio, self._infos = [], [], [], []
        deep = QoSProfile(depth=500)
        self.microphone = watcher.create_publisher(audio_type, 'audio', deep)
        self._format = watcher.create_publisher(info_type, 'audio_info', LATCHED)
        self._camera = watcher.create_publisher(CompressedImage, 'image/compressed', deep)
        for message_type, topic, notes, qos in (
            (Answer, 'llm/answer', self.answers, deep),
            (SpeakerState, 'speaker/state', self.states, STATE_QOS),
            (audio_type, 'speaker/audio', self.audio, deep),
            (info_type, 'speaker/audio_info', self._infos, LATCHED),
        ):
            watcher.create_subscription(message_type, topic, notes.append, qos)

    def speak(self, sound) -> None:
        """Speak into the microphone, as fast as one speaks; the camera goes on as it was."""
        rate_hz = sound.rate_hz
        self._format.publish(
            self._info_type(
                channels=1, sample_rate=rate_hz, sample_format='S16LE', coding_format='wave'
            )
        )
        lead, trail = bytes(2 * round(LEAD_S * rate_hz)), bytes(2 * round(TRAIL_S * rate_hz))
        data, size = lead + sound.samples.tobytes() + trail, 2 * round(CHUNK_S * rate_hz)
        begun_ns = self._watcher.get_clock().now().nanoseconds
        for at in range(0, len(data), size):
            end_ns = begun_ns + (at + size) * NS // (2 * rate_hz)
            self._watcher.wait_until(
                lambda end_ns=end_ns: self._watcher.get_clock().now().nanoseconds >= end_ns,
                STREAM_TIMEOUT_S, 'the question to be spoken',
            )  # fmt: skip
            message = self._audio_type()
            message.header.stamp = to_time(begun_ns + at * NS // (2 * rate_hz))
            message.audio.data.frombytes(data[at : at + size])
            self.microphone.publish(message)
            if self._watcher.image and at % (size * round(IMAGE_S / CHUNK_S)) == 0:
                image = self._watcher.image
                image.header.stamp = message.header.stamp
                self._camera.publish(image)

    def is_being_told(self, answer: Answer) -> bool:
        """Return whether the robot has begun to say an answer."""
        return any(state.id == answer.id for state in self.states)

    def has_been_told(self, answer: Answer) -> bool:
        """Return whether the robot has said all of an answer."""
        # Not the newest alone: another answer may have begun meanwhile.
        return any(
            state.id == answer.id and not state.speaking and state.spoken != ''
            for state in self.states
        )

    def write(self, path: Path) -> float:
        """Write what the robot has said; return how many seconds it is."""
        data = b''.join(bytes(block.audio.data) for block in self.audio)
        path.parent.mkdir(parents=True, exist_ok=True)
        with wave.open(str(path), 'wb') as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(self._infos[-1].sample_rate)
            file.writeframes(data)
        return len(data) / 2 / self._infos[-1].sample_rate


def ask_aloud(watcher: Watcher, path: Path) -> None:
    """Speak a question, and print the answer that is heard; or print why not."""
    print(f'Q: {SPOKEN}   (spoken into the topic audio; no call)')
    try:
        load_detector()
        sound = make_synthesiser(ESPEAK, 'en-us', 1.0, 1.0, ANSWER_TIMEOUT_S).speak(SPOKEN)
        ear = Ear(watcher)
    except InputError as error:
        print(f'   [not asked by voice: {error}]\n')
        return
    with executable('voice') as listener, executable('speaker') as mouth:
        watcher.processes += [listener, mouth]
        watcher.wait_until(
            lambda: (
                ear.microphone.get_subscription_count() >= 2
                and watcher.count_subscribers('llm/answer_delta')  # by the speaker, once active
            ),
            READY_TIMEOUT_S, 'voice and speaker',
        )  # fmt: skip
        answer = answer_aloud(watcher, ear, sound)
        print(f'A: {answer.text}')
        show_evidence(answer)
        if is_speakable(answer.text):
            watcher.wait_until(
                lambda: ear.has_been_told(answer), ANSWER_TIMEOUT_S, 'the answer to be spoken'
            )
            print(f'   [{ear.write(path):.1f} s of speech are in {path}]\n')
        else:
            print('   [there is nothing in it to say aloud]\n')
        del watcher.processes[-2:]  # they end here


def answer_aloud(watcher: Watcher, ear: Ear, sound) -> Answer:
    """Speak a question, and return its answer once the robot says it."""
    for attempt in range(1, ATTEMPTS + 1):
        count = len(ear.answers)
        ear.speak(sound)
        watcher.wait_until(
            lambda count=count: len(ear.answers) > count,
            ANSWER_TIMEOUT_S, 'an answer to what was said',
        )  # fmt: skip
        answer = ear.answers[-1]
        try:
            watcher.wait_until(
                lambda answer=answer: ear.is_being_told(answer) or not is_speakable(answer.text),
                ATTEMPT_S, 'the answer to be said',
            )  # fmt: skip
            break
        except LateError:
            if attempt == ATTEMPTS:
                raise
        # On a busy machine nodes find each other late.
        print('   [the speaker got no answer: the llm had not found it yet; asked again]')
    return answer


def demo(model_dir: str, wav: Path, clip: Path, seconds: int, questions: tuple) -> None:
    """Run the graph, play the clip once, converse, print."""
    config = Path(get_package_share_directory('minicpmo_ros')) / 'config' / 'nano.yaml'
    live = ('--params-file', str(config), '-p', f'model_dir:={model_dir}')
    player = ('-p', f'file:={clip}', '-p', 'wait_for_subscribers:=true')
    watcher = Watcher()
    try:
        with executable('live', *live) as eyes, executable('media_player', *player) as camera:
            watcher.processes = [eyes, camera]
            watcher.wait_until_ready()
            model = watcher.client.status.model
            print(f'model {model} is ready; watching and listening to {clip.name}')
            watcher.wait_until(
                lambda: watcher.client.status.units_read >= seconds,
                STREAM_TIMEOUT_S,
                f'seeing and hearing {seconds} seconds',
            )
            answers = converse(watcher, questions)
            ask_aloud(watcher, wav)
            print(table(watcher, answers))
    finally:
        watcher.client.destroy()
        watcher.destroy_node()


def held_out_clip(folder: Path, name: str) -> tuple:
    """Print what a held-out clip holds; return its path, its seconds and questions about it."""
    held_out = QuestionSet.read(folder / 'questions.json')
    if name not in held_out.clips:
        raise InputError(f'There is no clip {name}; there are {", ".join(held_out.clips)}.')
    print(f'What {name} holds, second by second:')
    for line in held_out.clips[name]:
        print(f'  - {line}')
    asked = {q.family: q.text for q in held_out.questions if q.clip == name}
    return folder / name, len(held_out.clips[name]), tuple(asked[f] for f in FAMILIES)


def main() -> int:
    """Run the demo; return the exit code."""
    parser = argparse.ArgumentParser(prog='demo', description=__doc__.splitlines()[0])
    parser.add_argument('--model-dir', default='nano', help='directory, or an embedded model')
    parser.add_argument('--clip', default=CLIP, help='one of the held-out clips (%(default)s)')
    parser.add_argument('--wav', type=Path, default=WAV, help='what it says (%(default)s)')
    arguments = parser.parse_args(remove_ros_args(sys.argv)[1:])

    def show() -> None:
        clips = Path(get_package_share_directory('minicpmo_ros')) / 'demo' / 'clips'
        demo(arguments.model_dir, arguments.wav, *held_out_clip(clips, arguments.clip))

    return run_program('demo', show)


if __name__ == '__main__':
    raise SystemExit(main())
