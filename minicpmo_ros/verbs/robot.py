# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The verbs ask, watch, status and top: what they do in the graph.

Each is a function of the parsed arguments that returns an exit status. They find the nodes by the
names that the launch file gives them, in the namespace that is given.
"""

import json
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import rclpy
from builtin_interfaces.msg import Time
from rclpy.node import Node
from rclpy.qos import QoSProfile

from minicpmo_ros.client.calls import FIND_TIMEOUT_S
from minicpmo_ros.client.client import Client
from minicpmo_ros.documents import read_bounded
from minicpmo_ros.errors import InputError
from minicpmo_ros.msg import Alert, Answer, AudioEmbedding, ImageEmbedding, Speech, Status
from minicpmo_ros.ros.alerts import EVENT_QOS
from minicpmo_ros.ros.framework.main import run_program
from minicpmo_ros.ros.web.messages import LLM_STATES, TURNS, fields_of

TOP_PERIOD_S = 1.0
EVENTS_QOS = QoSProfile(depth=100)
ALERTS = {
    Alert.BEGIN: 'begins',
    Alert.ONGOING: 'goes on',
    Alert.END: 'ends',
    Alert.UNKNOWN: 'is not known',
    Alert.CHANGE: 'is now',
    Alert.DESCRIBED: 'described:',
}
ASKING = '?？؟'  # marks that end a question
CLEAR = '\033[H\033[2J'


def ask(arguments) -> int:
    """Ask a question, print the words as they come, and say what the answer rests on."""

    def work() -> None:
        if not arguments.question and any(c.strip()[-1:] in ASKING for c in arguments.choices):
            raise InputError(
                f'the choices are {arguments.choices}, and there is no question: write it before '
                '--choices'
            )
        image = {'image': bytes_of(arguments.image)} if arguments.image else {}
        with robot(arguments) as (_, client):
            stream = client.stream(
                arguments.question,
                lambda text: print(text, end='', flush=True),
                timeout_s=arguments.timeout,
                choices=arguments.choices,
                remember=arguments.remember,
                look=arguments.look,
                memory=arguments.memory,
                **image,
                max_tokens=arguments.max_tokens,
                temperature=arguments.temperature,
            )
            answer = stream.result()
            print()
            print(told_of(answer, arguments.choices), file=sys.stderr)

    return run_program('ask', work, args=[])


def watch(arguments) -> int:
    """Print answers, standing questions and turns of speech, a line each, as they come."""

    def work() -> None:
        count = 0

        def show(text: str) -> None:
            nonlocal count
            count += 1
            print(f'{time.strftime("%H:%M:%S")} {text}', flush=True)

        with robot(arguments) as (node, _):
            for message_type, topic, line, qos in (
                (Answer, 'llm/answer', line_of_answer, EVENTS_QOS),
                (Alert, 'llm/alerts', line_of_alert, EVENT_QOS),
                (Speech, 'voice/speech', line_of_speech, EVENTS_QOS),
            ):
                node.create_subscription(
                    message_type, topic, lambda message, line=line: show(line(message)), qos
                )
            while not arguments.count or count < arguments.count:
                spin(node)

    return run_program('watch', work, args=[])


def status(arguments) -> int:
    """Print what the language model is doing; exit status 1 if it is not ready."""
    is_ready = False

    def work() -> None:
        nonlocal is_ready
        with robot(arguments) as (_, client):
            newest = newest_status(client)
            is_ready = newest.state == Status.READY
            if arguments.json:
                print(json.dumps(fields_of(newest, ())))
            else:
                print('\n'.join(f'{name:<22}{value}' for name, value in rows_of(newest)))

    return run_program('status', work, args=[]) or int(not is_ready)


def top(arguments) -> int:
    """Show a live table of the seconds, the model's work and its memory, until Ctrl-C."""

    def work() -> None:
        newest = {}
        with robot(arguments) as (node, client):
            for message_type, topic in (
                (ImageEmbedding, 'vision_encoder/seen'),
                (AudioEmbedding, 'streaming_encoder/heard'),
            ):
                node.create_subscription(
                    message_type, topic, lambda one: newest.update({type(one): one}), EVENTS_QOS
                )
            shown = 0
            while not arguments.count or shown < arguments.count:
                current = newest_status(client)
                until_s = time.monotonic() + TOP_PERIOD_S
                while time.monotonic() < until_s:
                    spin(node)
                rows = rows_of(current) + rows_of_input(newest)
                begin = CLEAR if sys.stdout.isatty() else ''
                table = '\n'.join(f'{name:<22}{value}' for name, value in rows)
                print(f'{begin}{client.name}  {time.strftime("%H:%M:%S")}\n{table}\n', flush=True)
                shown += 1

    return run_program('top', work, args=[])


