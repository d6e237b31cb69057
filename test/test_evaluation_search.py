# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The search for small types: what it accepts was asked, and it goes on where it was stopped."""

from dataclasses import replace
from pathlib import Path

import pytest

from minicpmo_ros.cli import main as cli
from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation import precision_search
from minicpmo_ros.evaluation.precision_search import Journal, Search, agreement, answered, facts_of
from minicpmo_ros.evaluation.questions import QuestionSet
from minicpmo_ros.evaluation.runner import CoreOptions
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.quantize.quantizer import QuantizeOptions, quantize_directory
from minicpmo_ros.quantize.report import measured_groups

ROOT = Path(__file__).parents[1]
CORE = CoreOptions(device='cpu', threads=1)
TYPES = ('q8_0', 'q2_K')


@pytest.fixture(scope='module')
def nano():
    return ModelDirectory.open(ROOT / 'models' / 'nano')


@pytest.fixture(scope='module')
def questions():
    return QuestionSet.read(ROOT / 'demo' / 'clips' / 'questions.json').first(12)


@pytest.fixture(scope='module')
def groups(nano, tmp_path_factory):
    return measured_groups(nano, TYPES, work=tmp_path_factory.mktemp('errors'))


def test_what_is_found_is_smaller_and_answers_as_told(nano, groups, questions, tmp_path):
    search = Search(nano, groups, questions, 1.0, CORE, work=tmp_path)
    whole, told = search.best.size_bytes, []
    best = search.run(6, lambda tried, accepted: told.append((tried.agreement, accepted)))
    assert best.size_bytes < whole and best.agreement == 1
    assert len(told) == search.n_tried <= 6
    assert all(accepted == (share == 1) for share, accepted in told)
    rules = search.rules(best).rules
    options = QuantizeOptions(rules)
    smaller, _ = quantize_directory(nano.path, tmp_path / 'm', {}, options)
    answers = answered(smaller, questions, CORE)
    assert agreement(questions, answered(nano, questions, CORE), answers) == best.agreement


class Told(Journal):
    """A journal that knows of every set of types: answers change where a fragile kind is lowest.

    The walk is what is tested with it, whatever nano's weights are; the other tests ask nano.
    """

    def __init__(self, path, groups, fragile):
        super().__init__(path, {})
        self._limits = {i: len(groups[i].rungs) - 1 for i in fragile}

    def get(self, levels):
        return 1 - 0.1 * sum(levels[i] == lowest for i, lowest in self._limits.items())


@pytest.mark.parametrize('kinds', [
    ('attn_v',), ('token_embd', 'ffn_down', 'resampler.proj', 'mlp.2'), ('weight',)
])  # fmt: skip
def test_all_goes_as_far_down_as_the_answers_allow_and_no_further(
    nano, groups, questions, tmp_path, kinds
):
    fragile = [
        i
        for i, group in enumerate(groups)
        if len(group.rungs) > 1 and any(kind in group.pattern for kind in kinds)
    ]
    journal = Told(tmp_path / 'journal.json', groups, fragile)
    search, told = Search(nano, groups, questions, 1.0, CORE, journal=journal), []
    best = search.run(200, lambda tried, accepted: told.append(accepted))
    lowest = [len(group.rungs) - 1 for group in groups]
    assert best.levels == tuple(n - (i in fragile) for i, n in enumerate(lowest))
    assert best.agreement == 1 and not all(told) and len(told) < 60
    few = Search(nano, groups, questions, 1.0, CORE, journal=journal)
    assert few.run(5).agreement == 1 and few.n_tried == 5
    assert best.size_bytes <= few.best.size_bytes < few.size_of([0] * len(groups))


def test_where_any_answer_will_do_all_is_as_small_as_can_be(nano, groups, questions, tmp_path):
    best = Search(nano, groups, questions.first(2), 0.0, CORE, work=tmp_path).run(1)
    assert best.levels == tuple(len(group.rungs) - 1 for group in groups)


def test_a_stopped_search_goes_on_without_asking_again(
    nano, groups, questions, tmp_path, monkeypatch
):
    facts = facts_of(nano, questions, groups)

    def search():
        journal = Journal(tmp_path / 'journal.json', facts)
        return Search(nano, groups, questions, 1.0, CORE, journal=journal, work=tmp_path)

    asked = []
    write = precision_search.quantize_directory
    monkeypatch.setattr(precision_search, 'quantize_directory', count_calls(write, asked))
    search().run(1)
    assert len(asked) == 1
    whole = search()
    best = whole.run(4)
    assert len(asked) == whole.n_tried
    assert search().run(4) == best and len(asked) == whole.n_tried
    facts = {**facts, 'questions': ['others']}
    with pytest.raises(InputError, match='another model, other questions'):
        search()


@pytest.mark.parametrize(
    'edit', [{'text': 'Is it red?'}, {'choices': ('yes', 'no')}, {'clip': 'other'}, {'end_s': 99}]
)
def test_a_search_does_not_go_on_with_answers_to_other_words(
    nano, groups, questions, tmp_path, edit
):
    path = tmp_path / 'journal.json'
    Journal(path, facts_of(nano, questions, groups)).add((0,), 1.0)
    assert Journal(path, facts_of(nano, questions, groups)).get((0,)) == 1.0
    first, *rest = questions.questions
    edited = replace(questions, questions=(replace(first, **edit), *rest))
    with pytest.raises(InputError, match='other questions'):
        Journal(path, facts_of(nano, edited, groups))


def count_calls(function, calls):
    def counted(*arguments):
        calls.append(arguments[1:])
        return function(*arguments)

    return counted


def test_the_verb_leaves_rules_that_quantize_takes(tmp_path, capsys):
    out, model = tmp_path / 'rules.yaml', str(ROOT / 'models' / 'nano')
    arguments = ['search', model, '--agreement', '0.5', '--out', str(out), '--limit', '2']
    more = ['--types', ','.join(TYPES), '--evaluations', '2', '--device', 'cpu', '--threads', '1']
    assert cli.main([*arguments, *more]) == 0
    assert 'sets of types asked' in capsys.readouterr().out
    assert cli.main(['quantize', model, str(tmp_path / 'm'), '--rules', str(out)]) == 0
    small, whole = (
        sum(h.size_bytes for h in ModelDirectory.open(path).headers.values())
        for path in (tmp_path / 'm', model)
    )
    assert small < whole
    assert cli.main([*arguments[:5], str(tmp_path / 'rules.txt'), *more]) == 2
    assert '.yaml' in capsys.readouterr().err
