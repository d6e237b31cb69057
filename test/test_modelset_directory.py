# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A model directory is refused in words before the C library sees a file."""

import datetime
import os
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import yaml

from minicpmo_ros.errors import InputError, ModelFileError
from minicpmo_ros.llm.tokens import NORMAL
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.modelset.gguf_layouts import TINY
from minicpmo_ros.modelset.manifest import read_manifest
from minicpmo_ros.synthetic import model as synthetic

ROOT = Path(__file__).parents[1]
FILES = ('llm.gguf', 'vision.gguf', 'audio.gguf', 'manifest.yaml')


@pytest.fixture
def directory(tiny_model_dir, tmp_path):
    """Give a directory of links to the tiny model, whose files a test may replace."""
    for name in FILES:
        (tmp_path / name).symlink_to(tiny_model_dir / name)
    return tmp_path


def replace_file(directory, name, content):
    (directory / name).unlink()
    (directory / name).write_bytes(content)


def edit_bytes(directory, name, old, new):
    content = (directory / name).read_bytes()
    assert old in content
    replace_file(directory, name, content.replace(old, new))


def edit_manifest(directory, edit):
    record = yaml.safe_load((directory / 'manifest.yaml').read_text())
    edit(record)
    replace_file(directory, 'manifest.yaml', yaml.safe_dump(record).encode())


def refusal(directory):
    with pytest.raises(ModelFileError) as caught:
        ModelDirectory.open(directory)
    assert '\n' not in str(caught.value)
    assert caught.value.remedy
    return caught.value


def test_a_complete_directory_opens(tiny_model_dir):
    model = ModelDirectory.open(tiny_model_dir)
    assert model.width == TINY.width
    assert (model.family, model.model_id) == ('minicpm-o-2.6', 'random-tiny-1')
    assert model.space == 'minicpm-o-2.6/256/random-tiny-1'
    assert model.precision == {'llm': 'f16', 'vision': 'f16', 'audio': 'f16'}
    assert [path.name for path in (model.llm_path, model.vision_path, model.audio_path)] == [
        'llm.gguf',
        'vision.gguf',
        'audio.gguf',
    ]
    assert model.warnings == ()
    assert model.verify_hashes() == []


def test_answers_open_as_the_model_was_made_unless_somebody_chose(directory):
    published = ModelDirectory.open(directory)
    edit_manifest(directory, lambda record: record.update(speech=False))
    plain = ModelDirectory.open(directory)
    edit_manifest(directory, lambda record: record.pop('speech'))
    assert ModelDirectory.open(directory).speech()  # manifests of before
    for choice, expected in (
        ('auto', (True, False)),
        ('true', (True, True)),
        (True, (True, True)),
        ('false', (False, False)),
        (False, (False, False)),
    ):
        assert (published.speech(choice), plain.speech(choice)) == expected
    with pytest.raises(InputError, match="'yes'; allowed are auto, true, false"):
        published.speech('yes')


def test_the_models_that_ship_have_no_voice():
    for name in ('nano', 'nano_q4'):
        assert not ModelDirectory.open(ROOT / 'models' / name).speech()


@pytest.mark.parametrize('wrong', ['yes', 1, None, 'false'])
def test_a_manifest_whose_speech_is_no_truth_value_is_refused(directory, wrong):
    edit_manifest(directory, lambda record: record.update(speech=wrong))
    assert 'must be true or false' in str(refusal(directory))


def test_space_does_not_depend_on_precision(tiny_model_dir, tmp_path):
    synthetic.write_model(tmp_path / 'q', 'tiny', 1, 'q4_0', 'q8_0', 'q4_0', hashes=False)
    model = ModelDirectory.open(tmp_path / 'q')
    assert model.space == ModelDirectory.open(tiny_model_dir).space
    assert model.verify_hashes() == ['llm', 'vision', 'audio']


@pytest.mark.parametrize('name', FILES)
def test_missing_file_is_named(directory, name):
    (directory / name).unlink()
    assert refusal(directory).path.endswith(name)


def test_no_directory_at_all(tmp_path):
    assert 'manifest.yaml' in str(refusal(tmp_path / 'nothing'))


@pytest.mark.parametrize('name', FILES[:3])
def test_cut_file_is_refused(directory, name):
    replace_file(directory, name, (directory / name).read_bytes()[:-40_000])
    error = refusal(directory)
    assert error.path.endswith(name)
    assert 'cut short' in error.problem


@pytest.mark.parametrize('part', ['llm', 'vision', 'audio'])
def test_swapped_files_are_recognised(directory, part):
    other = {'llm': 'vision', 'vision': 'audio', 'audio': 'llm'}[part]
    edit_manifest(directory, lambda record: record['files'][part].update(path=f'{other}.gguf'))
    error = refusal(directory)
    assert error.path.endswith(f'{other}.gguf')
    assert 'swapped' in error.remedy


