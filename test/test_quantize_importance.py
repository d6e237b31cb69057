# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Importance: what weights are really multiplied with, and what quantising makes of it."""

import gguf
import numpy as np
import pytest
from scored_clips import write_question_set

from minicpmo_ros.cli import main as cli
from minicpmo_ros.errors import InputError, ModelFileError
from minicpmo_ros.evaluation.precision_search import collect
from minicpmo_ros.evaluation.runner import CoreOptions
from minicpmo_ros.ggml.builder import Builder
from minicpmo_ros.ggml.gguf_file import read_header
from minicpmo_ros.ggml.graph import GraphCache
from minicpmo_ros.ggml.library import dequantize, quantize
from minicpmo_ros.ggml.runtime import Backend, Tensors
from minicpmo_ros.ggml.types import GgmlType as Type
from minicpmo_ros.ggml.weights import read_floats
from minicpmo_ros.llm.context import Context, ContextOptions
from minicpmo_ros.llm.model import LanguageModel
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.quantize.importance import Importance
from minicpmo_ros.quantize.quantizer import QuantizeOptions, quantize_file
from minicpmo_ros.quantize.rules import Rule
from minicpmo_ros.synthetic.model import write_model

WEIGHTED = ('q4_0', 'q4_1', 'q4_K', 'q5_0', 'q5_1', 'q5_K', 'q6_K', 'q3_K', 'q2_K')
CORE = CoreOptions(device='cpu', threads=1, n_ctx=1024, max_tokens=4)


@pytest.fixture(scope='module')
def nano_dir(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp('models') / 'nano', 'nano', llm_type='f32')


@pytest.fixture(scope='module')
def collected(nano_dir, tmp_path_factory):
    questions = write_question_set(tmp_path_factory.mktemp('set'), (2,))
    return collect(ModelDirectory.open(nano_dir), questions, CORE)


# --- what is multiplied ---------------------------------------------------------------------


def test_a_graph_tells_what_its_weights_meet(rng):
    backend = Backend('cpu')
    tensors = Tensors(backend, {'a.weight': ((8, 8), Type.F32), 'b.weight': ((8, 8), Type.F32)})
    a, b = (rng.standard_normal((8, 8)).astype(np.float32) for _ in 'ab')
    tensors['a.weight'].write(a)
    tensors['b.weight'].write(b)

    def build(g: Builder, _):
        x = g.input('x', (6, 8))
        y = g.relu(g.linear(tensors['a.weight'], x))
        scores = g.matmul(y, y)  # (6, 6): no weight
        y = g.linear(tensors['b.weight'], y)
        g.output('y', g.matmul(g.contiguous(g.transpose(y, (0, 1, 3, 2))), scores))

    graphs = GraphCache(backend, build, [0], max_nodes=16)
    x = rng.standard_normal((6, 8)).astype(np.float32)
    expected = graphs.run(0, {'x': x})['y']
    seen = []
    backend.on_product = lambda name, rows: seen.append((name, rows))
    np.testing.assert_array_equal(graphs.run(0, {'x': x})['y'], expected)
    assert [name for name, _ in seen] == ['a.weight', 'b.weight']
    np.testing.assert_array_equal(seen[0][1], x)
    np.testing.assert_allclose(seen[1][1], np.maximum(x @ a.T, 0), rtol=1e-4, atol=1e-5)
    backend.on_product = None
    graphs.run(0, {'x': x})
    assert len(seen) == 2
    backend.close()


