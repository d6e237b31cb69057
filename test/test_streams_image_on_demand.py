# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""An idle vision encoder gives its weights back, and has them again when a picture needs them."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from ros_source import FIRST, Source, jpeg, picture_of
from test_ros_diagnostics import value

from minicpmo_ros.encoders.siglip.encoder import VisionEncoder
from minicpmo_ros.errors import ModelFileError
from minicpmo_ros.ggml.runtime import Backend
from minicpmo_ros.memory.proc import rss_mib
from minicpmo_ros.modelset.gguf_layouts import NANO
from minicpmo_ros.msg import ImageEmbedding
from minicpmo_ros.streams import Status
from minicpmo_ros.streams.image import ImagePipeline
from minicpmo_ros.streams.on_demand import VisionOnDemand
from minicpmo_ros.synthetic.model import write_vision

# 60 MiB of weights, quick to encode with.
HEAVY = replace(NANO, name='heavy', vision_width=512, vision_ffn=4096, vision_layers=6)
AFTER_S = 30.0


@pytest.fixture
def now():
    return [0.0]


@pytest.fixture
def path(tmp_path):
    write_vision(tmp_path / 'vision.gguf', HEAVY)
    return tmp_path / 'vision.gguf'


@pytest.fixture
def encoder(path, now):
    backend = Backend('cpu')
    yield VisionOnDemand(partial(VisionEncoder.load, path, backend), AFTER_S, lambda: now[0])
    backend.close()


def test_the_same_embedding_comes_out_before_and_after_and_the_memory_is_free_between(
    encoder, now
):
    tile = np.random.default_rng(1).integers(0, 255, (56, 56, 3), np.uint8)
    before, full_mib = encoder.encode([tile]), rss_mib()
    now[0] = AFTER_S - 1
    assert not encoder.release_when_idle() and encoder.is_loaded
    now[0] = AFTER_S
    assert encoder.release_when_idle() and not encoder.is_loaded
    assert rss_mib() < full_mib - 50
    assert not encoder.release_when_idle()  # once
    assert np.array_equal(encoder.encode([tile]), before)
    assert encoder.is_loaded and encoder.releases == 1 and encoder.reload_ms > 0
    now[0] += AFTER_S - 1
    assert not encoder.release_when_idle()  # it counts from the newest picture


def test_a_question_goes_between_two_tensors_that_return(encoder, now):
    now[0] = AFTER_S
    encoder.release_when_idle()
    tile, calls = np.zeros((56, 56, 3), np.uint8), []

    def stop():
        calls.append(encoder.is_loaded)
        if len(calls) == 7:
            raise KeyError('the node is being stopped')

    with pytest.raises(KeyError):
        encoder.encode([tile], stop)
    assert calls == 7 * [False]  # in the middle of loading, and nothing is half there
    assert encoder.encode([tile]).shape == (NANO.queries, NANO.width)


def test_a_file_that_is_gone_or_another_loses_the_second_and_says_why(encoder, now, path):
    pipeline = ImagePipeline(encoder)
    good = path.read_bytes()
    for second, damage in enumerate(
        (path.unlink, lambda: write_vision(path, replace(HEAVY, queries=8)))
    ):
        now[0] += AFTER_S
        encoder.release_when_idle()
        damage()
        pipeline.offer(second * 10**9, lambda: np.zeros((64, 64, 3), np.uint8))
        (seen,) = pipeline.close(second)
        assert seen.status == Status.LOST and 'vision.gguf' in seen.reason
    path.write_bytes(good)
    pipeline.offer(2 * 10**9, lambda: np.zeros((64, 64, 3), np.uint8))
    assert pipeline.close(2)[0].status == Status.OK


def test_zero_keeps_the_weights_for_ever(path):
    backend, now = Backend('cpu'), [0.0]
    encoder = VisionOnDemand(partial(VisionEncoder.load, path, backend), 0.0, lambda: now[0])
    now[0] = 1e9
    assert not encoder.release_when_idle() and encoder.is_loaded
    backend.close()


def test_another_error_of_the_file_is_raised_as_it_is(encoder, now, path):
    now[0] = AFTER_S
    encoder.release_when_idle()
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelFileError, match='bytes'):
        encoder.encode([np.zeros((56, 56, 3), np.uint8)])


def test_the_node_releases_and_no_second_is_lost(graph, tiny_model_dir):
    graph.start(
        'vision_encoder', '-p', f'model_dir:={tiny_model_dir}', *graph.lossless,
        '-p', 'vision.release_after_s:=0.5',
    )  # fmt: skip
    seen, told = [], []
    graph.create_subscription(ImageEmbedding, 'vision_encoder/embedding', seen.append, 50)
    graph.create_subscription(
        DiagnosticArray, '/diagnostics', lambda array: told.append(array.status[0]), 50
    )
    source = Source(graph)
    source.wait_heard(audio=False)

    def show(*seconds):
        for second in seconds:
            source.picture(second * 10**9, jpeg(picture_of(second)))
            given = second - FIRST  # a picture closes the second before its own
            graph.spin_until(lambda n=given: len(seen) >= n, f'second {second - 1}')

    def released():
        return told and int(value(told[-1], 'weights released'))

    show(FIRST, FIRST + 1, FIRST + 2)
    graph.spin_until(released, 'a release')
    show(*range(FIRST + 3, FIRST + 6))
    graph.spin_until(lambda: seen[-1].second >= FIRST + 4, 'embeddings after it')
    assert [message.second for message in seen] == list(range(FIRST, FIRST + len(seen)))
    assert not {message.status for message in seen} - {ImageEmbedding.OK, ImageEmbedding.EMPTY}
    assert any(message.tokens for message in seen[3:])
    graph.spin_until(
        lambda: float(value(told[-1], 'newest return of the weights [ms]')) > 0, 'a return'
    )
