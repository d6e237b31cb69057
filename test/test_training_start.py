# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What was exported can be trained further: the files hold all that a start needs."""

from hashlib import sha256

import numpy as np
import pytest

torch = pytest.importorskip('torch')
gguf = pytest.importorskip('gguf')
pytest.importorskip('training.start', reason='training/ is not in this tree')
from training import codes  # noqa: E402
from training.export import export  # noqa: E402
from training.language import Language  # noqa: E402
from training.model import Audio, Config, Vision  # noqa: E402
from training.start import (  # noqa: E402
    keep_share,
    start_audio,
    start_language,
    start_vision,
)
from training.tokenizer import Tokenizer  # noqa: E402


def modules(tokenizer):
    return Vision(Config()), Audio(Config()), Language(Config(), codes.token_embeddings(tokenizer))


def tensors(path):
    return {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}


def test_what_a_training_starts_from_is_what_was_exported(tmp_path):
    one, other, tokenizer = tmp_path / 'one', tmp_path / 'other', Tokenizer.learn()
    export(one, *modules(tokenizer), tokenizer, 'of a test')
    vision, audio, language = modules(tokenizer)
    start_vision(vision, one)
    start_audio(audio, one)
    start_language(language, one, tokenizer)
    export(other, vision, audio, language, tokenizer, 'of a test')
    for role in ('vision', 'audio', 'llm'):
        wanted, found = tensors(one / f'{role}.gguf'), tensors(other / f'{role}.gguf')
        assert wanted.keys() == found.keys()
        for name, data in wanted.items():
            # Positions are found again from rounded tables.
            np.testing.assert_allclose(found[name], data, atol=2e-3, err_msg=name)


def test_a_part_that_stays_is_the_file_that_it_was(tmp_path):
    one, other, tokenizer = tmp_path / 'one', tmp_path / 'other', Tokenizer.learn()
    export(one, *modules(tokenizer), tokenizer, 'of a test')
    export(other, *modules(tokenizer), tokenizer, 'of a test', [one / 'vision.gguf'])
    as_it_was, now = (
        [(folder / f'{role}.gguf').read_bytes() for role in ('vision', 'audio')]
        for folder in (one, other)
    )
    assert now[0] == as_it_was[0] and now[1] != as_it_was[1]
    assert sha256(now[0]).hexdigest() in (other / 'manifest.yaml').read_text()


def test_a_share_of_the_earlier_language_model_is_kept_number_by_number(tmp_path):
    tokenizer = Tokenizer.learn()
    *encoders, earlier = modules(tokenizer)
    export(tmp_path, *encoders, earlier, tokenizer, 'of a test')
    later = modules(tokenizer)[-1]
    trained = [parameter.detach().clone() for parameter in later.parameters()]
    keep_share(later, lambda module: start_language(module, tmp_path, tokenizer), 0.25)
    for name, kept, new, old in zip(
        *(dict(later.named_parameters()), later.parameters(), trained, earlier.parameters()),
        strict=True,
    ):
        wanted = 0.75 * new + 0.25 * old
        torch.testing.assert_close(kept, wanted, atol=2e-3, rtol=0, msg=name)