def test_llama_cpp_tells_what_its_weights_meet(nano_dir):
    seen = {}
    model = LanguageModel.load(nano_dir / 'llm.gguf')
    rows = model.token_rows.rows(range(70, 78))  # (8, width)
    plain = Context(model, ContextOptions(n_ctx=256, threads=1))
    expected = plain.read(rows, 0, want_logits=True)
    plain.close()
    context = Context(
        model, ContextOptions(n_ctx=256, threads=1, on_product=lambda n, r: seen.update({n: r}))
    )
    np.testing.assert_allclose(context.read(rows, 0, want_logits=True), expected, atol=1e-4)
    context.close()
    model.close()
    header = read_header(nano_dir / 'llm.gguf')
    normed = rows / np.sqrt(np.square(rows).mean(axis=1, keepdims=True) + 1e-6)
    wanted = normed * read_floats(header, 'blk.0.attn_norm.weight')
    for name in 'qkv':
        np.testing.assert_allclose(seen[f'blk.0.attn_{name}.weight'], wanted, atol=1e-4)
    matrices = {n for n, info in header.tensors.items() if len(info.shape) == 2}
    assert set(seen) == matrices


def test_what_the_watcher_raises_ends_the_decode_and_leaves_the_sequence(nano_dir):
    def refuse(name, rows):
        raise InputError('no more')

    model = LanguageModel.load(nano_dir / 'llm.gguf')
    context = Context(model, ContextOptions(n_ctx=256, threads=1, on_product=refuse))
    with pytest.raises(InputError, match='no more'):
        context.read(model.token_rows.rows(range(8)), 0)
    assert context.next_position(0) == 0
    context.close()
    model.close()


def test_every_matrix_of_the_three_networks_is_seen(nano_dir, collected):
    headers = ModelDirectory.open(nano_dir).headers.values()
    matrices = {
        name
        for header in headers
        for name, info in header.tensors.items()
        if len(info.shape) == 2 and min(info.shape) > 1 and name.endswith('.weight')
    }
    # Looked up; folded while loading.
    assert matrices - set(collected.names) == {
        'v.position_embd.weight', 'resampler.attn.q.weight'}  # fmt: skip
    assert set(collected.names) <= matrices


# --- the file -------------------------------------------------------------------------------


def test_the_file_gives_back_what_was_collected(collected, tmp_path):
    collected.write(tmp_path / 'i.gguf')
    collected.write(tmp_path / 'j.gguf')
    assert (tmp_path / 'i.gguf').read_bytes() == (tmp_path / 'j.gguf').read_bytes()
    found = Importance.read(tmp_path / 'i.gguf')
    assert sorted(found.names) == sorted(collected.names)
    for name in found.names:
        k = collected.columns(name)
        np.testing.assert_allclose(found.of(name, k), collected.of(name, k), rtol=1e-6)


def test_a_folder_that_is_not_there_is_told_before_a_question_is_asked(tmp_path, capsys):
    asked = ('--questions', str(tmp_path / 'none.json'))
    out = tmp_path / 'none' / 'i.gguf'
    assert cli.main(['importance', 'nano', '--out', str(out), *asked]) == 2
    assert f'{out.parent} is no folder' in capsys.readouterr().err


def test_importance_is_the_mean_square_with_a_floor():
    importance = Importance()
    importance.add('a.weight', np.array([[3, 0, 1], [1, 0, 1]], np.float32))
    importance.add('a.weight', np.array([[2, 0, 1]], np.float32))
    found = importance.of('a.weight', 4)
    np.testing.assert_allclose(found[[0, 2]], [14 / 3, 1], rtol=1e-6)
    assert 0 < found[1] == found[3] < 1e-3
    with pytest.raises(ValueError, match='rows of 3 and 2'):
        importance.add('a.weight', np.ones((1, 2), np.float32))


