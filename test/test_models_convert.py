# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A converted checkpoint answers as PyTorch does; one that is not whole is refused by name."""

import json
import subprocess
import sys
from pathlib import Path

import hf_checkpoint as made
import numpy as np
import pytest
from hf_checkpoint import FOUR_FIVE, TWO_SIX, write_checkpoint
from whisper_files import random_mel, step_mel

from minicpmo_ros.encoders.siglip import VisionEncoder
from minicpmo_ros.encoders.whisper import AudioEncoder
from minicpmo_ros.errors import InputError, ModelFileError
from minicpmo_ros.ggml.header import StringArray, read_header
from minicpmo_ros.ggml.runtime import Backend
from minicpmo_ros.ggml.types import GgmlType as Type
from minicpmo_ros.ggml.weights import read_floats
from minicpmo_ros.language.context import Context, ContextOptions
from minicpmo_ros.language.model import LanguageModel, ModelOptions
from minicpmo_ros.models import layouts, synthetic
from minicpmo_ros.models.convert import convert_directory
from minicpmo_ros.models.directory import ModelDirectory
from minicpmo_ros.models.shapes import MINICPM_O_2_6, MINICPM_O_4_5, TINY
from minicpmo_ros.models.tokens import make_tokens

GOLDEN = np.load(Path(__file__).parent / 'golden' / 'checkpoint.npz')
FAMILIES = (TWO_SIX, FOUR_FIVE)
FILES = ('llm.gguf', 'vision.gguf', 'audio.gguf')


@pytest.fixture(scope='module')
def tensors():
    return {family: made.random_tensors(family) for family in FAMILIES}


@pytest.fixture(scope='module')
def converted(tmp_path_factory, tensors):
    """Give a function that gives the model of a checkpoint, converted once."""
    found = {}

    def convert(family, precision='f16'):
        if (family, precision) not in found:
            base = tmp_path_factory.mktemp('convert')
            source = write_checkpoint(base / 'hf', family, tensors=tensors[family])
            found[family, precision] = convert_directory(source, base / 'out', precision)
        return found[family, precision].model

    return convert


@pytest.fixture(scope='module')
def backend():
    backend = Backend('cpu')
    yield backend
    backend.close()


@pytest.fixture
def source(tmp_path, tensors):
    return write_checkpoint(tmp_path / 'hf', TWO_SIX, tensors=tensors[TWO_SIX])


def golden(family, name):
    return GOLDEN[f'{family}/{name}']


def distance(found, wanted):
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def greedy(model, ids, n):
    """Continue a prompt with the most likely tokens."""
    context = Context(model, ContextOptions(n_ctx=256, threads=1))
    answer, rows = [], model.token_rows.rows(ids)
    for _ in range(n):
        answer.append(int(context.decode(rows, 0, want_logits=True).argmax()))
        rows = model.token_rows.rows(answer[-1:])
    context.close()
    return answer


# --- what comes out -------------------------------------------------------------------------


@pytest.mark.parametrize('family', FAMILIES)
def test_the_checkpoint_is_the_one_pytorch_answered(tensors, family):
    total = sum(float(np.abs(array).sum(dtype=np.float64)) for array in tensors[family].values())
    assert total == pytest.approx(float(golden(family, 'checksum')), rel=1e-6)


@pytest.mark.parametrize('precision', ['f16', 'f32', 'bf16'])
@pytest.mark.parametrize('family', FAMILIES)
def test_greedy_text_equals_pytorch(converted, family, precision):
    model = LanguageModel.load(converted(family, precision).llm_path, ModelOptions(repack=False))
    ids = model.vocabulary.encode_template(made.PROMPT)
    assert ids == list(golden(family, 'prompt_ids'))
    wanted = list(golden(family, 'answer_ids'))
    found = greedy(model, ids, len(wanted))
    assert len(wanted) >= 16 and len(set(wanted)) > 8
    assert found == wanted
    text = b''.join(map(model.vocabulary.piece, found)).decode('utf-8', 'replace')
    assert text == str(golden(family, 'answer'))
    model.close()


