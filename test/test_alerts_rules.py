# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Files of standing questions: read as a person means them, refused in a person's terms."""

import os
from contextlib import nullcontext

import pytest

from minicpmo_ros.alerts.rules import (
    FORMAT,
    MOST_RULES,
    WHAT_HAPPENS,
    AlertRule,
    KeptRules,
    check_together,
    make_rule,
    read_rules,
    write_rules,
)
from minicpmo_ros.errors import InputError

HEAD = f'format: {FORMAT}\nalerts:\n'
FALL = AlertRule('fall', 'Is a person lying on the floor?')


@pytest.fixture
def read(tmp_path):
    def read(text: str, most: int = MOST_RULES):
        path = tmp_path / 'rules.yaml'
        path.write_text(text, encoding='utf-8')
        return read_rules(path, most)

    return read


def test_words_that_yaml_takes_for_truth_are_words(read):
    (rule,) = read(
        HEAD + '- {id: fall, question: Q, on: 0.8, off: 0.4, positive: [yes, Y], negative: [no]}'
    )
    assert (rule.on, rule.off) == (0.8, 0.4)
    assert (rule.positive, rule.negative) == (('yes', 'Y'), ('no',))


def test_what_is_written_is_read_again(tmp_path):
    rules = (
        FALL,
        AlertRule(
            'off', 'on?', ('on', 'true', '是'), ('null', '1.0'), 0.6, 0.6, senses=('image',)
        ),
        AlertRule('heard', 'what?', on_change=True, answers=('bell', '~', ': x')),
        AlertRule(
            'told', 'q', describe='What happened?\nBriefly.', picture=True, priority=3, bias=-1.5
        ),
    )
    path = tmp_path / 'rules.yaml'
    write_rules(path, rules)
    assert read_rules(path) == rules
    write_rules(path, ())
    assert read_rules(path) == ()


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16'])
def test_a_file_keeps_its_first_comments_and_its_link(tmp_path, encoding):
    path, link = tmp_path / 'rules.yaml', tmp_path / 'link.yaml'
    path.write_text('# for the kitchen\n# robot 2\n' + HEAD, encoding=encoding)
    link.symlink_to(path)
    write_rules(link, [FALL])
    assert link.is_symlink()
    assert path.read_text().startswith('# for the kitchen\n# robot 2\nformat:')
    assert read_rules(path) == (FALL,)


def test_a_file_that_cannot_be_written_is_told_and_stays(tmp_path):
    if os.geteuid() == 0:
        with pytest.raises(InputError, match='no folder'):
            write_rules(tmp_path / 'gone' / 'rules.yaml', [FALL])
        return
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match='cannot be written'):
        write_rules(tmp_path / 'rules.yaml', [FALL])


@pytest.mark.parametrize(
    'entry, told',
    [
        ('{question: Q}', r'alert 1 \(None\): it has no id'),
        ('{id: a}', 'it has no question'),
        ('fall', 'an object with id and question is expected'),
        ('{id: a b, question: Q}', 'becomes a topic'),
        ('{id: a__b, question: Q}', 'becomes a topic'),
        ('{id: state, question: Q}', 'becomes a topic'),
        ('{id: 1, question: Q}', 'id is 1'),
        ('{id: a, question: ""}', "question is '', a text is expected"),
        ('{id: a, question: Q, on: high}', "on is 'high', a number from 0 to 1"),
        ('{id: a, question: Q, on: 70}', 'on is 70'),
        ('{id: a, question: Q, on: .nan}', 'on is nan'),
        (f'{{id: a, question: Q, scale: 1{400 * "0"}}}', 'scale is 1000'),
        ('{id: a, question: Q, on: 0, off: 0}', 'on is 0, a number from 0 to 1, but not 0,'),
        ('{id: a, question: Q, on: 1, off: 1}', 'off is 1, a number from 0 to 1, but not 1,'),
        ('{id: 跌倒, question: Q}', 'letters from a to z'),
        ('{id: a, question: Q, describe: 7}', 'describe is 7, a question, true or false'),
        ('{id: a, question: Q, on: 0.2}', 'off must not be above on'),
        ('{id: a, question: Q, positive: yes}', "positive is 'yes', a list of different texts"),
        ('{id: a, question: Q, positive: []}', r'positive is \[\], a list'),
        ('{id: a, question: Q, positive: [yes, Yes]}', 'different texts'),
        ('{id: a, question: Q, positive: [NO]}', "'no' is in positive and in negative"),
        ('{id: a, question: Q, positive: [1]}', 'positive is'),
        ('{id: a, question: Q, after: 2}', "it has 'after'; known are id, question"),
        ('{id: a, question: Q, after_s: -1}', 'after_s is -1, a number of seconds from 0'),
        ('{id: a, question: Q, period_s: 0}', 'a number of seconds from 1'),
        ('{id: a, question: Q, priority: 1.5}', 'a whole number from 0 to 9'),
        ('{id: a, question: Q, senses: [camera]}', 'a list of image and audio'),
        ('{id: a, question: Q, picture: 1}', 'picture is 1, true or false'),
        ('{id: a, question: Q, on_change: true}', 'needs answers'),
        ('{id: a, question: Q, on_change: true, answers: [x, y], on: 0.9}', 'on has no meaning'),
        ('{id: a, question: Q, answers: [x, y]}', 'answers are for on_change'),
        ('{id: a, question: Q, id: b}', "the name 'id' occurs twice"),
    ],
)
def test_what_is_wrong_is_named(read, entry, told):
    with pytest.raises(InputError, match=told):
        read(HEAD + f'- {entry}')


