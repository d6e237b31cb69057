# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The client for users' own nodes and scripts, against the installed executables."""

import gc
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pytest
import rclpy
from rclpy.action import ActionServer
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.executors import (
    ExternalShutdownException,
    MultiThreadedExecutor,
    SingleThreadedExecutor,
)
from rclpy.task import Future
from ros_graph import LONG
from ros_source import jpeg, picture_of
from std_msgs.msg import String

from minicpmo_ros.action import Ask as AskAction
from minicpmo_ros.client import (
    AskError,
    BusyError,
    CancelledError,
    Client,
    InputError,
    LateError,
    client,
)
from minicpmo_ros.client import calls as asked
from minicpmo_ros.msg import Answer, Status
from minicpmo_ros.ros.framework.lifecycle import LATCHED


@pytest.fixture
def node(graph):
    """Give a node of a user, which nobody spins yet."""
    node = rclpy.create_node('user', namespace=graph.namespace)
    yield node
    node.destroy_node()


@pytest.fixture
def asker(node):
    asker = Client(node)
    yield asker
    asker.destroy()


@pytest.fixture
def spun(node):
    """Give the user's node, spun in another thread."""
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    thread = threading.Thread(target=executor.spin)
    thread.start()
    yield node
    executor.shutdown()
    thread.join()


def start_live(graph, model_dir, *arguments, executable='live'):
    return graph.start(
        executable, '-p', f'model_dir:={model_dir}', '-p', 'max_tokens:=3000', *arguments
    )


@dataclass
class Thing:
    color: Literal['red', 'blue']
    share: float = field(metadata={'minimum': 0, 'maximum': 1})


@dataclass
class Shelf:
    things: list[Thing] = field(metadata={'minItems': 1, 'maxItems': 2})


def check_answers_as_data(asker):
    """JSON answers are of their schema; what is cut or not of a schema is told."""
    shelf = asker.ask_as(Shelf, 'What is on it?')
    assert isinstance(shelf.things[0], Thing) and shelf.things[0].color in ('red', 'blue')
    assert set(asker.ask_as({'properties': {'a': {'type': 'null'}}}, '?')) <= {'a'}
    with pytest.raises(AskError, match=r'JSON was cut after 4 tokens.*max_tokens') as cut:
        asker.ask_as(Shelf, 'What is on it?', max_tokens=4)
    assert cut.value.answer.text and cut.value.answer.finish == Answer.ERROR
    with pytest.raises(AskError, match='#/properties/things/items/multipleOf: this keyword'):
        asker.ask('?', json_schema={'properties': {'things': {'items': {'multipleOf': 2}}}})


def say_nothing_more(asker):
    """Wait until the llm is free again."""
    asker.wait_until(lambda: not asker.status.answering, 60, 'a free llm')


def test_a_script_asks_streams_takes_back_and_is_told_in_words(graph, asker, tiny_model_dir):
    process = start_live(graph, tiny_model_dir)
    assert asker.wait_until_ready().state == Status.READY
    answer = asker.ask('Is it?', choices=['yes', 'no'])
    assert answer.text in ('yes', 'no') and answer.finish == Answer.STOP

    heard = []
    stream = asker.stream('Tell.', heard.append, max_tokens=60, temperature=1.0)
    pieces = list(stream)
    assert len(pieces) > 1 and pieces == heard
    assert ''.join(pieces) == stream.answer.text == stream.result().text

    for _ in (stream := asker.stream('Tell me everything.', **LONG)):
        break  # leaving the loop takes the question back, and waits for its end
    assert stream.is_over and stream.answer.finish == Answer.CANCELLED
    with pytest.raises(CancelledError):
        stream.result()
    early = asker.stream('Never mind.')
    early.cancel()
    assert list(early) == []

    with pytest.raises(LateError, match=r'No answer within 0\.1 s.*is ready'):
        asker.ask('Tell me everything.', timeout_s=0.1, **LONG)
    say_nothing_more(asker)
    with pytest.raises(AskError, match='no valid GBNF'):
        asker.ask('?', grammar='root ::= (')
    with pytest.raises(AskError, match='tokens long'):
        asker.ask('word ' * 5000)
    check_answers_as_data(asker)
    assert asker.ask('And now?', max_tokens=2).text
    assert process.is_running and 'Traceback' not in process.log


