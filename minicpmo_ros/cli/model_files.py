# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The verbs that make and check model directories: adopt, check, convert, synthetic."""

import os
import sys
from collections import Counter
from pathlib import Path

from minicpmo_ros.cli.options import HELP, model_path
from minicpmo_ros.config import PARTS
from minicpmo_ros.documents import make_folder
from minicpmo_ros.errors import InputError, ModelFileError, printable
from minicpmo_ros.families import FAMILIES
from minicpmo_ros.modelset.gguf_layouts import FFN_NAMES, PRECISIONS, SHAPES
from minicpmo_ros.verbs.arguments import count

TYPES = ('f16', 'bf16', 'f32')
TRUE_SIZES = ' and '.join(family.published.name for family in FAMILIES.values())
FILES = ('llm.gguf', 'vision.gguf', 'audio.gguf', 'manifest.yaml')


def add_adopt_arguments(parser) -> None:
    """Declare the options of `adopt`."""
    parser.add_argument(
        'directory',
        type=Path,
        metavar='DIR',
        help='the folder with the GGUF files, in it or in its subfolders',
    )
    for part in PARTS:
        parser.add_argument(
            f'--{part}',
            type=Path,
            metavar='FILE',
            help=f'the {part} file, where several would do; a path in DIR or any other',
        )
    parser.add_argument(
        '--id', default='', help='name of the model in topics and tables; default: its version'
    )
    parser.add_argument(
        '--licence',
        default='',
        help='what the publisher says; recorded in the manifest, not checked',
    )
    parser.add_argument(
        '--out',
        type=Path,
        metavar='FOLDER',
        help='write the manifest into this folder, with absolute paths to the files; this '
        'folder is then the model directory; default: DIR',
    )
    parser.add_argument(
        '--pre-tokenizer',
        choices=('', 'qwen2'),
        default='',
        help='qwen2: the language model splits text like Qwen2, although its header names '
        "another way or none; accepted if its vocabulary is Qwen2's",
    )
    parser.add_argument('--force', action='store_true', help='overwrite a manifest')


def run_adopt(arguments) -> None:
    """Turn a folder of published MiniCPM-o files into a model directory.

    Recognises the files by their headers, whatever their names, checks and hashes them, and writes
    the manifest. The files stay where they are. If the folder cannot be written to, --out puts the
    manifest elsewhere.
    """
    from minicpmo_ros.llm.tokens import vocabulary_warnings
    from minicpmo_ros.modelset import adopt

    directory = arguments.directory
    place = directory if arguments.out is None else arguments.out
    if arguments.out is not None:
        make_folder(place)
    adopt.require_place(place, arguments.force)
    chosen = {part: getattr(arguments, part) for part in PARTS if getattr(arguments, part)}
    found = adopt.find(
        directory,
        chosen,
        arguments.id,
        arguments.licence,
        arguments.out,
        arguments.pre_tokenizer,
    )
    model = found.model
    print(f'{model.model_id} ({model.family}, width {model.width})')
    for part, header in model.headers.items():
        print(
            f'{part:7}{model.precision[part]:7}{header.size_bytes / 2**20:10.1f} MiB  '
            f'{printable(model.manifest.files[part].path)}'
        )
    for path, reason in found.unused:
        print(f'not used: {printable(str(path.relative_to(directory)))}: {reason}')
    for warning in (*model.warnings, *vocabulary_warnings(model.headers['llm'])):
        print(f'warning: {warning}')
    print(f'wrote {adopt.write(found, arguments.force, _hash)}')


def _hash(path: Path) -> str:
    """Return the SHA-256 of a file, and show on a terminal how far it is."""
    from minicpmo_ros.modelset.manifest import sha256_of

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


def add_check_arguments(parser) -> None:
    """Declare the options of `check`."""
    parser.add_argument('directory', type=model_path, metavar='DIR', help=HELP)
    parser.add_argument(
        '--hashes',
        action='store_true',
        help='also compare the SHA-256 of every file; takes seconds per gigabyte',
    )
    parser.add_argument(
        '--cache',
        type=Path,
        metavar='FOLDER',
        help='folder for the hashes of unchanged files; default: minicpmo_ros in '
        '$XDG_CACHE_HOME or ~/.cache',
    )
    parser.add_argument(
        '--no-cache', action='store_true', help='read every file, and keep no hashes'
    )


def cache_folder() -> Path:
    """Return the user's folder for what can be computed again (XDG base directories)."""
    base = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
    return Path(base).expanduser() / 'minicpmo_ros'


