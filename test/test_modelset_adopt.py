# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Published files become a model directory, whatever their names; what is unclear is asked."""

import os
import shutil
from pathlib import Path

import gguf
import pytest

from minicpmo_ros.cli import main as cli
from minicpmo_ros.errors import InputError, ModelFileError
from minicpmo_ros.llm.model import LanguageModel
from minicpmo_ros.modelset import adopt
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.synthetic.model import write_model

# How the publishers lay their files out; 'other' files have an architecture of their own.
OPENBMB_2_6 = {
    'llm': 'Model-7.6B-Q4_K_M.gguf',
    'vision': 'mmproj-model-f16.gguf',
    'audio': 'minicpmo-audio-encoder_Q8_0.gguf',
}
OF_360 = {
    'llm': 'Model-7.6B-Q4_0.gguf',
    'vision': 'minicpmo-image-encoder_f16.gguf',
    'audio': 'minicpmo-audio-encoder_f16.gguf',
}
OMNI_4_5 = {
    'llm': 'MiniCPM-o-4_5-Q4_K_M.gguf',
    'vision': 'vision/MiniCPM-o-4_5-vision-F16.gguf',
    'audio': 'audio/MiniCPM-o-4_5-audio-F16.gguf',
    'tts': 'tts/MiniCPM-o-4_5-tts-F16.gguf',
    'projector': 'tts/MiniCPM-o-4_5-projector-F16.gguf',
    'token2wav': 'token2wav-gguf/encoder.gguf',
}
SHIPPED = Path(__file__).parents[1] / 'models'
PRECISIONS = {'llm': 'q4_K', 'vision': 'f16', 'audio': 'q8_0'}


@pytest.fixture(scope='module')
def sources(tmp_path_factory):
    """Give two tiny models in the published layouts, by family."""
    folder = tmp_path_factory.mktemp('published')
    kinds = tuple(PRECISIONS.values())
    return {
        shape: write_model(folder / shape, shape, 1, *kinds, hashes=False)
        for shape in ('tiny', 'tiny-4.5')
    }


def publish(source, directory, names):
    """Put files under the publisher's names."""
    for part, name in names.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if part in PRECISIONS:
            shutil.copyfile(source / f'{part}.gguf', path)
            continue
        writer = gguf.GGUFWriter(path, {'tts': 'llama'}.get(part, part))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
    return directory


@pytest.mark.parametrize('name, speech', [('nano', False), ('nano_q4', False), ('tiny', True)])
def test_answers_open_for_a_voice_unless_the_model_never_learned_that(
    name, speech, sources, tmp_path
):
    model = ModelDirectory.open(sources.get(name) or SHIPPED / name)
    for part, header in model.headers.items():
        (tmp_path / f'{part}.bin.gguf').symlink_to(header.path.resolve())
    assert adopt.find(tmp_path).model.manifest.speech is model.manifest.speech is speech


