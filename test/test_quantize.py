# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Quantised files load, compute nearly the same, and are otherwise what they were."""

import shutil
import tracemalloc
from dataclasses import replace
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
from whisper_files import random_mel, random_tensors, step_mel
from whisper_files import write as write_audio

from benchmarks.mtmd import encode_overview, loaded_mtmd
from minicpmo_ros.encoders.siglip.encoder import VisionEncoder
from minicpmo_ros.encoders.whisper.encoder import AudioEncoder
from minicpmo_ros.errors import InputError, ModelFileError
from minicpmo_ros.ggml import gguf_copy
from minicpmo_ros.ggml.gguf_file import read_header
from minicpmo_ros.ggml.runtime import Backend
from minicpmo_ros.ggml.types import GgmlType as Type
from minicpmo_ros.llm.context import Context, ContextOptions
from minicpmo_ros.llm.model import LanguageModel, ModelOptions
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.modelset.gguf_layouts import TINY, takes_more_bits
from minicpmo_ros.quantize.quantizer import (
    QuantizeOptions,
    overall_error,
    quantize_directory,
    quantize_file,
)
from minicpmo_ros.quantize.rules import Rule, fitting_type
from minicpmo_ros.synthetic.model import write_llm, write_model, write_vision

ROLES = ('llm', 'vision', 'audio')
# Relative error of the tensors, and of what llm, vision and audio give: a third more than was
# measured. Random weights make much of the errors of 4 bits.
TOLERANCES = {
    'f32': (0, 0, 0, 0),
    'f16': (0.0003, 0.002, 0.0014, 0.0008),
    'bf16': (0.002, 0.01, 0.011, 0.006),
    'q8_0': (0.007, 0.036, 0.032, 0.017),
    'q6_K': (0.02, 0.1, 0.06, 0.03),
    'q5_K': (0.04, 0.18, 0.18, 0.1),
    'q5_1': (0.04, 0.16, 0.18, 0.11),
    'q5_0': (0.05, 0.2, 0.2, 0.11),
    'q4_K': (0.08, 0.3, 0.26, 0.14),
    'q4_1': (0.08, 0.29, 0.37, 0.21),
    'q4_0': (0.09, 0.34, 0.4, 0.24),
    'q3_K': (0.2, 0.6, 0.6, 0.4),
    'q2_K': (0.3, 0.9, 0.8, 0.6),
}


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """Give a tiny model in f32."""
    directory = tmp_path_factory.mktemp('quantize') / 'f32'
    return write_model(directory, TINY, 1, 'f32', 'f32', 'f32')


@pytest.fixture(scope='module')
def backend():
    backend = Backend('cpu')
    yield backend
    backend.close()


@pytest.fixture(scope='module')
def outputs(backend):
    """Give a function that gives what the three networks of a model directory compute."""
    colours = np.random.default_rng(3).integers(0, 256, (8, 8, 3), np.uint8)
    picture = np.kron(colours, np.ones((14, 14, 1), np.uint8))  # (112, 112, 3)

    def compute(model):
        llm = LanguageModel.load(model.llm_path, ModelOptions(repack=False))
        context = Context(llm, ContextOptions(n_ctx=256, n_batch=32, threads=1))
        rows = llm.token_rows.rows(range(70, 90))  # (20, width)
        found = {'llm': context.read(rows, 0, want_logits=True)}
        context.close()
        llm.close()
        vision = VisionEncoder.load(model.vision_path, backend, max_patches=64)
        found['vision'] = vision.encode([picture])
        audio = AudioEncoder.load(model.audio_path, backend, kv_type='f32')
        found['audio'] = audio.stream().step(step_mel(random_mel(), 0))
        return found

    return compute


@pytest.fixture(scope='module')
def expected(source, outputs):
    return outputs(ModelDirectory.open(source))


def types(path):
    return {name: info.type for name, info in read_header(path).tensors.items()}


def raw(path, name):
    info = read_header(path).tensors[name]
    return path.read_bytes()[info.offset : info.offset + info.n_bytes]


def rules(*texts):
    return [Rule.parse(text) for text in texts]


def distance(found, wanted):
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


# --- what comes out -------------------------------------------------------------------------


