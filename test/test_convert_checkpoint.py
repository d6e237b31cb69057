# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A checkpoint that is not whole, or not a MiniCPM-o, is refused by name, before it is written."""

import json
import re

import numpy as np
import pytest
from hf_checkpoint import TWO_SIX, random_tensors, write_checkpoint

from minicpmo_ros.convert.checkpoint import Checkpoint
from minicpmo_ros.convert.converter import convert_directory
from minicpmo_ros.convert.shape import read_shape
from minicpmo_ros.errors import InputError, ModelFileError
from minicpmo_ros.modelset.directory import ModelDirectory


@pytest.fixture(scope='module')
def tensors():
    return random_tensors(TWO_SIX)


@pytest.fixture
def source(tmp_path, tensors):
    return write_checkpoint(tmp_path / 'hf', TWO_SIX, tensors=tensors)


def refusal(source, tmp_path, *arguments, error=ModelFileError):
    """Give the words of a refusal that left nothing behind."""
    with pytest.raises(error) as caught:
        convert_directory(source, tmp_path / 'out', *arguments)
    assert not list((tmp_path / 'out').glob('*')) if (tmp_path / 'out').exists() else True
    return str(caught.value)


@pytest.mark.parametrize(
    'missing',
    [
        'llm.model.layers.1.self_attn.k_proj.bias',
        'llm.lm_head.weight',
        'vpm.encoder.layers.0.mlp.fc2.weight',
        'resampler.attn.in_proj_weight',
        'apm.layers.1.fc1.bias',
        'audio_projection_layer.linear2.weight',
    ],
)
def test_a_missing_tensor_is_named(tmp_path, tensors, missing):
    weights = {name: array for name, array in tensors.items() if name != missing}
    source = write_checkpoint(tmp_path / 'hf', TWO_SIX, tensors=weights)
    words = refusal(source, tmp_path)
    assert f'1 tensors are missing: {missing}' in words and 'Fetch the checkpoint again' in words


@pytest.mark.parametrize(
    'name, shape',
    [
        ('llm.model.layers.1.mlp.down_proj.weight', (256, 287)),
        ('resampler.proj', (256, 255)),
        ('resampler.attn.in_proj_bias', (769,)),
        ('apm.layers.0.fc2.weight', (64, 128)),
    ],
)
def test_a_tensor_of_another_shape_is_named(tmp_path, tensors, name, shape):
    source = write_checkpoint(tmp_path / 'hf', TWO_SIX, tensors={**tensors, name: shape})
    words = refusal(source, tmp_path)
    assert f'the tensor {name} has the shape {shape}' in words and 'is expected' in words


def test_tensors_without_a_place_are_named(tmp_path, tensors):
    name = 'llm.value_head.weight'
    source = write_checkpoint(
        tmp_path / 'hf', TWO_SIX, tensors={**tensors, name: np.zeros((1, 256))}
    )
    words = refusal(source, tmp_path)
    assert name in words and 'no place in the GGUF layouts' in words


@pytest.mark.parametrize(
    'changed, words',
    [
        ({'version': '4.5'}, "version is '4.5'"),
        ({'hidden_size': 255}, 'hidden_size is 255, the tensors have 256'),
        ({'num_hidden_layers': 3}, 'num_hidden_layers is 3, the tensors have 2'),
        ({'num_attention_heads': None}, 'it has no num_attention_heads'),
        ({'num_attention_heads': 3}, 'which does not divide 256'),
        ({'rope_scaling': {'type': 'yarn'}}, 'rope_scaling is'),
        ({'rope_scaling': {'type': []}}, 'rope_scaling is'),
        ({'rope_scaling': {'factor': 2.0}}, 'rope_scaling is'),
        ({'rope_scaling': 'linear'}, 'rope_scaling is'),
        ({'rope_parameters': {'rope_type': 'yarn', 'rope_theta': 1e6}}, 'rope_parameters is'),
        ({'hidden_act': 'gelu'}, "hidden_act is 'gelu'"),
        ({'rms_norm_eps': '1e-6'}, 'rms_norm_eps is'),
        ({'audio_pool_step': 0}, 'audio_pool_step is 0'),
        ({'audio_config': {'encoder_attention_heads': 2, 'encoder_layers': 7}}, 'encoder_layers'),
        ({'vision_config': None}, 'it has no vision_config.num_attention_heads'),
        ({'drop_vision_last_layer': True, 'vision_config': {
            'num_hidden_layers': 7, 'num_attention_heads': 2}}, 'num_hidden_layers is 7'),
        ({'vocab_size': 700}, 'vocab_size is 700'),
    ],
)  # fmt: skip
def test_a_configuration_that_contradicts_the_weights_is_refused(
    tmp_path, tensors, changed, words
):
    source = write_checkpoint(tmp_path / 'hf', TWO_SIX, tensors=tensors, **changed)
    found = refusal(source, tmp_path)
    assert words in found and 'config.json' in found


