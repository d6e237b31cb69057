# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The verb fetch, which brings published model files onto this machine and adopts them."""

import os
import re
import sys
import tempfile
import time
from dataclasses import replace
from itertools import product
from pathlib import Path, PurePosixPath

from minicpmo_ros.config import PARTS
from minicpmo_ros.errors import InputError, ModelFileError
from minicpmo_ros.families import FAMILIES
from minicpmo_ros.units import MIB
from minicpmo_ros.verbs.arguments import amount

OF_VERSION = {each.version: each for each in FAMILIES.values() if each.sources}
FULL_PRECISIONS = ('F16', 'BF16', 'F32')  # of the language model: fetched only if asked for
REPOSITORY = r'[\w.-]+/[\w.-]+'
REPORT_S = 30.0  # between two lines about progress, where no terminal shows it


def add_fetch_arguments(parser) -> None:
    """Declare the options of `fetch`."""
    parser.add_argument('version', choices=OF_VERSION, help='which MiniCPM-o')
    parser.add_argument(
        'directory',
        nargs='?',
        type=Path,
        metavar='DIR',
        help='where to put the files; default: ~/models/minicpm-o-VERSION',
    )
    parser.add_argument(
        '--precision',
        metavar='NAME',
        help='of the language model, such as Q4_K_M; default: the largest up to 8 bits that '
        'fits into the memory of this machine, by the forecast of `minicpmo plan`',
    )
    parser.add_argument('--preset', help='for the forecast: name of a preset, or its file')
    parser.add_argument(
        '--memory-mib', type=amount, help='for the forecast; default: the available memory'
    )
    parser.add_argument(
        '--gpu-memory-mib',
        type=amount,
        help='for the forecast: memory of a GPU that has its own; default: it shares the memory',
    )
    for part in PARTS:
        parser.add_argument(
            f'--{part}', metavar='PATTERN', help=f'name of the {part} file, with * and ?'
        )
    _add_hub_arguments(parser)
    parser.add_argument(
        '--licence', default='', help='for the manifest; default: as the card says'
    )
    parser.add_argument('--dry-run', action='store_true', help='say what would be fetched')
    parser.add_argument('--force', action='store_true', help='overwrite a manifest of other files')


def _add_hub_arguments(parser) -> None:
    """Declare from where the files are fetched."""
    parser.add_argument(
        '--repo',
        metavar='OWNER/NAME',
        help='take all parts from this repository; default: those of docs/models.md',
    )
    parser.add_argument('--revision', default='main', help='branch, tag or commit')
    parser.add_argument(
        '--endpoint',
        default='',
        metavar='URL',
        help='server that speaks the protocol of the hub; default: $HF_ENDPOINT, or '
        'https://huggingface.co',
    )
    parser.add_argument(
        '--timeout', type=amount, default=30.0, metavar='S', help='wait so long for the next byte'
    )


def run_fetch(arguments) -> None:
    """Fetch the published files of MiniCPM-o 2.6 or 4.5 and make a model directory of them.

    Asks the hub for names, sizes and hashes, chooses the precision that fits into this machine's
    memory, looks for room on the disk, fetches, compares the hashes, and writes the manifest as
    `adopt` does. Run it again after an interruption: it goes on where it stopped.
    """
    os.environ.setdefault('HF_HUB_DISABLE_TELEMETRY', '1')  # read when the package is imported
    from minicpmo_ros.modelset.hub import Hub, UnreachableError, missing_bytes, require_room

    _check(arguments)
    family = OF_VERSION[arguments.version]
    directory = arguments.directory or Path.home() / 'models' / family.name
    hub = Hub(arguments.endpoint, arguments.timeout)
    try:
        found, licence = _published(hub, family, arguments)
        chosen = _choose(family, found, arguments)
        for part, file in chosen.items():
            size = f'{file.precision:8}{file.size_mib:10.1f} MiB'
            print(f'{part:7}{size}  {file.repository} {file.name}')
        missing = missing_bytes(chosen.values(), directory)
        print(f'{missing / MIB:.1f} MiB are to be fetched into {directory}')
        _require_place(directory, chosen, arguments.force)
        require_room(chosen.values(), directory)
        if arguments.dry_run:
            return
        hashes = {
            hub.fetch(file, directory, _Progress(file.name), _warn).resolve(): file.sha256
            for file in chosen.values()
        }
    except UnreachableError as error:
        raise InputError(f'{error} {_by_hand(family, directory, arguments)}') from None
    _require_rest(family, chosen, directory)
    _adopt(directory, chosen, hashes, arguments.licence or licence)


