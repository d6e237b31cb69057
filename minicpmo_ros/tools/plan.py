# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Forecast the memory of a model directory with a preset or parameters; nothing is loaded.

Prints what each module takes and what other contexts would; exit status 2 where it does not fit,
with the parameters to lower.
"""

import json
from dataclasses import fields, replace
from pathlib import Path

from minicpmo_ros.errors import InputError
from minicpmo_ros.tools.model_path import HELP, model_path

SUMMARY = 'forecast the memory a model takes, and what to lower where it does not fit'
# Options of a plan that are no parameter of one node.
NOT_PARAMETERS = ('device', 'overlap_s', 'llm_precision', 'vision_precision', 'audio_precision',
                  'modules')  # fmt: skip
CONTEXTS, KV_TYPES = (2048, 4096, 8192), ('f16', 'q8_0')


def add_arguments(parser) -> None:
    """Declare the options."""
    parser.add_argument('directory', type=model_path, metavar='MODEL_DIR', help=HELP)
    parser.add_argument('--preset', help='name of a preset, or a YAML file of parameters')
    parser.add_argument(
        '--set',
        action='append',
        default=[],
        metavar='NAME=VALUE',
        help='a parameter, such as n_ctx=8192, kv_type=q8_0, vision.max_tiles=2, repack=true; '
        'goes before the preset',
    )
    parser.add_argument(
        '--memory-mib',
        type=float,
        help='what may be taken; default: memory_limit_mib of the preset, else what this machine '
        'has available',
    )
    parser.add_argument(
        '--gpu-memory-mib',
        type=float,
        help='memory of a GPU that has its own; default: the GPU shares --memory-mib, as on a '
        'Jetson',
    )
    parser.add_argument('--json', action='store_true', help='print the figures as JSON')


def run(arguments) -> None:
    """Print the plan; raise where it does not fit."""
    from minicpmo_ros.models.directory import ModelDirectory
    from minicpmo_ros.models.plan import forecast
    from minicpmo_ros.models.presets import plan_options
    from minicpmo_ros.models.remedies import Limits, require_fit
    from minicpmo_ros.nodes.memory import available_mib

    parameters = _parameters(arguments)
    limit_mib = arguments.memory_mib or _limit_of(parameters) or available_mib()
    limits = Limits(limit_mib, arguments.gpu_memory_mib)
    model = ModelDirectory.open(arguments.directory)
    plan = forecast(model, plan_options(parameters))
    if arguments.json:
        print(json.dumps(_figures(plan, limits), indent=1))
    else:
        print(_by_module(plan))
        print(_by_context(model, plan, limits))
        print(f'\n{_verdict(plan, limits)}')
    require_fit(model, plan, limits)


def _parameters(arguments) -> dict:
    """Give {node: {parameter: value}} of the preset and of --set, which goes before it."""
    import yaml

    from minicpmo_ros.models.plan import PlanOptions
    from minicpmo_ros.models.presets import NODES, SOURCES, read_parameters

    parameters = {node: {} for node in NODES}
    if arguments.preset:
        parameters = read_parameters(preset_path(arguments.preset))
    names = {row.name: ('llm', row.name) for row in fields(PlanOptions)} | SOURCES
    owners = {name: node for node, name in names.values() if name not in NOT_PARAMETERS}
    for text in arguments.set:
        name, equals, value = text.partition('=')
        if not equals or name not in (*owners, 'device'):
            raise InputError(
                f'--set {text!r}: expected is NAME=VALUE, with one of device, {", ".join(owners)}'
            )
        for node in NODES if name == 'device' else (owners[name],):
            parameters[node][name] = yaml.safe_load(value)
    return parameters


def preset_path(given: str) -> Path:
    """Give the file of a preset's name or of a path; InputError where there is none."""
    if given.endswith(('.yaml', '.yml')):
        return Path(given)
    folders = (Path(__file__).parents[2] / 'config', _installed())
    for folder in folders:
        if folder is not None and (folder / f'{given}.yaml').is_file():
            return folder / f'{given}.yaml'
    names = sorted({path.stem for folder in folders if folder for path in folder.glob('*.yaml')})
    raise InputError(f'there is no preset {given!r}; there are: {", ".join(names)}')


def _installed() -> Path | None:
    try:
        from ament_index_python.packages import (
            PackageNotFoundError,
            get_package_share_directory,
        )
    except ImportError:
        return None
    try:
        return Path(get_package_share_directory('minicpmo_ros')) / 'config'
    except PackageNotFoundError:
        return None


def _limit_of(parameters: dict) -> float:
    limit_mib = parameters['llm'].get('memory_limit_mib', 0)
    if type(limit_mib) not in (int, float) or not limit_mib >= 0:
        raise InputError(f'memory_limit_mib is {limit_mib!r}; MiB, or 0 for none, are expected')
    return limit_mib


def _by_module(plan) -> str:
    """Give the table of modules and what they take."""
    from minicpmo_ros.models.plan import MIB, MODULES, WHAT

    lines = ['| MiB | memory | GPU |', '|---|---:|---:|']
    for module in MODULES:
        parts = [part for part in plan.parts if part.module == module]
        for part in sorted(parts, key=lambda part: WHAT.index(part.what)):
            label = part.what if module == 'process' else f'{module}: {part.what}'
            lines.append(f'| {label} | {part.host / MIB:.1f} | {part.device / MIB:.1f} |')
    lines.append(f'| **all** | **{plan.host_mib:.0f}** | **{plan.device_mib:.0f}** |')
    return '\n'.join(lines)


def _by_context(model, plan, limits) -> str:
    """Give the table of other contexts that the model has, all else being equal."""
    from minicpmo_ros.models.llm_memory import LlmFacts
    from minicpmo_ros.models.plan import forecast

    longest = LlmFacts.of(model.headers['llm']).context_length
    lines = [
        '',
        '| n_ctx | kv_type | memory | GPU | both | fits |',
        '|---:|---|---:|---:|---:|---|',
    ]
    for n_ctx in (n_ctx for n_ctx in CONTEXTS if n_ctx <= longest):
        for kv_type in KV_TYPES:
            options = replace(plan.options, n_ctx=n_ctx, kv_type=kv_type)
            other = forecast(model, options, plan)
            fits = 'yes' if limits.excess_mib(other) <= 0 else 'no'
            cells = (n_ctx, kv_type, *(f'{mib:.0f}' for mib in (
                other.host_mib, other.device_mib, other.total_mib)), fits)  # fmt: skip
            lines.append('| ' + ' | '.join(map(str, cells)) + ' |')
    return '\n'.join(lines)


def _verdict(plan, limits) -> str:
    of_gpu = '' if limits.device_mib is None else f' and {limits.device_mib:.0f} of the GPU'
    return (
        f'n_ctx {plan.options.n_ctx}, {plan.options.kv_type}: {plan.total_mib:.0f} MiB in all, '
        f'{limits.host_mib:.0f}{of_gpu} are to be had'
    )


def _figures(plan, limits) -> dict:
    from minicpmo_ros.models.plan import MIB

    return {
        'host_mib': plan.host_mib,
        'device_mib': plan.device_mib,
        'limit_mib': limits.host_mib,
        'gpu_limit_mib': limits.device_mib,
        'parts': [
            {
                'module': part.module,
                'what': part.what,
                'host_mib': part.host / MIB,
                'device_mib': part.device / MIB,
            }
            for part in plan.parts
        ],
    }
