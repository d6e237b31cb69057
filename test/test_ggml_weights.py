# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Weights arrive as they are stored; what does not fit is refused before anything is loaded."""

import gguf
import numpy as np
import pytest

from minicpmo_ros.errors import ModelFileError
from minicpmo_ros.ggml.gguf_file import read_header
from minicpmo_ros.ggml.graph import GraphCache
from minicpmo_ros.ggml.library import GgmlType, dequantize, quantize
from minicpmo_ros.ggml.runtime import Backend
from minicpmo_ros.ggml.weights import Want, load_weights, read_floats

ROWS, COLUMNS = 64, 96


@pytest.fixture
def backend():
    backend = Backend('cpu')
    yield backend
    backend.close()


@pytest.fixture
def matrix(rng):
    return rng.standard_normal((ROWS, COLUMNS)).astype(np.float32)


@pytest.fixture
def path(tmp_path, matrix):
    """A file with one matrix in several types, an f16 bias and a kernel."""
    writer = gguf.GGUFWriter(tmp_path / 'w.gguf', 'test')
    writer.add_tensor('f32', matrix)
    writer.add_tensor('f16', matrix.astype(np.float16))
    for name in ('q8_0', 'q4_0', 'bf16'):
        kind = GgmlType[name.upper()]
        writer.add_tensor(name, quantize(matrix, kind), raw_dtype=gguf.GGMLQuantizationType(kind))
    writer.add_tensor('bias', matrix[:, :1].astype(np.float16))
    writer.add_tensor('kernel', matrix.reshape(ROWS, 32, 3))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / 'w.gguf'


@pytest.mark.parametrize('name', ['f32', 'f16', 'q8_0', 'q4_0', 'bf16'])
def test_tensors_are_stored_as_they_are(path, backend, matrix, name):
    weights = load_weights(path, backend, {name: Want((ROWS, COLUMNS))})
    kind = GgmlType[name.upper()]
    assert weights[name].type == kind and weights[name].shape == (ROWS, COLUMNS)
    encoded = weights[name].read().view(np.uint8)
    np.testing.assert_array_equal(encoded, quantize(matrix, kind))


def test_tensors_are_turned_to_floats_where_wanted(path, backend, matrix):
    weights = load_weights(
        path,
        backend,
        {
            'bias': Want(
                (ROWS, 1),
                as_float=True,
                transform=lambda name, info, x: x.reshape(-1),
                stored=(ROWS,),
            ),
            'q8_0': Want((ROWS, COLUMNS), as_float=True),
        },
    )
    np.testing.assert_array_equal(weights['bias'].read(), matrix[:, 0].astype(np.float16))
    q8 = quantize(matrix, GgmlType.Q8_0)
    np.testing.assert_array_equal(weights['q8_0'].read(), dequantize(q8, GgmlType.Q8_0))
    np.testing.assert_array_equal(read_floats(read_header(path), 'f16'), matrix.astype(np.float16))


def test_transforms_see_the_data_as_stored(path, backend, matrix):
    """Kernels are reordered; rows of zero blocks pad a quantised matrix exactly."""

    def taps_first(name, info, kernel):
        assert (name, info.shape, kernel.dtype) == ('kernel', (ROWS, 32, 3), np.float32)
        return kernel.transpose(0, 2, 1).reshape(ROWS, -1)

    def padded(name, info, blocks):
        assert blocks.dtype == np.uint8
        return np.pad(blocks, ((0, 8), (0, 0)))

    weights = load_weights(
        path,
        backend,
        {
            'kernel': Want((ROWS, 32, 3), transform=taps_first, stored=(ROWS, 96)),
            'q8_0': Want((ROWS, COLUMNS), transform=padded, stored=(ROWS + 8, COLUMNS)),
        },
    )
    kernel = matrix.reshape(ROWS, 32, 3).transpose(0, 2, 1).reshape(ROWS, 96)
    np.testing.assert_array_equal(weights['kernel'].read(), kernel)
    decoded = dequantize(weights['q8_0'].read(), GgmlType.Q8_0)
    assert not decoded[ROWS:].any() and decoded[:ROWS].any()


def test_folded_weights_ride_along(path, backend):
    weights = load_weights(path, backend, {}, extra={'folded': np.arange(6.0).reshape(2, 3)})
    np.testing.assert_array_equal(weights['folded'].read(), np.arange(6.0).reshape(2, 3))


def test_repacked_weights_multiply_as_the_plain_ones_do(path, backend, rng, matrix):
    x = rng.standard_normal((5, COLUMNS)).astype(np.float32)
    results = []
    for repack in (False, True):
        weights = load_weights(
            path, backend, {'q4_0': Want((ROWS, COLUMNS), matmul=True)}, repack=repack
        )

        def build(g, _, w=weights):
            g.output('y', g.linear(w['q4_0'], g.input('x', (5, COLUMNS))))

        results.append(GraphCache(backend, build, [0], 8).run(0, {'x': x})['y'])
    np.testing.assert_allclose(*results, rtol=1e-3, atol=1e-2)
    if backend.extra_buffer_types():
        with pytest.raises(ValueError, match='cannot be read back'):
            weights['q4_0'].read()


@pytest.mark.parametrize(
    'wanted, reason',
    [
        ({'nobody': Want((3,))}, 'no tensor nobody'),
        ({'f32': Want((COLUMNS, ROWS))}, r'f32 has the shape \(64, 96\), \(96, 64\) is expected'),
    ],
)
def test_what_is_missing_or_different_is_named(path, backend, wanted, reason):
    with pytest.raises(ModelFileError, match=reason):
        load_weights(path, backend, {'f16': Want((ROWS, COLUMNS)), **wanted})


def test_a_file_that_changed_after_its_header_was_read_is_refused(path, backend):
    header, content = read_header(path), path.read_bytes()
    for change in (lambda: path.write_bytes(content[:-100]), path.unlink):
        change()
        with pytest.raises(ModelFileError, match='changed|no longer'):
            load_weights(header, backend, {'f32': Want((ROWS, COLUMNS))})