def run_check(arguments) -> None:
    """Check whether the files of a model directory are whole and belong together."""
    from minicpmo_ros.llm.model import load_vocabulary
    from minicpmo_ros.llm.tokens import vocabulary_warnings
    from minicpmo_ros.modelset.directory import ModelDirectory
    from minicpmo_ros.modelset.manifest import HashCache, sha256_of

    model = ModelDirectory.open(arguments.directory)
    print(f'{model.model_id} ({model.family}, width {model.width})')
    for part, header in model.headers.items():
        print(
            f'{part:7}{model.precision[part]:7}{header.size_bytes / 2**20:10.1f} MiB  '
            f'{printable(header.path.name)}'
        )
    if model.manifest.pre_tokenizer:
        load_vocabulary(model.llm_path, model.manifest.pre_tokenizer)
    for warning in (*model.warnings, *vocabulary_warnings(model.headers['llm'])):
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


def add_convert_arguments(parser) -> None:
    """Declare the options of `convert`."""
    parser.add_argument(
        'source',
        type=Path,
        metavar='HF_DIR',
        help='directory of the checkpoint, fetched completely',
    )
    parser.add_argument(
        'target', type=Path, metavar='OUT_DIR', help='where to write; created if it does not exist'
    )
    parser.add_argument(
        '--type', choices=TYPES, default='f16', help='type of matrices; norms and biases stay f32'
    )
    parser.add_argument(
        '--model-id',
        default='',
        metavar='NAME',
        help='name of the model in the manifest; default: the name of HF_DIR',
    )
    parser.add_argument('--force', action='store_true', help='overwrite a model')


def run_convert(arguments) -> None:
    """Convert a Hugging Face checkpoint of MiniCPM-o 2.6 or 4.5 into a model directory.

    The checkpoint is a directory of config.json, safetensors and tokenizer files; its voice
    (tts.*) is left out. Memory does not grow with the model. Make the result smaller with
    `quantize`.
    """
    from minicpmo_ros.convert.converter import convert_directory
    from minicpmo_ros.modelset.directory import ModelDirectory

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
    for warning in (*conversion.model.warnings, *conversion.warnings):
        print(f'warning: {warning}')
    try:
        ModelDirectory.open(arguments.target)
    except ModelFileError as error:
        raise InputError(
            f'{error}. So are weights of {arguments.source}: let its download end, or fetch it '
            'again, and convert it anew.'
        ) from None


class _Progress:
    """Tells on stderr how far it is: on a terminal in one line, else every ten percent."""

    def __init__(self):
        self._shown = -1

    def __call__(self, part: str, tensor: str, done_bytes: int, total_bytes: int) -> None:
        percent = 100 * done_bytes // total_bytes
        if sys.stderr.isatty():
            end = '\n' if percent == 100 else '\r'
            print(f'\r{percent:3} % {part} {tensor}\033[K', end=end, file=sys.stderr, flush=True)
        elif percent // 10 > self._shown // 10:
            print(f'{percent:3} % {part} {tensor}', file=sys.stderr, flush=True)
            self._shown = percent


def add_synthetic_arguments(parser) -> None:
    """Declare the options of `synthetic`."""
    parser.add_argument(
        'directory', type=Path, metavar='DIR', help='where to write; created if it does not exist'
    )
    parser.add_argument(
        '--shape', choices=SHAPES, default='tiny', help=f'{TRUE_SIZES} have the true sizes'
    )
    parser.add_argument('--seed', type=count, default=1, help='the same seed gives the same bytes')
    for part in ('llm', 'vision', 'audio'):
        parser.add_argument(
            f'--{part}', choices=PRECISIONS, default='f16', help=f'precision of {part}.gguf'
        )
    parser.add_argument(
        '--ffn-naming',
        choices=FFN_NAMES,
        default='swapped',
        help='names of the vision feed-forward layers; swapped: as published',
    )
    parser.add_argument(
        '--pad-ffn',
        action='store_true',
        help='widen the rows of the vision '
        'feed-forward to whole blocks instead of storing them in f16',
    )
    parser.add_argument(
        '--no-hashes', action='store_true', help='leave the SHA-256 out of the manifest'
    )
    parser.add_argument('--force', action='store_true', help='overwrite a model')


def run_synthetic(arguments) -> None:
    """Write a model of random weights in the published layouts, for tests and benchmarks."""
    from minicpmo_ros.synthetic.model import write_model

    directory = arguments.directory
    present = [name for name in FILES if (directory / name).exists()]
    if present and not arguments.force:
        raise InputError(
            f'{directory} already holds {", ".join(present)}; give another '
            'directory, or --force to overwrite them.'
        )
    write_model(
        directory,
        arguments.shape,
        arguments.seed,
        arguments.llm,
        arguments.vision,
        arguments.audio,
        arguments.ffn_naming,
        arguments.pad_ffn,
        not arguments.no_hashes,
    )
    for name in FILES[:3]:
        print(f'{directory / name}  {(directory / name).stat().st_size / 2**20:.1f} MiB')
