# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Check whether the files of a model directory are whole and belong together."""

import os
from pathlib import Path

from minicpmo_ros.tools.model_path import HELP, model_path

SUMMARY = 'check the files of a model directory'


def add_arguments(parser) -> None:
    """Declare the options."""
    parser.add_argument('directory', type=model_path, metavar='DIR', help=HELP)
    parser.add_argument(
        '--hashes',
        action='store_true',
        help='also compare the SHA-256 of every file; seconds per gigabyte',
    )
    parser.add_argument(
        '--cache',
        type=Path,
        metavar='FOLDER',
        help='where hashes of unchanged files are kept, to be looked up from then on; '
        'without it minicpmo_ros in $XDG_CACHE_HOME or ~/.cache',
    )
    parser.add_argument(
        '--no-cache', action='store_true', help='read every file, and keep nothing'
    )


def cache_folder() -> Path:
    """Give the user's folder for what can be computed again (XDG base directories)."""
    base = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
    return Path(base).expanduser() / 'minicpmo_ros'


def run(arguments) -> None:
    """Print what the model is, and what is probably not meant."""
    from minicpmo_ros.models.directory import ModelDirectory
    from minicpmo_ros.models.hash_cache import HashCache
    from minicpmo_ros.models.manifest import sha256_of

    model = ModelDirectory.open(arguments.directory)
    print(f'{model.model_id} ({model.family}, width {model.width})')
    for role, header in model.headers.items():
        print(
            f'{role:7}{model.precision[role]:7}{header.size_bytes / 2**20:10.1f} MiB  '
            f'{header.path.name}'
        )
    for warning in model.warnings:
        print(f'warning: {warning}')
    if arguments.hashes:
        sha256 = (
            sha256_of
            if arguments.no_cache
            else HashCache(arguments.cache or cache_folder()).sha256
        )
        unrecorded = model.verify_hashes(sha256)
        print(
            'hashes: '
            + (f'none recorded for {", ".join(unrecorded)}' if unrecorded else 'as recorded')
        )