@pytest.mark.parametrize(
    'text, told',
    [
        ('', 'its format is None'),
        ('format: minicpmo_ros questions 1', "'minicpmo_ros alerts 1' is expected"),
        (f'format: {FORMAT}', 'alerts is None, a list is expected'),
        (f'format: {FORMAT}\nalerts: {{id: a}}', 'a list is expected'),
        ('[' * 5000, 'not YAML'),
        ('a: [', 'not YAML'),
        (HEAD + '- {id: a, question: Q?, on: 0.9}', 'a question mark must be quoted'),
        (HEAD + '- {id: a, question: Q}\n- {id: a, question: R}', "Two alerts have the id 'a'"),
    ],
)
def test_a_file_of_another_kind_is_refused(read, text, told):
    with pytest.raises(InputError, match=told):
        read(text)


def test_sixty_four_rules_are_read_and_one_more_is_told():
    rules = [AlertRule(f'r{n}', 'Q?') for n in range(MOST_RULES + 1)]
    assert len(check_together(rules[:-1])) == MOST_RULES
    with pytest.raises(InputError, match='There are 65 alerts, at most 64 are allowed'):
        check_together(rules)
    with pytest.raises(InputError, match='at most 16 .* or raise alerts.max_rules'):
        check_together(rules[:17], 16)


def test_describe_true_asks_what_happens():
    assert make_rule({'id': 'a', 'question': 'Q', 'describe': True}).describe
    assert not make_rule({'id': 'a', 'question': 'Q', 'describe': False}).describe


@pytest.mark.parametrize(
    'given, asked',
    [('none', ''), ('', ''), ('No', ''), ('off', ''), ('~', ''), ('yes', WHAT_HAPPENS),
     ("'true'", WHAT_HAPPENS), ('Who is it?', 'Who is it?')],
)  # fmt: skip
def test_describe_takes_a_word_for_a_switch_and_asks_no_such_thing(read, given, asked):
    (rule,) = read(HEAD + f'- id: a\n  question: Q\n  describe: {given}')
    assert rule.describe == asked


@pytest.mark.parametrize('given', ('   ', '\n'))
def test_a_description_of_nothing_but_spaces_is_refused(given):
    with pytest.raises(InputError, match='describe is'):
        make_rule({'id': 'fall', 'question': 'Q', 'describe': given})


def test_rules_are_never_written_over_what_was_not_read(tmp_path):
    path = tmp_path / 'rules.yaml'
    write_rules(path, [FALL])
    never_read, read = KeptRules(path), KeptRules(path)
    with pytest.raises(InputError, match='has not read.*configure the node anew'):
        never_read.write([])
    read.read()
    for rules in ([], [FALL]):  # its own changes are known to it
        read.write(rules)
    for edited in (path.read_text() + '# mine\n', 'format: broken ['):
        path.write_text(edited)
        with pytest.raises(InputError, match='Nothing is written over it'):
            read.write([])
        assert path.read_text() == edited
        with pytest.raises(InputError) if 'broken' in edited else nullcontext():
            read.read()
    with pytest.raises(InputError, match='could not be read'):
        read.write([])
    path.unlink()
    read.write([FALL])
    assert read_rules(path) == (FALL,)


def test_rules_that_could_not_be_read_again_are_not_written(tmp_path):
    path = tmp_path / 'rules.yaml'
    write_rules(path, [FALL])
    before = path.read_bytes()
    with pytest.raises(InputError, match=r'take \d+ bytes, at most 1048576 are read'):
        write_rules(path, [AlertRule('long', 'Q' * 2**20)])
    assert path.read_bytes() == before
