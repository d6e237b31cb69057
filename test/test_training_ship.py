# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The shipped nano is complete, small, and what its manifests say."""

from pathlib import Path

import pytest
from ament_index_python.packages import get_package_share_directory

from minicpmo_ros.modelset.directory import ModelDirectory
from training.ship import LARGEST_BYTES

MODELS = Path(__file__).parents[1] / 'models'


@pytest.mark.parametrize('name', ['nano', 'nano_q4'])
def test_a_shipped_set_is_intact_here_and_where_it_is_installed(name):
    for models in (MODELS, Path(get_package_share_directory('minicpmo_ros')) / 'models'):
        model = ModelDirectory.open(models / name)
        assert model.verify_hashes() == []
        assert model.space == 'minicpm-o-2.6/256/nano'
        assert model.manifest.licence and model.manifest.notes


def test_both_sets_are_small_enough_to_carry():
    assert sum(path.stat().st_size for path in MODELS.rglob('*.*')) <= LARGEST_BYTES