@pytest.mark.parametrize('precision', TOLERANCES)
def test_every_precision_loads_and_computes_nearly_the_same(
    source, outputs, expected, tmp_path, precision
):
    model, reports = quantize_directory(source, tmp_path / 'out', dict.fromkeys(ROLES, precision))
    found = outputs(model)
    of_weights, *of_outputs = TOLERANCES[precision]
    for role, limit in zip(ROLES, of_outputs):
        assert distance(found[role], expected[role]) <= limit, role
        assert overall_error(reports[role]) <= of_weights
        changed = [report for report in reports[role] if report.new_type != Type.F32]
        assert not changed if precision == 'f32' else len(changed) > 10


def test_blocks_are_those_of_the_reference_implementation(source, tmp_path):
    name = 'blk.0.attn_q.weight'
    values = np.frombuffer(raw(source / 'llm.gguf', name), np.float32).reshape(256, 256)
    for precision in ('q8_0', 'q5_0', 'q4_1', 'q4_0'):
        path = tmp_path / f'{precision}.gguf'
        (report,) = (
            each
            for each in quantize_file(source / 'llm.gguf', path, precision)
            if each.name == name
        )
        kind = gguf.GGMLQuantizationType[precision.upper()]
        assert raw(path, name) == gguf.quants.quantize(values, kind).tobytes()
        encoded = np.frombuffer(raw(path, name), np.uint8).reshape(256, -1)
        decoded = gguf.quants.dequantize(encoded, kind)
        assert report.relative_error == pytest.approx(distance(decoded, values), rel=1e-3)
        assert report.new_bytes == encoded.nbytes


def test_eight_bits_lose_less_than_a_percent(source, tmp_path):
    for role in ROLES:
        reports = quantize_file(source / f'{role}.gguf', tmp_path / f'{role}.gguf', 'q8_0')
        errors = [report.relative_error for report in reports if report.new_type == Type.Q8_0]
        assert len(errors) > 10
        assert 0.002 < min(errors) and max(errors) < 0.01


def test_metadata_keeps_order_and_exact_types(source, tmp_path):
    for role in ROLES:
        path = tmp_path / f'{role}.gguf'
        quantize_file(source / f'{role}.gguf', path, 'q8_0')
        before, after = (gguf.GGUFReader(each) for each in (source / f'{role}.gguf', path))
        wanted = {key: [part.tobytes() for part in field.parts[1:]] for key, field
                  in before.fields.items() if not key.startswith('GGUF.')}  # fmt: skip
        found = {key: [part.tobytes() for part in field.parts[1:]] for key, field
                 in after.fields.items() if not key.startswith('GGUF.')}  # fmt: skip
        # Most of this vision file are tables, which stay.
        kind = gguf.LlamaFileType['ALL_F32' if role == 'vision' else 'MOSTLY_Q8_0']
        assert after.fields['general.file_type'].contents() == kind
        assert after.fields['general.quantization_version'].contents() == 2
        del found['general.quantization_version']
        assert list(found) == list(wanted)
        assert {key for key in found if found[key] != wanted[key]} <= {'general.file_type'}
        assert [t.name for t in after.tensors] == [t.name for t in before.tensors]


def test_a_file_in_floats_claims_no_blocks(source, tmp_path):
    quantize_file(source / 'llm.gguf', tmp_path / 'f16.gguf', 'f16')
    metadata = read_header(tmp_path / 'f16.gguf').metadata
    assert metadata['general.file_type'] == gguf.LlamaFileType.MOSTLY_F16
    assert 'general.quantization_version' not in metadata


def test_files_of_any_alignment_are_copied(tmp_path, outputs):
    directory = write_model(tmp_path / 'a', TINY)
    path = directory / 'audio.gguf'
    reader, writer = gguf.GGUFReader(path), gguf.GGUFWriter(tmp_path / 'new.gguf', 'whisper')
    writer.add_custom_alignment(1024)
    for key, field in reader.fields.items():
        if not key.startswith(('GGUF.', 'general.')):
            kinds = field.types
            writer.add_key_value(key, field.contents(), kinds[0], kinds[-1])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (tmp_path / 'new.gguf').replace(path)
    model, _ = quantize_directory(directory, tmp_path / 'b', {'audio': 'q8_0'})
    before = ModelDirectory.open(directory)
    assert model.headers['audio'].alignment == before.headers['audio'].alignment == 1024
    assert distance(outputs(model)['audio'], outputs(before)['audio']) < 0.03


# --- which tensor gets which type -----------------------------------------------------------


