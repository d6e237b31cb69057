# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Check whether the files of a model directory are whole and belong together."""

from pathlib import Path

SUMMARY = 'check the files of a model directory'


def add_arguments(parser) -> None:
    """Declare the options."""
    parser.add_argument('directory', type=Path, metavar='DIR', help='the model directory')
    parser.add_argument(
        '--hashes',
        action='store_true',
        help='also compare the SHA-256 of every file; seconds per gigabyte',
    )


def run(arguments) -> None:
    """Print what the model is, and what is probably not meant."""
    from minicpmo_ros.models.directory import ModelDirectory

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
        unrecorded = model.verify_hashes()
        print(
            'hashes: '
            + (f'none recorded for {", ".join(unrecorded)}' if unrecorded else 'as recorded')
        )
