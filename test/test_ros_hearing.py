# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""An empty question through the graph rests on the audio of the open second, in one process or in
three, and says why where it cannot.
"""

import numpy as np
import pytest
from ros_source import FIRST, RATE_HZ, Source, sound_of, time_of
from test_ros_live import play

NS = 10**9
NODES = {
    'one process': {'live': ()},
    'three processes': {
        'streaming_encoder': (),
        'vision_encoder': (),
        'llm': (
            '-r', 'audio_embedding:=streaming_encoder/embedding',
            '-r', 'image_embedding:=vision_encoder/embedding',
            '-r', 'read_audio:=streaming_encoder/read_audio',
        ),
    },
}  # fmt: skip


@pytest.mark.parametrize('name', NODES)
def test_an_empty_question_is_answered_from_the_second_that_has_not_ended(
    graph, tiny_model_dir, name
):
    for executable, remaps in NODES[name].items():
        graph.start(
            executable, '-p', f'model_dir:={tiny_model_dir}', *remaps, *graph.lossless,
        )  # fmt: skip
    graph.wait_ready()
    source = Source(graph)
    source.wait_heard()
    begin = source_until_read(graph, source)
    for i, part in enumerate(np.split(sound_of(begin), 10)[:4]):  # 0.4 s of a second
        source.sound(begin * NS + i * NS // 10, part)
    until_ns = begin * NS + 3 * NS // 10
    reply = graph.ask('', heard_until=time_of(until_ns), max_tokens=2)
    assert reply.success and not reply.reason, reply.reason
    answer = reply.answer
    assert answer.audio_end == answer.window_end == time_of(until_ns)
    assert answer.image_end.sec == begin and begin - 1 in answer.seconds
    assert begin not in answer.seconds
    late = graph.ask('', heard_until=time_of(until_ns + 40 * NS), max_tokens=2)
    assert not late.success
    assert 'has not reached heard_until' in late.reason and 'microphone' in late.reason
    for i in range(4, 10):
        source.sound(begin * NS + i * NS // 10, sound_of(begin)[i * 1600 : (i + 1) * 1600])
    # The streams have gone on without input: the first second that now comes may be late for it.
    source.until_read(begin + 1)


def source_until_read(graph, source):
    """Publish seconds until the llm has read one; return the first that nothing was said of."""
    begin = source.until_read(FIRST)
    play(graph, source, 1, begin + 4)
    return begin + 6


def test_audio_that_is_on_its_way_is_waited_for(graph, tiny_model_dir):
    graph.start('live', '-p', f'model_dir:={tiny_model_dir}', *graph.lossless)
    graph.wait_ready()
    source = Source(graph)
    source.wait_heard()
    source.sound(FIRST * NS, sound_of(FIRST)[:1600])
    future = graph.ask_client.call_async(
        graph.ask_client.srv_type.Request(
            question='', heard_until=time_of(FIRST * NS + NS // 2), max_tokens=2
        )
    )
    for i in range(1, 10):
        source.sound(FIRST * NS + i * NS // 10, sound_of(FIRST)[i * 1600 : (i + 1) * 1600])
    reply = graph.result_of(future, 'the answer')
    assert reply.success, reply.reason
    assert reply.answer.audio_end == time_of(FIRST * NS + NS // 2) and not reply.answer.seconds
    assert RATE_HZ == 16_000