def test_llm_is_mixed_as_llama_cpp_mixes(tmp_path):
    for tied in (False, True):
        shape = replace(TINY, llm_layers=9, llm_tied=tied)
        write_llm(tmp_path / 'f16.gguf', shape, 1, 'f16')
        write_llm(tmp_path / 'wanted.gguf', shape, 1, 'q4_K')
        quantize_file(tmp_path / 'f16.gguf', tmp_path / 'q.gguf', 'q4_K', QuantizeOptions(
            overwrite=True))  # fmt: skip
        found = types(tmp_path / 'q.gguf')
        assert found == types(tmp_path / 'wanted.gguf')
        assert found['token_embd.weight' if tied else 'output.weight'] == Type.Q6_K
    # Q4_K_M of a model of 28 layers, as llama-quantize prints it.
    more = [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 24, 25, 26, 27]
    assert [layer for layer in range(28) if takes_more_bits(layer, 28)] == more


def test_key_layers_keep_more_bits_in_other_four_bit_files(source, tmp_path):
    for precision in ('q4_0', 'q4_1', 'q5_0'):
        path = tmp_path / f'{precision}.gguf'
        quantize_file(source / 'llm.gguf', path, precision)
        found = types(path)
        base = Type[precision.upper()]
        assert found['blk.1.attn_v.weight'] == found['output.weight'] == Type.Q6_K
        assert found['blk.0.attn_v.weight'] == found['blk.1.attn_q.weight'] == base
    quantize_file(source / 'llm.gguf', tmp_path / 'q8_0.gguf', 'q8_0')
    assert set(types(tmp_path / 'q8_0.gguf').values()) == {Type.F32, Type.Q8_0}


def test_what_encoders_depend_on_is_kept(source, tmp_path):
    for role in ('vision', 'audio'):
        quantize_file(source / f'{role}.gguf', tmp_path / f'{role}.gguf', 'q4_0')
    vision, audio = (types(tmp_path / f'{role}.gguf') for role in ('vision', 'audio'))
    halves = ('v.patch_embd.weight', 'v.position_embd.weight')
    assert {vision[name] for name in halves} == {Type.F16}
    assert vision['resampler.attn.q.weight'] == Type.Q8_0
    assert {audio[f'encoder.conv{i}.weight'] for i in (1, 2)} == {Type.F16}
    for role, names in {
        'vision': ('resampler.query', 'v.blk.0.ln1.weight', 'resampler.ln_q.bias'),
        'audio': ('encoder.positional_embedding', 'encoder.blocks.1.mlp_ln.weight'),
    }.items():
        for name in names:
            found = raw(tmp_path / f'{role}.gguf', name)
            assert found == raw(source / f'{role}.gguf', name)


def test_the_first_rule_that_fits_decides(source, tmp_path):
    def chosen(name, *texts):
        path = tmp_path / 'q.gguf'
        options = QuantizeOptions(rules(*texts), overwrite=True)
        quantize_file(source / 'llm.gguf', path, 'q4_0', options)
        return types(path)[name]

    name = 'blk.1.attn_v.weight'
    assert chosen(name, 'blk.*.attn_v.weight=q8_0') == Type.Q8_0
    assert chosen(name, 'blk.1.*=q5_0', 'blk.*.attn_v.weight=q8_0') == Type.Q5_0
    assert chosen(name, 'blk.*.attn_v.weight=q8_0', 'blk.1.*=q5_0') == Type.Q8_0
    assert chosen(name, '*=f32') == Type.F32
    assert chosen(name, 'blk.0.*=q8_0') == Type.Q6_K  # the default
    assert chosen(name, 'blk.1.*=keep', '*=q8_0') == Type.F32
    assert chosen('blk.1.attn_v.bias', '*=q8_0') == Type.F32
    assert chosen('blk.1.attn_norm.weight', '*=q8_0') == Type.F32


def test_rows_that_fit_no_block_fall_back_as_in_llama_cpp(source, tmp_path):
    assert fitting_type(Type.Q5_K, 160) == Type.Q5_1
    for precision, fallback in {'q4_K': Type.Q5_0, 'q6_K': Type.Q8_0}.items():
        path = tmp_path / f'{precision}.gguf'
        quantize_file(source / 'vision.gguf', path, precision, QuantizeOptions(pad=False))
        assert types(path)['v.blk.0.attn_q.weight'] == fallback  # rows of 160
        assert types(path)['v.blk.0.ffn_up.weight'] == Type.F16  # rows of 538
    quantize_file(
        source / 'audio.gguf', tmp_path / 'a', 'q4_0', QuantizeOptions(rules('*conv*=q4_0'))
    )
    assert types(tmp_path / 'a')['encoder.conv2.weight'] == Type.F16  # rows of 3