@pytest.mark.parametrize('precision', ['f16', 'f32'])
@pytest.mark.parametrize('family', FAMILIES)
def test_encoders_equal_pytorch(converted, backend, family, precision):
    model = converted(family, precision)
    picture = VisionEncoder.load(model.vision_path, backend, max_patches=128).encode(
        [made.picture()]
    )
    assert picture.shape == (made.QUERIES, made.WIDTH)
    assert distance(picture, golden(family, 'vision')) < 1e-3
    encoder = AudioEncoder.load(model.audio_path, backend, kv_type='f32')
    stream, mel = encoder.stream(), random_mel(2)
    sound = np.concatenate([stream.step(step_mel(mel, second)) for second in range(2)])
    assert sound.shape == golden(family, 'audio').shape
    assert distance(sound, golden(family, 'audio')) < 1e-3


@pytest.mark.parametrize('family', FAMILIES)
def test_metadata_and_names_are_those_of_the_published_layouts(converted, tmp_path, family):
    """A synthetic model of the same family has them too, and its types."""
    model = converted(family)
    synthetic.write_model(tmp_path, {TWO_SIX: TINY, FOUR_FIVE: 'tiny-4.5'}[family])
    for role, header in model.headers.items():
        other = read_header(tmp_path / f'{role}.gguf')
        assert list(header.metadata) == list(other.metadata)
        assert {key: type(value) for key, value in header.metadata.items()} == {
            key: type(value) for key, value in other.metadata.items()
        }
        kinds = {name: info.type for name, info in other.tensors.items()}
        assert {name: info.type for name, info in header.tensors.items()} == {
            name: kinds[name] for name in header.tensors
        }
    assert model.headers['vision'].metadata['clip.vision.block_count'] == (
        made.KINDS[family].vision_layers
    )


def test_what_is_not_copied_as_it_is(converted, tensors):
    """The cut of three, the transposed matrix, swapped names, computed positions."""
    was, vision = tensors[TWO_SIX], converted(TWO_SIX, 'f32').headers['vision']
    for i, name in enumerate('qkv'):
        for kind in ('weight', 'bias'):
            wanted = was[f'resampler.attn.in_proj_{kind}'][256 * i : 256 * (i + 1)]
            found = read_floats(vision, f'resampler.attn.{name}.{kind}')
            np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(
        read_floats(vision, 'resampler.proj.weight'), was['resampler.proj'].T
    )
    np.testing.assert_array_equal(
        read_floats(vision, 'v.blk.1.ffn_down.weight'), was['vpm.encoder.layers.1.mlp.fc1.weight']
    )
    table = read_floats(vision, 'resampler.pos_embed_k')
    y, x, k = 3, 50, 7
    omega = 10000 ** (-k / 64)
    wanted = [np.sin(x * omega), np.cos(x * omega), np.sin(y * omega), np.cos(y * omega)]
    np.testing.assert_allclose(table[70 * y + x, k::64], wanted, atol=1e-6)
    audio = converted(TWO_SIX, 'f32').headers['audio']
    assert audio.tensors['encoder.conv1.bias'].shape == (made.AUDIO_WIDTH, 1)
    assert len(audio.metadata['filters']) == 80 * 201 and audio.metadata['n_fft'] == 201


@pytest.mark.parametrize('dtype', ['bf16', 'f16', 'f32'])
def test_every_dtype_and_any_number_of_files_gives_the_same_bytes(
    converted, tensors, tmp_path, dtype
):
    for family, shards in ((TWO_SIX, 3), (FOUR_FIVE, 1)):
        weights = tensors[family]
        if dtype == 'f16':  # it loses what is smallest
            weights = {name: array.astype('f2').astype('f4') for name, array in weights.items()}
            wanted = write_checkpoint(tmp_path / family / 'f32', family, 'f32', tensors=weights)
            wanted = convert_directory(
                wanted, tmp_path / family / 'wanted', 'f16', 'hf'
            ).model.path
        else:
            wanted = converted(family).path
        base = tmp_path / family
        source = write_checkpoint(base / 'hf', family, dtype, shards, tensors=weights)
        model = convert_directory(source, base / 'out').model
        for name in FILES:
            assert (model.path / name).read_bytes() == (wanted / name).read_bytes(), name


def test_tokeniser_files_of_both_forms_give_the_same_vocabulary(converted, tmp_path, tensors):
    for family in FAMILIES:
        source = write_checkpoint(
            tmp_path / family / 'hf', family, fast_tokenizer=True, tensors=tensors[family]
        )
        fast = convert_directory(source, tmp_path / family / 'out').model
        assert fast.llm_path.read_bytes() == converted(family).llm_path.read_bytes()
        header = fast.headers['llm']
        table = make_tokens(made.VOCABULARY, family)
        for key in ('tokens', 'merges'):
            found = header.require(f'tokenizer.ggml.{key}', StringArray)
            assert [found[i] for i in range(len(found))] == getattr(
                table, {'tokens': 'texts', 'merges': 'merges'}[key]
            )
        assert list(header.metadata['tokenizer.ggml.token_type']) == table.types


