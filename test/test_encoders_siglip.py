# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The vision encoder computes what llama.cpp's own does, in tiles, slices and all file types."""

import math
from contextlib import closing
from dataclasses import replace

import gguf
import numpy as np
import pytest
import siglip_reference

from benchmarks.mtmd import encode_overview, loaded_mtmd
from minicpmo_ros.encoders.siglip import encoder as siglip
from minicpmo_ros.encoders.siglip import model as siglip_model
from minicpmo_ros.encoders.siglip.encoder import VisionEncoder
from minicpmo_ros.errors import InputError, ModelFileError
from minicpmo_ros.ggml.builder import Builder
from minicpmo_ros.ggml.gguf_file import read_header
from minicpmo_ros.ggml.runtime import AsGpu, Backend
from minicpmo_ros.media.image.tiling import best_resize
from minicpmo_ros.modelset.gguf_layouts import BLUELM_V_3B, NANO, TINY
from minicpmo_ros.synthetic.model import write_llm, write_vision

TOLERANCE = 1e-3
# Heads of 72 and a feed-forward that is no multiple of 32, as published.
SHAPE = replace(
    TINY, name='heads-of-72', vision_width=144, vision_heads=2, vision_ffn=538, llm_layers=1
)
# The shape of BlueLM-V-3B with narrow layers: 5 x 5 patches are joined to 3 x 3.
JOINED = replace(
    BLUELM_V_3B, name='joined', vision_layers=2, vision_width=64, vision_heads=2, vision_ffn=72,
    width=256, image_size=80, position_grid=5,
)  # fmt: skip
SMALL = replace(
    NANO, name='smaller', vision_layers=2, vision_width=64, vision_heads=2, vision_ffn=72
)


def picture(height, width, seed=0):
    """Make a picture in which every place and colour looks different."""
    y, x = np.mgrid[:height, :width]
    colours = np.stack(
        [255 * y / height, 255 * x / width, 127 + 127 * np.sin(x / 30) * np.cos(y / 50)], axis=-1
    )
    noise = np.random.default_rng(seed).normal(0, 20, colours.shape)
    return (colours + noise).clip(0, 255).astype(np.uint8)