WRONG = (
    dict(question=None),
    dict(question='half of a pair: \ud83d'),
    dict(question='?', choices='yes'),
    dict(question='?', choices=None),
    dict(question='?', choices=['a', '']),
    dict(question='?', choices=['a'], grammar='root ::= "a"'),
    dict(question='?', grammar=3),
    dict(question='?', grammar='root ::= "a"', json_schema={}),
    dict(question='?', json_schema=True),
    dict(question='?', max_tokens=-1),
    dict(question='?', max_tokens=2**32),
    dict(question='?', temperature=float('nan')),
    dict(question='?', temperature='hot'),
    dict(question='?', remember='often'),
    dict(question='?', loud=True),
    dict(question='ends at a NUL\0here'),
    dict(question='?', choices=['a\0b', 'a']),
    dict(question='?', json_schema={'enum': {1}}),
    dict(question='?', json_schema=[1]),
    dict(question='?', temperature=1e300),
    dict(question='?', temperature=10**400),
    dict(question='?', remember=2),
    dict(question='?', remember=np.ones(2)),
    dict(question='?', image=b''),
    dict(question='?', image=np.zeros((4, 4, 3), np.uint8)),
    dict(question='?', timeout_s=float('nan')),
    dict(question='?', timeout_s=-1),
    dict(question='?', timeout_s='5'),
)


def test_a_wrong_argument_is_refused_before_anything_is_sent(graph, asker):
    for arguments in WRONG:
        name = list(arguments)[-1]
        with pytest.raises(InputError, match=f'{name}') as told:
            asker.ask(**arguments)
        assert len(str(told.value)) < 500
    with pytest.raises(InputError, match='on_text is 5'):
        asker.stream('?', 5)
    with pytest.raises(InputError, match='timeout_s is nan'):
        asker.wait_until_ready(timeout_s=float('nan'))


def test_whoever_is_not_there_or_has_failed_is_told_with_the_reason(
    graph, asker, tmp_path, monkeypatch
):
    monkeypatch.setattr(asked, 'FIND_TIMEOUT_S', 0.3)
    with pytest.raises(BusyError, match=f'There is no {graph.namespace}/llm'):
        asker.ask('Anybody?')
    with pytest.raises(LateError, match='Not ready after 0.3 s: There is no'):
        asker.wait_until_ready(timeout_s=0.3)
    graph.start('llm', '-p', f'model_dir:={tmp_path}/none')
    with pytest.raises(BusyError, match=r'no such model directory.*Set model_dir'):
        asker.wait_until_ready()
    asker.wait_until(lambda: asker.has_server, 60, 'the action')
    with pytest.raises(AskError, match='no such model directory'):
        asker.ask('And now?')


def test_a_client_loads_no_compute_library():
    program = 'import sys, minicpmo_ros.client; sys.exit("llama_cpp" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', program]).returncode == 0


def test_what_rclpy_raises_on_the_way_of_a_question_is_told_to_who_asked(
    graph, asker, tiny_model_dir, monkeypatch
):
    start_live(graph, tiny_model_dir)
    asker.wait_until_ready()
    failed = Future()
    failed.set_exception(RuntimeError('the goal was lost'))
    real = asker.action.send_goal_async

    def raises(*_, **__):
        raise RuntimeError('the goal was not sent')

    def loses_the_result(*arguments, **named):
        sent = real(*arguments, **named)
        sent.add_done_callback(
            lambda done: monkeypatch.setattr(done.result(), 'get_result_async', lambda: failed)
        )
        return sent

    for send, what in (
        (raises, 'was not sent'), (lambda *_, **__: failed, 'was lost'),
        (loses_the_result, 'was lost'),
    ):  # fmt: skip
        monkeypatch.setattr(asker.action, 'send_goal_async', send)
        with pytest.raises(AskError, match=f'The way to .*/llm failed.*{what}'):
            asker.ask('What?', max_tokens=2)
    monkeypatch.setattr(asker.action, 'send_goal_async', real)
    assert asker.ask('And now?', max_tokens=2).text


def test_an_end_without_a_reason_is_told_in_words(node, asker):
    server = ActionServer(
        node, AskAction, 'llm/ask', lambda goal: goal.abort() or AskAction.Result()
    )
    with pytest.raises(AskError, match='/llm gives no reason; its log tells more'):
        asker.ask('What?')
    server.destroy()


