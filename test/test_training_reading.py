# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Lessons in reading notes: one right answer each, and one pass that is what plain rows give."""

import re

import numpy as np
import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('training.language', reason='training/ is not in this tree')
from training import codes  # noqa: E402
from training.language import Language, rotate  # noqa: E402
from training.model import Config, attend  # noqa: E402
from training.noted import lesson  # noqa: E402
from training.prompt import TAIL, Template  # noqa: E402
from training.reading import Lessons, read  # noqa: E402
from training.runs import orthogonal  # noqa: E402
from training.tokenizer import Tokenizer  # noqa: E402

LINE = re.compile(r'^\[[-\d: ]+, ([\w ]+ ago)\] (.*)$', re.MULTILINE)


def contents(notes):
    """Give (how long ago, label -> value) of every note."""
    return [
        (ago, dict(part.split(': ') for part in text.split('; ')))
        for ago, text in LINE.findall(notes)
    ]


def possible(notes, question):
    """Give every value that answers a question about notes."""
    label, which = re.fullmatch(r'what (\w+) was noted (.*)\?', question).groups()
    value = re.match(r'with the (\w+)', which)
    ago = re.search(r'\d+ \w+ ago', which)
    return {
        held[label]
        for told, held in contents(notes)
        if label in held
        and (ago is None or ago[0] == told)
        and (value is None or value[1] in [v for k, v in held.items() if k != label])
    }


@pytest.mark.parametrize('most', (1, 4, 8))
def test_notes_give_every_question_one_answer(most):
    rng, numbers, is_strange = np.random.default_rng(most), set(), False
    for _ in range(100):
        notes, asked = lesson(6, rng, most, codes.WORDS)
        numbers.add(len(contents(notes)))
        assert len(asked) == 6
        for question, answer in asked:
            assert possible(notes, question) == {answer}, (notes, question)
            is_strange |= question.startswith('what color') and answer not in codes.POOLS['color']
    assert numbers == set(range(1, most + 1))
    assert is_strange  # who knows only colors cannot tell it


def plain(language, ids):
    """Causal attention over ids (n,), nothing else -> the last row's logits."""
    x, config = language.embed(torch.tensor(ids))[None], language.config
    half = config.head_width // 2
    angle = torch.arange(len(ids))[:, None] * config.rope_base ** -(torch.arange(half) / half)
    turn = torch.cat([angle, angle], -1).cos(), torch.cat([angle, angle], -1).sin()
    mask = torch.full((len(ids), len(ids)), -1e4).triu(1)
    group = config.heads // config.kv_heads
    for layer in language.layers:
        q, k, v = layer.project_heads(x)
        k, v = (y.repeat_interleave(group, 1) for y in (rotate(k, turn), v))
        x = layer.finish(x, attend(rotate(q, turn), k, v, mask).transpose(1, 2).flatten(2))
    return language.logits(x[0, -1])


@torch.no_grad()
def test_a_question_sees_the_header_and_its_notes_and_no_other_question():
    torch.manual_seed(0)
    tokenizer, rng = Tokenizer.learn(), np.random.default_rng(0)
    language = Language(Config(), codes.token_embeddings(tokenizer)).eval()
    template = Template.make(tokenizer)
    lessons = [lesson(3, rng, most, codes.WORDS) for most in (1, 4)]
    logits, _ = read(language, template, Lessons.make(tokenizer, lessons))
    tail = tokenizer.encode_template(TAIL)
    wanted = [
        plain(
            language,
            [*template.header.tolist(), *tokenizer.encode(notes), *tokenizer.encode(text), *tail],
        )
        for notes, asked in lessons
        for text, _ in asked
    ]
    torch.testing.assert_close(logits, torch.stack(wanted), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('shape', ((64, 64), (96, 32), (32, 96)))
def test_a_step_of_muon_turns_a_matrix_and_does_not_stretch_it(shape):
    torch.manual_seed(1)
    found = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
    assert found.min() > 0.5 and found.max() < 1.3
