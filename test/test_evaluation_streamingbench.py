# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""StreamingBench's annotation files are read whole, asked and scored the official way."""

import json
import shutil
from pathlib import Path

import pytest
from scored_clips import write_test_clip

from minicpmo_ros.cli import main as cli
from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.bags.clip import Sources
from minicpmo_ros.evaluation.bags.writing import START_S
from minicpmo_ros.evaluation.matching import extract_letter, is_letter, is_letter_tolerantly
from minicpmo_ros.evaluation.questions import QuestionSet
from minicpmo_ros.evaluation.replay import LEAST_TOKENS, QuestionLengths, ReplayPlan
from minicpmo_ros.evaluation.results import Run
from minicpmo_ros.evaluation.runner import CoreOptions, Variant
from minicpmo_ros.evaluation.streamingbench import (
    follow,
    is_proactive,
    question_set,
    read_annotations,
    read_proactive,
    seconds_of,
)
from minicpmo_ros.live.question import Answer, Finish
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.streams.pairing import Unit
from minicpmo_ros.synthetic.model import write_model

TASKS = ('Scene Understanding', 'Source Discrimination', 'Multimodal Alignment')


def entry(number, **changes):
    question = {
        'task_type': TASKS[number % 3],
        'question': f'Which lamp is lit in room {number}?',
        'time_stamp': '00:01:10',
        'answer': 'ABCD'[number % 4],
        'options': ['A. Red', 'B. Blue', 'C. Green', 'D. None'],
        'required_ability': 'episodic memory',
        **changes,
    }
    return {
        'time': '[0:01:00 - 0:02:00]',
        'video_categories': 'demo',
        'video_path': f'./videos/sample_{number // 5}_demo.mp4',
        'questions': [question],
    }


def write(path, entries):
    path.write_text(json.dumps(entries))
    return path


def test_a_file_is_read_whole(tmp_path):
    annotated, defects = read_annotations(
        write(tmp_path / 'a.json', [entry(i) for i in range(15)])
    )
    assert len(annotated) == 15 and not defects
    assert [sum(a.task == task for a in annotated) for task in TASKS] == [5, 5, 5]
    assert {a.bag for a in annotated} == {f'sample_{i}_demo.mcap' for i in range(3)}


OMNI = (
    'Misleading Context Understanding',
    'Source Discrimination',
    'Emotion Recognition',
    'Anomaly Context Understanding',
    'Scene Understanding',
    'Multimodal Alignment',
)


