# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""nano sees and hears: held-out clips in on topics, answers out by the service.

Which questions nano answers rightly was found by the core without ROS and written down
beforehand; the live graph must say the same, word by word.
"""

import json
import math
import time
from pathlib import Path

import pytest
from ros_source import FIRST, SimulatedTime, Source
from std_srvs.srv import Trigger

from minicpmo_ros.evaluation.bags.clip_reading import read_clip
from minicpmo_ros.evaluation.questions import QuestionSet

CLIPS = Path(__file__).parents[1] / 'demo' / 'clips'
# {question id: what the core without ROS answers}, for all questions about the clips played here
EXPECTED = json.loads((Path(__file__).parent / 'nano_answers.json').read_text())
NS = 10**9
# Between two clips: too long for a gap in the sound, too short for a jump of the stamps.
APART_S = 4


@pytest.fixture(scope='module')
def questions():
    return QuestionSet.read(CLIPS / 'questions.json')


def play(graph, source, simulated, clip, begin_s):
    """Publish a clip second by second from the stamp begin_s on, each when the one before has been
    read; give the stamp at which it ends.
    """
    first = clip.first_s
    count, shift_s = clip.audio[-1][0] // NS - first + 1, begin_s - first
    read_before = graph.status.units_read
    for i in range(count):
        for shot in clip.images:
            if shot.stamp_ns // NS == first + i:
                source.picture(shot.stamp_ns + shift_s * NS, shot.compressed()[1])
        for stamp_ns, samples in clip.audio:
            if stamp_ns // NS == first + i:
                source.sound(stamp_ns + shift_s * NS, samples)
        simulated.until(
            lambda i=i: graph.status.units_read - read_before >= i, f'second {i} to be read'
        )
    simulated.now_s += 2  # of silence: the last second is over
    told_s = time.monotonic()

    def is_read():
        nonlocal told_s
        # Once more for an encoder that learned of the time before it took the last sound.
        if time.monotonic() - told_s >= 1.0:
            told_s, simulated.now_s = math.inf, simulated.now_s + 2
        return graph.status.units_read - read_before >= count

    simulated.until(is_read, 'the last second to be read')
    return begin_s + count


def test_nano_answers_about_held_out_clips_through_the_live_graph(graph, questions):
    # Time stands still while nano works, so that nothing depends on how quick the machine is.
    patient = ('-p', 'use_sim_time:=true', '-p', 'unit_deadline:=30.0')
    graph.start('live', '-p', 'model_dir:=nano', *patient, *graph.lossless)
    graph.wait_ready()
    source, simulated = Source(graph), SimulatedTime(graph)
    source.wait_heard()
    simulated.wait_known()
    reset = graph.create_client(Trigger, 'llm/reset')
    graph.spin_until(reset.service_is_ready, 'the service')
    names = sorted({q.clip for q in questions.questions if q.id in EXPECTED})
    right, next_s = 0, FIRST
    for name in names:
        assert graph.result_of(reset.call_async(Trigger.Request()), 'the reset').success
        graph.spin_until(lambda: graph.status.units == 0, 'an empty window')
        simulated.wait_same()  # else the next clip's seconds may seem past to an encoder
        end_s = play(graph, source, simulated, read_clip(CLIPS / name), next_s)
        next_s = end_s + APART_S
        for question in questions.questions:
            if question.clip == name:
                reply = graph.ask(question.text, choices=list(question.choices))
                assert reply.success, reply.reason
                assert reply.answer.units == question.seconds
                assert reply.answer.text == EXPECTED[question.id], question
                right += reply.answer.text.strip() in question.answers
    # Chance is below a third in every family.
    assert right >= 0.8 * len(EXPECTED)
