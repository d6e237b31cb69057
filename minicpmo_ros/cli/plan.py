# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The verb plan, which predicts the memory of a model directory."""

import json
from dataclasses import fields, replace
from pathlib import Path

from minicpmo_ros.cli.options import HELP, model_path
from minicpmo_ros.errors import InputError
from minicpmo_ros.units import MIB
from minicpmo_ros.verbs.arguments import amount

# Options of a plan that are no parameter of one node.
COMMON = ('device', 'rpc_servers')  # parameters of every node
NOT_PARAMETERS = (*COMMON, 'overlap_s', 'llm_precision', 'vision_precision', 'audio_precision',
                  'parts')  # fmt: skip
CONTEXTS, KV_TYPES = (2048, 4096, 8192), ('f16', 'q8_0')


def add_plan_arguments(parser) -> None:
    """Declare the options of `plan`."""
    parser.add_argument('directory', type=model_path, metavar='MODEL_DIR', help=HELP)
    parser.add_argument('--preset', help='name of a preset, or a YAML file of parameters')
    parser.add_argument(
        '--set',
        action='append',
        default=[],
        metavar='NAME=VALUE',
        help='a parameter, such as n_ctx=8192, kv_type=q8_0, vision.max_tiles=2, '
        'repack=true; overrides the preset',
    )
    parser.add_argument(
        '--memory-mib',
        type=amount,
        help='the limit; default: memory_limit_mib of the preset, otherwise the available memory',
    )
    parser.add_argument(
        '--gpu-memory-mib',
        type=amount,
        help='memory of a GPU that has its own; default: the GPU shares --memory-mib, as on a '
        'Jetson',
    )
    parser.add_argument('--json', action='store_true', help='print the figures as JSON')


def run_plan(arguments) -> None:
    """Predict the memory of a model directory with a preset or parameters; loads nothing.

    Prints the memory of each part and the memory for other contexts. If the model does not fit,
    it names the parameters to lower, and the exit status is 2.
    """
    from minicpmo_ros.memory.limits import Limits, require_fit
    from minicpmo_ros.memory.plan import forecast, plan_options
    from minicpmo_ros.memory.proc import available_mib
    from minicpmo_ros.modelset.directory import ModelDirectory

    parameters = _parameters(arguments)
    limit_mib = arguments.memory_mib or _limit_of(parameters) or available_mib()
    limits = Limits(limit_mib, arguments.gpu_memory_mib)
    model = ModelDirectory.open(arguments.directory)
    plan = forecast(model, plan_options(parameters))
    if arguments.json:
        print(json.dumps({**_figures(plan, limits), 'warning': _warning(model, plan)}, indent=1))
    else:
        print(_by_part(plan))
        print(_by_context(model, plan, limits))
        print(f'\n{_verdict(plan, limits)}')
        if warning := _warning(model, plan):
            print(f'warning: {warning}')
    require_fit(model, plan, limits)


def _parameters(arguments) -> dict:
    """Return {node: {parameter: value}} of the preset and of --set, which goes before it."""
    from minicpmo_ros.config import NODES
    from minicpmo_ros.memory.plan import SOURCES, PlanOptions, read_parameters

    parameters = {node: {} for node in NODES}
    if arguments.preset:
        parameters = read_parameters(preset_path(arguments.preset))
    names = {row.name: ('llm', row.name) for row in fields(PlanOptions)} | SOURCES
    owners = {name: node for node, name in names.values() if name not in NOT_PARAMETERS}
    for text in arguments.set:
        name, equals, value = text.partition('=')
        if not equals or name not in (*owners, *COMMON):
            raise InputError(
                f'--set {text!r}: expected is NAME=VALUE, with one of '
                f'{", ".join((*COMMON, *owners))}'
            )
        for node in NODES if name in COMMON else (owners[name],):
            parameters[node][name] = _value_of(text, value)
    return parameters


def _value_of(text: str, value: str):
    from minicpmo_ros.documents import parse_yaml

    try:
        return parse_yaml(value)
    except ValueError as error:
        raise InputError(f'--set {text!r}: {error}') from None


def preset_path(given: str) -> Path:
    """Return the file of a preset's name or of a path; InputError where there is none."""
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


def _by_part(plan) -> str:
    """Return the table of parts of the model and what they take."""
    from minicpmo_ros.memory.plan import PLANNED, WHAT

    lines = ['| MiB | memory | GPU |', '|---|---:|---:|']
    for part in PLANNED:
        amounts = [each for each in plan.amounts if each.part == part]
        for each in sorted(amounts, key=lambda each: WHAT.index(each.what)):
            label = each.what if part == 'process' else f'{part}: {each.what}'
            lines.append(f'| {label} | {each.host / MIB:.1f} | {each.device / MIB:.1f} |')
    lines.append(f'| **all** | **{plan.host_mib:.0f}** | **{plan.device_mib:.0f}** |')
    return '\n'.join(lines)


def _by_context(model, plan, limits) -> str:
    """Return the table of other contexts that the model has, all else being equal."""
    from minicpmo_ros.memory.llm_formulas import LlmSizes
    from minicpmo_ros.memory.plan import forecast

    longest = LlmSizes.of(model.headers['llm']).context_length
    lines = [
        '',
        '| n_ctx | kv_type | memory | GPU | both | fits |',
        '|---:|---|---:|---:|---:|---|',
    ]
    for n_ctx in (n_ctx for n_ctx in CONTEXTS if n_ctx <= longest):
        for kv_type in KV_TYPES[:1] if plan.options.attention == 'plain' else KV_TYPES:
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
        f'{limits.host_mib:.0f}{of_gpu} are to be had\n{_seconds(plan)}'
    )


def _warning(model, plan) -> str:
    from minicpmo_ros.families import FAMILIES

    return FAMILIES[model.family].long_context_warning(plan.options.n_ctx)


def _seconds(plan) -> str:
    """Return what a second takes of the window and of the vision encoder, in words."""
    n_cameras, n_images = plan.options.n_cameras, plan.options.images_per_s
    of_what = f' with {n_cameras} cameras' * (n_cameras > 1)
    return (
        f'A second{of_what} takes about {plan.positions} positions, so the window holds '
        f'{plan.window_s} s at most; {n_images} image{"s" * (n_images > 1)} a second '
        f'{"are" if n_images > 1 else "is"} encoded'
    )


def _figures(plan, limits) -> dict:

    return {
        'host_mib': plan.host_mib,
        'device_mib': plan.device_mib,
        'limit_mib': limits.host_mib,
        'gpu_limit_mib': limits.device_mib,
        'positions_per_s': plan.positions,
        'window_s': plan.window_s,
        'images_per_s': plan.options.images_per_s,
        'parts': [
            {
                'part': amount.part,
                'module': amount.part,  # the older name of this key
                'what': amount.what,
                'host_mib': amount.host / MIB,
                'device_mib': amount.device / MIB,
            }
            for amount in plan.amounts
        ],
    }