def test_a_question_is_sent_when_who_answers_has_found_who_asks(node, asker, monkeypatch):
    """Before that its replies are lost; that it has is known by its status."""
    taken = []

    def answer(goal):
        taken.append(goal.request.question)
        goal.abort()
        return AskAction.Result(reason='It is over.')

    server = ActionServer(node, AskAction, 'llm/ask', answer)
    status = node.create_publisher(Status, 'llm/status', LATCHED)
    monkeypatch.setattr(asked, 'MEET_TIMEOUT_S', 600.0)
    late = asker.stream('First?')
    with pytest.raises(LateError):
        asker.wait_until(lambda: taken, 1.0, 'an answer')
    status.publish(Status(state=Status.READY))
    with pytest.raises(AskError, match='It is over'):
        late.result()
    node.destroy_publisher(status)
    node.create_publisher(Status, 'llm/status', LATCHED)  # started anew, and silent
    monkeypatch.setattr(asked, 'MEET_TIMEOUT_S', 0.1)
    with pytest.raises(AskError, match='It is over'):
        asker.ask('Second?')
    assert taken == ['First?', 'Second?']
    server.destroy()


def test_what_is_begun_is_looked_at_however_quick_the_thread_that_spins_is(
    graph, spun, asker, monkeypatch
):
    real, has_run = asker.post, threading.Event()

    def post(call):
        real(call)
        real(has_run.set)
        has_run.wait()

    monkeypatch.setattr(asker, 'post', post)
    ready = asker.ready_async(timeout_s=0.0)
    graph.spin_until(ready.done, 'a word')
    assert 'Not ready after 0 s' in str(ready.exception())


def test_a_node_that_is_spun_elsewhere_asks_from_threads_and_callbacks(
    graph, spun, asker, tiny_model_dir
):
    start_live(graph, tiny_model_dir)
    ended = {}

    async def on_polite(_):
        await asker.ready_async()
        ended['polite'] = await asker.ask_async('What?', max_tokens=2)

    async def on_impatient(_):
        try:
            await asker.ask_async('What?', timeout_s=0.1, **LONG)
        except LateError as error:
            ended['impatient'] = error

    def on_blocking(_):
        try:
            asker.ask('What?')
        except AskError as error:
            ended['blocking'] = error

    group = ReentrantCallbackGroup()
    callbacks = dict(polite=on_polite, impatient=on_impatient, blocking=on_blocking)
    for name, callback in callbacks.items():
        spun.create_subscription(String, name, callback, 1, callback_group=group)
    asker.wait_until_ready()
    for name in callbacks:
        publisher = graph.create_publisher(String, name, 1)
        graph.spin_until(publisher.get_subscription_count, name)
        publisher.publish(String())
        graph.spin_until(lambda name=name: name in ended, name)
    assert ended['polite'].text and 'within 0.1 s' in str(ended['impatient'])
    assert 'await client.ask_async' in str(ended['blocking'])

    texts = []
    threads = [
        threading.Thread(target=lambda: texts.append(asker.ask('What?', max_tokens=2).text))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == [ended['polite'].text] * 4
    stream = asker.stream('Tell me everything.', **LONG)
    next(iter(stream))
    asker.cancel()
    asker.wait_until(lambda: stream.is_over, 60, 'the end')
    assert stream.answer.finish == Answer.CANCELLED


def test_a_callback_may_wait_where_other_threads_spin_the_node(graph, node, asker, tiny_model_dir):
    start_live(graph, tiny_model_dir, executable='llm')
    executor, answers = MultiThreadedExecutor(2), []
    executor.add_node(node)

    def once():
        timer.cancel()
        asker.wait_until_ready()
        answers.append(asker.ask('What?', max_tokens=4))

    timer = node.create_timer(0.01, once)
    thread = threading.Thread(target=executor.spin)
    thread.start()
    graph.spin_until(lambda: answers, 'an answer inside a callback')
    executor.shutdown()
    thread.join()


def test_an_executor_that_does_not_spin_is_named(graph, node, asker, monkeypatch):
    monkeypatch.setattr(client, 'GRACE_S', 0.1)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    with pytest.raises(LateError, match='does not spin'):
        asker.ask('?', timeout_s=0.1)
    executor.shutdown()


def test_two_clients_with_sixty_questions_each_get_each_reply(graph, asker, tiny_model_dir):
    start_live(graph, tiny_model_dir, '-p', 'max_waiting:=30', executable='llm')
    node = rclpy.create_node('other', namespace=graph.namespace)
    other = Client(node)
    for one in (asker, other):
        one.wait_until_ready()
    streams = [
        one.stream(f'{who} {i}?', max_tokens=4)
        for i in range(60)
        for who, one in (('first', asker), ('second', other))
    ]
    # Nobody spins meanwhile: what the other client hears gathers in its queues.
    asker.wait_until(lambda: all(s.is_over for s in streams[0::2]), 60, 'replies to the first')
    other.wait_until(lambda: all(s.is_over for s in streams[1::2]), 60, 'replies to the second')
    errors = [stream.future.exception() for stream in streams]
    assert errors.count(None) >= 31
    assert all('more are not taken' in str(error) for error in errors if error)
    for i, stream in enumerate(streams):
        if errors[i] is None:
            assert stream.answer.question == f'{("first", "second")[i % 2]} {i // 2}?'
            assert ''.join(stream) == stream.answer.text
    other.destroy()
    node.destroy_node()


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGKILL])
def test_a_node_that_ends_in_the_middle_of_an_answer_is_told_of_and_asked_again(
    graph, asker, tiny_model_dir, monkeypatch, number
):
    process = start_live(graph, tiny_model_dir)
    asker.wait_until_ready()
    pieces = []
    with (
        monkeypatch.context() as patch,
        pytest.raises(AskError, match='stopped before|took the question and ended'),
    ):
        patch.setattr(client, 'SILENT_TICKS', 25)
        for piece in asker.stream('Tell me everything.', timeout_s=120, **LONG):
            if not pieces:
                process.send(number)
            pieces.append(piece)
    assert pieces
    process.wait()
    asker.status = None
    start_live(graph, tiny_model_dir)
    asker.wait_until_ready()
    check_answers_as_data(asker)
    assert asker.ask('And now?', max_tokens=2).text