def error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.fixture(scope='module')
def backend():
    backend = Backend('cpu')
    yield backend
    backend.close()


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Give a function that writes a vision file and returns its path."""
    directory = tmp_path_factory.mktemp('vision')

    def write(shape=SHAPE, precision='f16', naming='swapped', pad_ffn=False):
        path = directory / f'{shape.name}-{precision}-{naming}-{pad_ffn}.gguf'
        if not path.exists():
            write_vision(path, shape, 1, precision, naming, pad_ffn)
        return path

    return write


@pytest.fixture(scope='module', params=['swapped', 'plain'])
def against_mtmd(request, files, backend, tmp_path_factory):
    """Give an encoder and the reference for the same file."""
    llm = tmp_path_factory.mktemp('llm') / 'llm.gguf'
    write_llm(llm, SHAPE)
    path = files(naming=request.param)
    with loaded_mtmd(llm, path) as context:
        yield (
            VisionEncoder.load(path, backend),
            lambda image: encode_overview(context, image, SHAPE.width),
        )


@pytest.mark.parametrize('height,width', [(448, 448), (336, 602), (602, 336)])
def test_equals_libmtmd(against_mtmd, height, width):
    encoder, reference = against_mtmd
    image = picture(height, width)
    rows = encoder.encode([image])
    assert rows.shape == (encoder.queries, encoder.width) == (64, 256)
    assert rows.dtype == np.float32
    assert error(rows, reference(image)) < TOLERANCE


@pytest.mark.parametrize('swapped', ['bucket_ids', 'sines'])
def test_swapped_axes_would_be_caught(against_mtmd, monkeypatch, swapped):
    def swap_ids(rows, columns, grid):
        ids = right(columns, rows, grid).reshape(columns, rows)
        return np.ascontiguousarray(ids.T).reshape(-1)

    def swap_sines(width, grid):
        half = width // 2
        return tuple(np.roll(sines, half, axis=1) for sines in right(width, grid))

    right = getattr(siglip, swapped)
    wrong = swap_ids if swapped == 'bucket_ids' else swap_sines
    monkeypatch.setattr(siglip, swapped, wrong)
    encoder, reference = against_mtmd
    image = picture(336, 602)
    assert error(encoder.encode([image]), reference(image)) > 10 * TOLERANCE


def test_small_pictures_and_few_queries_equal_libmtmd(files, backend, tmp_path):
    write_llm(tmp_path / 'llm.gguf', replace(NANO, llm_layers=1))
    path, image = files(NANO), picture(112, 112)
    encoder = VisionEncoder.load(path, backend)
    with loaded_mtmd(tmp_path / 'llm.gguf', path) as context:
        expected = encode_overview(context, image, NANO.width)
    rows = encoder.encode([image])
    assert rows.shape == (16, 256)
    assert error(rows, expected) < TOLERANCE


@pytest.mark.parametrize('height,width', [(112, 112), (70, 182), (182, 70)])
def test_equals_the_formulas(files, backend, height, width):
    # The CPU's GELU comes from a table of float16: that is 2.5e-4 here.
    path, image = files(SMALL, 'f32'), picture(height, width)
    encoder = VisionEncoder.load(path, backend, attention='mul_mat')
    assert error(encoder.encode([image]), siglip_reference.encode(path, image)) < 5e-4


def test_tiles_in_one_graph_equal_single_runs(files, backend):
    encoder = VisionEncoder.load(files(), backend, max_tiles=3)
    tiles = [picture(420, 476, seed) for seed in range(3)]
    tiles[1][:] = 255 - tiles[1]
    together = encoder.encode(tiles)  # (3 * 64, width)
    alone = np.concatenate([encoder.encode([tile]) for tile in tiles])
    assert error(alone[:64], alone[64:128]) > 0.1
    assert error(together, alone) < 1e-6


def test_attention_kinds_agree(files, backend):
    image = picture(336, 602)
    flash, plain = (
        VisionEncoder.load(files(precision='f32'), backend, attention=kind)
        for kind in ('flash', 'mul_mat')
    )
    assert error(flash.encode([image]), plain.encode([image])) < TOLERANCE


def test_heads_get_zeros_on_a_gpu_alone_and_give_the_same(files, backend, monkeypatch):
    """Its tensor cores take heads of 80, not of 72; the scores are still scaled by those."""
    images, padded, added = [picture(336, 602), picture(336, 602, 1)], Builder.padded, []

    def counted(self, x, n_zeros):
        added.append((x.shape[-1], n_zeros))
        return padded(self, x, n_zeros)

    monkeypatch.setattr(Builder, 'padded', counted)
    on_cpu = VisionEncoder.load(files(), backend, 2).encode(images)
    assert not added
    with closing(AsGpu()) as as_gpu:
        wider = VisionEncoder.load(files(), as_gpu, 2).encode(images)
        assert set(added) == {(72, 8)} and len(added) % (3 * SHAPE.vision_layers) == 0
        monkeypatch.setattr(siglip_model, 'TENSOR_CORE_WIDTHS', ())
        plain = VisionEncoder.load(files(), as_gpu, 2).encode(images)
    assert error(wider, plain) < 1e-5 and error(wider, on_cpu) < TOLERANCE


@pytest.mark.parametrize(
    'precision,limit', [('f16', 2e-3), ('q8_0', 0.04), ('q4_0', 0.4), ('q4_K', 0.3)]
)
@pytest.mark.parametrize('pad_ffn', [False, True])
def test_quantised_files_are_read_as_stored(files, backend, precision, limit, pad_ffn):
    shape, image = replace(TINY, name='one-layer', vision_layers=1), picture(336, 602)
    exact = VisionEncoder.load(files(shape, 'f32'), backend)
    stored = VisionEncoder.load(files(shape, precision, pad_ffn=pad_ffn), backend)
    assert stored.weight_bytes < exact.weight_bytes
    assert error(stored.encode([image]), exact.encode([image])) < limit


def test_table_that_no_device_looks_up_is_widened(files, backend, monkeypatch):
    image = picture(112, 112)
    expected = VisionEncoder.load(files(SMALL), backend).encode([image])
    monkeypatch.setattr(siglip, 'TABLE_TYPES', ())
    assert error(VisionEncoder.load(files(SMALL), backend).encode([image]), expected) < 1e-6


def test_mean_of_the_file_is_used(files, backend, tmp_path, monkeypatch):
    add_array = gguf.GGUFWriter.add_array

    def other_mean(writer, key, values):
        add_array(writer, key, [0.3, 0.5, 0.7] if key.endswith('mean') else values)

    monkeypatch.setattr(gguf.GGUFWriter, 'add_array', other_mean)
    write_vision(tmp_path / 'v.gguf', SMALL)
    image = picture(112, 112).clip(60, 190)
    shifted = (image + np.array([51, 0, -51])).astype(np.uint8)  # 0.2 of 255
    expected = VisionEncoder.load(files(SMALL), backend).encode([shifted])
    encoder = VisionEncoder.load(tmp_path / 'v.gguf', backend)
    assert error(encoder.encode([image]), expected) < 1e-4
    assert encoder.facts.warnings


def test_embeddings_depend_on_the_picture_and_the_place(files, backend):
    encoder = VisionEncoder.load(files(), backend)
    image = picture(448, 448)
    rows = encoder.encode([image])
    assert error(encoder.encode([np.zeros_like(image)]), rows) > 0.3
    assert error(encoder.encode([np.roll(image, 224, axis=1)]), rows) > 0.1
    assert np.array_equal(encoder.encode([image]), rows)


def test_between_is_called_within_each_layer_and_may_raise(files, backend):
    class Stopped(Exception):
        pass

    def stop():
        raise Stopped

    encoder, image, calls = VisionEncoder.load(files(SMALL), backend), picture(112, 112), []
    expected = encoder.encode([image])
    assert np.array_equal(encoder.encode([image], lambda: calls.append(1)), expected)
    assert len(calls) == 3 * (SMALL.vision_layers + 1)  # attention, two products; resampler
    with pytest.raises(Stopped):
        encoder.encode([image], stop)
    assert np.array_equal(encoder.encode([image]), expected)


def test_every_size_of_allowed_aspect_fits_what_was_reserved(files, backend):
    encoder = VisionEncoder.load(files(SMALL), backend, max_tiles=2)
    sizes = {
        best_resize(1000 * math.sqrt(aspect), 1000 / math.sqrt(aspect), True, 112)
        for aspect in np.exp(np.linspace(-math.log(20), math.log(20), 300))
    }
    assert len(sizes) > 50
    for width, height in sizes:
        rows = encoder.encode([picture(height, width)] * 2)
        assert rows.shape == (2 * encoder.queries, encoder.width)
        assert np.isfinite(rows).all()


def test_worst_case_of_the_published_size_is_known(files, backend):
    encoder = VisionEncoder.load(files(), backend)
    for width, height in ((602, 336), (140, 1414), (518, 392), (98, 2002), (2002, 98)):
        assert encoder.encode([picture(height, width)]).shape == (64, 256)


@pytest.mark.parametrize(
    'tiles',
    [
        [],
        [np.zeros((112, 112, 3), np.uint8)] * 3,
        [np.zeros((112, 100, 3), np.uint8)],
        [np.zeros((0, 112, 3), np.uint8)],
        [np.zeros((112, 112, 4), np.uint8)],
        [np.zeros((112, 112), np.uint8)],
        [np.zeros((112, 112, 3), np.float32)],
        [None],
        ['tile'],
        [np.zeros((112, 112, 3), np.uint8), np.zeros((112, 126, 3), np.uint8)],
        [np.zeros((448, 448, 3), np.uint8)],
        [np.zeros((14, 14, 3), np.uint8)],
        [np.zeros((14, 14 * 80, 3), np.uint8)],
    ],
)
def test_misuse_is_refused_in_words(files, backend, tiles):
    encoder = VisionEncoder.load(files(SMALL), backend, max_tiles=2)
    with pytest.raises(InputError, match='allowed|one size'):
        encoder.encode(tiles)


def test_strided_tile_is_read_rightly(files, backend):
    encoder, image = VisionEncoder.load(files(SMALL), backend), picture(112, 112)
    assert np.array_equal(
        encoder.encode([image[:, ::-1]]), encoder.encode([image[:, ::-1].copy()])
    )


def test_file_of_another_kind_is_refused(tiny_model_dir, backend):
    with pytest.raises(ModelFileError, match='audio.gguf'):
        VisionEncoder.load(tiny_model_dir / 'audio.gguf', backend)


def test_extra_layers_are_left_out_as_llama_cpp_does(files, backend, tmp_path):
    content = files(SMALL).read_bytes()
    key = b'clip.vision.block_count\x04\0\0\0'
    assert key + b'\x02' in content
    (tmp_path / 'v.gguf').write_bytes(content.replace(key + b'\x02', key + b'\x01'))
    encoder = VisionEncoder.load(tmp_path / 'v.gguf', backend)
    assert encoder.facts.layers == 1
    assert 'holds 2 layers' in encoder.facts.warnings[0]


def test_joined_patches_equal_the_formulas(files, backend):
    path, tiles = files(JOINED, 'f32'), [picture(80, 80, seed) for seed in range(3)]
    tiles[1][:] = 255 - tiles[1]
    encoder = VisionEncoder.load(path, backend, max_tiles=3, attention='mul_mat')
    assert (encoder.queries, encoder.width, encoder.takes_squares) == (9, 256, True)
    rows = encoder.encode(tiles).reshape(3, 9, 256)
    for found, tile in zip(rows, tiles):  # 80 pixels hold 5 patches: the last 10 are not seen
        assert error(found, siglip_reference.encode(path, tile)) < 5e-4
    assert error(rows[0], rows[1]) > 0.1


def test_a_model_of_squares_takes_its_own_size_only(files, backend):
    encoder = VisionEncoder.load(files(JOINED), backend, max_tiles=2)
    for shape in ((70, 70, 3), (80, 84, 3), (80, 80, 4)):
        with pytest.raises(InputError, match=r'\(80, 80, 3\) only'):
            encoder.encode([np.zeros(shape, np.uint8)])


def test_memory_of_joined_patches_is_what_was_forecast(files, backend):
    path = files(JOINED)
    for tiles in (1, 4):
        encoder = VisionEncoder.load(path, backend, max_tiles=tiles)
        planned = siglip.vision_memory(read_header(path), backend, tiles)
        assert (encoder.weight_bytes, encoder.compute_bytes) == (planned.weights, planned.compute)
