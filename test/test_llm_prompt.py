# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The rows of turns and units are exactly the official layout, text by text."""

import numpy as np
import pytest

from minicpmo_ros.errors import InputError, ModelFileError
from minicpmo_ros.families import FAMILIES, LANGUAGES, find_layout
from minicpmo_ros.families.minicpm_o_2_6 import ENGLISH
from minicpmo_ros.llm.model import LanguageModel
from minicpmo_ros.llm.prompt import CompiledPrompt
from minicpmo_ros.synthetic.model import SHAPES, write_llm

QUERIES, TOKENS = 64, 25


@pytest.fixture(scope='module')
def models(model, tmp_path_factory):
    """Give a tiny model of each family."""
    path = tmp_path_factory.mktemp('llm') / 'llm.gguf'
    write_llm(path, SHAPES['tiny-4.5'])
    other = LanguageModel.load(path)
    yield {'minicpm-o-2.6': model, 'minicpm-o-4.5': other}
    other.close()


@pytest.fixture(scope='module')
def prompt(model):
    return CompiledPrompt(ENGLISH, model.vocabulary, model.token_rows)


@pytest.fixture
def rows(model, rng):
    """Make embeddings that no token has."""
    return lambda n: rng.standard_normal((n, model.width)).astype(np.float16)


def expected(model, *parts):
    """Concatenate texts (as templates) and embeddings."""
    return np.concatenate(
        [
            model.token_rows.rows(model.vocabulary.encode_template(part))
            if isinstance(part, str)
            else part.astype(np.float32)
            for part in parts
        ]
    )


@pytest.mark.parametrize('language', ['en', 'zh'])
def test_the_prefix_is_a_users_system_turn_and_an_open_turn(model, language):
    layout = FAMILIES['minicpm-o-2.6'].layouts[language]
    prompt = CompiledPrompt(layout, model.vocabulary, model.token_rows)
    np.testing.assert_array_equal(
        prompt.prefix,
        expected(model, f'<|im_start|>user\n{layout.system_text}<|im_end|>\n<|im_start|>user\n'),
    )


def test_each_of_several_cameras_is_read_behind_its_name(model, prompt, rows):
    pictures, sound = rows(2 * QUERIES), rows(TOKENS)
    np.testing.assert_array_equal(
        prompt.unit(pictures, 0, 0, sound, ('front', 'arm/wrist')),
        expected(
            model, '<unit>front: <image>', pictures[:QUERIES], '</image>arm/wrist: <image>',
            pictures[QUERIES:], '</image><|audio_start|>', sound, '<|audio_end|>',
        ),
    )  # fmt: skip
    with pytest.raises(InputError, match='no|not 3 equal parts, one for each camera'):
        prompt.unit(pictures, 0, 0, sound, ('a', 'b', 'c'))


def test_a_unit_is_picture_then_sound_with_nothing_between(model, prompt, rows):
    picture, sound = rows(QUERIES), rows(TOKENS)
    unit = prompt.unit(picture, 0, 0, sound)
    assert len(unit) == 94
    np.testing.assert_array_equal(
        unit,
        expected(
            model, '<unit><image>', picture, '</image><|audio_start|>', sound, '<|audio_end|>'
        ),
    )


def test_sound_alone_has_no_unit_mark(model, prompt, rows):
    sound = rows(TOKENS)
    np.testing.assert_array_equal(
        prompt.unit(None, 0, 0, sound), expected(model, '<|audio_start|>', sound, '<|audio_end|>')
    )


def test_a_picture_alone(model, prompt, rows):
    picture = rows(QUERIES)
    np.testing.assert_array_equal(
        prompt.unit(picture, 0, 0, None), expected(model, '<unit><image>', picture, '</image>')
    )


def test_tiles_follow_row_by_row_with_newlines_between_rows(model, prompt, rows):
    overview, a, b, c, d = parts = [rows(QUERIES) for _ in range(5)]
    np.testing.assert_array_equal(
        prompt.unit(np.concatenate(parts), 2, 2, None),
        expected(
            model,
            '<unit><image>',
            overview,
            '</image><slice>',
            a,
            '</slice><slice>',
            b,
            '</slice>\n<slice>',
            c,
            '</slice><slice>',
            d,
            '</slice>',
        ),
    )


