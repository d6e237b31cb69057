# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Text gets the ids that the published tokenizer gives, or the file is refused."""

import json
import unicodedata
from dataclasses import replace

import gguf
import pytest
from hf_checkpoint import write_tokenizer
from qwen2_vocabulary import VECTORS, published_tokens, without_han

from minicpmo_ros.cli import main as cli
from minicpmo_ros.convert.tokens import read_tokens
from minicpmo_ros.errors import ModelFileError
from minicpmo_ros.ggml.gguf_file import read_header
from minicpmo_ros.llm import layout as llm_layout
from minicpmo_ros.llm import model as llm_model
from minicpmo_ros.llm.keys import KNOWN
from minicpmo_ros.llm.model import LanguageModel, ModelOptions, load_vocabulary
from minicpmo_ros.llm.tokens import (
    NORMAL,
    TokenTable,
    make_tokens,
    unmade_words,
    vocabulary_warnings,
)
from minicpmo_ros.modelset import adopt
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.modelset.gguf_layouts import SHAPES
from minicpmo_ros.synthetic import model as synthetic

SHAPE = replace(SHAPES['tiny'], vocabulary=151700)
QUESTIONS = [text for text, _ in VECTORS if any('\u3400' <= c <= '\u9fff' for c in text)]


def write_llm(path, monkeypatch, table=None, pre='qwen2'):
    """Write a model with a vocabulary, split as `pre` says; None: it does not say."""
    with monkeypatch.context() as patch:
        patch.setattr(synthetic, 'make_tokens', lambda *_: table or published_tokens())
        add = gguf.GGUFWriter.add_tokenizer_pre
        patch.setattr(
            gguf.GGUFWriter,
            'add_tokenizer_pre',
            lambda writer, _: None if pre is None else add(writer, pre),
        )
        shape = SHAPE if table is None or len(table.texts) == 151700 else SHAPES['tiny']
        synthetic.write_llm(path, shape, seed=None)
    return path


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    """Give a model with the published vocabulary."""
    with pytest.MonkeyPatch.context() as patch:
        return write_llm(tmp_path_factory.mktemp('llm') / 'llm.gguf', patch)


@pytest.fixture(scope='module')
def vocabulary(published):
    return load_vocabulary(published)


@pytest.mark.parametrize('text, ids', VECTORS)
def test_a_text_has_the_published_ids(vocabulary, text, ids):
    assert vocabulary.encode(text) == ids


@pytest.mark.parametrize('text, ids', VECTORS)
def test_how_an_accent_is_written_does_not_matter(vocabulary, text, ids):
    for form in ('NFC', 'NFD'):
        assert vocabulary.encode(unicodedata.normalize(form, text)) == ids
    assert vocabulary.encode('e\u0301') == vocabulary.encode('\xe9') == [963]


def write_short_list(directory, family='minicpm-o-4.5'):
    """Write tokenizer files as MiniCPM-o 4.5 has them: merges.txt lacks what is Han."""
    table = published_tokens(family)
    write_tokenizer(directory, family, fast=True, count=len(table.texts))
    record = json.loads((directory / 'tokenizer.json').read_text())
    words = {t: i for i, t in enumerate(table.texts) if table.types[i] == NORMAL}
    record['model'] |= {'vocab': words, 'merges': table.merges}
    (directory / 'tokenizer.json').write_text(json.dumps(record))
    (directory / 'vocab.json').write_text(json.dumps(words))
    (directory / 'merges.txt').write_text('\n'.join(without_han(table.merges)), 'utf-8')
    return table


def test_tokenizer_json_rules_over_a_list_that_lacks_merges(tmp_path, monkeypatch):
    published = write_short_list(tmp_path)
    table = read_tokens(tmp_path, len(published.texts), 'minicpm-o-4.5')
    assert table.merges == published.merges
    (told,) = table.warnings
    n = len(published.merges) - len(without_han(published.merges))
    assert f'merges.txt lacks {n} of the {len(published.merges)} merges' in told and n > 20
    path = tmp_path / 'llm.gguf'
    with monkeypatch.context() as patch:
        patch.setattr(synthetic, 'make_tokens', lambda *_: table)
        shape = replace(SHAPES['tiny-4.5'], vocabulary=len(table.texts))
        synthetic.write_llm(path, shape, seed=None)
    vocabulary = load_vocabulary(path)
    expected = dict(VECTORS)
    assert len(QUESTIONS) > 12
    for text in QUESTIONS:
        assert vocabulary.encode(text) == expected[text]
    (tmp_path / 'merges.txt').write_text('\n'.join(published.merges), 'utf-8')
    assert read_tokens(tmp_path, len(published.texts), 'minicpm-o-4.5').warnings == ()