# --- padding --------------------------------------------------------------------------------


def second_layers(path):
    tensors = read_header(path).tensors
    return [(tensors[f'v.blk.{i}.ffn_up.weight'].shape, tensors[f'v.blk.{i}.ffn_up.weight'].type)
            for i in range(2)]  # fmt: skip


@pytest.mark.parametrize('precision, columns', [('q4_0', 544), ('q8_0', 544), ('q4_K', 768)])
def test_odd_rows_are_padded_to_whole_blocks(source, tmp_path, precision, columns):
    quantize_file(source / 'vision.gguf', tmp_path / 'v.gguf', precision)
    wanted = ((160, columns), Type[precision.upper()])
    assert second_layers(tmp_path / 'v.gguf') == [wanted, wanted]


def test_all_layers_are_padded_alike(source, tmp_path, backend):
    options = QuantizeOptions(rules('v.blk.0.ffn_up.weight=f16', 'v.blk.1.ffn_up.weight=q4_K'))
    quantize_file(source / 'vision.gguf', tmp_path / 'v.gguf', 'q8_0', options)
    wanted = [((160, 768), Type.F16), ((160, 768), Type.Q4_K)]
    assert second_layers(tmp_path / 'v.gguf') == wanted
    VisionEncoder.load(tmp_path / 'v.gguf', backend, max_patches=64)


def test_padding_does_not_change_the_values(source, tmp_path):
    quantize_file(source / 'vision.gguf', tmp_path / 'q.gguf', 'q8_0')
    quantize_file(tmp_path / 'q.gguf', tmp_path / 'wider.gguf', 'q4_K')
    assert second_layers(tmp_path / 'wider.gguf')[0][0] == (160, 768)
    quantize_file(tmp_path / 'q.gguf', tmp_path / 'back.gguf', 'f32')
    assert second_layers(tmp_path / 'back.gguf') == [((160, 538), Type.F32)] * 2
    name = 'v.blk.1.ffn_up.weight'
    back, was = (np.frombuffer(raw(path, name), np.float32)
                 for path in (tmp_path / 'back.gguf', source / 'vision.gguf'))  # fmt: skip
    assert distance(back, was) < 0.01


def test_both_namings_of_the_feed_forward_are_padded(tmp_path):
    write_vision(tmp_path / 'plain.gguf', TINY, 1, 'f16', 'plain')
    quantize_file(tmp_path / 'plain.gguf', tmp_path / 'q.gguf', 'q4_0')
    tensors = read_header(tmp_path / 'q.gguf').tensors
    assert tensors['v.blk.0.ffn_down.weight'].shape == (160, 544)
    assert tensors['v.blk.0.ffn_up.weight'].shape == (538, 160)


def test_unpadded_files_are_those_of_stock_llama_cpp(tmp_path, backend, rng):
    shape = replace(TINY, image_size=112, llm_layers=1)
    write_llm(tmp_path / 'llm.gguf', shape)
    write_vision(tmp_path / 'f16.gguf', shape)
    for precision in ('q8_0', 'q4_K'):
        path = tmp_path / f'{precision}.gguf'
        quantize_file(tmp_path / 'f16.gguf', path, precision, QuantizeOptions(pad=False))
        picture = rng.integers(0, 256, (112, 112, 3), np.uint8)
        with loaded_mtmd(tmp_path / 'llm.gguf', path) as context:
            expected = encode_overview(context, picture, shape.width)
        encoder = VisionEncoder.load(path, backend, max_patches=64)
        # Activations are rounded to 8 bits, others where they differ by 1e-4: f16 gives 1e-3.
        assert distance(encoder.encode([picture]), expected) < 0.06


# --- streaming ------------------------------------------------------------------------------


def test_bytes_are_the_same_whatever_the_blocks_and_threads(source, tmp_path, monkeypatch):
    written = []
    for n, (block, threads) in enumerate([(1 << 18, 1), (1 << 18, 1), (3000, 1), (700, 3)]):
        monkeypatch.setattr(gguf_copy, 'BLOCK_VALUES', block)
        for role in ROLES:
            path = tmp_path / f'{role}-{n}.gguf'
            quantize_file(source / f'{role}.gguf', path, 'q4_K', QuantizeOptions(threads=threads))
            written.append(path.read_bytes())
    assert written[:3] == written[3:6] == written[6:9] == written[9:]


