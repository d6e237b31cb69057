# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A converted checkpoint answers as PyTorch does, whatever form its files have."""

import subprocess
import sys
from pathlib import Path

import hf_checkpoint as made
import numpy as np
import pytest
from hf_checkpoint import FOUR_FIVE, TWO_SIX, write_checkpoint
from whisper_files import random_mel, step_mel

from minicpmo_ros.convert.converter import convert_directory
from minicpmo_ros.convert.tokens import read_chat_template
from minicpmo_ros.encoders.siglip.encoder import VisionEncoder
from minicpmo_ros.encoders.whisper.encoder import AudioEncoder
from minicpmo_ros.ggml.gguf_file import StringArray, read_header
from minicpmo_ros.ggml.runtime import Backend
from minicpmo_ros.ggml.types import GgmlType as Type
from minicpmo_ros.ggml.weights import read_floats
from minicpmo_ros.llm.context import Context, ContextOptions
from minicpmo_ros.llm.model import LanguageModel, ModelOptions
from minicpmo_ros.llm.tokens import make_tokens
from minicpmo_ros.modelset import gguf_layouts as layouts
from minicpmo_ros.modelset.gguf_layouts import SHAPES, TINY
from minicpmo_ros.modelset.gguf_metadata import CHAT_TEMPLATE
from minicpmo_ros.synthetic import model as synthetic

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
        answer.append(int(context.read(rows, 0, want_logits=True).argmax()))
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


@pytest.mark.parametrize(
    'name, content, template',
    [
        ('tokenizer_config.json', '{"chat_template": "{{ a }}"}', '{{ a }}'),
        (
            'tokenizer_config.json',
            '{"chat_template": [{"name": "rag"}, {"name": "default", "template": "{{ b }}"}]}',
            '{{ b }}',
        ),
        ('chat_template.jinja', '{{ c }}\n', '{{ c }}\n'),  # as transformers stores it now
        ('tokenizer_config.json', '{"chat_template": null}', CHAT_TEMPLATE),
    ],
)
def test_a_template_of_chats_is_kept_however_it_is_stored(tmp_path, name, content, template):
    (tmp_path / 'tokenizer_config.json').write_text('{"chat_template": "{{ old }}"}')
    (tmp_path / name).write_text(content)
    assert read_chat_template(tmp_path) == template


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
    weights = {**tensors[FOUR_FIVE], **stored}
    source = write_checkpoint(
        tmp_path / 'hf', FOUR_FIVE, tensors=weights, drop_vision_last_layer=None
    )
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


def test_numbers_of_the_configuration_arrive(tmp_path, tensors):
    """Qwen's own, in the keys of transformers 4 and of 5."""
    for name, rope in (
        ('4', {'rope_theta': 5e5}),
        (
            '5',
            {'rope_theta': None, 'rope_parameters': {'rope_theta': 5e5, 'rope_type': 'default'}},
        ),
    ):
        source = write_checkpoint(
            tmp_path / name / 'hf', TWO_SIX, tensors=tensors[TWO_SIX], rms_norm_eps=3e-5,
            max_position_embeddings=1234, **rope)  # fmt: skip
        metadata = convert_directory(source, tmp_path / name / 'out').model.headers['llm'].metadata
        assert metadata['qwen2.rope.freq_base'] == 5e5
        assert metadata['qwen2.attention.layer_norm_rms_epsilon'] == pytest.approx(3e-5)
        assert metadata['qwen2.context_length'] == 1234


def test_a_model_in_hugging_faces_cache_has_its_own_name(tmp_path, tensors):
    cache = tmp_path / 'models--openbmb--MiniCPM-o-2_6'
    source = write_checkpoint(cache / 'snapshots' / '0a1b', TWO_SIX, tensors=tensors[TWO_SIX])
    for path in list(source.iterdir()):  # its files are links
        path.rename(cache / path.name)
        path.symlink_to(cache / path.name)
    assert convert_directory(source, tmp_path / 'out').model.model_id == 'MiniCPM-o-2_6'


def test_every_published_tensor_has_a_source_of_its_own():
    from minicpmo_ros.convert.checkpoint import COMPUTED, source_of

    for shape, count in ((SHAPES['2.6'], 339 + 455 + 371), (SHAPES['4.5'], 399 + 455 + 371)):
        plans = [*layouts.llm_tensors(shape), *layouts.vision_tensors(shape)]
        plans += layouts.audio_tensors(shape)
        sources = [source_of(plan.name) for plan in plans if plan.name != COMPUTED]
        assert len(set(sources)) == len(sources) == count - 1


def test_progress_counts_every_byte(source, tmp_path):
    told = []
    model = convert_directory(
        source, tmp_path / 'out', on_progress=lambda *what: told.append(what)
    ).model
    names = [name for header in model.headers.values() for name in header.tensors]
    assert sorted(name for _, name, _, _ in told) == sorted(names)
    done = [n_bytes for _, _, n_bytes, _ in told]
    assert done == sorted(done) and done[-1] == told[-1][3]


# --- memory ---------------------------------------------------------------------------------

CHILD = """
import resource, sys
from minicpmo_ros.process import prepare
prepare()
from minicpmo_ros.convert.converter import convert_directory
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
