# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Topics in, answers out: the installed executables as processes over DDS."""

import time
from dataclasses import replace

import numpy as np
import pytest
from action_msgs.msg import GoalStatus
from ros_graph import LONG
from ros_source import FIRST, SimulatedTime, Source, jpeg, picture_of, sound_of

from minicpmo_ros.action import Ask as AskAction
from minicpmo_ros.modelset.gguf_layouts import SHAPES
from minicpmo_ros.msg import Answer, AnswerDelta, AudioEmbedding, ImageEmbedding
from minicpmo_ros.srv import Ask
from minicpmo_ros.synthetic.model import write_model

UNIT = 94  # positions of a second of picture and sound in 2.6


def start_live(graph, model_dir, *arguments):
    process = graph.start('live', '-p', f'model_dir:={model_dir}', *graph.lossless, *arguments)
    graph.wait_ready()
    return process


def start_apart(graph, model_dir, *arguments):
    """Start the three nodes as three processes, remapped as the launch file does."""
    common = ('-p', f'model_dir:={model_dir}', *graph.lossless, *arguments)
    graph.start('streaming_encoder', *common)
    graph.start('vision_encoder', *common)
    graph.start(
        'llm', '-r', 'audio_embedding:=streaming_encoder/embedding',
        '-r', 'image_embedding:=vision_encoder/embedding', *common,
    )  # fmt: skip
    graph.wait_ready()


def play(graph, source, count, first=FIRST):
    """Publish seconds as fast as they are read: the next one closes the one before."""
    read_before = graph.status.units_read
    for i in range(count + 1):  # one more: it tells that the last one is over
        source.second(first + i)
        graph.spin_until(
            lambda i=i: graph.status.units_read - read_before >= i,
            f'second {i} to be read',
        )


def ask_by_action(graph, on_feedback=None, **fields):
    """Ask by the action; give (goal handle, result future)."""
    graph.spin_until(graph.action_client.server_is_ready, 'the action')
    sent = graph.action_client.send_goal_async(
        AskAction.Goal(**fields), feedback_callback=on_feedback
    )
    goal = graph.result_of(sent, 'the goal to be taken')
    assert goal.accepted
    return goal, goal.get_result_async()


def test_a_minute_through_three_processes(graph, tiny_model_dir):
    # However slow the machine is, a second waits for its image.
    start_apart(graph, tiny_model_dir, '-p', 'n_ctx:=2048', '-p', 'unit_deadline:=60.0')
    system_prompt = graph.status.positions
    assert system_prompt > 0
    source = Source(graph)
    source.wait_heard()
    source.until_read(FIRST - 100)
    assert graph.reset().success
    graph.spin_until(lambda: graph.status.units == 0, 'an empty window')
    first = len(graph.statuses) - 1
    play(graph, source, 60)

    for status in graph.statuses[first:]:
        assert status.state == status.READY
        # Nothing is cut: what is not the system prompt is whole units.
        assert status.positions == system_prompt + UNIT * status.units
        assert status.positions <= status.context_size
    assert graph.status.units_dropped == graph.status.late == graph.status.refused == 0
    assert graph.status.evicted > 0
    # Nothing grows once the window is full.
    half_way = next(status for status in graph.statuses if status.units_read >= 30)
    assert half_way.evicted > 0
    assert graph.status.memory_mib <= half_way.memory_mib + 16

    reply = graph.ask('What do you see?', max_tokens=8)
    assert reply.success, reply.reason
    answer = reply.answer
    assert answer.text and answer.units == graph.status.units
    assert answer.window_end.sec - answer.window_start.sec == answer.units
    assert list(answer.seconds) == list(range(answer.window_start.sec, answer.window_end.sec))
    assert answer.window_end.sec in (FIRST + 60, FIRST + 61)
    assert answer.prompt_tokens > system_prompt + UNIT * answer.units


@pytest.fixture(scope='module')
def source(shared_graph, tiny_model_dir):
    """Start the `live` that several tests share, and give its camera and microphone."""
    start_live(shared_graph, tiny_model_dir, '-p', 'max_waiting:=6', '-p', 'max_tokens:=3000')
    source = Source(shared_graph)
    source.wait_heard()
    return source


@pytest.fixture
def live(shared_graph, source):
    """Give the graph of the shared `live`, whose window is empty."""
    assert shared_graph.reset().success
    return shared_graph