def bytes_of(path: Path) -> bytes:
    """Return what a file holds; raise InputError."""
    try:
        return read_bounded(path.expanduser())
    except OSError as error:
        raise InputError(f'{path}: it cannot be read ({error.strerror}).') from error


@contextmanager
def robot(arguments):
    """Yield (node, Client) in the namespace that is given."""
    node = Node('minicpmo', namespace=arguments.namespace, start_parameter_services=False)
    client = Client(node, 'llm')
    try:
        yield node, client
    finally:
        client.destroy()
        node.destroy_node()


def spin(node) -> None:
    """Let callbacks run for a moment."""
    rclpy.spin_once(node, timeout_sec=0.1)


def newest_status(client: Client) -> Status:
    """Return the newest status; raise LateError if nobody publishes one."""
    client.wait_until(lambda: client.status is not None, FIND_TIMEOUT_S, 'finding the node')
    return client.status


def rows_of(status: Status) -> list:
    """Return [(name, text)] of a status."""
    rows = [
        ('state', LLM_STATES.get(status.state, '?')),
        ('model', status.model),
        ('window', f'{status.units} s, {status.positions} of {status.context_size} positions'),
        ('reading a second', f'{status.prefill_ms:.1f} ms'),
        ('memory', f'{status.memory_mib:.0f} MiB'),
        ('seconds', f'{status.units_read} read, {status.units_dropped} dropped, '
                    f'{status.late} late, {status.evicted} evicted'),
        ('questions', f'{status.waiting} wait, {status.questions_dropped} dropped'
                      + (', answering' if status.answering else '')),
    ]  # fmt: skip
    told = (('reason', status.reason), ('remedy', status.remedy), ('stale', status.stale),
            ('clocks', status.clocks))  # fmt: skip
    cameras = zip(status.cameras, status.camera_ends)
    seen = ', '.join(f'{name} {age_of(end, status.window_end)}' for name, end in cameras)
    told = (('images', seen_of(status)), ('cameras', seen), *told)
    return rows + [(name, text) for name, text in told if text]


def seen_of(status: Status) -> str:
    """Return how much is seen of a second, and why not more; '' before the first image."""
    if not status.image_area:
        return ''
    rate = f', one second in {status.image_period_s}' if status.image_period_s > 1 else ''
    why = f': {status.image_slowed}' if status.image_slowed else ''
    return f'area {status.image_area:.2g}{rate}{why}'


def age_of(end: Time, window_end: Time) -> str:
    """Return how far the newest image of a camera lies behind the window's end."""
    return f'{window_end.sec - end.sec} s ago' if end.sec else 'none in the window'


def rows_of_input(newest: dict) -> list:
    """Return [(name, text)] of the newest second of image and of audio."""
    rows = []
    if (seen := newest.get(ImageEmbedding)) is not None:
        how = 'as before' if seen.reused else f'{seen.preprocess_ms + seen.encode_ms:.1f} ms'
        size = f'{seen.source_width}x{seen.source_height}'
        rows.append(('image', f'{size}, {seen.tokens} positions, {how}'))
    if (heard := newest.get(AudioEmbedding)) is not None:
        spent = f'{heard.preprocess_ms + heard.encode_ms:.1f} ms'
        rows.append(('audio', f'{heard.level_dbfs:.0f} dBFS, {heard.tokens} positions, {spent}'))
    return rows


def told_of(answer: Answer, choices: list = ()) -> str:
    """Return in a line what an answer rests on."""
    parts = [f'first token {answer.first_token_ms:.0f} ms', f'{answer.units} s in the window']
    percents = [f'{100 * p:.0f} %' for p in answer.probabilities]
    parts += map(' '.join, zip(choices, percents)) if choices else percents
    return f'[{", ".join(parts)}]' + (f' {answer.reason}' if answer.reason else '')


def line_of_answer(answer: Answer) -> str:
    """Return an answer as a line."""
    question = one_line(answer.question or 'what was said')
    return f'answer  {question} -> {one_line(answer.text)} {told_of(answer)}'


def line_of_alert(alert: Alert) -> str:
    """Return an event of a standing question as a line."""
    parts = (alert.rule, ALERTS.get(alert.kind, '?'), one_line(alert.text), one_line(alert.reason))
    return 'alert   ' + ' '.join(filter(None, parts))


def line_of_speech(speech: Speech) -> str:
    """Return an event of a turn of speech as a line."""
    return f'speech  {TURNS.get(speech.kind, "?")} {one_line(speech.reason)}'.rstrip()


def one_line(text: str) -> str:
    """Return a text without line ends and control characters, which a terminal would obey."""
    return ' '.join(''.join(c if c.isprintable() else ' ' for c in text).split())