def test_memory_does_not_grow_with_the_tensors(tmp_path, monkeypatch):
    shape = replace(TINY, vocabulary=40000, llm_layers=1)
    write_llm(tmp_path / 'llm.gguf', shape, 1, 'f16')
    monkeypatch.setattr(gguf_copy, 'BLOCK_VALUES', 1 << 16)
    for precision in ('q4_0', 'keep'):
        tracemalloc.start()
        reports = quantize_file(tmp_path / 'llm.gguf', tmp_path / precision, precision)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert max(report.old_bytes for report in reports) > 20e6
        # The header's vocabulary, and a block of 256 KiB as float32 in a few forms.
        assert peak < 10e6


def test_quantised_files_are_read_and_equal_types_copied(source, tmp_path):
    quantize_file(source / 'llm.gguf', tmp_path / 'a.gguf', 'q4_K')
    reports = quantize_file(tmp_path / 'a.gguf', tmp_path / 'b.gguf', 'q4_K')
    assert (tmp_path / 'b.gguf').read_bytes() == (tmp_path / 'a.gguf').read_bytes()
    assert all(report.relative_error == 0 for report in reports)
    quantize_file(tmp_path / 'a.gguf', tmp_path / 'c.gguf', 'q8_0')
    assert types(tmp_path / 'c.gguf')['blk.0.attn_q.weight'] == Type.Q8_0


# --- refusals -------------------------------------------------------------------------------


def refused(error, match, source, target, precision='q4_0', options=None):
    """Expect a refusal that leaves nothing behind and touches nothing."""
    before = {path: path.read_bytes() for path in target.parent.iterdir() if path.is_file()}
    with pytest.raises(error, match=match):
        quantize_file(source, target, precision, options)
    after = {path: path.read_bytes() for path in target.parent.iterdir() if path.is_file()}
    assert after == before


def test_input_is_never_overwritten(source, tmp_path):
    path = tmp_path / 'llm.gguf'
    shutil.copy(source / 'llm.gguf', path)
    (tmp_path / 'link.gguf').symlink_to(path)
    (tmp_path / 'hard.gguf').hardlink_to(path)
    for target in (path, tmp_path / 'link.gguf', tmp_path / 'hard.gguf'):
        for overwrite in (False, True):
            refused(InputError, 'to be read', path, target,
                    options=QuantizeOptions(overwrite=overwrite))  # fmt: skip


def test_other_files_are_overwritten_only_when_allowed(source, tmp_path):
    path = tmp_path / 'q.gguf'
    path.write_text('precious')
    refused(InputError, 'already exists', source / 'llm.gguf', path)
    quantize_file(source / 'llm.gguf', path, 'q4_0', QuantizeOptions(overwrite=True))
    assert read_header(path).tensors
    refused(InputError, 'is a directory', source / 'llm.gguf', source)


@pytest.mark.parametrize('text', ['q4_0', '=q4_0', 'blk.*=q3', 'blk.*=', ''])
def test_rules_that_are_none_are_refused(text):
    with pytest.raises(InputError, match='rule|unknown'):
        Rule.parse(text)


def test_what_cannot_be_done_is_refused_in_words(source, tmp_path, monkeypatch):
    target, llm = tmp_path / 'q.gguf', source / 'llm.gguf'
    refused(InputError, "'q2' is unknown; allowed are f32", llm, target, 'q2')
    options = QuantizeOptions(rules('*=q8_0', 'v.blk.*=q8_0'))
    refused(InputError, r'no matrix that fits v.blk.\*', llm, target, options=options)
    options = QuantizeOptions(rules('blk.0.attn_norm.weight=q8_0'))
    refused(InputError, 'no matrix that fits', llm, target, options=options)
    refused(ModelFileError, 'cannot be opened', tmp_path / 'none', target)
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: SimpleNamespace(free=9))
    refused(InputError, 'the disk has 0 MiB free', llm, target)


