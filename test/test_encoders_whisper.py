# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The streaming audio encoder is the offline encoder under a chunk-causal mask.

Golden arrays: test/golden/make_whisper.py, by transformers' WhisperEncoder in float32.
"""

from pathlib import Path

import numpy as np
import pytest
from whisper_files import random_mel, random_tensors, step_mel
from whisper_files import write as write_audio

from minicpmo_ros.encoders.whisper.encoder import AudioEncoder
from minicpmo_ros.errors import ContextFullError, EngineError, InputError, ModelFileError
from minicpmo_ros.ggml.runtime import Backend

SECONDS, LAYERS, WIDTH = 4, 2, 96
FORMS = {
    'mul_mat': {'attention': 'mul_mat'},
    'flash': {'attention': 'flash'},
    'fixed': {'attention': 'flash', 'fixed_graph': True},
}


@pytest.fixture(scope='module')
def golden():
    with np.load(Path(__file__).parent / 'golden' / 'whisper.npz') as arrays:
        return dict(arrays)


@pytest.fixture(scope='module')
def tensors():
    return random_tensors()


@pytest.fixture(scope='module')
def mel():
    return random_mel()


@pytest.fixture(scope='module')
def backend():
    backend = Backend('cpu')
    yield backend
    backend.close()


@pytest.fixture(scope='module')
def files(tmp_path_factory, tensors):
    directory = tmp_path_factory.mktemp('audio')
    return {
        kind: write_audio(directory / f'{kind}.gguf', tensors, kind)
        for kind in ('f32', 'f16', 'q8_0', 'q4_0')
    }


@pytest.fixture
def encoder(files, backend):
    return AudioEncoder.load(files['f32'], backend)


def encode(stream, mel, seconds=range(SECONDS), **more):
    return np.concatenate([stream.step(step_mel(mel, second), **more) for second in seconds])


def distance(tokens, wanted):
    assert tokens.shape == wanted.shape and tokens.dtype == np.float32
    return np.linalg.norm(tokens - wanted) / np.linalg.norm(wanted)


def test_the_golden_arrays_belong_to_these_weights(golden, tensors, mel):
    checksum = sum(float(np.abs(array).sum()) for array in [mel, *tensors.values()])
    assert checksum == pytest.approx(float(golden['checksum']), rel=1e-6)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize(
    'weights, kv_type, limit',
    [
        ('f32', 'f32', 1e-5),
        ('f32', 'f16', 3e-3),
        ('f16', 'f16', 3e-3),
        ('q8_0', 'f16', 4e-2),
        ('q4_0', 'f16', 0.4),
    ],
)
def test_streaming_equals_offline(files, backend, mel, golden, form, weights, kv_type, limit):
    """Gaussian weights are the worst case for block formats."""
    encoder = AudioEncoder.load(files[weights], backend, kv_type=kv_type, **FORMS[form])
    assert distance(encode(encoder.stream(), mel), golden['tokens']) < limit


def test_pool_step_5_gives_10_tokens(tmp_path, backend, tensors, mel, golden):
    path = write_audio(tmp_path / 'a.gguf', tensors, pool_step=5)
    encoder = AudioEncoder.load(path, backend, kv_type='f32')
    assert encoder.tokens_per_second == 10
    assert distance(encode(encoder.stream(), mel), golden['tokens_pool_5']) < 1e-5


@pytest.mark.parametrize('pool_step, tokens', [(1, 50), (3, 16), (50, 1)])
def test_every_pool_step_gives_means_of_the_same(
    tmp_path, backend, tensors, mel, pool_step, tokens
):
    one, pooled = (
        AudioEncoder.load(write_audio(tmp_path / f'{step}.gguf', tensors, pool_step=step), backend)
        .stream()
        .step(step_mel(mel, 0))
        for step in (1, pool_step)
    )
    wanted = one[: tokens * pool_step].reshape(tokens, pool_step, WIDTH).mean(1)
    assert distance(pooled, wanted) < 1e-5


def test_isolated_seconds_are_padded_with_zeros(files, backend, mel, golden):
    stream = AudioEncoder.load(files['f32'], backend, kv_type='f32').stream(isolated=True)
    tokens = np.concatenate([stream.step(mel[100 * i : 100 * i + 100]) for i in range(SECONDS)])
    assert distance(tokens, golden['tokens_isolated']) < 1e-5
    assert distance(tokens, golden['tokens']) > 1e-2, 'the edges matter'


def test_the_neighbouring_frames_matter(encoder, mel, golden):
    """What is left out of the 103 frames shows, each frame by itself."""
    stream = encoder.stream()
    encode(stream, mel, [0])
    for frame in (0, 1, 102):
        changed = step_mel(mel, 1).copy()
        changed[frame] = 0
        stream.seconds = 1
        assert distance(stream.step(changed), golden['tokens'][25:50]) > 1e-3


def test_the_past_is_seen_and_the_future_is_not(encoder, mel):
    tokens = encode(encoder.stream(), mel)
    other = mel.copy()
    other[250] += 1  # in the third second
    changed = encode(encoder.stream(), other)
    np.testing.assert_array_equal(changed[:50], tokens[:50])
    assert np.abs(changed[75:] - tokens[75:]).max() > 1e-4


def test_facts_are_those_of_the_file(encoder):
    assert (encoder.width, encoder.tokens_per_second) == (WIDTH, 25)
    assert (encoder.facts.layers, encoder.facts.d_model, encoder.facts.positions) == (2, 64, 200)


BAD_MEL = {
    'no array': [[0.0] * 80] * 103,
    'a vector': np.zeros(80, np.float32),
    'own frames only': np.zeros((100, 80), np.float32),
    'a frame too many': np.zeros((104, 80), np.float32),
    'turned': np.zeros((80, 103), np.float32),
    'a batch': np.zeros((1, 103, 80), np.float32),
    'other bins': np.zeros((103, 128), np.float32),
    'doubles': np.zeros((103, 80)),
    'NaN': np.full((103, 80), np.nan, np.float32),
    'one NaN': np.where(np.arange(8240).reshape(103, 80) == 99, np.nan, 0).astype(np.float32),
    'infinite': np.full((103, 80), -np.inf, np.float32),
    'unscaled': np.full((103, 80), 1e4, np.float32),
}


@pytest.mark.parametrize('name', BAD_MEL)
def test_a_bad_mel_is_refused_and_changes_nothing(encoder, mel, name):
    wanted = encode(encoder.stream(), mel)
    stream = encoder.stream()
    first = encode(stream, mel, [0, 1])
    with pytest.raises(InputError):
        stream.step(BAD_MEL[name])
    assert stream.seconds == 2
    np.testing.assert_array_equal(np.concatenate([first, encode(stream, mel, [2, 3])]), wanted)


def test_a_bad_isolated_mel_is_refused(encoder):
    with pytest.raises(InputError, match=r'\(103, 80\).*\(100, 80\)'):
        encoder.stream(isolated=True).step(np.zeros((103, 80), np.float32))


@pytest.mark.parametrize('form', FORMS)
def test_a_restarted_stream_is_a_fresh_one(files, backend, mel, form):
    encoder = AudioEncoder.load(files['f32'], backend, **FORMS[form])
    wanted = encode(encoder.stream(), mel)
    stream = encoder.stream()
    encode(stream, mel[::-1])
    stream.restart()
    assert stream.seconds == 0
    np.testing.assert_array_equal(encode(stream, mel), wanted)


def test_what_was_not_finite_is_forgotten_by_a_restart(encoder, mel):
    stream, expected = encoder.stream(), encoder.stream().step(step_mel(mel, 0))
    cache = stream.caches['v.0']
    cache.write(np.full_like(cache.read(), np.nan))  # also where later keys are masked
    with pytest.raises(EngineError, match='NaN'):
        stream.step(step_mel(mel, 0))
    stream.restart()
    assert np.array_equal(stream.step(step_mel(mel, 0)), expected)


def test_second_0_has_nothing_before_it(encoder, mel):
    """A restart in the middle of a sound gets real frames there; they are taken as zeros."""
    wanted = encoder.stream().step(step_mel(mel, 0))
    window = step_mel(mel, 0).copy()
    window[:2] = 1
    np.testing.assert_array_equal(encoder.stream().step(window), wanted)


def test_streams_do_not_disturb_each_other(encoder, mel):
    other = np.ascontiguousarray(mel[::-1])
    wanted = [encode(encoder.stream(), sound) for sound in (mel, other)]
    streams = [encoder.stream(), encoder.stream()]
    parts = [
        [streams[i].step(step_mel(sound, second)) for i, sound in enumerate((mel, other))]
        for second in range(SECONDS)
    ]
    for i in range(2):
        np.testing.assert_array_equal(np.concatenate([part[i] for part in parts]), wanted[i])


def test_a_full_stream_raises_until_it_is_restarted(encoder, mel):
    stream = encoder.stream()
    first = encode(stream, mel)[:25]
    assert stream.full and stream.seconds == stream.max_seconds == SECONDS
    with pytest.raises(ContextFullError, match='Restart'):
        stream.step(step_mel(mel, 0))
    stream.restart()
    assert not stream.full
    np.testing.assert_array_equal(stream.step(step_mel(mel, 0)), first)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('heard', [1, 2])
def test_a_stream_goes_on_where_a_shorter_one_is(files, backend, mel, form, heard):
    """So the cache of the second stream need not be long, and nothing is encoded twice."""
    encoder = AudioEncoder.load(files['f32'], backend, **FORMS[form])
    wanted = encode(encoder.stream(), mel)
    short, stream = encoder.stream(max_seconds=2), encoder.stream()
    encode(stream, mel[::-1])  # full of something else
    tokens = encode(short, mel, range(heard))
    stream.take_over(short)
    assert (stream.seconds, short.seconds) == (heard, heard)
    short.restart()
    encode(short, mel[::-1], [0])  # the copy is the stream's own
    tokens = np.concatenate([tokens, encode(stream, mel, range(heard, SECONDS))])
    assert distance(tokens, wanted) < 1e-6


def test_a_short_stream_is_full_earlier(encoder, mel):
    stream = encoder.stream(max_seconds=2)
    np.testing.assert_array_equal(
        encode(stream, mel, [0, 1]), encode(encoder.stream(), mel, [0, 1])
    )
    assert stream.full and stream.max_seconds == 2
    assert stream.size_bytes < encoder.stream().size_bytes
    with pytest.raises(ContextFullError):
        stream.step(step_mel(mel, 2))
    for seconds in (0, -1, SECONDS + 1):
        with pytest.raises(ValueError, match=f'1..{SECONDS}'):
            encoder.stream(max_seconds=seconds)


def test_what_cannot_be_taken_over_is_refused(files, backend, encoder, mel):
    stream, short = encoder.stream(), encoder.stream(max_seconds=1)
    encode(stream, mel, [0, 1])
    with pytest.raises(ContextFullError, match='100 positions are needed, 50'):
        short.take_over(stream)
    other = AudioEncoder.load(files['f32'], backend)
    for wrong in (other.stream(), encoder.stream(isolated=True)):
        with pytest.raises(ValueError, match='same encoder'):
            stream.take_over(wrong)
    assert (stream.seconds, short.seconds) == (2, 0)


def test_the_published_positions_last_for_30_seconds(tmp_path, backend):
    tensors = random_tensors(d=32, layers=1, ffn=32, width=32, seconds=30)
    encoder = AudioEncoder.load(write_audio(tmp_path / 'a.gguf', tensors, heads=2), backend)
    assert encoder.facts.positions == 1500
    stream, silence = encoder.stream(), np.full((103, 80), -1.5, np.float32)
    size = stream.size_bytes
    while not stream.full:
        stream.step(silence)
        assert stream.size_bytes == size, 'all memory is taken at once'
    assert stream.seconds == 30


@pytest.mark.parametrize('form', FORMS)
def test_between_is_called_once_a_layer_and_changes_nothing(files, backend, mel, form):
    encoder, calls = AudioEncoder.load(files['f32'], backend, **FORMS[form]), []
    wanted = encode(encoder.stream(), mel)
    tokens = encode(encoder.stream(), mel, between=lambda: calls.append(None))
    assert len(calls) == SECONDS * LAYERS
    np.testing.assert_array_equal(tokens, wanted)


@pytest.mark.parametrize('form', FORMS)
def test_a_second_given_up_can_be_given_again(files, backend, mel, form):
    encoder, calls = AudioEncoder.load(files['f32'], backend, **FORMS[form]), []
    wanted = encode(encoder.stream(), mel)

    def stop_at_second_layer():
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt

    stream = encoder.stream()
    first = encode(stream, mel, [0])
    with pytest.raises(KeyboardInterrupt):
        stream.step(-step_mel(mel, 1), stop_at_second_layer)
    assert stream.seconds == 1
    np.testing.assert_array_equal(np.concatenate([first, encode(stream, mel, [1, 2, 3])]), wanted)


def test_repacked_q4_0_is_near_the_plain(files, backend, mel):
    plain, repacked = (
        encode(AudioEncoder.load(files['q4_0'], backend, repack=repack).stream(), mel)
        for repack in (False, True)
    )
    assert distance(repacked, plain) < 1e-2


def test_poisoned_weights_are_noticed(tmp_path, backend, tensors, mel):
    poisoned = {
        **tensors,
        'audio_projector.linear2.weight': np.full((WIDTH, WIDTH), np.nan, np.float32),
    }
    stream = AudioEncoder.load(write_audio(tmp_path / 'a.gguf', poisoned), backend).stream()
    with pytest.raises(EngineError, match='NaN'):
        stream.step(step_mel(mel, 0))
    assert stream.seconds == 0


def without(name):
    return lambda tensors: {key: array for key, array in tensors.items() if key != name}


def with_shape(name, shape, value=0.0):
    return lambda tensors: {**tensors, name: np.full(shape, value, np.float32)}


@pytest.mark.parametrize(
    'change, metadata, reason',
    [
        (without('encoder.blocks.1.attn.key.weight'), {}, 'no tensor encoder.blocks.1.attn.key'),
        (without('audio_projector.linear2.weight'), {}, 'no table audio_projector.linear2'),
        (without('encoder.positional_embedding'), {}, 'no table encoder.positional'),
        (with_shape('encoder.conv1.weight', (64, 80, 5)), {}, 'conv1.weight has the shape'),
        (with_shape('encoder.blocks.0.mlp.0.bias', (64,)), {}, 'mlp.0.bias has the shape'),
        (with_shape('encoder.ln_post.bias', (64,), np.nan), {}, 'ln_post.bias holds NaN'),
        (with_shape('encoder.positional_embedding', (20, 64)), {}, 'positions cannot be 20'),
        (dict, {'encoder_layers': 3}, 'no tensor encoder.blocks.2'),
        (dict, {'encoder_layers': 1}, 'more layers than the 1'),
        (dict, {'encoder_layers': 1 << 31}, 'encoder_layers cannot be'),
        (dict, {'encoder_attention_heads': 5}, 'heads cannot be 5'),
        (dict, {'encoder_attention_heads': 0}, 'heads cannot be 0'),
        (dict, {'audio_pool_step': 0}, 'audio_pool_step cannot be 0'),
        (dict, {'d_model': 128}, 'has the shape'),
        (dict, {'n_mel': 128}, 'has the shape'),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, backend, tensors, change, metadata, reason):
    path = write_audio(tmp_path / 'a.gguf', change(tensors), **metadata)
    with pytest.raises(ModelFileError, match=reason):
        AudioEncoder.load(path, backend)


def test_flat_convolution_biases_are_taken_too(tmp_path, backend, tensors, mel, encoder):
    flat = {
        name: array.reshape(-1) if 'conv' in name and name.endswith('bias') else array
        for name, array in tensors.items()
    }
    tokens = encode(
        AudioEncoder.load(write_audio(tmp_path / 'a.gguf', flat), backend).stream(), mel
    )
    np.testing.assert_array_equal(tokens, encode(encoder.stream(), mel))


def test_unknown_options_are_refused(files, backend):
    for options in (
        {'attention': 'fast'},
        {'kv_type': 'q8_0'},
        {'attention': 'mul_mat', 'fixed_graph': True},
    ):
        with pytest.raises(ValueError):
            AudioEncoder.load(files['f32'], backend, **options)
