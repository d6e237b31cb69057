# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Clips through the engine without ROS: the same each time, and dependent on what they show."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scored_clips import START_S, sound, write_question_set, write_test_clip

from minicpmo_ros.cli import main as cli
from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation import runner
from minicpmo_ros.evaluation.answers import AnswerSet
from minicpmo_ros.evaluation.bags.clip import Clip, ClipImage
from minicpmo_ros.evaluation.bags.clip_reading import read_clip
from minicpmo_ros.evaluation.questions import QuestionSet
from minicpmo_ros.evaluation.runner import Core, CoreOptions, Variant, answer_all
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.synthetic.model import write_model

# Random weights say one word for ever behind the opening of speech.
OPTIONS = CoreOptions(device='cpu', n_ctx=1024, max_tokens=8, speech='false')
VARIANTS = [Variant(), Variant('no_picture'), Variant('no_sound'), Variant(audio='offline')]


@pytest.fixture(scope='module')
def nano_dir(tmp_path_factory):
    """Give a model of nano's shape with random weights: the smallest pictures."""
    return write_model(tmp_path_factory.mktemp('models') / 'nano', 'nano', llm_type='f32')


@pytest.fixture(scope='module')
def core(nano_dir):
    core = Core(ModelDirectory.open(nano_dir), OPTIONS)
    yield core
    core.close()


@pytest.fixture(scope='module')
def questions(tmp_path_factory):
    return write_question_set(tmp_path_factory.mktemp('set'))


@pytest.fixture(scope='module')
def given(core, questions):
    return answer_all(core, questions, VARIANTS)


def test_every_question_is_answered_once_in_every_variant(given, questions):
    assert [(a.input, a.audio) for a in given] == [(v.input, v.audio) for v in VARIANTS]
    for answers in given:
        assert list(answers.answers) == [q.id for q in questions.questions]
        assert all(answers.answers.values())


def test_a_second_run_gives_the_same_bytes(nano_dir, questions, given, tmp_path):
    core = Core(ModelDirectory.open(nano_dir), OPTIONS)
    again = answer_all(core, questions, VARIANTS)
    core.close()
    for i, pair in enumerate(zip(given, again)):
        for name, answers in zip('ab', pair):
            answers.write(tmp_path / f'{name}{i}')
        assert (tmp_path / f'a{i}').read_bytes() == (tmp_path / f'b{i}').read_bytes()


def test_answers_do_not_depend_on_what_was_asked_before(core, questions, given):
    backwards = replace(questions, questions=questions.questions[::-1])
    assert answer_all(core, backwards, VARIANTS[:1])[0].answers == given[0].answers
    alone = replace(questions, questions=questions.questions[2:3])
    (answer,) = answer_all(core, alone, VARIANTS[:1])[0].answers.values()
    assert answer == given[0].answers['1-scene']


def test_blanked_pictures_and_removed_sound_change_the_answers(given):
    everything, no_picture, no_sound, _ = (list(a.answers.values()) for a in given)
    assert everything != no_picture and everything != no_sound and no_picture != no_sound


def test_blank_inputs_change_their_own_rows_only(core, questions):
    clip = read_clip(questions.path_of('1.mcap'))
    encoded = runner.EncodedClip(core, clip, clip.first_s)
    units, grey, silent = (encoded.units(v, clip.first_s + 3) for v in VARIANTS[:3])
    assert len(units) == 3
    for a, g, s in zip(units, grey, silent):
        assert a.image_rows.shape == (16, 256) and a.audio_rows.shape == (25, 256)
        assert (a.audio_rows == g.audio_rows).all() and (a.image_rows != g.image_rows).any()
        assert (a.image_rows == s.image_rows).all() and (a.audio_rows != s.audio_rows).any()
    assert all((g.image_rows == grey[0].image_rows).all() for g in grey)