def test_rows_without_a_token_become_unused_places(tmp_path, tensors):
    weights = dict(tensors[TWO_SIX])
    for name in ('llm.model.embed_tokens.weight', 'llm.lm_head.weight'):
        weights[name] = np.pad(weights[name], ((0, 8), (0, 0)))
    source = write_checkpoint(tmp_path / 'hf', TWO_SIX, tensors=weights, vocab_size=648)
    header = convert_directory(source, tmp_path / 'out').model.headers['llm']
    assert header.metadata['tokenizer.ggml.tokens'][647] == '[PAD647]'
    assert header.metadata['tokenizer.ggml.token_type'][647] == 5
    LanguageModel.load(tmp_path / 'out' / 'llm.gguf').close()


def test_a_tied_model_has_no_output_matrix(tmp_path, tensors):
    weights = {k: v for k, v in tensors[TWO_SIX].items() if k != 'llm.lm_head.weight'}
    source = write_checkpoint(tmp_path / 'hf', TWO_SIX, tensors=weights, tie_word_embeddings=True)
    model = convert_directory(source, tmp_path / 'out').model
    assert 'output.weight' not in model.headers['llm'].tensors
    LanguageModel.load(model.llm_path).close()


def test_a_dropped_vision_layer_may_still_be_stored(converted, tmp_path, tensors):
    stored = {
        name.replace('layers.0.', 'layers.1.'): array
        for name, array in tensors[FOUR_FIVE].items()
        if name.startswith('vpm.encoder.layers.0.')
    }
    source = write_checkpoint(tmp_path / 'hf', FOUR_FIVE, tensors={**tensors[FOUR_FIVE], **stored})
    conversion = convert_directory(source, tmp_path / 'out')
    assert set(conversion.unused) == {
        *stored, *(name for name in tensors[FOUR_FIVE] if name.startswith('tts.'))
    }  # fmt: skip
    wanted = converted(FOUR_FIVE).vision_path
    assert conversion.model.vision_path.read_bytes() == wanted.read_bytes()


def test_the_manifest_says_what_it_is(converted, source, tmp_path):
    model = convert_directory(source, tmp_path / 'out', 'bf16', 'MiniCPM-o-2_6').model
    assert model.space == 'minicpm-o-2.6/256/MiniCPM-o-2_6'
    assert set(model.precision.values()) == {'bf16'} and not model.warnings
    assert model.verify_hashes() == []
    assert model.headers['llm'].tensors['output.weight'].type == Type.BF16
    assert converted(TWO_SIX).model_id == 'hf'  # the directory's name


def test_every_published_tensor_has_a_source_of_its_own():
    from minicpmo_ros.models.checkpoint_names import COMPUTED, source_of

    for shape, count in ((MINICPM_O_2_6, 339 + 455 + 371), (MINICPM_O_4_5, 399 + 455 + 371)):
        plans = [*layouts.llm_tensors(shape), *layouts.vision_tensors(shape)]
        plans += layouts.audio_tensors(shape)
        sources = [source_of(plan.name) for plan in plans if plan.name != COMPUTED]
        assert len(set(sources)) == len(sources) == count - 1


# --- memory ---------------------------------------------------------------------------------

CHILD = """
import resource, sys
from minicpmo_ros.process import prepare
prepare()
from minicpmo_ros.models.convert import convert_directory
import numpy as np
np.dot(np.ones((64, 64)), np.ones((64, 64)))  # whatever NumPy allocates at first use
status = dict(line.split(':', 1) for line in open('/proc/self/status'))
used = 1024 * int(status['VmData'].split()[0])
resource.setrlimit(resource.RLIMIT_DATA, (used + (64 << 20), resource.RLIM_INFINITY))
convert_directory(sys.argv[1], sys.argv[2])
"""


