# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""One pass over seconds, still seconds and turns is what reading them row by row gives."""

import numpy as np
import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('training.language', reason='training/ is not in this tree')
from training import codes, pool, train_llm  # noqa: E402
from training.language import Language, rotate  # noqa: E402
from training.model import Config, attend  # noqa: E402
from training.prompt import STILL_ROWS, UNIT_ROWS, Template  # noqa: E402
from training.tokenizer import Tokenizer  # noqa: E402
from training.windows import Windows  # noqa: E402

STILL = [False, True, False, True]


@pytest.fixture(scope='module')
def tokenizer():
    return Tokenizer.learn()


@pytest.fixture(scope='module')
def language(tokenizer):
    torch.manual_seed(0)
    return Language(Config(), codes.token_embeddings(tokenizer)).eval()


def read(language, rows):
    """Causal attention over rows (n, d), nothing else -> (n, d)."""
    x, config = rows[None], language.config
    half = config.head_width // 2
    angle = torch.arange(len(rows))[:, None] * config.rope_base ** -(torch.arange(half) / half)
    turn = torch.cat([angle, angle], -1).cos(), torch.cat([angle, angle], -1).sin()
    mask = torch.full((len(rows), len(rows)), -1e4).triu(1)
    for layer in language.layers:
        q, k, v = layer.project_heads(x)
        k, v = (
            y.repeat_interleave(config.heads // config.kv_heads, 1) for y in (rotate(k, turn), v)
        )
        mixed = attend(rotate(q, turn), k, v, mask)
        x = layer.finish(x, mixed.transpose(1, 2).flatten(2))
    return x[0]


@pytest.mark.parametrize('turn_at', (None, 2, 4))
@torch.no_grad()
def test_a_question_sees_what_it_would_behind_the_plain_rows(language, tokenizer, turn_at):
    rng = np.random.default_rng(0)
    clips, pictures, sounds = pool.ideal(rng, 24000).clips(2, 4, rng, still=STILL)
    windows = Windows.whole(4, STILL, turn_at, UNIT_ROWS)
    windows, turns = train_llm.turned(windows, clips, tokenizer, rng)
    assert [n for n, s in zip(windows.rows, windows.seconds) if s is not None] == [
        UNIT_ROWS, STILL_ROWS, UNIT_ROWS, STILL_ROWS,
    ]  # fmt: skip
    header, items = Template.make(tokenizer).rows(
        language.embed, pictures.float(), sounds.float(), windows, turns
    )
    questions = language.embed(torch.randint(0, 300, (2, 1, 3, 7)))
    _, forked, _ = language(
        header, items, questions, windows, torch.tensor([len(windows.rows) - 1])
    )
    for stream in range(2):
        rows = [items[stream, i, :n] for i, n in enumerate(windows.rows)]
        for question, found in zip(questions[stream, 0], forked[-1][stream, 0]):
            expected = read(language, torch.cat([header[0], *rows, question]))[-7:]
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