def changed(path):
    """Return what changes when a file is written or replaced; reading changes its access time."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def run(capsys, *arguments):
    status = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.mark.parametrize(
    'shape, names, family',
    [
        ('tiny', OPENBMB_2_6, 'minicpm-o-2.6'),
        ('tiny', OF_360, 'minicpm-o-2.6'),
        ('tiny-4.5', OMNI_4_5, 'minicpm-o-4.5'),
    ],
)
def test_published_layouts_are_adopted_checked_and_loaded(
    sources, tmp_path, capsys, shape, names, family
):
    directory = publish(sources[shape], tmp_path / 'm', names)
    before = {path: changed(path) for path in directory.rglob('*.gguf')}
    status, out, err = run(capsys, 'adopt', directory)
    assert (status, err) == (0, '')
    for part in names.keys() - PRECISIONS.keys():
        assert f'not used: {names[part]}: its architecture' in out
    model = ModelDirectory.open(directory)
    assert model.family == model.model_id == family
    assert model.precision == PRECISIONS
    assert {part: model.manifest.files[part].path for part in PRECISIONS} == {
        part: names[part] for part in PRECISIONS
    }
    assert model.verify_hashes() == []
    assert {path: changed(path) for path in directory.rglob('*.gguf')} == before
    assert run(capsys, 'check', directory, '--hashes', '--no-cache')[0] == 0
    LanguageModel.load(model.llm_path).close()


def test_names_do_not_matter(sources, tmp_path):
    names = {'llm': 'a.gguf', 'vision': 'llm.gguf', 'audio': 'deep/er/vision.GGUF'}
    directory = publish(sources['tiny'], tmp_path, names)
    found = adopt.find(directory).model.manifest.files
    assert {part: entry.path for part, entry in found.items()} == names


def test_several_files_for_a_part_are_asked_about_and_chosen(sources, tmp_path, capsys):
    directory = publish(sources['tiny'], tmp_path, OPENBMB_2_6)
    shutil.copyfile(sources['tiny'] / 'llm.gguf', directory / 'Model-7.6B-Q8_0.gguf')
    status, _, err = run(capsys, 'adopt', directory)
    assert status == 2 and not (directory / 'manifest.yaml').exists()
    assert '--llm Model-7.6B-Q4_K_M.gguf (q4_K, ' in err and 'or Model-7.6B-Q8_0.gguf' in err
    status, out, _ = run(capsys, 'adopt', directory, '--llm', 'Model-7.6B-Q8_0.gguf')
    assert status == 0
    assert 'not used: Model-7.6B-Q4_K_M.gguf: another was chosen' in out
    assert ModelDirectory.open(directory).llm_path.name == 'Model-7.6B-Q8_0.gguf'


def test_a_directory_behind_a_link_is_adopted_with_a_chosen_file_from_elsewhere(sources, tmp_path):
    large = publish(sources['tiny'], tmp_path / 'disk/so/deep', OPENBMB_2_6)
    other = tmp_path / 'downloads' / 'audio.gguf'
    other.parent.mkdir()
    shutil.move(large / OPENBMB_2_6['audio'], other)
    (tmp_path / 'home').mkdir()
    link = tmp_path / 'home/models'
    link.symlink_to(large)
    adoption = adopt.find(link, {'audio': other})
    assert not adoption.unused
    adopt.write(adoption)
    for path in (link, large):
        assert ModelDirectory.open(path).audio_path.samefile(other)


def test_a_chosen_file_is_used_however_it_is_given(sources, tmp_path, monkeypatch):
    directory = publish(sources['tiny'], tmp_path, OPENBMB_2_6)
    monkeypatch.chdir(directory.parent)
    name = OPENBMB_2_6['audio']
    for given in (name, directory / name, f'{directory.name}/../{directory.name}/{name}'):
        found = adopt.find(directory.name, {'audio': given})
        assert not found.unused and found.model.audio_path.samefile(directory / name)


def test_only_files_of_one_width_go_together(tmp_path, sources):
    directory = publish(sources['tiny'], tmp_path / 'm', OPENBMB_2_6)
    wide = write_model(tmp_path / 'wide', 'small', 1, 'q4_0', 'q4_0', 'q4_0', hashes=False)
    shutil.copyfile(wide / 'vision.gguf', directory / 'another.gguf')
    found = adopt.find(directory)
    assert found.model.vision_path.name == OPENBMB_2_6['vision']
    assert [(path.name, reason) for path, reason in found.unused] == [
        ('another.gguf', 'another was chosen')
    ]
    (directory / OPENBMB_2_6['vision']).unlink()
    with pytest.raises(ModelFileError, match='widths .*another.gguf 512'):
        adopt.find(directory)


def test_a_missing_part_is_named_with_what_was_seen(sources, tmp_path):
    directory = publish(sources['tiny'], tmp_path, {'llm': 'a.gguf', 'token2wav': 'b.gguf'})
    (directory / 'broken.gguf').write_bytes(b'GGUF')
    with pytest.raises(ModelFileError, match='no file for vision and audio') as caught:
        adopt.find(directory)
    assert "b.gguf: its architecture 'token2wav'" in str(caught.value)
    assert 'broken.gguf: it has only 4 bytes' in str(caught.value)


@pytest.mark.parametrize(
    'kind, told', [('adapter', 'llama-export-lora'), ('imatrix', 'importance matrix')]
)
def test_what_is_published_beside_a_model_is_told_by_what_it_is(sources, tmp_path, kind, told):
    directory = publish(sources['tiny'], tmp_path, OPENBMB_2_6)
    writer = gguf.GGUFWriter(directory / 'beside.gguf', 'qwen2')
    writer.add_type(kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    ((path, reason),) = adopt.find(directory).unused
    assert path.name == 'beside.gguf' and told in reason


def test_a_file_chosen_for_the_wrong_part_is_refused(sources, tmp_path):
    directory = publish(sources['tiny'], tmp_path, OPENBMB_2_6)
    with pytest.raises(ModelFileError, match='an audio file, a vision file is expected'):
        adopt.find(directory, {'vision': OPENBMB_2_6['audio']})


def test_a_plain_qwen_is_not_adopted(sources, tmp_path):
    directory = publish(sources['tiny'], tmp_path, OPENBMB_2_6)
    path = directory / OPENBMB_2_6['llm']
    path.write_bytes(path.read_bytes().replace(b'<unit>', b'<what>'))
    with pytest.raises(ModelFileError, match='lacks <unit>'):
        adopt.find(directory)


def test_a_manifest_is_overwritten_only_when_forced(sources, tmp_path, capsys):
    directory = publish(sources['tiny'], tmp_path, OPENBMB_2_6)
    (directory / 'manifest.yaml').write_text('precious')
    status, _, err = run(capsys, 'adopt', directory)
    assert status == 2 and 'manifest.yaml is there already' in err
    assert (directory / 'manifest.yaml').read_text() == 'precious'
    assert run(capsys, 'adopt', directory, '--force', '--id', 'mine', '--licence', 'X')[0] == 0
    manifest = ModelDirectory.open(directory).manifest
    assert (manifest.model_id, manifest.licence) == ('mine', 'X')


def test_hundreds_of_files_are_not_read(tmp_path):
    for i in range(adopt.MAX_FILES + 1):
        (tmp_path / f'{i}.gguf').touch()
    with pytest.raises(InputError, match='more than 256'):
        adopt.find(tmp_path)


def test_names_of_files_and_tensors_move_no_cursor(sources, tmp_path, capsys):
    directory = publish(sources['tiny'], tmp_path, OPENBMB_2_6)
    odd = os.fsencode(directory / 'a\x1b[2J') + b'\n\xff.gguf'
    shutil.copyfile(directory / OPENBMB_2_6['audio'], odd)
    (directory / OPENBMB_2_6['audio']).unlink()
    (directory / 'b\x1b[2J.gguf').write_bytes(b'GGUF')
    status, out, err = run(capsys, 'adopt', directory)
    assert (status, err) == (0, '')
    assert 'a\\x1b[2J\\n\\udcff.gguf' in out and 'not used: b\\x1b[2J.gguf' in out
    assert '\x1b' not in out and out.encode()
    assert run(capsys, 'check', directory)[0] == 0
    told = str(ModelFileError('m.gguf', 'the tensor w\x1b[2J is missing', 'Fetch it'))
    assert told == r'm.gguf: the tensor w\x1b[2J is missing. Fetch it'


def test_links_in_a_circle_end(sources, tmp_path):
    directory = publish(sources['tiny'], tmp_path, OPENBMB_2_6)
    (directory / 'again').symlink_to(directory)
    os.symlink('loop.gguf', directory / 'loop.gguf')
    assert [path.name for path, _ in adopt.find(directory).unused] == ['loop.gguf']