def test_files_of_other_models_are_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / 'llama.gguf', 'llama')
    writer.add_tensor('token_embd.weight', np.ones((64, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refused(ModelFileError, "'llama' is none", tmp_path / 'llama.gguf', tmp_path / 'q.gguf')


def test_blocks_of_another_format_are_refused(source, tmp_path, monkeypatch):
    monkeypatch.setattr('minicpmo_ros.quantize.quantizer.QUANTIZATION_VERSION', 3)
    quantize_file(source / 'llm.gguf', tmp_path / 'new.gguf', 'q4_0')
    monkeypatch.undo()
    refused(ModelFileError, 'version is 3', tmp_path / 'new.gguf', tmp_path / 'q.gguf')


@pytest.mark.parametrize('value, precision, problem', [
    (np.nan, 'q4_0', 'NaN'), (np.inf, 'q8_0', 'infinite'), (1e6, 'f16', 'too large for F16')
])  # fmt: skip
def test_numbers_that_cannot_be_stored_are_refused(tmp_path, value, precision, problem):
    tensors = random_tensors()
    tensors['encoder.blocks.1.mlp.0.weight'][255, 3] = value
    path = write_audio(tmp_path / 'a.gguf', tensors)
    refused(ModelFileError, f'blocks.1.mlp.0.weight holds .*{problem}', path, tmp_path / 'q.gguf',
            precision)  # fmt: skip


def test_a_file_cut_while_it_is_read_is_refused(source, tmp_path):
    path = shutil.copy(source / 'audio.gguf', tmp_path / 'audio.gguf')

    def cut(_):
        with open(path, 'r+b') as file:
            file.truncate(1 << 20)

    with pytest.raises(ModelFileError, match='shorter'):
        quantize_file(path, tmp_path / 'q.gguf', 'q4_0', on_tensor=cut)
    assert [each.name for each in tmp_path.iterdir()] == ['audio.gguf']


# --- directories ----------------------------------------------------------------------------


def test_directory_keeps_its_space_and_says_its_precisions(source, tmp_path):
    before = ModelDirectory.open(source)
    model, _ = quantize_directory(source, tmp_path / 'out', {'llm': 'q4_0', 'audio': 'q4_K'})
    assert model.space == before.space
    # No row of the audio encoder fits a block of q4_K.
    assert model.precision == {'llm': 'q4_0', 'vision': 'f32', 'audio': 'q5_0'}
    assert model.verify_hashes() == []
    assert model.vision_path.read_bytes() == before.vision_path.read_bytes()
    same = replace(model.manifest, files=before.manifest.files)
    assert same == before.manifest


def test_a_directory_says_what_rules_have_made_of_it(source, tmp_path):
    options = QuantizeOptions([Rule('*', Type.Q4_0, 'llm'), Rule('*', Type.Q8_0, 'vision')])
    model, _ = quantize_directory(source, tmp_path / 'out', {}, options)
    assert model.precision == {'llm': 'q4_0', 'vision': 'q8_0', 'audio': 'f32'}
    told = {role: h.metadata['general.file_type'] for role, h in model.headers.items()}
    kinds = gguf.LlamaFileType
    assert told == {'llm': kinds.MOSTLY_Q4_0, 'vision': kinds.MOSTLY_Q8_0, 'audio': kinds.ALL_F32}


def test_a_rule_needs_to_fit_in_one_file_only(source, tmp_path):
    options = QuantizeOptions(rules('v.blk.*=q8_0'))
    model, _ = quantize_directory(source, tmp_path / 'out', {}, options)
    assert types(model.vision_path)['v.blk.1.attn_k.weight'] == Type.Q8_0
    assert set(types(model.llm_path).values()) == {Type.F32}
    with pytest.raises(InputError, match=r'no matrix that fits u\.\*'):
        quantize_directory(source, tmp_path / 'o', {}, QuantizeOptions(rules('*=q8_0', 'u.*=f16')))
    assert not (tmp_path / 'o').exists()


def test_no_directory_is_overwritten_unless_allowed(source, tmp_path):
    with pytest.raises(InputError, match='to be read'):
        quantize_directory(source, source, {'llm': 'q4_0'}, QuantizeOptions(overwrite=True))
    quantize_directory(source, tmp_path, {'llm': 'q4_0'})
    with pytest.raises(InputError, match='already exists'):
        quantize_directory(source, tmp_path, {'llm': 'q8_0'})
    model, _ = quantize_directory(
        source, tmp_path, {'llm': 'q8_0'}, QuantizeOptions(overwrite=True)
    )
    assert model.precision['llm'] == 'q8_0'
    assert model.verify_hashes() == []


def test_an_interrupted_directory_is_no_model(source, tmp_path):
    quantize_directory(source, tmp_path, {'llm': 'q4_0'})

    def interrupt(role, _):
        if role == 'vision':
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_directory(
            source, tmp_path, {'llm': 'q8_0'}, QuantizeOptions(overwrite=True), interrupt
        )
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ['audio.gguf', 'llm.gguf', 'vision.gguf']