def test_offline_sound_is_the_stream_where_the_maximum_is_the_same(core):
    """The first second holds the loudest sound; only the clip's two ends differ then."""
    samples = sound(3) * np.repeat([1.0, 0.5, 0.5], 16000).astype(np.float32)
    clip = Clip((), ((START_S * 10**9, samples),))
    streamed, offline = core.hear(clip), core.hear(clip, offline=True)
    assert [second for second, _ in offline] == [START_S + i for i in range(3)]
    for (_, a), (_, b) in zip(streamed[:2], offline[:2]):
        np.testing.assert_allclose(a.astype('f4'), b.astype('f4'), atol=4e-3 * np.abs(a).max())
    loud_later = Clip((), ((START_S * 10**9, samples[::-1].copy()),))
    a, b = core.hear(loud_later)[0][1], core.hear(loud_later, offline=True)[0][1]
    assert a.shape == b.shape == (25, 256) and b.dtype == np.float16


def test_a_window_is_the_units_of_its_seconds(core, questions, monkeypatch):
    read = []
    monkeypatch.setattr(
        core.session,
        'append',
        lambda unit, append=core.session.append: (read.append(unit.second), append(unit))[1],
    )
    late = replace(questions.questions[3], start_s=START_S + 101)
    answer_all(core, replace(questions, questions=(*questions.questions[2:3], late)), VARIANTS[:1])
    assert read == [START_S + 100 + i for i in (0, 1, 2, 1, 2)]


@pytest.mark.parametrize('audio', ['streaming', 'offline'])
def test_an_answer_does_not_depend_on_longer_windows_that_are_asked_about(core, tmp_path, audio):
    """A louder third second would be in the maximum, and after the second one."""
    samples = sound(3) * np.repeat([0.02, 0.02, 1.0], 16000).astype(np.float32)
    clip = Clip((), ((START_S * 10**9, samples),))
    encoded = runner.EncodedClip(core, clip, START_S)
    long, short, alone = (
        [unit.audio_rows for unit in some.units(Variant(audio=audio), START_S + end)]
        for some, end in (
            (encoded, 3),
            (encoded, 2),
            (runner.EncodedClip(core, clip.between(START_S, START_S + 2), START_S), 2),
        )
    )
    assert len(long) == 3 and len(short) == 2
    assert all((a == b).all() for a, b in zip(short, alone))
    assert (short[1] != long[1]).any()  # the longer one hears what follows


def test_questions_about_one_window_share_its_encoding_and_prefill(core, questions, monkeypatch):
    calls = []
    monkeypatch.setattr(
        core.vision, 'encode', lambda *a, f=core.vision.encode: (calls.append('picture'), f(*a))[1]
    )
    monkeypatch.setattr(
        core.session,
        'append',
        lambda unit, f=core.session.append: (calls.append('unit'), f(unit))[1],
    )
    answer_all(core, questions, [Variant(), Variant('no_sound')])
    assert calls.count('picture') == 5  # 2 + 3 seconds, for both variants
    assert calls.count('unit') == 10


@pytest.mark.parametrize(
    'change, told',
    [({'end_s': START_S + 9}, '2 seconds of the window'), ({'start_s': START_S - 1}, '2 seconds')],
)
def test_a_window_beyond_the_clip_is_refused(core, questions, change, told):
    wrong = replace(questions, questions=(replace(questions.questions[0], **change),))
    with pytest.raises(InputError, match=told):
        answer_all(core, wrong, VARIANTS[:1])


def test_a_lost_second_is_refused_with_its_reason(core, tmp_path):
    write_test_clip(tmp_path / '0.mcap', 2)
    clip = read_clip(tmp_path / '0.mcap')
    stamp_ns, (name, data) = clip.images[1].stamp_ns, clip.images[1].compressed()
    cut = ClipImage.of_compressed(stamp_ns, name, data[:300])
    with pytest.raises(InputError, match='was lost: .*damaged'):
        core.see(replace(clip, images=(clip.images[0], cut)))