def published(real: bool = False) -> list:
    """Give 1500 entries of five a video with every defect of the published files."""
    entries = [entry(i, task_type=OMNI[i // 5 % 6]) for i in range(1500)]
    asked = [entry['questions'][0] for entry in entries]
    for k, i in enumerate(BROKEN):  # lines split or doubled, options E and F
        asked[i]['options'] += ['E. More', 'B. Blue', ''][: 1 + k % 3]
    asked[33]['options'] = ['A. a bell rings', '', 'B. a dog barks', 'C. a door', 'D. nothing']
    for i in range(0, 1500, 75):
        del asked[i]['required_ability']
    asked[8]['time_stamp'], asked[9]['time_stamp'] = '05:11:00', '00:00:06'
    for i in LONG:
        asked[i]['question'] = 'Which of the lamps that were lit is out at the end? ' * 7
        asked[i]['options'] = [f'{letter}. the lamp in the far room' for letter in 'ABCD']
    for i in range(670) if real else ():
        asked[i]['time_stamp'] = '0:01:10' if i % 2 else '1:10'
    return entries


BROKEN = [7 + 113 * k for k in range(12)]
LONG = [11, 222, 555, 888, 1333]


@pytest.mark.parametrize('real', [False, True])
def test_a_file_with_every_defect_of_the_published_one_is_asked_whole(tmp_path, real):
    annotated, defects = read_annotations(write(tmp_path / 'questions_omni.json', published(real)))
    asked = question_set(annotated, tmp_path)
    assert len(asked.questions) == 1500 and len({a.bag for a in annotated}) == 300
    assert {task: sum(q.family == task for q in asked.questions) for task in OMNI} == (
        dict.fromkeys(OMNI, 250)
    )
    assert {letter: sum(a.letter == letter for a in annotated) for letter in 'ABCD'} == (
        dict.fromkeys('ABCD', 375)
    )
    # 12 with more than four options; the one of them with an empty option is told that, too.
    of = sorted([*BROKEN, 33, 33])
    assert [int(told.split()[1]) for told in defects] == of
    assert sum('first four' in told for told in defects) == 13
    assert [told for told in defects if 'an empty option' in told] == [
        'question 33 (sample_6_demo) has an empty option: asked as it stands, as officially'
    ]
    assert asked.questions[33].options == ('A. a bell rings', '', 'B. a dog barks', 'C. a door')
    assert '\nA. a bell rings\n\nB. a dog barks\n' in asked.questions[33].text
    for bag in {a.bag for a in annotated}:
        (tmp_path / bag).touch()
    asked.write(tmp_path / 'questions.json')
    read = QuestionSet.read(tmp_path / 'questions.json')
    assert read.questions == asked.questions


def planned(model, asked, most: int) -> ReplayPlan:
    return ReplayPlan.make(
        model, asked, CoreOptions(max_question_tokens=most), Variant(), Sources()
    )


def test_every_published_question_has_room(tmp_path):
    model = ModelDirectory.open(write_model(tmp_path / 'tiny', 'nano', llm_type='f32'))
    annotated, _ = read_annotations(write(tmp_path / 'a.json', published()))
    asked = question_set(annotated, tmp_path)
    plan = planned(model, asked, 0)
    assert not plan.refused and not plan.refusals()
    lengths = QuestionLengths.count(model, asked)
    assert plan.options.max_question_tokens == max(lengths.tokens.values()) > LEAST_TOKENS
    shorter = sorted(lengths.tokens.values())[-len(LONG) - 1]
    told = planned(model, asked, shorter)
    assert list(told.refused) == [f'{i:05}' for i in LONG]
    assert told.refusals().startswith("5 of 1500 questions cannot be asked, '00011' first: ")
    assert f'raise max_question_tokens to {lengths.enough}.' in told.refusals()


def test_every_defect_goes_through_the_commands(tmp_path, monkeypatch, capsys):
    """From the annotations and a video to a report, as the page tells it, on nano."""
    monkeypatch.chdir(tmp_path)
    entries = published()
    chosen = [entries[i] for i in (0, 8, 9, 33, *BROKEN[:3], *LONG[:2])]
    for one in chosen:
        one['video_path'] = './videos/scene.mp4'
        one['questions'][0]['time_stamp'] = '00:00:02'
    write(tmp_path / 'questions_omni.json', chosen)
    data = Path(__file__).parent / 'data'
    made = ['streamingbench', 'questions_omni.json', '--videos', str(data), '--out', 'set']
    assert cli.main([*made, '--context', '60']) == 0
    assert len((tmp_path / 'set' / 'defects.txt').read_text().splitlines()) == 5
    asked = ['replay', 'nano', 'set/questions.json', '--out', 'run', '--device', 'cpu']
    assert cli.main([*asked, '--n-ctx', '8192']) == 0
    run = Run.read(tmp_path / 'run')
    assert len(run.texts) == len(chosen) and not run.unanswered and not run.summary()
    assert cli.main(['report', 'run', '--questions', 'set/questions.json', '--out', 'p.html']) == 0


def test_videos_of_one_name_in_several_folders_are_several(tmp_path, capsys):
    video = Path(__file__).parent / 'data' / 'scene.mp4'
    chosen = published()[:4]
    places = ('./videos/a/v.mp4', 'videos\\b\\v.mp4', './videos/c/v.mp4', '/their/videos/w.mp4')
    for one, place in zip(chosen, places):
        one['video_path'] = place
        one['questions'][0]['time_stamp'] = '00:00:02'
    write(tmp_path / 'asked.json', chosen)
    for place in ('a/v.mp4', 'b/v.mp4', 'x/w.mp4', 'y/w.mp4'):
        (tmp_path / 'there' / place).parent.mkdir(parents=True)
        shutil.copy(video, tmp_path / 'there' / place)
    made = ['streamingbench', str(tmp_path / 'asked.json'), '--out', str(tmp_path / 'set')]
    assert cli.main([*made, '--videos', str(tmp_path / 'there')]) == 0
    assert {path.name for path in (tmp_path / 'set').glob('*.mcap')} == {'a-v.mcap', 'b-v.mcap'}
    defects = (tmp_path / 'set' / 'defects.txt').read_text()
    assert 'c/v.mp4: not in the videos' in defects and 'w.mp4: it may be' in defects


def test_a_question_that_replay_would_refuse_is_left_out_and_listed(tmp_path):
    strange = [
        {'task_type': ' '},
        {'task_type': None},
        {'question': 7},
        {'question': '\ud800'},
        {'options': [[[]]] * 4},
        {'options': {'A': 'Red'}},
        {'options': None},
        {'answer': ['A']},
        {'answer': 'AB'},
        {'time_stamp': 70},
        {'time_stamp': '9' * 400},
    ]
    entries = [entry(i, **changes) for i, changes in enumerate(strange)]
    entries += [entry(99), {**entry(98), 'video_path': '/'}, {**entry(97), 'questions': [3, None]}]
    annotated, defects = read_annotations(write(tmp_path / 'a.json', entries))
    assert len(annotated) == 1 and len(defects) == len(strange) + 3
    assert all('left out' in told for told in defects)


def test_several_questions_of_one_entry_are_read(tmp_path):
    two = entry(0)
    two['questions'] += entry(1)['questions']
    annotated, _ = read_annotations(write(tmp_path / 'a.json', [two, entry(2)]))
    assert [a.index for a in annotated] == [0, 1, 2]


def test_malformed_questions_are_listed_and_used_as_officially_where_they_can(tmp_path):
    entries = [
        entry(0, options=['A. Red', 'B. Blue', 'B. Blue', 'C. Green', 'D. None']),
        entry(1, options=['Red', 'Blue', 'Green', 'None']),
        entry(2, time_stamp='0:01:10'),
        entry(3, answer='E'),
        entry(4, options=['A. Red']),
        entry(5, time_stamp='soon'),
        {'questions': []},
        'nothing',
    ]
    del entries[1]['questions'][0]['required_ability']
    annotated, defects = read_annotations(write(tmp_path / 'a.json', entries))
    assert [a.index for a in annotated] == [0, 1, 2]
    assert annotated[0].options == ('A. Red', 'B. Blue', 'B. Blue', 'C. Green')
    assert annotated[1].options == ('A. Red', 'B. Blue', 'C. Green', 'D. None')
    assert annotated[2].at_s == 70
    assert len(defects) == 6 and not any('question 2 ' in told for told in defects)
    assert 'first four' in defects[0] and "'E'" in defects[1] and "'soon'" in defects[3]


@pytest.mark.parametrize('text', ['{}', '[]', '[1]', 'nothing', '[{"questions": []}]'])
def test_another_file_is_refused_in_words(tmp_path, text):
    (tmp_path / 'a.json').write_text(text)
    with pytest.raises(InputError, match=r'a\.json'):
        read_annotations(tmp_path / 'a.json')


def test_windows_end_where_the_question_is_asked(tmp_path):
    entries = [entry(0), entry(1, time_stamp='00:00:20'), entry(2, time_stamp='00:00:00')]
    annotated, _ = read_annotations(write(tmp_path / 'a.json', entries))
    windows = [q.window(0) for q in question_set(annotated, tmp_path).questions]
    assert windows == [
        (START_S + 10, START_S + 70),
        (START_S, START_S + 20),
        (START_S, START_S + 1),
    ]
    whole = question_set(annotated, tmp_path, context_s=-1).questions
    assert whole[0].window(0) == (START_S, START_S + 70)


def test_the_set_survives_its_file(tmp_path):
    annotated, _ = read_annotations(write(tmp_path / 'a.json', [entry(0)]))
    (tmp_path / annotated[0].bag).touch()
    made = question_set(annotated, tmp_path)
    made.write(tmp_path / 'questions.json')
    assert QuestionSet.read(tmp_path / 'questions.json').questions == made.questions
    asked = made.questions[0]
    assert asked.text.endswith(
        'Question: Which lamp is lit in room 0?\n\n'
        'Options:\nA. Red\nB. Blue\nC. Green\nD. None\n\nThe best option is:'
    )
    assert asked.is_right('A. Red') and not asked.is_right('The answer is A')


def test_time_stamps_are_sums_to_the_base_of_60():
    told = {'00:01:10': 70, '1:10': 70, '70': 70, '05:11:00': 18660, '0:00:07.9': 7}
    assert {text: seconds_of(text) for text in told} == told
    for text in ('', 'soon', '-1', '1:x', 'nan', 'inf'):
        with pytest.raises(ValueError):
            seconds_of(text)


LIKE_ANY = (
    '{} is correct',
    'Option {} is correct.',
    'The answer is {} because of the bell',
    '{}, the one on the left',
    '{} - it rings',
    "I'd say {}",
    'It is {}',
    '{} (left)',
    '{}\nbecause it rings',
)
OPTIONS = ('A. A red lamp', 'B. Blue', 'C. Green', 'D. None of them')


@pytest.mark.parametrize(
    'text, letter',
    [
        ('B', 'B'),
        ('B.', 'B'),
        ('(B)', 'B'),
        ('b', 'B'),
        ('B. Blue', 'B'),
        ('**C**', 'C'),
        ('Option D', 'D'),
        ('The best option is: B', 'B'),
        ('The answer is (C) Green.', 'C'),
        ('Answer: A', 'A'),
        ('It is blue.', 'B'),
        ('A red lamp is lit', 'A'),
        ('A green lamp', 'C'),
        ('I think it is D', 'D'),
        ('Blue or green', ''),
        ('Because of that', ''),
        ('', ''),
        # A as any other letter, and an article that is none.
        *((text.format(letter), letter) for letter in 'AB' for text in LIKE_ANY),
        ('A or B', ''),
        ('B or C', ''),
        ('A and C', ''),
        ('D is wrong, it is B', ''),
        ('A circle', ''),
        ('c est la vie', ''),
        ('not B', ''),
        ("It isn't B, it is C.", 'C'),
        ('a blue one', 'B'),
        ('(a) a red lamp', 'A'),
    ],
)
def test_a_letter_is_found_where_the_answer_means_one(text, letter):
    assert extract_letter(text, OPTIONS) == letter


@pytest.mark.parametrize(
    'text, letter',
    [
        ('选B', 'B'),
        ('我选择 B。', 'B'),
        ('答案是C', 'C'),
        ('答案是c', 'C'),
        ('正确答案为（D）', 'D'),
        ('答案：Ａ', 'A'),
        ('选A', 'A'),
        ('B选项是对的', 'B'),
        ('B、红色', 'B'),
        ('应该是D项', 'D'),
        ('不是A，是B', 'B'),
        ('B或者C', ''),
        ('是红色的', 'A'),
        ('它是粉红色', 'B'),  # not the red that is in its name
        ('吃维生素C的人', 'D'),
        ('蓝', ''),
        ('正解はBです', 'B'),
        ('정답은 C입니다', 'C'),
        ('الإجابة هي B', 'B'),
        ('La respuesta es A porque suena', 'A'),
        ('Ответ: D', 'D'),
    ],
)
def test_a_letter_is_found_in_any_language(text, letter):
    options = ('A. 红色', 'B. 粉红色', 'C. 绿色', 'D. 维生素C')
    assert extract_letter(text, options) == letter


@pytest.mark.parametrize('text', ['\n' * 100_000, 'the ' * 30_000, 'b' * 100_000, '"' * 100_000])
def test_an_answer_that_goes_on_and_on_means_nothing(text):
    """It would take hours if every place of it were tried with every other."""
    assert extract_letter(text, OPTIONS) == ''


def test_an_option_keeps_its_own_letter_where_lines_were_split():
    options = ('A. a bell rings', '', 'B. a dog barks', 'C. a door shuts')
    assert extract_letter('a dog barks', options) == 'B'
    assert extract_letter('a door shuts', options) == 'C'


def test_what_is_right_officially_is_right_tolerantly():
    for text in ('B', 'B or C', 'Blue, not B', 'Bells ring', 'B. C. D.'):
        assert is_letter('B', text) and is_letter_tolerantly('B', text, OPTIONS)
    assert is_letter_tolerantly('B', '选B') and not is_letter_tolerantly('B', 'C')


def test_a_letter_inside_an_option_is_not_an_answer():
    options = ('A. Plan B', 'B. Vitamin C', 'C. 7', 'D. D')
    told = {'B. Vitamin C': 'B', 'vitamin C': 'B', 'Plan B': 'A', 'it shows 7': 'C', 'C': 'C'}
    assert {text: extract_letter(text, options) for text in told} == told


def test_the_official_rule_reads_one_character():
    assert is_letter('B', 'B') and is_letter('B', 'Blue')
    assert not is_letter('B', ' B') and not is_letter('B', 'b') and not is_letter('B', '')


# --- the proactive task ---------------------------------------------------------------------


def proactive(number, **changes):
    question = {
        'task_type': 'Proactive Output',
        'question': 'When the scoreboard shows 3 points for USA, output "3".',
        'time_stamp': '00:00:20',
        'ground_truth_time_stamp': '00:00:29',
        'ground_truth_output': '3',
        'required_ability': 'working memory',
        **changes,
    }
    video = f'./videos/sample_{number}_proactive.mp4'
    return {'time': '[0:00:00 - 0:00:30]', 'questions': [question], 'video_path': video}


class Scripted:
    """Says yes from a second on, and then a text; keeps what it was asked and shown."""

    def __init__(self, yes_at_s, text='The score is 3.'):
        self.session, self._yes_at_s, self._text = self, yes_at_s, text
        self.asked, self.shown = [], []

    def reset(self):
        self.shown.clear()

    def stream(self, clip):
        return (Unit(second) for second in clip)

    def append(self, unit):
        self.shown.append(unit.second)

    def ask(self, prompt):
        self.asked.append(prompt)
        is_poll = 'You can only answer yes or no.' in prompt
        is_time = len(self.shown) + 20 >= self._yes_at_s
        text = ('Yes.' if is_time else 'no') if is_poll else self._text
        return Answer(prompt, text, Finish.STOP)


def followed(tmp_path, yes_at_s, **changes):
    (one,), _ = read_proactive(write(tmp_path / 'p.json', [proactive(0, **changes)]))
    core = Scripted(yes_at_s)
    return follow(core, range(*one.span), one), core


@pytest.mark.parametrize(
    'yes_at_s, at_s, in_time',
    [(20, 21, False), (27, 27, True), (29, 29, True), (31, 31, True), (32, 32, False)],
)
def test_the_time_is_right_within_two_seconds(tmp_path, yes_at_s, at_s, in_time):
    spoken, core = followed(tmp_path, yes_at_s)
    assert (spoken.at_s, spoken.is_in_time, spoken.is_right) == (at_s, in_time, in_time)
    assert len(core.shown) == at_s - 20 and len(core.asked) == at_s - 20 + 1


def test_it_is_polled_every_second_until_four_after_the_truth(tmp_path):
    spoken, core = followed(tmp_path, 1000)
    assert (spoken.at_s, spoken.is_in_time, spoken.is_right) == (None, False, False)
    assert core.shown == list(range(START_S + 20, START_S + 33)) and len(core.asked) == 13
    assert 'Is it the right time to output "3"? You can only answer yes or no.' in core.asked[0]


def test_an_answer_in_time_without_the_output_is_not_right(tmp_path):
    spoken, _ = followed(tmp_path, 29, ground_truth_output='20')
    assert spoken.is_in_time and not spoken.is_right


def test_a_proactive_file_is_known_by_its_form_and_what_is_malformed_is_listed(tmp_path):
    files = [proactive(0), proactive(1, time_stamp='soon'), proactive(2, ground_truth_output='')]
    path = write(tmp_path / 'p.json', files)
    assert is_proactive(path)
    asked, defects = read_proactive(path)
    assert [one.bag for one in asked] == ['sample_0_proactive.mcap'] and len(defects) == 2
    assert "time_stamp is 'soon'" in defects[0] and 'ground_truth_output' in defects[1]
    assert not is_proactive(write(tmp_path / 'a.json', [entry(0)]))
    assert not is_proactive(tmp_path / 'none.json')


def test_the_proactive_task_goes_through_the_commands(tmp_path, capsys):
    model = write_model(tmp_path / 'model', 'nano', llm_type='f32')
    times = {'time_stamp': '00:00:01', 'ground_truth_time_stamp': '00:00:02'}
    write(tmp_path / 'p.json', [proactive(0, **times), proactive(1)])
    write_test_clip(tmp_path / 'sample_0_proactive.mcap', 8, START_S)
    asked = ['replay', str(model), str(tmp_path / 'p.json'), '--out', str(tmp_path / 'run')]
    assert cli.main([*asked, '--device', 'cpu', '--max-tokens', '4', '--speech', 'false']) == 0
    told = capsys.readouterr()
    assert '1 of 2 questions are not asked.' in told.err
    assert '| 1 | 0 | 0.0 % (' in told.out
    header, row = (tmp_path / 'run' / 'proactive.csv').read_text().splitlines()
    assert row == '0,sample_0_proactive.mcap,1,2,3,,'