def _check(arguments) -> None:
    """Refuse before the network is asked what cannot go well."""
    from minicpmo_ros.cli.plan import preset_path
    from minicpmo_ros.memory.plan import read_parameters

    if arguments.repo is not None and not re.fullmatch(REPOSITORY, arguments.repo):
        raise InputError(f'--repo is {arguments.repo!r}; OWNER/NAME is expected.')
    endpoint = arguments.endpoint or os.environ.get('HF_ENDPOINT', '')
    if endpoint and not endpoint.startswith(('http://', 'https://')):
        raise InputError(
            f'--endpoint (or HF_ENDPOINT) is {endpoint!r}; http://HOST or https://HOST is '
            'expected.'
        )
    if not arguments.timeout:
        raise InputError('--timeout is 0; more than 0 seconds are expected.')
    if arguments.directory is not None and arguments.directory.is_file():
        raise InputError(f'{arguments.directory} is a file; a folder is expected.')
    if arguments.preset:
        read_parameters(preset_path(arguments.preset))


def _published(hub, family, arguments) -> tuple:
    """Return ({part: the RemoteFiles that could be it}, licence as the cards say)."""
    found, listings = {}, {}
    for part, source in _sources(family, arguments).items():
        if not source.repository:
            continue
        if source.repository not in listings:
            listings[source.repository] = hub.listing(source.repository, arguments.revision)
        listing = listings[source.repository]
        found[part] = listing.matching(source.pattern)
        if not found[part]:
            names = ', '.join(each.name for each in listing.files[:40]) or 'none with a hash'
            raise InputError(
                f'{hub.endpoint}/{source.repository} holds no {source.pattern} for {part}; it '
                f'holds {names}. Name the file with --{part}.'
            )
    licences = dict.fromkeys(each.licence for each in listings.values() if each.licence)
    return found, ', '.join(licences)


def _sources(family, arguments) -> dict:
    """Return {part: Publication}, as the options have it."""
    sources = dict(family.sources)
    for part in PARTS:
        if arguments.repo:
            sources[part] = replace(sources[part], repository=arguments.repo)
        if pattern := getattr(arguments, part):
            sources[part] = replace(sources[part], pattern=pattern)
    return sources


def _choose(family, found: dict, arguments) -> dict:
    """Return {part: RemoteFile}: the most precise that fit into the memory, or that are named."""
    found = dict(found)
    if arguments.precision:
        named = [f for f in found['llm'] if f.precision == arguments.precision.upper()]
        if not named:
            there = ', '.join(sorted({f.precision for f in found['llm']} - {''}))
            raise InputError(f'There is no precision {arguments.precision}; there are {there}.')
        found['llm'] = named
    elif not arguments.llm:
        small = [f for f in found['llm'] if f.precision not in FULL_PRECISIONS]
        found['llm'] = small or found['llm']
    in_order = [sorted(files, key=lambda f: -f.size_bytes) for files in found.values()]
    choices = [dict(zip(found, files, strict=True)) for files in product(*in_order)]
    if arguments.precision or arguments.llm:
        return choices[0]
    forecast = _Forecast(family, arguments)
    for chosen in choices:
        if forecast.excess_mib(chosen) <= 0:
            return chosen
    smallest = choices[-1]['llm']
    raise InputError(
        f'No precision fits into the memory: with the smallest, {smallest.precision}, '
        f'{forecast.excess_mib(choices[-1]):.0f} MiB are too many of '
        f'{forecast.limits.host_mib:.0f}. End other programs, give a --preset with a smaller '
        f'n_ctx, or fetch it for another machine: --precision {smallest.precision}.'
    )