@pytest.mark.parametrize(
    'changed',
    [
        {'rope_scaling': {'rope_type': 'default'}},
        {'rope_scaling': {'type': 'default', 'rope_type': None}},
        {'rope_theta': None, 'rope_parameters': {'rope_type': 'default', 'rope_theta': 5e5}},
    ],
)
def test_rotary_positions_that_are_not_scaled_are_told_in_any_form(tmp_path, tensors, changed):
    source = write_checkpoint(tmp_path / 'hf', TWO_SIX, tensors=tensors, **changed)
    shape = read_shape(Checkpoint.open(source), 'mine')
    assert shape.rope_base == (5e5 if 'rope_parameters' in changed else 1e6)


@pytest.mark.parametrize(
    'changed, words',
    [
        ({'audio_pool_step': 60}, 'audio_pool_step cannot be 60'),
        ({'rms_norm_eps': 5.0}, 'layer_norm_rms_epsilon is 5.0'),
        ({'image_size': 10000}, 'pictures of 10000'),
        ({'max_position_embeddings': 2**30}, 'context_length is 1073741824'),
        ({'vision_config': {'num_attention_heads': 2, 'image_size': '56'}}, "image_size is '56'"),
    ],
)  # fmt: skip
def test_what_a_loader_would_refuse_is_refused_before_a_model_is_replaced(
    tmp_path, tensors, changed, words
):
    source = write_checkpoint(tmp_path / 'good', TWO_SIX, tensors=tensors)
    convert_directory(source, tmp_path / 'out')
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / 'out').iterdir()}
    source = write_checkpoint(tmp_path / 'bad', TWO_SIX, tensors=tensors, **changed)
    with pytest.raises(ModelFileError, match=words) as caught:
        convert_directory(source, tmp_path / 'out', overwrite=True)
    assert str(source) in caught.value.path and 'orrect config.json' in caught.value.remedy
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / 'out').iterdir()} == times


@pytest.mark.parametrize(
    'token, text, words', [('5', '<unit>', 'occurs twice'), ('639', '\ud800', 'is no Unicode')]
)
def test_texts_that_no_vocabulary_can_hold_are_refused(source, tmp_path, token, text, words):
    path = source / 'tokenizer_config.json'
    record = json.loads(path.read_text())
    record['added_tokens_decoder'][token] = {'content': text, 'special': True}
    path.write_text(json.dumps(record))
    assert words in refusal(source, tmp_path)


def test_other_models_are_refused(tmp_path, tensors):
    weights = {name: a for name, a in tensors.items() if not name.startswith('apm.')}
    source = write_checkpoint(tmp_path / 'hf', TWO_SIX, tensors=weights)
    words = refusal(source, tmp_path)
    assert "it has no tensors apm.*; its first is 'llm.model.embed_tokens.weight'" in words
    source = write_checkpoint(tmp_path / 'int4', TWO_SIX, tensors=tensors)
    path = source / 'model.safetensors'
    path.write_bytes(path.read_bytes().replace(b'"BF16"', b'"I16" ', 3))
    assert 'holds I16' in refusal(source, tmp_path)


def test_quantised_weights_are_told_as_such_not_as_missing(source, tmp_path):
    path = source / 'model.safetensors'
    whole = path.read_bytes()
    n_header = int.from_bytes(whole[:8], 'little')
    header = json.loads(whole[8 : 8 + n_header])
    entry = header.pop('llm.model.layers.0.self_attn.q_proj.weight')
    packed = {**entry, 'dtype': 'I32', 'shape': [128, 256]}  # as GPTQ and AWQ store it
    header['llm.model.layers.0.self_attn.q_proj.qweight'] = packed
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, 'little') + raw + whole[8 + n_header :])
    words = refusal(source, tmp_path)
    assert 'q_proj.qweight holds I32' in words and 'the checkpoint that is not quantised' in words