def write_imatrix(path, sums, counts, kind='imatrix'):
    writer = gguf.GGUFWriter(path, 'imatrix')
    writer.add_type(kind)
    writer.add_tensor('a.weight.in_sum2', np.asarray(sums, np.float32))
    writer.add_tensor('a.weight.counts', np.asarray(counts, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize('sums, counts, kind, problem', [
    ([[1, -1]], [[3]], 'imatrix', 'negative'), ([[1, np.nan]], [[3]], 'imatrix', 'not finite'),
    ([[1, 1]], [[-3]], 'imatrix', 'negative'), ([[1, 1], [1, 1]], [[3], [3]], 'imatrix', '2 mat'),
    ([[1, 1]], [[3]], 'model', 'no importance'),
])  # fmt: skip
def test_damaged_files_are_refused(tmp_path, sums, counts, kind, problem):
    path = write_imatrix(tmp_path / 'i.gguf', sums, counts, kind)
    with pytest.raises(ModelFileError, match=problem):
        Importance.read(path)


# --- quantising -----------------------------------------------------------------------------


@pytest.mark.parametrize('precision', WEIGHTED)
def test_bits_go_where_the_importance_is(rng, precision):
    kind = Type[precision.upper()]
    rows = rng.standard_normal((16, 512)).astype(np.float32)
    importance = (rng.random(512) ** 8 + 1e-3).astype(np.float32)
    errors = [
        (np.square(rows - dequantize(quantize(rows, kind, given), kind)) * importance).sum()
        for given in (None, importance)
    ]
    assert errors[1] < 0.97 * errors[0]


@pytest.mark.parametrize('importance', [
    np.ones(511, np.float32), np.zeros(512, np.float32), np.full(512, np.nan, np.float32),
    -np.ones(512, np.float32)
])  # fmt: skip
def test_an_importance_that_does_not_fit_is_refused(importance):
    with pytest.raises(ValueError, match='not 512 positive numbers'):
        quantize(np.ones((2, 512), np.float32), Type.Q4_0, importance)


def test_a_file_reports_the_weighted_error(nano_dir, collected, tmp_path):
    rules = [Rule('*', Type.Q4_0)]
    source = nano_dir / 'llm.gguf'
    plain = quantize_file(source, tmp_path / 'a', 'keep', QuantizeOptions(rules))
    assert all(report.weighted_error is None for report in plain)
    options = QuantizeOptions(rules, importance=collected, threads=2)
    weighted = quantize_file(source, tmp_path / 'b', 'keep', options)
    assert (tmp_path / 'a').read_bytes() != (tmp_path / 'b').read_bytes()
    name = 'blk.1.ffn_down.weight'
    (report,) = (each for each in weighted if each.name == name)
    was, became = (read_floats(read_header(path), name) for path in (source, tmp_path / 'b'))
    importance = collected.of(name, was.shape[1])
    wanted = (np.square(was - became) @ importance).sum() / (np.square(was) @ importance).sum()
    assert report.weighted_error == pytest.approx(wanted**0.5, rel=1e-4)
    assert report.relative_error == pytest.approx(
        np.linalg.norm(was - became) / np.linalg.norm(was), rel=1e-4
    )


def test_rows_that_are_widened_take_importance(nano_dir, tmp_path, rng):
    write_model(tmp_path / 'm', 'tiny')  # 538 columns, padded to 544
    importance = Importance()
    importance.add('v.blk.0.ffn_up.weight', rng.standard_normal((4, 538)))
    for precision, columns in (('q4_0', 544), ('q4_K', 768)):
        options = QuantizeOptions([Rule('*', Type[precision.upper()])], importance=importance)
        path = tmp_path / precision
        reports = quantize_file(tmp_path / 'm' / 'vision.gguf', path, 'keep', options)
        (report,) = (each for each in reports if each.name == 'v.blk.0.ffn_up.weight')
        assert report.shape == (160, columns) and 0.05 < report.weighted_error < 0.12
        assert np.isfinite(read_floats(read_header(path), report.name)).all()


def test_importance_of_another_model_is_refused(nano_dir, tmp_path):
    other = Importance()
    other.add('blk.0.attn_q.weight', np.ones((2, 64)))
    source, target = nano_dir / 'llm.gguf', tmp_path / 'q'
    options = QuantizeOptions(importance=other)
    with pytest.raises(InputError, match='has 64 columns, the tensor has 256'):
        quantize_file(source, target, 'q4_0', options)
    other = Importance()
    other.add('model.layers.0.weight', np.ones((2, 64)))
    with pytest.raises(InputError, match=r'no tensor of this model \(it has model.layers'):
        quantize_file(source, target, 'q4_0', QuantizeOptions(importance=other))
    assert not target.exists()