@pytest.mark.parametrize('name', ('', 'two words', 'llm/', None))
def test_a_name_that_no_node_can_have_is_refused_in_words(node, name):
    with pytest.raises(InputError, match='it takes the name of a node'):
        Client(node, name)


def test_who_uses_numpy_and_leaves_early_is_served_without_a_word(
    graph, node, asker, tiny_model_dir, capfd
):
    start_live(graph, tiny_model_dir, '-p', 'seed:=3')
    asker.wait_until_ready()
    numbers = dict(max_tokens=np.int64(2), temperature=np.float32(0.5), timeout_s=np.float64(60))
    for truth in (1, np.True_):
        assert asker.ask('Is it?', remember=truth, **numbers).remembered
    encoded = jpeg(picture_of(1))
    for image in (bytearray(encoded), memoryview(encoded), np.frombuffer(encoded, np.uint8)):
        assert asker.ask('What is it?', image=image, **numbers).look_stamp is not None
    gc.collect()  # what tests before have left is told by now
    capfd.readouterr()
    for _ in asker.stream('Tell me everything.', **LONG):
        break
    with pytest.raises(LateError):
        asker.ask('Tell me everything.', timeout_s=0.1, **LONG)
    for _ in range(2):  # the second call does nothing
        asker.destroy()
    gc.collect()
    assert capfd.readouterr() == ('', ''), 'rclpy prints what nobody has retrieved'
    with pytest.raises(AskError, match='was destroyed'):
        asker.ask('And now?')


def test_a_client_whose_node_was_destroyed_says_so(graph):
    node = rclpy.create_node('gone', namespace=graph.namespace)
    asker = Client(node)
    node.destroy_node()
    with pytest.raises(AskError, match='node of this client was destroyed'):
        asker.ask('Anybody?')
    asker.destroy()


def test_whoever_is_asked_when_all_ends_says_so_and_can_be_cancelled(graph):
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=graph.context.get_domain_id())
    node = rclpy.create_node('ending', namespace=graph.namespace, context=context)
    asker = Client(node)
    stream = asker.stream('Anybody?')
    rclpy.shutdown(context=context)
    for wait in (stream.result, lambda: list(stream), lambda: asker.ask('Anybody?')):
        with pytest.raises(ExternalShutdownException):
            wait()
    stream.cancel()
    asker.cancel()
    asker.destroy()
    node.destroy_node()


def test_a_client_of_what_is_no_node_is_refused_in_words():
    with pytest.raises(InputError, match='it takes a node of rclpy'):
        Client('llm')