class _Forecast:
    """What the published sizes come to in memory: the plan of a model of the same shape."""

    def __init__(self, family, arguments):
        from minicpmo_ros.cli.plan import preset_path
        from minicpmo_ros.memory.limits import Limits
        from minicpmo_ros.memory.plan import forecast, plan_options, read_parameters
        from minicpmo_ros.memory.proc import available_mib
        from minicpmo_ros.modelset.directory import ModelDirectory
        from minicpmo_ros.synthetic.model import write_model

        parameters = {}
        if arguments.preset:
            parameters = read_parameters(preset_path(arguments.preset))
        self.limits = Limits(arguments.memory_mib or available_mib(), arguments.gpu_memory_mib)
        with tempfile.TemporaryDirectory() as folder:  # headers alone: no weights are written
            write_model(folder, family.published, None, 'q4_K', hashes=False)
            model = ModelDirectory.open(folder, hollow=True)
            self._plan = forecast(model, plan_options(parameters))
        self._sizes = {part: header.size_bytes for part, header in model.headers.items()}

    def excess_mib(self, chosen: dict) -> float:
        """Return by how much files are too large; zero or less where they fit."""
        from minicpmo_ros.memory.plan import Amount

        more = []
        for part, file in chosen.items():
            bytes_ = file.size_bytes - self._sizes[part]
            on_gpu = self._plan.amount(part, 'weights').device > 0
            more.append(Amount(part, 'weights', 0 if on_gpu else bytes_, bytes_ if on_gpu else 0))
        return self.limits.excess_mib(replace(self._plan, amounts=(*self._plan.amounts, *more)))


def _require_place(directory: Path, chosen: dict, force: bool) -> None:
    """Raise InputError where the manifest of other files would be overwritten."""
    from minicpmo_ros.modelset.manifest import FILE_NAME, read_manifest

    if force or not (directory / FILE_NAME).exists():
        return
    try:
        there = {part: entry.path for part, entry in read_manifest(directory).files.items()}
    except ModelFileError:
        there = {}
    if any(there.get(part) != file.name for part, file in chosen.items()):
        raise InputError(
            f'{directory / FILE_NAME} names other files. Give another folder, or --force to '
            'write it anew.'
        )


def _require_rest(family, chosen: dict, directory: Path) -> None:
    """Raise InputError where a part that is not on the hub was not put there by hand."""
    for part, source in family.sources.items():
        if part in chosen or any(directory.rglob(PurePosixPath(source.pattern).name)):
            continue
        raise InputError(
            f'The {part} file is not on the hub, all else is in {directory}. Copy '
            f'{source.pattern} from {source.elsewhere} into it, then run the same command again.'
        )


def _by_hand(family, directory: Path, arguments) -> str:
    """Return which files to copy where, for a machine without a network."""
    sources, hub = _sources(family, arguments), 'https://huggingface.co'
    steps = []
    for part, source in sources.items():
        place = f'{hub}/{source.repository}' if source.repository else source.elsewhere
        steps.append(f'{part}: {source.pattern} of {place}')
    return (
        'Check network, proxy and --endpoint. Or fetch one file of each on a machine with a '
        f'network ({"; ".join(steps)}), copy the three into {directory}, and run '
        f'`minicpmo adopt {directory}`.'
    )


def _adopt(directory: Path, chosen: dict, hashes: dict, licence: str) -> None:
    """Write the manifest; hashes of fetched files are those that were compared."""
    from minicpmo_ros.modelset import adopt
    from minicpmo_ros.modelset.manifest import sha256_of

    files = {part: Path(file.name) for part, file in chosen.items()}
    found = adopt.find(directory, files, licence=licence)
    for warning in found.model.warnings:
        print(f'warning: {warning}')
    path = adopt.write(found, True, lambda path: hashes.get(path.resolve()) or sha256_of(path))
    print(f'wrote {path}')


def _warn(text: str) -> None:
    print(f'\n{text}' if sys.stderr.isatty() else text, file=sys.stderr, flush=True)


class _Progress:
    """Tells on stderr how far a file is, how fast it comes and how long the rest takes."""

    def __init__(self, name: str):
        self._name, self._begun, self._told_s = name, None, 0.0

    def __call__(self, done: int, total: int) -> None:
        now_s, on_terminal = time.monotonic(), sys.stderr.isatty()
        if self._begun is None:
            self._begun, self._told_s = (now_s, done), now_s
        if done < total and now_s - self._told_s < (0.5 if on_terminal else REPORT_S):
            return
        self._told_s = now_s
        rate = max(1.0, (done - self._begun[1]) / max(1e-3, now_s - self._begun[0]))
        left_s = (total - done) / rate
        text = (
            f'{100 * done // total:3} % of {self._name}, {rate / MIB:.1f} MiB/s, '
            f'{left_s / 60:.0f} min left'
        )
        end = '\n' if done == total or not on_terminal else '\033[K'
        print(f'\r{text}' if on_terminal else text, end=end, file=sys.stderr, flush=True)