def test_without_tokenizer_json_what_the_list_lacks_is_told(tmp_path):
    published = write_short_list(tmp_path)
    (tmp_path / 'tokenizer.json').unlink()
    table = read_tokens(tmp_path, len(published.texts), 'minicpm-o-4.5')
    words = unmade_words(table.texts, table.types, table.merges)
    assert all(any('\u3400' <= c <= '\u9fff' for c in word) for word in words) and len(words) > 20
    assert unmade_words(published.texts, published.types, published.merges) == []
    made = make_tokens(151700)
    assert unmade_words(made.texts, made.types, made.merges) == []


@pytest.fixture
def files(tiny_model_dir, tmp_path):
    """Give a folder with a tiny vision and audio file; the language model is to come."""
    for role in ('vision', 'audio'):
        (tmp_path / f'{role}.gguf').symlink_to(tiny_model_dir / f'{role}.gguf')
    return tmp_path


def test_files_made_from_the_short_list_are_noticed(files, monkeypatch, capsys):
    table = published_tokens()
    short = TokenTable(table.texts, table.types, without_han(table.merges))
    write_llm(files / 'llm.gguf', monkeypatch, short)
    for verb in ('adopt', 'check'):
        assert cli.main([verb, str(files)]) == 0
        assert 'warning' in (told := capsys.readouterr().out) and 'its merges do not make' in told
    write_llm(files / 'llm.gguf', monkeypatch)
    assert vocabulary_warnings(read_header(files / 'llm.gguf')) == []


@pytest.mark.parametrize('pre', [None, 'llama-bpe'])
def test_another_way_of_splitting_has_one_verdict_and_a_way_out(files, monkeypatch, pre):
    path = write_llm(files / 'llm.gguf', monkeypatch, pre=pre)
    said = 'does not say' if pre is None else f'splits text as {pre}'
    for refuse in (LanguageModel.load, load_vocabulary):
        with pytest.raises(ModelFileError, match=said) as caught:
            refuse(path)
        assert '--pre-tokenizer qwen2' in caught.value.remedy
    with pytest.raises(ModelFileError, match=said):
        adopt.find(files)
    adopt.write(adopt.find(files, pre_tokenizer='qwen2'))
    model = ModelDirectory.open(files)
    assert model.manifest.pre_tokenizer == 'qwen2'
    assert cli.main(['check', str(files)]) == 0
    loaded = LanguageModel.load(path, ModelOptions(pre_tokenizer=model.manifest.pre_tokenizer))
    for text, ids in VECTORS:
        assert loaded.vocabulary.encode(text) == ids
    loaded.close()


def test_what_is_taken_as_qwen2_must_prove_it(files, monkeypatch, tiny_model_dir):
    """A vocabulary of other ids, and one whose merges lack some, do not."""
    table = published_tokens()
    short = TokenTable(table.texts, table.types, without_han(table.merges))
    for wrong in (make_tokens(SHAPES['tiny'].vocabulary), short):
        write_llm(files / 'llm.gguf', monkeypatch, wrong, pre=None)
        with pytest.raises(ModelFileError, match='cannot be read with pre_tokenizer qwen2'):
            adopt.find(files, pre_tokenizer='qwen2')
        with pytest.raises(ModelFileError, match='cannot be read with pre_tokenizer qwen2'):
            LanguageModel.load(files / 'llm.gguf', ModelOptions(pre_tokenizer='qwen2'))


def test_the_known_texts_tell_other_rules_apart(published, monkeypatch):
    """Read as another rule splits, one of them at least has other ids."""
    known = {text: list(map(int, ids.split())) for text, ids in KNOWN}
    assert known.items() <= dict(VECTORS).items()
    monkeypatch.setattr(llm_layout, 'check_pre_tokenizer', lambda *_: None)
    monkeypatch.setattr(llm_model, 'verify', lambda _: None)
    for pre in ('default', 'gpt-2', 'deepseek-llm', 'falcon'):
        vocabulary = load_vocabulary(published, pre)
        assert any(vocabulary.encode(text) != ids for text, ids in known.items()), pre
