# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A version of MiniCPM-o is one object: registered, it is written, recognised and checked."""

import ast
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hf_checkpoint import FOUR_FIVE, write_checkpoint

import minicpmo_ros
from minicpmo_ros.convert.checkpoint import Checkpoint
from minicpmo_ros.convert.shape import read_shape
from minicpmo_ros.errors import InputError, ModelFileError
from minicpmo_ros.families import FAMILIES, find_layout
from minicpmo_ros.families.base import ARCHITECTURES
from minicpmo_ros.llm.model import LanguageModel
from minicpmo_ros.llm.prompt import CompiledPrompt
from minicpmo_ros.modelset import adopt
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.modelset.gguf_layouts import SHAPES, tiny_of
from minicpmo_ros.synthetic.model import write_model

ROOT = Path(minicpmo_ros.__path__[0])
NEXT = 'minicpm-o-9.9'
OLDER = FAMILIES[FOUR_FIVE]


@pytest.fixture
def made_up(monkeypatch):
    """Register a family of the architecture of another, with a mark of its own for a second."""
    layout = replace(OLDER.layouts['en'], system_text='Look. ', unit_open='<second>')
    family = replace(
        OLDER,
        name=NEXT,
        version='9.9',
        layouts={'en': layout},
        special_tokens=(*OLDER.special_tokens, '<second>'),
        published=replace(OLDER.published, name='9.9', family=NEXT, vocabulary=151749),
        vision_versions=(900,),
        speech=False,
        tiny={'llm_head': 96, 'audio_pool': 4, 'queries': 32},
    )
    monkeypatch.setitem(FAMILIES, NEXT, family)
    return family


def published(directory: Path) -> Path:
    """Write a tiny model of the made-up family, and leave its files alone as a publisher would."""
    write_model(directory, tiny_of(NEXT))
    (directory / 'manifest.yaml').unlink()
    for role in ('llm', 'vision', 'audio'):
        (directory / f'{role}.gguf').rename(directory / f'Next-{role}-F16.gguf')
    return directory


def test_a_made_up_family_is_adopted_and_checked(made_up, tmp_path):
    found = adopt.find(published(tmp_path))
    assert found.model.family == NEXT and not found.unused
    adopt.write(found)
    model = ModelDirectory.open(tmp_path)
    assert model.space == f'{NEXT}/{tiny_of(NEXT).width}/{NEXT}'
    assert model.speech() is False and model.warnings == ()
    assert model.verify_hashes() == []


def test_the_family_beside_it_is_still_told_from_it(made_up, tmp_path):
    for family in FAMILIES:
        directory = write_model(tmp_path / family, tiny_of(family))
        (directory / 'manifest.yaml').unlink()
        assert adopt.find(directory).model.family == family


def test_a_made_up_family_is_asked_in_its_own_layout(made_up, tmp_path):
    directory = write_model(tmp_path, tiny_of(NEXT))
    model = LanguageModel.load(ModelDirectory.open(directory).llm_path)
    layout = find_layout(NEXT, 'en')
    prompt = CompiledPrompt(layout, model.vocabulary, model.token_rows)
    picture = np.ones((32, model.width), np.float32)
    rows = prompt.unit(picture, 0, 0, None)
    mark = model.token_rows.rows([model.vocabulary.special_id('<second>')])
    assert np.array_equal(rows[:1], mark) and len(rows) == 1 + 1 + 32 + 1
    with pytest.raises(InputError, match=f"no prompt 'zh' for {NEXT}; known are .*{NEXT}/en"):
        find_layout(NEXT, 'zh')
    model.close()


def test_a_model_that_lacks_a_token_of_the_made_up_family_is_refused(made_up, tmp_path):
    directory = write_model(tmp_path, tiny_of(FOUR_FIVE))
    manifest = directory / 'manifest.yaml'
    manifest.write_text(manifest.read_text().replace(FOUR_FIVE, NEXT))
    with pytest.raises(ModelFileError, match='its vocabulary lacks <second>'):
        ModelDirectory.open(directory)


def test_checkpoints_of_families_with_one_mark_are_told_apart_by_their_version(made_up, tmp_path):
    source = write_checkpoint(tmp_path, FOUR_FIVE)
    for version, family in (('4.5', FOUR_FIVE), ('9.9', NEXT)):
        say(source, version)
        assert read_shape(Checkpoint.open(source), 'it').family == family
    for version, words in (('2.6', 'as in minicpm-o-4.5 or minicpm-o-9.9'), (None, 'no version')):
        say(source, version)
        with pytest.raises(ModelFileError, match=words):
            read_shape(Checkpoint.open(source), 'it')


def say(source: Path, version: str | None) -> None:
    path = source / 'config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), 'version': version}))


@pytest.mark.parametrize('family', FAMILIES.values(), ids=list(FAMILIES))
def test_the_record_of_a_family_agrees_with_itself(family):
    assert family.name == f'minicpm-o-{family.version}' and family.architecture in ARCHITECTURES
    assert len(set(family.special_tokens)) == len(family.special_tokens)
    assert set(family.word_tokens) <= set(family.special_tokens)
    assert family.published is SHAPES[family.version] and family.published.family == family.name
    assert tiny_of(family.name).family == family.name
    assert 'en' in family.layouts


def test_what_no_code_could_read_is_no_family():
    with pytest.raises(ValueError, match="'llama' is none of qwen2, qwen3"):
        replace(OLDER, architecture='llama')
    with pytest.raises(ValueError, match='its prompts need <think>, which it has not'):
        replace(OLDER, special_tokens=[t for t in OLDER.special_tokens if t != '<think>'])


def test_no_module_but_those_of_the_families_names_one():
    named = []
    for path in sorted(ROOT.rglob('*.py')):
        if ROOT / 'families' in path.parents:
            continue
        source = path.read_text()
        if not names_a_family(source):
            continue  # quickly
        tree = ast.parse(source)
        documents = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            texts = [getattr(node, key, None) for key in ('value', 'id', 'attr', 'name', 'module')]
            if id(node) not in documents and any(names_a_family(text) for text in texts):
                named.append((path.relative_to(ROOT), node.lineno))
    assert named == []


def test_a_name_of_a_family_is_found_in_whatever_form():
    for text in ('minicpm-o-2.6', '4.5', 'MINICPM_O_2_6', 'minicpmo_ros.families.minicpm_o_4_5'):
        assert names_a_family(text)
    for text in ('a pause of 14.5 s', 'numpy 2.6.1', 'sha_256', None, 4.5):
        assert not names_a_family(text)


def names_a_family(text) -> bool:
    """Tell whether a text or name holds the version of a family, written with dots or not."""
    versions = '|'.join(re.escape(family.version) for family in FAMILIES.values())
    return isinstance(text, str) and bool(
        re.search(rf'(?<!\d)(?<!\d\.)({versions})(?!\.?\d)', text.replace('_', '.'))
    )