@pytest.mark.parametrize(
    'renamed',
    [
        lambda name: f'base_model.model.{name}',
        lambda name: name.replace('q_proj.', 'q_proj.base_layer.'),
        lambda name: name.replace('resampler.', 'resampler.modules_to_save.default.'),
    ],
)
def test_weights_beside_an_adapter_are_to_be_merged_first(tmp_path, tensors, renamed):
    weights = {renamed(name): array for name, array in tensors.items()}
    words = refusal(write_checkpoint(tmp_path / 'hf', TWO_SIX, tensors=weights), tmp_path)
    assert 'it has an adapter beside its weights' in words and 'merge_and_unload' in words


def test_an_adapter_alone_is_told_by_what_it_is_for(tmp_path):
    source = tmp_path / 'adapter'
    source.mkdir()
    record = {'peft_type': 'LORA', 'base_model_name_or_path': 'openbmb/MiniCPM-o-2_6'}
    (source / 'adapter_config.json').write_text(json.dumps(record))
    (source / 'adapter_model.safetensors').touch()
    words = refusal(source, tmp_path)
    assert "an adapter to 'openbmb/MiniCPM-o-2_6'" in words and 'merge_and_unload' in words


POINTER = 'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n'


def shorten(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    'damage, words',
    [
        (lambda d: (d / 'config.json').unlink(), 'config.json: it cannot be read'),
        (lambda d: (d / 'config.json').write_text('[]'), 'no JSON object'),
        (lambda d: (d / 'config.json').write_text('[' * 10**5), 'is no JSON'),
        (lambda d: (d / 'model.safetensors').unlink(), 'neither model.safetensors nor'),
        (lambda d: shorten(d / 'model.safetensors'), 'cut short'),
        (lambda d: (d / 'model.safetensors').write_bytes(b'\xff' * 64), 'header claims'),
        (lambda d: (d / 'model.safetensors').write_bytes(bytes(8)), 'only 8 bytes'),
        (lambda d: (d / 'merges.txt').unlink(), 'neither tokenizer.json nor vocab.json'),
        (lambda d: (d / 'merges.txt').write_text('a'), 'merges.txt: its lines are not pairs'),
        (lambda d: (d / 'merges.txt').write_text(''), 'merges.txt: it holds no merges'),
        (lambda d: (d / 'merges.txt').write_text('#version: 0.2\n'), 'it holds no merges'),
        (lambda d: (d / 'vocab.json').write_text('{"a": 9999}'), "'a' has the id 9999"),
        (lambda d: (d / 'added_tokens.json').write_text('{"a": []}'), 'added token'),
        (lambda d: (d / 'config.json').write_text(POINTER), 'a git-lfs pointer'),
        (lambda d: (d / 'vocab.json').write_text(POINTER), 'vocab.json: it is a git-lfs pointer'),
        (lambda d: (d / 'merges.txt').write_text(POINTER), 'merges.txt: it is a git-lfs pointer'),
        (lambda d: (d / 'model.safetensors').write_text(POINTER), 'it is a git-lfs pointer'),
        (lambda d: (d / 'model.safetensors').write_text('<!DOCTYPE html>'), 'it is a web page'),
        (lambda d: (d / 'model.safetensors').write_bytes(bytes(9999)), 'it begins with zeros'),
        (lambda d: (d / 'model.safetensors').rename(d / 'consolidated.safetensors'),
         'index.json, but consolidated.safetensors. Fetch'),
        (lambda d: (d / 'merges.txt').write_text('a zzz'), "the merge 'a zzz' is of pieces"),
        (lambda d: (d / 'vocab.json').write_text('{"a": 1, "b": 1}'), "'a' and 'b' have the same"),
    ],
)  # fmt: skip
def test_damaged_files_are_refused_by_name(source, tmp_path, damage, words):
    damage(source)
    assert words in refusal(source, tmp_path)


def test_headers_that_lie_are_refused(source, tmp_path):
    path = source / 'model.safetensors'
    whole = path.read_bytes()
    n_header = int.from_bytes(whole[:8], 'little')
    good = json.loads(whole[8 : 8 + n_header])
    name = 'llm.lm_head.weight'
    for change, words in (
        ({'data_offsets': [0, 1 << 60]}, 'cut short'),
        ({'data_offsets': [9, 8]}, 'cut short'),
        ({'data_offsets': [0]}, 'describes the tensor'),
        ({'data_offsets': [-2, 8]}, 'describes the tensor'),
        ({'shape': [640, 2.5]}, 'describes the tensor'),
        ({'shape': [1 << 40, 1 << 40]}, 'should have'),
        ({'shape': [0, 256]}, 'should have'),
        ({'dtype': 7}, 'describes the tensor'),
    ):
        raw = json.dumps({**good, name: {**good[name], **change}}).encode()
        path.write_bytes(len(raw).to_bytes(8, 'little') + raw + whole[8 + n_header :])
        found = refusal(source, tmp_path)
        assert words in found and name in found


