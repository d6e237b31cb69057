# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Fixtures shared by all tests."""
from minicpmo_ros.process import prepare

prepare()

import numpy as np  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture
def rng():
    """Give a generator with a fixed seed."""
    return np.random.default_rng(20)


@pytest.fixture(scope='session')
def tiny_model_dir(tmp_path_factory):
    """Give a directory with a complete tiny model of random weights (seed 1, f16)."""
    from minicpmo_ros.models.synthetic import write_model

    directory = tmp_path_factory.mktemp('models') / 'tiny'
    write_model(directory, 'tiny', seed=1)
    return directory