def test_service_and_action_agree(live, source):
    graph = live
    answers, deltas = [], []
    graph.create_subscription(Answer, 'llm/answer', answers.append, 10)
    graph.create_subscription(AnswerDelta, 'llm/answer_delta', deltas.append, 100)
    play(graph, source, 3)
    # The source has published one second more: it is read too once its picture is overdue.
    graph.spin_until(lambda: graph.status.units == 4, 'the last second')

    by_service = graph.ask('What do you hear?', max_tokens=12)
    pieces = []
    _, result = ask_by_action(
        graph, lambda message: pieces.append(message.feedback.delta), question='What do you hear?',
        max_tokens=12,
    )  # fmt: skip
    wrapped = graph.result_of(result, 'the result')
    assert wrapped.status == GoalStatus.STATUS_SUCCEEDED
    by_action = wrapped.result
    assert by_service.success and by_action.success
    assert by_service.answer.text == by_action.answer.text != ''
    assert by_service.answer.window_end == by_action.answer.window_end

    graph.spin_until(
        lambda: len(answers) == 2 and sum(delta.last for delta in deltas) == 2, 'the topics'
    )
    # The result may overtake the last feedback; what came is the beginning, without a hole.
    assert pieces and [piece.index for piece in pieces] == list(range(len(pieces)))
    assert by_action.answer.text.startswith(''.join(piece.text for piece in pieces))
    four = [ask_by_action(graph, question=text, max_tokens=40)[1] for text in 'abcd']
    together = [graph.result_of(one, 'the result').result.answer for one in four]
    graph.spin_until(
        lambda: len(answers) == 6 and sum(delta.last for delta in deltas) == 6, 'the topics'
    )
    assert all(answer.text and answer.least_log_probability < 0 for answer in together)
    told = {delta.id: '' for delta in deltas}
    for delta in deltas:
        told[delta.id] += delta.text
    assert told == {answer.id: answer.text for answer in answers}
    assert {answer.id: answer.text for answer in together}.items() <= told.items()


def test_the_answer_is_one_of_the_choices(live):
    graph = live
    choices = ['yes, "it" is', 'no\nnever', 'vielleicht schön']
    reply = graph.ask('Is it?', choices=choices)
    assert reply.success and reply.answer.text in choices
    refused = graph.ask('Is it?', choices=['a', ''])
    assert not refused.success and refused.reason and not refused.answer.text


def test_a_question_in_a_silent_graph_is_answered(live):
    for _ in range(5):
        reply = live.ask('Is anybody there?', max_tokens=4)
        assert reply.success, reply.reason
        assert reply.answer.units == 0 and reply.answer.window_end.sec == 0


def test_sixteen_questions_at_once_are_answered_or_refused(live):
    graph = live
    graph.spin_until(graph.ask_client.service_is_ready, 'the service')
    futures = [
        graph.ask_client.call_async(Ask.Request(question=f'Question {i}?', max_tokens=20))
        for i in range(16)
    ]
    graph.spin_until(lambda: all(future.done() for future in futures), 'sixteen replies')
    replies = [future.result() for future in futures]
    answered = [reply for reply in replies if reply.success]
    refused = [reply for reply in replies if not reply.success]
    assert len(answered) >= 6
    assert all('waiting' in reply.reason for reply in refused)
    assert len({reply.answer.id for reply in answered}) == len(answered)


def test_a_cancelled_question_ends_at_once_and_once(live):
    graph, pieces = live, []
    goal, result = ask_by_action(graph, pieces.append, question='Tell me everything.', **LONG)
    graph.spin_until(lambda: pieces, 'the first word')
    cancelled = graph.result_of(goal.cancel_goal_async(), 'the cancellation')
    assert len(cancelled.goals_canceling) == 1
    wrapped = graph.result_of(result, 'the end')
    assert wrapped.status == GoalStatus.STATUS_CANCELED
    assert not wrapped.result.success
    assert wrapped.result.answer.finish == Answer.CANCELLED
    assert wrapped.result.answer.answer_tokens < 3000
    # The next question finds the engine free.
    assert graph.ask('And now?', max_tokens=3).success


def test_reset_empties_the_window(live, source):
    play(live, source, 2, FIRST + 1000)
    live.spin_until(lambda: live.status.units == 3, 'the last second')
    assert live.reset().success and live.status.units == 0


