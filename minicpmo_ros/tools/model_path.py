# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Where the model lies that a verb is given: a path, or the name of an embedded model."""

import os
from pathlib import Path

HELP = 'model directory, or the name of an embedded model (nano)'


def model_path(given: str) -> Path:
    """Give the path as it is, or that of a model which is installed or lies in the checkout."""
    path = Path(given).expanduser()
    prefixes = os.environ.get('AMENT_PREFIX_PATH', '').split(':')
    embedded = [Path(prefix) / 'share/minicpmo_ros/models' for prefix in prefixes if prefix]
    embedded.append(Path(__file__).parents[2] / 'models')
    if path.exists() or len(path.parts) != 1:
        return path
    return next((each / path for each in embedded if (each / path).is_dir()), path)