def test_memory_does_not_grow_with_a_tensor(tmp_path, tensors):
    """Three matrices of 128 MiB, in a process that may allocate 64 MiB more than it has."""
    ffn = (128 << 20) // (2 * made.WIDTH)
    weights = {name: a for name, a in tensors[TWO_SIX].items() if '.model.layers.1.' not in name}
    for name in ('gate', 'up', 'down'):
        shape = (made.WIDTH, ffn) if name == 'down' else (ffn, made.WIDTH)
        weights[f'llm.model.layers.0.mlp.{name}_proj.weight'] = shape
    source = write_checkpoint(
        tmp_path / 'hf', TWO_SIX, tensors=weights, num_hidden_layers=1, intermediate_size=ffn
    )
    command = [sys.executable, '-c', CHILD, str(source), str(tmp_path / 'out')]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    header = read_header(tmp_path / 'out' / 'llm.gguf')
    assert header.tensors['blk.0.ffn_down.weight'].n_bytes == 128 << 20
    header.path.unlink()


# --- refusals -------------------------------------------------------------------------------


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
    weights = {name: array for name, array in tensors[TWO_SIX].items() if name != missing}
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
    source = write_checkpoint(tmp_path / 'hf', TWO_SIX, tensors={**tensors[TWO_SIX], name: shape})
    words = refusal(source, tmp_path)
    assert f'the tensor {name} has the shape {shape}' in words and 'is expected' in words


def test_tensors_without_a_place_are_named(tmp_path, tensors):
    name = 'llm.model.layers.0.self_attn.q_proj.lora_A.weight'
    source = write_checkpoint(
        tmp_path / 'hf', TWO_SIX, tensors={**tensors[TWO_SIX], name: np.zeros((4, 256))}
    )
    words = refusal(source, tmp_path)
    assert name in words and 'Merge adapters' in words


@pytest.mark.parametrize(
    'changed, words',
    [
        ({'version': '4.5'}, "version is '4.5'"),
        ({'hidden_size': 255}, 'hidden_size is 255, the tensors have 256'),
        ({'num_hidden_layers': 3}, 'num_hidden_layers is 3, the tensors have 2'),
        ({'num_attention_heads': None}, 'it has no num_attention_heads'),
        ({'num_attention_heads': 3}, 'which does not divide 256'),
        ({'rope_scaling': {'type': 'yarn'}}, 'rope_scaling is'),
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
    source = write_checkpoint(tmp_path / 'hf', TWO_SIX, tensors=tensors[TWO_SIX], **changed)
    found = refusal(source, tmp_path)
    assert words in found and 'config.json' in found


def test_other_models_are_refused(tmp_path, tensors):
    weights = {name: a for name, a in tensors[TWO_SIX].items() if not name.startswith('apm.')}
    source = write_checkpoint(tmp_path / 'hf', TWO_SIX, tensors=weights)
    assert 'it has no tensors apm.*' in refusal(source, tmp_path)
    source = write_checkpoint(tmp_path / 'int4', TWO_SIX, tensors=tensors[TWO_SIX])
    path = source / 'model.safetensors'
    path.write_bytes(path.read_bytes().replace(b'"BF16"', b'"I16" ', 3))
    assert 'holds I16' in refusal(source, tmp_path)


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
        (lambda d: (d / 'merges.txt').unlink(), 'neither vocab.json and merges.txt'),
        (lambda d: (d / 'merges.txt').write_text('a'), 'not pairs'),
        (lambda d: (d / 'vocab.json').write_text('{"a": 9999}'), "'a' has the id 9999"),
        (lambda d: (d / 'added_tokens.json').write_text('{"a": []}'), 'added token'),
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


def test_an_index_that_does_not_fit_is_refused(tmp_path, tensors):
    source = write_checkpoint(tmp_path / 'hf', TWO_SIX, shards=3, tensors=tensors[TWO_SIX])
    index = source / 'model.safetensors.index.json'
    good = json.loads(index.read_text())
    for name, place, words in (
        ('llm.lm_head.weight', '../config.json', 'no file beside it'),
        ('llm.lm_head.weight', 'model-00009-of-00003.safetensors', '1 of 4 weight files are'),
        ('no.such', 'model-00001-of-00003.safetensors', 'the tensor no.such is missing'),
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
    array = tensors[TWO_SIX][name].copy()
    array[3, 5] = value
    source = write_checkpoint(tmp_path / 'hf', TWO_SIX, tensors={**tensors[TWO_SIX], name: array})
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


def test_progress_counts_every_byte(source, tmp_path):
    told = []
    model = convert_directory(
        source, tmp_path / 'out', on_progress=lambda *what: told.append(what)
    ).model
    names = [name for header in model.headers.values() for name in header.tensors]
    assert sorted(name for _, name, _, _ in told) == sorted(names)
    done = [n_bytes for _, _, n_bytes, _ in told]
    assert done == sorted(done) and done[-1] == told[-1][3]