@pytest.mark.parametrize('stream', ['sound', 'picture'])
def test_one_sense_alone_makes_units(graph, tiny_model_dir, stream):
    # Twice as late, on a busy machine, an encoder leaves a second out.
    start_live(graph, tiny_model_dir, '-p', 'unit_deadline:=1.0')
    source = Source(graph)
    source.wait_heard()
    for i in range(4):
        stamp_ns = (FIRST + i) * 10**9
        if stream == 'sound':
            source.sound(stamp_ns, sound_of(i))
        else:
            source.picture(stamp_ns, jpeg(picture_of(i)))
        graph.spin_until(lambda i=i: graph.status.units_read >= i, 'a unit of one sense')
    assert graph.ask('What is it?', max_tokens=2).answer.units >= 3


def test_every_second_is_published_once_also_when_there_is_nothing(graph, tiny_model_dir):
    start_live(graph, tiny_model_dir)
    seen, heard = [], []
    graph.create_subscription(ImageEmbedding, 'vision_encoder/embedding', seen.append, 50)
    graph.create_subscription(AudioEmbedding, 'streaming_encoder/embedding', heard.append, 50)
    source = Source(graph)
    source.wait_heard()
    source.second(FIRST)
    for messages, type_ in ((seen, ImageEmbedding), (heard, AudioEmbedding)):
        graph.spin_until(lambda m=messages: len(m) >= 3, 'seconds without input')
        assert [m.second for m in messages[:3]] == [FIRST, FIRST + 1, FIRST + 2]
        assert [m.status for m in messages[:3]] == [type_.OK, type_.EMPTY, type_.EMPTY]
        assert messages[0].tokens > 0 and messages[1].tokens == 0
        assert messages[0].header.stamp.sec == FIRST


@pytest.fixture(scope='module')
def slow_model_dir(tmp_path_factory):
    """Return a model whose encoders are deep: a second takes them far longer than a token."""
    shape = replace(SHAPES['tiny'], audio_layers=4, vision_layers=4)
    return write_model(tmp_path_factory.mktemp('slow'), shape)


def test_live_seconds_keep_their_deadline_beside_an_answer_however_slow_the_encoders_are(
    graph, slow_model_dir
):
    """Simulated time runs at the pace of this machine: live work takes a third of it."""
    seen, heard, words = [], [], []
    graph.create_subscription(ImageEmbedding, 'vision_encoder/embedding', seen.append, 50)
    graph.create_subscription(AudioEmbedding, 'streaming_encoder/embedding', heard.append, 50)
    long_answers = ('-p', 'max_tokens:=24000', '-p', 'n_ctx:=32768')
    start_live(graph, slow_model_dir, '-p', 'use_sim_time:=true', *long_answers)
    source, time_ = Source(graph), SimulatedTime(graph)
    source.wait_heard()
    time_.wait_known()
    play(graph, source, 3)
    ok = [message for message in (*seen, *heard) if message.status == message.OK]
    work_s = graph.status.prefill_ms / 1e3 + sum(
        np.median([message.encode_ms for message in ok if isinstance(message, kind)]) / 1e3
        for kind in (ImageEmbedding, AudioEmbedding)
    )
    goal, result = ask_by_action(graph, words.append, question='tell everything', **LONG)
    graph.spin_until(lambda: words, 'the first word')
    first, begun_s, time_.now_s = FIRST + 10, time.monotonic(), FIRST + 10
    for i in range(5):

        def second_is_over(i=i):
            time_.now_s = first + (time.monotonic() - begun_s) / (3 * work_s)
            return time_.now_s >= first + i + 1

        source.second(first + i)
        time_.until(second_is_over, f'second {i}')
    graph.spin_until(lambda: seen[-1].second >= first + 3, 'the seconds to be seen')
    graph.spin_until(lambda: heard[-1].second >= first + 3, 'the seconds to be heard')
    for messages in (seen, heard):
        in_time = [m for m in messages if m.status == m.OK and m.second >= first]
        assert len(in_time) >= 3, [(m.second - first, m.status) for m in messages]
    assert graph.status.answering and graph.status.late <= 1
    graph.result_of(goal.cancel_goal_async(), 'the cancellation')
    answer = graph.result_of(result, 'the end').result.answer
    assert answer.live_ms >= 3 * work_s * 1e3 / 2, 'the answer has waited for the seconds'
