# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Convert a Hugging Face checkpoint of MiniCPM-o 2.6 or 4.5 into a model directory.

The checkpoint is a directory of config.json, safetensors and tokenizer files; its voice (tts.*)
is left out. Memory does not grow with the model. Make the result smaller with `quantize`.
"""

import sys
from collections import Counter
from pathlib import Path

SUMMARY = 'convert a Hugging Face checkpoint'
TYPES = ('f16', 'bf16', 'f32')


def add_arguments(parser) -> None:
    """Declare the options."""
    parser.add_argument(
        'source', type=Path, metavar='HF_DIR', help='directory of the checkpoint, fetched whole'
    )
    parser.add_argument(
        'target', type=Path, metavar='OUT_DIR', help='where to write; made if it is not there'
    )
    parser.add_argument(
        '--type', choices=TYPES, default='f16', help='of matrices; norms and biases stay f32'
    )
    parser.add_argument(
        '--model-id',
        default='',
        metavar='NAME',
        help='name of the model in the manifest; without it that of HF_DIR',
    )
    parser.add_argument('--force', action='store_true', help='overwrite a model')


def run(arguments) -> None:
    """Write the files and print their sizes, and which tensors were left out."""
    from minicpmo_ros.models.convert import convert_directory

    conversion = convert_directory(
        arguments.source,
        arguments.target,
        arguments.type,
        arguments.model_id,
        arguments.force,
        _Progress(),
    )
    for header in conversion.model.headers.values():
        print(f'{header.path}  {arguments.type}  {header.size_bytes / 2**20:.1f} MiB')
    if conversion.unused:
        groups = Counter(name.split('.')[0] for name in conversion.unused)
        print('not converted: ' + ', '.join(f'{group}.* ({n} tensors)' for group, n
                                            in sorted(groups.items())))  # fmt: skip
    for warning in conversion.model.warnings:
        print(f'warning: {warning}')


class _Progress:
    """Tells on stderr how far it is: on a terminal in one line, else every ten percent."""

    def __init__(self):
        self._shown = -1

    def __call__(self, role: str, tensor: str, done_bytes: int, total_bytes: int) -> None:
        percent = 100 * done_bytes // total_bytes
        if sys.stderr.isatty():
            end = '\n' if percent == 100 else '\r'
            print(f'\r{percent:3} % {role} {tensor}\033[K', end=end, file=sys.stderr, flush=True)
        elif percent // 10 > self._shown // 10:
            print(f'{percent:3} % {role} {tensor}', file=sys.stderr, flush=True)
            self._shown = percent