def test_a_window_that_does_not_fit_is_refused(nano_dir, tmp_path):
    questions = write_question_set(tmp_path, lengths=(8,))
    core = Core(ModelDirectory.open(nano_dir), replace(OPTIONS, n_ctx=768))
    with pytest.raises(InputError, match='does not fit into 768'):
        answer_all(core, questions, VARIANTS[:1])
    core.close()


@pytest.mark.parametrize('speech, expected', [('auto', True), ('false', False)])
def test_answers_of_a_published_model_open_as_its_own_code_opens_them(
    nano_dir, questions, speech, expected
):
    core = Core(ModelDirectory.open(nano_dir), replace(OPTIONS, speech=speech))
    opening = core.session.prompt.question([])
    vocabulary = core.session.model.vocabulary
    text = '<|im_end|>\n<|im_start|>assistant\n'
    text += '<|spk_bos|><|spk|><|spk_eos|><|tts_bos|>' if expected else ''
    rows = core.session.model.token_rows.rows(vocabulary.encode_template(text))
    core.close()
    np.testing.assert_array_equal(opening, rows)


def test_score_prints_tables_and_writes_the_report(nano_dir, questions, tmp_path, capsys):
    out = tmp_path / 'build' / 'score.json'
    arguments = [
        'score',
        str(nano_dir),
        '--questions',
        str(questions.folder / 'questions.json'),
        '--limit',
        '2',
        '--json',
        str(out),
        '--save',
        str(tmp_path / 'answers'),
        '--audio',
        'streaming,offline',
        '--device',
        'cpu',
        '--threads',
        '2',
    ]
    assert cli.main(arguments) == 0
    table = capsys.readouterr().out
    report = json.loads(out.read_text())
    assert [(r['input'], r['audio'], r['questions']) for r in report['rows']] == [
        ('all', 'streaming', 2),
        ('no_picture', 'streaming', 2),
        ('no_sound', 'streaming', 2),
        ('all', 'offline', 2),
    ]
    assert set(report['rows'][0]) == {
        'name',
        'path',
        'precision',
        'audio',
        'input',
        'subset',
        'overall',
        'families',
        'chance',
        'same_as_f32',
        'questions',
    }
    assert '| core | mixed | streaming | no_sound | all |' in table
    saved = tmp_path / 'answers' / 'core-mixed.json'
    pytorch = tmp_path / 'pytorch.json'
    pytorch.write_text(saved.read_text().replace('"core"', '"pytorch"'))
    assert cli.main([*arguments, '--answers', str(pytorch)]) == 0
    rows = json.loads(out.read_text())['rows']
    assert [row['path'] for row in rows] == ['core'] * 4 + ['pytorch']
    assert {row['name'] for row in rows} == {nano_dir.name, 'pytorch.json'}
    told = f'{nano_dir.name} core mixed'
    assert {'a': told, 'b': 'pytorch.json pytorch mixed', 'same': 1.0} in json.loads(
        out.read_text()
    )['agreements']


def test_score_of_saved_answers_needs_no_model(questions, tmp_path, capsys):
    AnswerSet({q.id: 'red' for q in questions.questions}, 'pytorch').write(tmp_path / 'a.json')
    arguments = ['score', '--questions', str(questions.folder / 'questions.json')]
    assert cli.main([*arguments, '--answers', str(tmp_path / 'a.json')]) == 0
    assert '| pytorch | f16 | streaming | all | all | 100.0 |' in capsys.readouterr().out
    assert cli.main(arguments) == 2
    assert 'Nothing to score' in capsys.readouterr().err


def test_score_refuses_a_wrong_file_in_one_line(nano_dir, tmp_path, capsys):
    (tmp_path / 'q.json').write_text('{}')
    assert cli.main(['score', str(nano_dir), '--questions', str(tmp_path / 'q.json')]) == 2
    error = capsys.readouterr().err
    assert error.startswith('minicpmo score: ') and error.count('\n') == 1 and 'format' in error


def test_questions_that_ship_are_whole():
    from minicpmo_ros.cli.options import shipped_questions

    shipped = QuestionSet.read(shipped_questions())
    assert len(shipped.by_clip()) == 24