@pytest.mark.parametrize('part', ['vision', 'audio'])
def test_encoders_of_another_width_are_refused(directory, part):
    path = directory / f'{part}.gguf'
    path.unlink()
    getattr(synthetic, f'write_{part}')(path, replace(TINY, width=384, name='other'))
    error = refusal(directory)
    assert error.path.endswith(f'{part}.gguf')
    assert '384' in error.problem and '256' in error.problem


def test_unknown_architecture_is_refused(directory):
    edit_bytes(
        directory,
        'llm.gguf',
        b'\x05\x00\x00\x00\x00\x00\x00\x00qwen2',
        b'\x05\x00\x00\x00\x00\x00\x00\x00mamba',
    )
    assert "'mamba'" in refusal(directory).problem


def test_plain_qwen_lacks_the_special_tokens(directory):
    edit_bytes(directory, 'llm.gguf', b'<unit>', b'<what>')
    error = refusal(directory)
    assert error.problem.endswith('lacks <unit>')


def test_special_tokens_stored_as_text_are_refused(directory, monkeypatch):
    def tokens(*given):
        table = make_tokens(*given)
        table.types[table.id_of('<image>')] = NORMAL
        return table

    make_tokens = synthetic.make_tokens
    monkeypatch.setattr(synthetic, 'make_tokens', tokens)
    (directory / 'llm.gguf').unlink()
    synthetic.write_llm(directory / 'llm.gguf', TINY)
    assert refusal(directory).problem.endswith('special: <image>')


@pytest.mark.parametrize(
    'name,key',
    [
        ('llm.gguf', b'qwen2.block_count'),
        ('vision.gguf', b'clip.vision.block_count'),
        ('audio.gguf', b'encoder_layers'),
    ],
)
def test_more_layers_than_tensors_are_refused(directory, name, key):
    two, three = (key + b'\x04\0\0\0' + bytes([n, 0, 0, 0]) for n in (2, 3))
    edit_bytes(directory, name, two, three)
    error = refusal(directory)
    assert error.path.endswith(name)
    assert 'missing' in error.problem or 'it has no tensor' in error.problem


def test_vision_file_of_another_model_is_refused(directory):
    edit_bytes(
        directory, 'vision.gguf', b'\x09\0\0\0\0\0\0\0resampler', b'\x09\0\0\0\0\0\0\0ldpv2-mlp'
    )
    assert 'another model' in refusal(directory).problem


def test_vision_tensor_of_the_wrong_shape_is_refused(directory):
    edit_bytes(
        directory,
        'vision.gguf',
        b'clip.vision.patch_size\x04\0\0\0\x0e',
        b'clip.vision.patch_size\x04\0\0\0\x10',
    )
    assert 'v.patch_embd.weight' in refusal(directory).problem


@pytest.mark.parametrize(
    'name,tensor',
    [
        ('llm.gguf', 'blk.1.attn_q.weight'),
        ('vision.gguf', 'resampler.attn.q.bias'),
        ('vision.gguf', 'v.blk.1.attn_q.bias'),
        ('audio.gguf', 'encoder.conv1.bias'),
    ],
)
def test_types_that_would_end_the_process_are_refused(directory, name, tensor):
    content = (directory / name).read_bytes()
    at = content.index(b'%s' % tensor.encode()) + len(tensor)
    at += 4 + 8 * content[at]  # the type follows the number of dimensions and the sides
    assert content[at] in (0, 1)
    integers = bytes([26 if content[at] == 0 else 25])  # of the same size
    replace_file(directory, name, content[:at] + integers + content[at + 1 :])
    error = refusal(directory)
    assert tensor in error.problem and 'type I' in error.problem


@pytest.mark.parametrize('key', [b'block_count', b'image_size', b'attention.head_count'])
@pytest.mark.parametrize('value', [b'\0\0\0\0', b'\xff\xff\xff\x7f'])
def test_hostile_sizes_end_in_an_error_at_once(directory, key, value):
    key = b'clip.vision.' + key + b'\x04\0\0\0'
    content = (directory / 'vision.gguf').read_bytes()
    at = content.index(key) + len(key)
    replace_file(directory, 'vision.gguf', content[:at] + value + content[at + 4 :])
    assert refusal(directory).path.endswith('vision.gguf')


def test_wrong_image_mean_is_a_warning(directory, monkeypatch):
    add_array = gguf.GGUFWriter.add_array

    def clip_mean(writer, key, values):
        add_array(writer, key, [0.4815, 0.4578, 0.4082] if key.endswith('mean') else values)

    monkeypatch.setattr(gguf.GGUFWriter, 'add_array', clip_mean)
    (directory / 'vision.gguf').unlink()
    synthetic.write_vision(directory / 'vision.gguf', TINY)
    (warning,) = ModelDirectory.open(directory).warnings
    assert 'image_mean is 0.4815, 0.4578, 0.4082' in warning


