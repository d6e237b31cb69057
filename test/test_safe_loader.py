# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A thousand mutated headers, and files that are none, are refused in words; nothing else happens.

The mutations run in child processes with limits on address space and CPU time
(mutated_headers.py). Recorded hashes are not looked at.
"""

import json
import os
import shutil
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import hostile_keys
import mutated_headers
import pytest

from minicpmo_ros.encoders.whisper.encoder import AudioEncoder
from minicpmo_ros.errors import ModelFileError
from minicpmo_ros.families import FAMILIES
from minicpmo_ros.ggml.gguf_file import read_header
from minicpmo_ros.ggml.runtime import Backend
from minicpmo_ros.llm.model import LanguageModel
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.modelset.gguf_layouts import tiny_of
from minicpmo_ros.modelset.manifest import read_manifest
from minicpmo_ros.synthetic.model import write_model

MUTATIONS = {'minicpm-o-2.6': range(0, 800), 'minicpm-o-4.5': range(800, 1100)}
SMALLEST = {
    'name': 'smallest',
    'width': 128,
    'llm_layers': 1,
    'llm_heads': 2,
    'llm_kv_heads': 1,
    'llm_head': 64,
    'llm_ffn': 64,
    'vocabulary': 520,
    'vision_width': 32,
    'vision_layers': 1,
    'vision_ffn': 70,
    'audio_width': 32,
    'audio_layers': 1,
    'queries': 4,
    'image_size': 56,
    'position_grid': 8,
    'audio_positions': 100,
}
SHAPES = {family: replace(tiny_of(family), **SMALLEST) for family in FAMILIES}
TIMEOUT_S = 300  # of one family; a machine beside itself takes a minute
ROLES = ('llm', 'vision', 'audio')
FILES = tuple(f'{role}.gguf' for role in ROLES)


def told_by(program, *arguments):
    """Run a program of this folder under a time limit; return what it told line by line."""
    child = subprocess.run(
        [sys.executable, program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, sys.path))},
    )
    lines = [json.loads(line) for line in child.stdout.splitlines()]
    assert child.returncode == 0, f'{lines[-1:]} ended the process: {child.stderr[-2000:]}'
    return [line for line in lines if 'begun' not in line]


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """Give the smallest model of each family, by family."""
    folder = tmp_path_factory.mktemp('smallest')
    return {
        family: write_model(folder / family, shape, hashes=False)
        for family, shape in SHAPES.items()
    }


@pytest.fixture(scope='module')
def outcomes(models, tmp_path_factory):
    """Give what became of every mutation, as the children told it."""
    told = []
    for family, seeds in MUTATIONS.items():
        work = tmp_path_factory.mktemp('work')
        program = mutated_headers.__file__
        told += told_by(program, models[family], work, seeds.start, seeds.stop)
    return told


def test_a_thousand_mutated_headers_end_no_process(outcomes):
    assert [told['seed'] for told in outcomes] == [
        seed for seeds in MUTATIONS.values() for seed in seeds
    ]
    assert len(outcomes) >= 1000
    assert sum(told['kept'] and not told['unchanged'] for told in outcomes) >= 700


def test_every_mutation_is_loaded_or_refused_with_a_reason_that_names_the_file(outcomes):
    for told in outcomes:
        assert not told['unexpected'], told
        if told['refusal']:
            assert Path(told['path']).name == f'{told["role"]}.gguf', told
            assert told['refusal'].startswith(told['path'] + ': ')


def test_a_twentieth_of_the_changed_files_still_loads(outcomes):
    loaded = [told for told in outcomes if not told['refusal'] and not told['unchanged']]
    assert len(loaded) >= len(outcomes) / 20
    assert {told['role'] for told in loaded} == set(ROLES)


def test_nearly_all_refusals_come_before_the_library(outcomes):
    refused = [told for told in outcomes if told['refusal']]
    by_library = [told for told in refused if 'llama.cpp refused' in told['refusal']]
    assert len(by_library) <= len(refused) / 100


def test_no_mutation_takes_memory_beyond_what_the_sound_files_take(outcomes):
    """The limit on address space was never met: the highest use stayed well below it."""
    first = outcomes[0]['peak_kib']
    spare_kib = mutated_headers.SPARE_BYTES >> 10
    assert max(told['peak_kib'] for told in outcomes) < first + spare_kib // 2


@pytest.mark.parametrize('family', SHAPES)
@pytest.mark.parametrize('role', ROLES)
def test_a_key_of_another_type_is_read_as_meant_or_refused_in_words(
    models, tmp_path, family, role
):
    directory = Path(shutil.copytree(models[family], tmp_path / 'm'))
    path, manifest = directory / f'{role}.gguf', read_manifest(directory)
    fields, refused = mutated_headers.Fields(path), set()
    for key in fields.header.spans:
        for value in mutated_headers.OTHERS:
            path.write_bytes(fields.retyped(key, value))
            try:
                ModelDirectory.of(directory, manifest)
            except ModelFileError as error:
                assert error.path == str(path) and error.problem and error.remedy
                refused.add(key)
    read = {
        'llm': {'general.architecture', 'tokenizer.ggml.tokens'},
        'vision': {'clip.minicpmv_query_num', 'clip.projector_type', 'clip.use_gelu',
                   'clip.minicpmv_version', 'clip.has_vision_encoder'},
        'audio': {'n_mel', 'audio_pool_step'},
    }  # fmt: skip
    assert refused >= read[role] & set(fields.header.spans)


@pytest.mark.parametrize('family', SHAPES)
def test_no_value_of_a_key_that_llama_cpp_knows_ends_the_process(models, tmp_path, family):
    """What is opened is loaded: one verdict. What llama.cpp reads is refused or means nothing."""
    outcomes = told_by(hostile_keys.__file__, models[family], tmp_path)
    loaded = {told['name']: told for told in outcomes if not told['refused at']}
    late = {told['name'] for told in outcomes if told['refused at'] == 'loading'}
    assert not late
    prefix = {'minicpm-o-2.6': 'qwen2', 'minicpm-o-4.5': 'qwen3'}[family]
    for key in ('nextn_predict_layers', 'expert_count', 'pooling_type'):
        assert f'{prefix}.{key}: zero' in loaded and f'{prefix}.{key}: one' not in loaded
    assert f'without {prefix}.rope.freq_base' not in loaded
    assert 'without tokenizer.ggml.bos_token_id' in loaded
    scaling = {name for name in loaded if name.startswith(f'{prefix}.rope.scaling.type: ')}
    assert scaling == {f'{prefix}.rope.scaling.type: yarn'}
    assert {name for name in loaded if name.startswith('alignment')} <= {
        'alignment 64',
        'alignment 4096',
    }
    unread = [told for name, told in loaded.items() if name.startswith('unread: ')]
    assert len(unread) == len(hostile_keys.VALUES)
    for told in unread:
        (warning,) = told['warnings']
        assert f'{prefix}.attention.sliding_window' in warning


@pytest.mark.parametrize('count', [0, 1, 2, 4, 5])
@pytest.mark.parametrize('key', ['image_mean', 'image_std'])
def test_colours_of_another_number_are_refused_when_the_file_is_opened(directory, key, count):
    path = directory / 'vision.gguf'
    values = struct.pack(f'<IIQ{count}f', 9, 6, count, *[0.5] * count)
    path.write_bytes(mutated_headers.Fields(path).retyped(f'clip.vision.{key}', values))
    assert key in refusal(directory).problem


@pytest.mark.parametrize('value', [0.0, -0.5, 1e-30, 1e30, float('nan'), float('inf')])
def test_colours_that_would_leave_the_range_of_numbers_are_refused(directory, value):
    path = directory / 'vision.gguf'
    values = struct.pack('<IIQ3f', 9, 6, 3, 0.5, value, 0.5)
    path.write_bytes(mutated_headers.Fields(path).retyped('clip.vision.image_std', values))
    assert 'image_std' in refusal(directory).problem


@pytest.fixture
def directory(models, tmp_path):
    """Give a copy of the smallest 2.6, to be damaged."""
    return Path(shutil.copytree(models['minicpm-o-2.6'], tmp_path / 'm'))


def refusal(directory):
    with pytest.raises(ModelFileError) as caught:
        ModelDirectory.open(directory)
    assert caught.value.problem and caught.value.remedy
    return caught.value


def array_bomb():
    """43 bytes that claim an array of 2^60 arrays: gguf up to 0.19 goes on reading for ever."""
    key = struct.pack('<Q', 1) + b'a'
    bomb = b'GGUF' + struct.pack('<IQQ', 3, 0, 1) + key + struct.pack('<IIQ', 9, 9, 1 << 60)
    return bomb[:43]


DAMAGES = {
    'missing': lambda path: path.unlink(),
    'a directory': lambda path: (path.unlink(), path.mkdir()),
    'empty': lambda path: path.write_bytes(b''),
    'wrong magic': lambda path: path.write_bytes(b'GGML' + path.read_bytes()[4:]),
    'version 1': lambda path: path.write_bytes(b'GGUF\1' + path.read_bytes()[5:]),
    'a loop of links': lambda path: (path.unlink(), path.symlink_to(path)),
    'an array bomb': lambda path: path.write_bytes(array_bomb()),
    'a pipe': lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.mark.parametrize('name', FILES)
@pytest.mark.parametrize('damage', DAMAGES)
def test_what_is_no_model_file_is_refused_by_name(directory, name, damage):
    DAMAGES[damage](directory / name)
    assert refusal(directory).path == str(directory / name)


@pytest.mark.parametrize('name', FILES)
def test_a_file_cut_in_any_section_is_refused_by_name(directory, name):
    path = directory / name
    content, header = path.read_bytes(), read_header(path)
    spans, last = list(header.spans.values()), list(header.tensors.values())[-1]
    metadata_end = max(end for _, end in spans)
    sections = {
        'counts': 20,
        'first key': spans[0][0] + 10,
        'last value': metadata_end - 1,
        'tensor names': metadata_end + 12,
        'last tensor': header.data_offset - header.alignment,
        'data': header.data_offset + 1,
        'last byte': last.offset + last.n_bytes - 1,
    }
    for length in sections.values():
        path.write_bytes(content[:length])
        assert refusal(directory).path == str(path)


def test_a_file_without_permission_is_refused_by_name(directory, models):
    """Root may read everything: it gives up that right in a child."""
    path = directory / 'audio.gguf'
    path.chmod(0)
    code = (
        'import os, sys\n'
        'from minicpmo_ros.errors import ModelFileError\n'
        'from minicpmo_ros.ggml.gguf_file import read_header\n'
        'descriptor = os.open(sys.argv[1], os.O_RDONLY)\n'
        'os.fchdir(descriptor)\n'
        'os.geteuid() or os.seteuid(65534)\n'
        'try:\n    read_header("audio.gguf")\n'
        'except ModelFileError as error:\n    print(error)\n'
    )
    directory.chmod(0o755)
    child = subprocess.run(
        [sys.executable, '-c', code, str(directory)],
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, sys.path))},
    )
    assert 'audio.gguf: it cannot be opened (Permission denied)' in child.stdout, child.stderr


def test_a_file_that_vanishes_while_it_is_mapped_goes_on_serving(directory):
    model = LanguageModel.load(directory / 'llm.gguf')
    expected = model.token_rows.rows([1, 2, 3])
    (directory / 'llm.gguf').unlink()
    assert (model.token_rows.rows([1, 2, 3]) == expected).all()
    model.close()
    with pytest.raises(ModelFileError, match='cannot be opened'):
        LanguageModel.load(directory / 'llm.gguf')


@pytest.mark.parametrize('change', ['vanishes', 'shrinks'])
def test_a_file_that_changes_between_header_and_weights_is_refused(directory, change):
    path, backend = directory / 'audio.gguf', Backend('cpu')
    header = read_header(path)
    if change == 'vanishes':
        path.unlink()
    else:
        os.truncate(path, header.data_offset + 10)
    with pytest.raises(ModelFileError, match='Leave model files in place'):
        AudioEncoder.load(header, backend)
    backend.close()


def replace_text(path, old, new):
    content = path.read_bytes()
    assert len(old) == len(new) and old in content
    path.write_bytes(content.replace(old, new, 1))


def number(key, value, code='I'):
    kind = {'I': 4, 'f': 6}[code]
    return key.encode() + struct.pack('<I' + code, kind, value)


@pytest.mark.parametrize(
    'key, old, new, reason',
    [
        ('qwen2.attention.head_count', 2, 0, 'head_count is 0'),
        ('qwen2.attention.head_count', 2, 3, 'do not fill the width'),
        ('qwen2.attention.head_count_kv', 1, 0, 'head_count_kv is 0'),
        ('qwen2.attention.head_count_kv', 1, 2, 'is expected'),
        ('qwen2.block_count', 1, 513, 'block_count is 513'),
        ('qwen2.feed_forward_length', 64, 65, 'is expected'),
        ('qwen2.context_length', 32768, (1 << 32) - 1, 'context_length is 4294967295'),
        ('tokenizer.ggml.eos_token_id', None, 520, 'eos_token_id is 520, 0 to 519'),
    ],
)
def test_numbers_llama_cpp_would_stumble_over_are_refused(directory, key, old, new, reason):
    path = directory / 'llm.gguf'
    if old is None:
        old = read_header(path).metadata[key]
    replace_text(path, number(key, old), number(key, new))
    assert reason in refusal(directory).problem


@pytest.mark.parametrize('epsilon', [-1e-6, 0.0, float('nan'), float('inf')])
def test_an_epsilon_that_would_end_the_process_is_refused(directory, epsilon):
    key, path = 'qwen2.attention.layer_norm_rms_epsilon', directory / 'llm.gguf'
    replace_text(path, number(key, 1e-6, 'f'), number(key, epsilon, 'f'))
    assert 'layer_norm_rms_epsilon is' in refusal(directory).problem


@pytest.mark.parametrize('epsilon', [-1e-6, 0.0, float('nan'), float('inf'), 1.0])
def test_an_epsilon_of_the_vision_file_that_leaves_nothing_of_a_picture_is_refused(
    directory, epsilon
):
    key, path = 'clip.vision.attention.layer_norm_epsilon', directory / 'vision.gguf'
    replace_text(path, number(key, 1e-6, 'f'), number(key, epsilon, 'f'))
    assert 'epsilon' in refusal(directory).problem


@pytest.mark.parametrize(
    'old, new, reason',
    [
        (b'\xc4\xa0see', b'\xc4\xa0you', 'occurs twice'),  # llama.cpp would abort()
        (b'\xc4\xa0blue', b'\xc4\xa0bl\0e', 'zero byte'),
        (b'gpt2', b'llam', "tokeniser is 'llam'"),
    ],
)
def test_a_vocabulary_that_would_end_the_process_is_refused(directory, old, new, reason):
    replace_text(directory / 'llm.gguf', old, new)
    assert reason in refusal(directory).problem


@pytest.mark.parametrize('value, reason', [(6, 'byte-level BPE'), (-1, 'byte-level BPE')])
def test_bytes_of_another_tokeniser_are_refused(directory, value, reason):
    """The text <0x-1> as a byte made llama.cpp write outside its memory."""
    path = directory / 'llm.gguf'
    at = path.read_bytes().index(b'tokenizer.ggml.token_type') + 25 + 4 + 4 + 8
    content = bytearray(path.read_bytes())
    content[at : at + 4] = struct.pack('<i', value)
    path.write_bytes(content)
    assert reason in refusal(directory).problem


def test_types_of_tokens_in_another_width_are_refused(directory):
    """llama.cpp would read four bytes of each, beyond the end."""
    path = directory / 'llm.gguf'
    key = b'tokenizer.ggml.token_type' + struct.pack('<I', 9)
    replace_text(path, key + struct.pack('<I', 5), key + struct.pack('<I', 6))
    assert 'token_type is stored as a list of float32' in refusal(directory).problem