def test_weights_that_share_bytes_or_leave_gaps_are_refused(source, tmp_path):
    path = source / 'model.safetensors'
    whole = path.read_bytes()
    n_header = int.from_bytes(whole[:8], 'little')
    good = json.loads(whole[8 : 8 + n_header])
    gate, up = (f'llm.model.layers.0.mlp.{name}_proj.weight' for name in ('gate', 'up'))
    shared = {**good, up: {**good[up], 'data_offsets': good[gate]['data_offsets']}}
    for header, tail in ((shared, b''), (good, b'more')):
        raw = json.dumps(header).encode()
        path.write_bytes(len(raw).to_bytes(8, 'little') + raw + whole[8 + n_header :] + tail)
        assert re.search('begins at byte|, its last, ends at', refusal(source, tmp_path))


def test_a_checkpoint_is_found_in_the_folder_that_has_it(source, tmp_path):
    within = tmp_path / 'models--openbmb--MiniCPM-o-2_6' / 'snapshots' / '0a1b'
    within.parent.mkdir(parents=True)
    source.rename(within)
    for folder in within.parents[:2]:
        assert f'checkpoint, such as {within}' in refusal(folder, tmp_path)


def test_an_index_that_does_not_fit_is_refused(tmp_path, tensors):
    source = write_checkpoint(tmp_path / 'hf', TWO_SIX, shards=3, tensors=tensors)
    index = source / 'model.safetensors.index.json'
    good = json.loads(index.read_text())
    (source / 'folder').mkdir()
    for name, place, words in (
        ('llm.lm_head.weight', '../config.json', 'no file beside it'),
        ('llm.lm_head.weight', 'model-00009-of-00003.safetensors', '1 of 4 weight files are'),
        ('no.such', 'model-00001-of-00003.safetensors', 'the tensor no.such is missing'),
        ('llm.lm_head.weight', '', "names '', which is no file beside it"),
        ('llm.lm_head.weight', '..', "names '..', which is no file beside it"),
        ('llm.lm_head.weight', None, 'names None, which is no file beside it'),
        ('llm.lm_head.weight', 'folder', '1 of 4 weight files are missing: folder'),
    ):
        index.write_text(json.dumps({'weight_map': {**good['weight_map'], name: place}}))
        assert words in refusal(source, tmp_path)


def test_a_vocabulary_without_the_special_tokens_is_refused(source, tmp_path):
    for name in ('added_tokens.json', 'tokenizer_config.json'):
        record = json.loads((source / name).read_text().replace('<unit>', '<nothing>'))
        (source / name).write_text(json.dumps(record))
    assert 'there is no <unit>' in refusal(source, tmp_path)


@pytest.mark.parametrize('value, words', [(np.nan, 'NaN'), (1e6, 'too large for f16')])
def test_numbers_that_cannot_be_stored_are_refused(tmp_path, tensors, value, words):
    name = 'apm.layers.1.fc1.weight'
    array = tensors[name].copy()
    array[3, 5] = value
    source = write_checkpoint(tmp_path / 'hf', TWO_SIX, tensors={**tensors, name: array})
    with pytest.raises(ModelFileError, match=words) as caught:
        convert_directory(source, tmp_path / 'out')
    assert name in str(caught.value)
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {'vision.gguf'}
    if value == 1e6:
        assert convert_directory(source, tmp_path / 'bf16', 'bf16').model.width == 256


def test_a_disk_without_room_and_other_types_are_refused(source, tmp_path, monkeypatch):
    assert 'allowed are f16' in refusal(source, tmp_path, 'q4_0', error=InputError)
    usage = type('Usage', (), {'free': 1 << 20})
    monkeypatch.setattr('shutil.disk_usage', lambda path: usage)
    assert '1 MiB free' in refusal(source, tmp_path, error=InputError)
    assert not (tmp_path / 'out').exists()


def test_nothing_is_overwritten_unless_allowed(source, tmp_path):
    out = tmp_path / 'out'
    out.mkdir()
    (out / 'vision.gguf').write_text('precious')
    with pytest.raises(InputError, match='already holds vision.gguf'):
        convert_directory(source, out)
    assert (out / 'vision.gguf').read_text() == 'precious'
    convert_directory(source, out, overwrite=True)
    assert ModelDirectory.open(out).family == TWO_SIX