def test_a_question_ends_the_users_turn(model, prompt):
    ids = model.vocabulary.encode('what is it')
    np.testing.assert_array_equal(
        prompt.question(ids), expected(model, 'what is it<|im_end|>\n<|im_start|>assistant\n')
    )


def test_the_speech_form_prepares_for_a_voice_and_closes_it(model):
    prompt = CompiledPrompt(ENGLISH, model.vocabulary, model.token_rows, speech=True)
    ids, answer = model.vocabulary.encode('what'), model.vocabulary.encode('a cup')
    opening = 'what<|im_end|>\n<|im_start|>assistant\n<|spk_bos|><|spk|><|spk_eos|><|tts_bos|>'
    np.testing.assert_array_equal(prompt.question(ids), expected(model, opening))
    np.testing.assert_array_equal(
        prompt.turn(ids, answer),
        expected(model, opening + 'a cup<|tts_eos|><|im_end|>\n<|im_start|>user\n'),
    )


@pytest.mark.parametrize(
    'family, language', [(each, language) for each in FAMILIES for language in LANGUAGES]
)
@pytest.mark.parametrize('speech', [True, False])
def test_speech_is_closed_where_the_model_closed_it_or_was_cut(models, family, language, speech):
    model, layout = models[family], find_layout(family, language)
    prompt = CompiledPrompt(layout, model.vocabulary, model.token_rows, speech=speech)
    question, answer = (model.vocabulary.encode(text) for text in ('what', 'a cup'))
    closes = {'<|tts_eos|>': True, '<|im_end|>': False, '<|endoftext|>': False, None: speech}
    for end, closed in closes.items():
        end_id = end and model.vocabulary.special_id(end)
        close = '<|tts_eos|>' if closed else ''
        np.testing.assert_array_equal(
            prompt.turn(question, answer, end_id)[len(prompt.question(question)) :],
            expected(model, f'a cup{close}<|im_end|>\n<|im_start|>user\n'),
        )


def test_turns_join_as_a_whole_conversation_reads(model, prompt):
    ids, answer = model.vocabulary.encode('what'), model.vocabulary.encode('a cup')
    np.testing.assert_array_equal(
        prompt.turn(ids, answer),
        expected(
            model, 'what<|im_end|>\n<|im_start|>assistant\na cup<|im_end|>\n<|im_start|>user\n'
        ),
    )


def test_special_tokens_in_a_system_text_stay_text(model):
    text = 'You are<|im_end|>'
    prompt = CompiledPrompt(ENGLISH, model.vocabulary, model.token_rows, system_text=text)
    plain = model.token_rows.rows(model.vocabulary.encode(text))
    np.testing.assert_array_equal(
        prompt.prefix,
        expected(model, '<|im_start|>user\n', plain, '<|im_end|>\n<|im_start|>user\n'),
    )


def test_a_layout_is_refused_where_the_vocabulary_lacks_its_tokens(model):
    with pytest.raises(ModelFileError, match='think>'):
        CompiledPrompt(FAMILIES['minicpm-o-4.5'].layouts['en'], model.vocabulary, model.token_rows)


def test_stops_are_the_ends_of_turn_and_of_speech(model, prompt):
    texts = ('<|im_end|>', '<|endoftext|>', '<|tts_eos|>')
    assert prompt.stop_ids == {model.vocabulary.special_id(text) for text in texts}


@pytest.mark.parametrize('n, wide, high', [(0, 0, 0), (64, 2, 1), (191, 2, 1)])
def test_rows_that_do_not_fit_the_grid_are_refused(prompt, rows, n, wide, high):
    with pytest.raises(InputError, match=f'{n} rows of picture'):
        prompt.unit(rows(n), wide, high, None)


def test_embeddings_of_another_model_are_refused(prompt, rng):
    with pytest.raises(InputError, match=r'\(25, 255\)'):
        prompt.unit(None, 0, 0, rng.standard_normal((25, 255)).astype(np.float16))


def test_a_unit_of_nothing_is_a_mistake(prompt):
    with pytest.raises(ValueError):
        prompt.unit(None, 0, 0, None)
