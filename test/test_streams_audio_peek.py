# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A second that has not ended can be read; the stream never notices.

The encoders are real, with random weights, so that rows depend on all that was heard.
"""

import numpy as np
import pytest
from test_streams_audio_handover import NS, RATE, backend, encoder, voice  # noqa: F401

from minicpmo_ros.encoders.whisper.encoder import AudioEncoder
from minicpmo_ros.errors import EngineError
from minicpmo_ros.streams.audio import AudioPipeline

CHUNK = 5300  # samples: seconds end within chunks


def hear(encoder, samples, peeks=False, **options):  # noqa: F811
    """Give the AudioSeconds of samples in chunks, and what was peeked after each chunk."""
    pipeline, heard, peeked = AudioPipeline(encoder, **options), [], []
    for i in range(0, len(samples), CHUNK):
        heard += pipeline.push(i * NS // RATE, samples[i : i + CHUNK])
        if peeks:
            peeked += [(i + CHUNK, pipeline.peek())]
    return heard + pipeline.flush(), peeked


def rows_of(heard):
    return [(h.second, h.rows.tobytes(), h.remembered_s, h.restarted) for h in heard]


@pytest.mark.parametrize(
    'attention, fixed_graph', [('flash', False), ('flash', True), ('mul_mat', False)]
)
def test_seconds_are_the_same_bits_whether_or_not_open_ones_were_read(
    encoder,  # noqa: F811
    attention,
    fixed_graph,
):
    form = AudioEncoder(
        encoder.facts, encoder.weights, encoder.backend, attention, 'f16', fixed_graph
    )
    samples = voice(37, (21.8, 22.2))  # a pause, then an overlap and a full memory
    undisturbed, _ = hear(form, samples)
    heard, peeked = hear(form, samples, peeks=True)
    assert rows_of(heard) == rows_of(undisturbed)
    assert sum(found is not None for _, found in peeked) > 100


def test_seconds_are_the_same_bits_where_they_are_isolated(encoder):  # noqa: F811
    samples = voice(4)
    undisturbed, _ = hear(encoder, samples, isolated=True)
    assert rows_of(hear(encoder, samples, True, isolated=True)[0]) == rows_of(undisturbed)


def test_an_open_second_is_read_as_if_its_audio_ended_there(encoder):  # noqa: F811
    samples = voice(3)
    _, peeked = hear(encoder, samples, peeks=True)
    for end, found in peeked[:-1]:
        second, end_ns = found
        ended = AudioPipeline(encoder)
        wanted = (ended.push(0, samples[: end_ns * RATE // NS]) + ended.flush())[-1]
        assert second.second == wanted.second and end_ns == end * NS // RATE
        assert second.rows.tobytes() == wanted.rows.tobytes()


def test_a_stream_that_begins_anew_is_read_from_its_begin(encoder):  # noqa: F811
    samples, pipeline = voice(2), AudioPipeline(encoder)
    pipeline.push(0, samples)
    for begin_ns in (100 * NS, 50 * NS):  # an hour later, and a recording that loops
        pipeline.flush()
        pipeline.push(begin_ns, samples[:8000])
        pipeline.push(begin_ns + NS // 2, samples[8000:12000])  # the stamps are believed
        second, end_ns = pipeline.peek()
        fresh = AudioPipeline(encoder)
        fresh.push(begin_ns, samples[:12000])
        assert second.second == begin_ns // NS and end_ns == begin_ns + 3 * NS // 4
        assert second.rows.tobytes() == fresh.peek()[0].rows.tobytes()


def test_only_audio_until_the_end_asked_for_is_read(encoder):  # noqa: F811
    samples, pipeline = voice(1), AudioPipeline(encoder)
    assert pipeline.peek() is None, 'nothing was heard'
    pipeline.push(7 * NS, samples[:12000])
    short = AudioPipeline(encoder)
    short.push(7 * NS, samples[:4000])
    second, end_ns = pipeline.peek(7 * NS + NS // 4)
    assert end_ns == 7 * NS + NS // 4
    assert second.rows.tobytes() == short.peek()[0].rows.tobytes()
    assert pipeline.peek(8 * NS)[1] == 7 * NS + 3 * NS // 4, 'as far as it came'
    assert pipeline.peek(7 * NS) is None, 'nothing of this second'


def test_an_encoder_that_fails_says_so_and_the_stream_goes_on(encoder, monkeypatch):  # noqa: F811
    samples, pipeline = voice(3), AudioPipeline(encoder)
    wanted, _ = hear(encoder, samples)
    heard = pipeline.push(0, samples[: 2 * RATE + 9000])
    stream = pipeline.streams[0]

    def fail(*_, **__):
        raise EngineError('the device is gone')

    with monkeypatch.context() as patch:
        patch.setattr(stream.graphs, 'run', fail)
        second, _ = pipeline.peek()
    assert second.rows is None and 'the device is gone' in second.reason
    heard += pipeline.push(2 * NS + 9000 * NS // RATE, samples[2 * RATE + 9000 :])
    assert rows_of(heard + pipeline.flush()) == rows_of(wanted)
    assert np.isfinite(heard[-1].rows).all()
