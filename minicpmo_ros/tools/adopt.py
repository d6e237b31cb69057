# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Make published MiniCPM-o files a model directory: recognise, check, hash, write the manifest.

Files are recognised by their headers, whatever their names; they stay where they are.
"""

import sys
from pathlib import Path

SUMMARY = 'write the manifest of published model files'
ROLES = ('llm', 'vision', 'audio')


def add_arguments(parser) -> None:
    """Declare the options."""
    parser.add_argument(
        'directory', type=Path, metavar='DIR', help='where the GGUF files lie, or its subfolders'
    )
    for role in ROLES:
        parser.add_argument(
            f'--{role}',
            type=Path,
            metavar='FILE',
            help=f'the {role} file, where several would do; a path in DIR or any other',
        )
    parser.add_argument(
        '--id', default='', help='name of the model in topics and tables; default: its family'
    )
    parser.add_argument(
        '--licence',
        default='',
        help='what the publisher says; recorded in the manifest, not checked',
    )
    parser.add_argument('--force', action='store_true', help='overwrite a manifest')


def run(arguments) -> None:
    """Print what was found and what is not used, then write the manifest."""
    from minicpmo_ros.models import adopt

    directory = arguments.directory
    adopt.require_no_manifest(directory, arguments.force)
    chosen = {role: getattr(arguments, role) for role in ROLES if getattr(arguments, role)}
    found = adopt.find(directory, chosen, arguments.id, arguments.licence)
    model = found.model
    print(f'{model.model_id} ({model.family}, width {model.width})')
    for role, header in model.headers.items():
        print(
            f'{role:7}{model.precision[role]:7}{header.size_bytes / 2**20:10.1f} MiB  '
            f'{model.manifest.files[role].path}'
        )
    for path, reason in found.unused:
        print(f'not used: {path.relative_to(directory)}: {reason}')
    for warning in model.warnings:
        print(f'warning: {warning}')
    print(f'wrote {adopt.write(found, arguments.force, _hash)}')


def _hash(path: Path) -> str:
    """Return the SHA-256 of a file, and show on a terminal how far it is."""
    from minicpmo_ros.models.manifest import sha256_of

    if not sys.stderr.isatty():
        return sha256_of(path)
    digest = sha256_of(
        path,
        lambda done, total: print(
            f'\rSHA-256 of {path.name}: {100 * done // total} %', end='', file=sys.stderr
        ),
    )
    print(file=sys.stderr)
    return digest