@pytest.mark.parametrize(
    'content,problem',
    [
        (b'family: [', 'cannot be read'),
        (b'\xff\xfd', 'cannot be read'),
        (b'notes: 2026-13-45', 'cannot be read'),
        (b'[' * 5000, 'cannot be read'),
        (b'family: ' + b'[' * 1000 + b']' * 1000, 'nested too deep'),
        (b'family: x\nnotes: !!timestamp soon', 'a value is not what'),
        (b'notes: 2026-02-30 25:61:00', 'cannot be read'),
        (
            b'family: f\nmodel_id: m\nfiles: {a: b}\nnotes: 9999-12-31 23:59:59 -23:59',
            "'notes' must",
        ),
        (b"notes: !!int ''", 'a value is not what'),
        (b'model_id: a\nmodel_id: b', "'model_id' occurs twice"),
        (b'notes: !!bool perhaps', 'a value is not what'),
        (b'? [a, {b: c}]\n: d', 'cannot be read'),
        (b'just text', 'must be a mapping'),
        (b'', 'must be a mapping'),
    ],
)
def test_malformed_manifest_is_refused(directory, content, problem):
    replace_file(directory, 'manifest.yaml', content)
    assert problem in refusal(directory).problem


BOMB = ['x'] * 9  # lists of lists that have no room as a text; YAML writes them as aliases
for _ in range(8):
    BOMB = [BOMB] * 9


@pytest.mark.parametrize(
    'edit,problem',
    [
        (lambda record: record.update(colour='red'), 'unknown keys: colour'),
        (lambda record: record['files']['llm'].update(size='1'), 'unknown keys: size'),
        (lambda record: record.pop('model_id'), "lacks 'model_id'"),
        (lambda record: record['files']['vision'].pop('path'), "lacks 'path'"),
        (lambda record: record['files'].pop('audio'), 'exactly llm, vision and audio'),
        (lambda record: record.update(files=3), 'exactly llm, vision and audio'),
        (lambda record: record['files'].update(llm='llm.gguf'), 'must be a mapping'),
        (lambda record: record.update(model_id=26), 'must be text'),
        (lambda record: record.update(model_id='a\nb'), "model_id is 'a\\nb'"),
        (lambda record: record.update(model_id='x' * 5000), "model_id is 'xxx"),
        (lambda record: record['files']['llm'].update(sha256='abc'), "sha256 of llm is 'abc'"),
        (lambda record: record['files']['audio'].update(sha256='sha256:' + '0' * 64), 'sha256 of'),
        (lambda record: record.update(speech=BOMB), 'must be true or false'),
        (lambda record: record.update(notes=datetime.date(2026, 1, 1)), 'must be text'),
        (lambda record: record.update(licence=10**400), 'must be text'),
        (lambda record: record['files'].update(llm=['llm.gguf']), 'must be a mapping'),
        (lambda record: record['files']['llm'].update(path=['llm.gguf']), 'must be text'),
        (lambda record: record.update({26: 'x', None: 'y'}), 'unknown keys: 26, None'),
        (
            lambda record: record.update(files={'llm': 'x', 3: 'y'}),
            'exactly llm, vision and audio',
        ),
        (lambda record: record.update(family='minicpm-o-9'), "'minicpm-o-9' is unknown"),
        (lambda record: record.update(family='minicpm-o-4.5'), "'qwen2' is not that"),
    ],
)
def test_wrong_manifest_is_refused(directory, edit, problem):
    edit_manifest(directory, edit)
    assert problem in refusal(directory).problem


def test_a_value_that_multiplies_itself_is_told_in_a_few_words(directory):
    lines = ['a0: &a0 [x, x]'] + [
        f'a{i}: &a{i} [{", ".join([f"*a{i - 1}"] * 9)}]' for i in range(1, 12)
    ]
    bomb = '\n'.join(['x:', *(f'  {line}' for line in lines), 'notes: *a11']).encode()
    replace_file(directory, 'manifest.yaml', bomb)
    assert len(str(refusal(directory))) < 1000
    replace_file(directory, 'manifest.yaml', b'family: x\nmodel_id: &m ' + bomb.split(b'x:')[0])
    refusal(directory)


def test_a_manifest_that_is_a_pipe_is_refused_at_once(directory):
    (directory / 'manifest.yaml').unlink()
    os.mkfifo(directory / 'manifest.yaml')
    assert 'it is not a file' in str(refusal(directory))


def test_hashes_are_compared_on_request_only(directory):
    content = bytearray((directory / 'audio.gguf').read_bytes())
    content[-1] ^= 1
    replace_file(directory, 'audio.gguf', content)
    model = ModelDirectory.open(directory)
    with pytest.raises(ModelFileError, match='audio.gguf: its SHA-256'):
        model.verify_hashes()


def test_manifest_survives_writing(tiny_model_dir):
    manifest = read_manifest(tiny_model_dir)
    assert len(manifest.files['llm'].sha256) == 64
    assert manifest.licence == 'Apache-2.0'
