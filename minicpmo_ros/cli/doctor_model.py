# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Doctor's look at a model directory, and at the room there is for it."""

import math
from pathlib import Path

from minicpmo_ros.errors import FAIL, OK, WARN, Finding, InputError, ModelFileError, judged
from minicpmo_ros.families import FAMILIES
from minicpmo_ros.memory.limits import Limits
from minicpmo_ros.memory.plan import PlanOptions, forecast
from minicpmo_ros.memory.proc import (
    available_mib,
    meminfo_mib,
    resident_mib,
    shares_memory_with_gpu,
)
from minicpmo_ros.modelset.directory import ModelDirectory

EXECUTABLES = ('live', 'llm', 'vision_encoder', 'streaming_encoder')
RESERVE_MIB = 128.0  # memory_reserve_mib of node llm


def files(path: Path) -> tuple:
    """Return (the ModelDirectory or None, findings)."""
    try:
        model = ModelDirectory.open(path)
    except ModelFileError as error:
        return None, [Finding('files', FAIL, f'{error.path}: {error.problem}', error.remedy)]
    size_mib = sum(header.size_bytes for header in model.headers.values()) / 2**20
    kinds = ', '.join(f'{part} {kind or "?"}' for part, kind in model.precision.items())
    found = [Finding('files', OK, f'{path}: {model.model_id}, {size_mib:.0f} MiB ({kinds})')]
    for warning in model.warnings:
        found.append(Finding('files', WARN, warning, 'Convert or fetch the file again'))
    return model, found


def hashes(model: ModelDirectory) -> Finding:
    """Compare every file with its recorded SHA-256."""
    try:
        unrecorded = model.verify_hashes()
    except ModelFileError as error:
        return Finding('hashes', FAIL, f'{error.path}: {error.problem}', error.remedy)
    return judged(
        'hashes',
        f'not recorded for {", ".join(unrecorded)}' if unrecorded else 'as recorded',
        (unrecorded, WARN, 'Write the manifest anew from files that you trust'),
    )


def context(model: ModelDirectory, n_ctx: int) -> list:
    """Return a finding if the model is reported to answer badly in so long a context."""
    warning = FAMILIES[model.family].long_context_warning(n_ctx)
    return [Finding('context', WARN, *warning.split('. '))] if warning else []


def memory(root: Path, model: ModelDirectory, n_ctx: int, kv_type: str, gpu: str) -> Finding:
    """Compare what the plan says with what this machine has; what runs already has its part."""
    device, shares = ('gpu' if gpu else 'cpu'), shares_memory_with_gpu(root)
    devices = {name: device for name in ('device', 'vision_device', 'audio_device')}
    try:
        plan = forecast(model, PlanOptions(n_ctx=n_ctx, kv_type=kv_type, **devices))
    except InputError as error:
        return Finding('memory', FAIL, str(error).rstrip('.'), 'Lower n_ctx')
    need_mib = Limits(0.0, None if shares else math.inf).needed_mib(plan)
    total_mib, running = meminfo_mib(root)['MemTotal'], _running(root)
    free_mib = available_mib(root, tuple(running))
    held_mib = sum(resident_mib(process, root)['VmRSS'] for process in running)
    fact = (
        f'{need_mib:.0f} MiB are needed for {n_ctx} positions in {kv_type} ({plan.parts_text()}), '
        f'{free_mib:.0f} of {total_mib:.0f} are available{_beside(running, held_mib)}'
    )
    if plan.device_mib and not shares:
        fact += f'; {plan.device_mib:.0f} more are needed of the GPU, which has its own memory'
    less = 'lower n_ctx, set kv_type to q8_0, or take smaller files (minicpmo quantize)'
    spare_mib = free_mib + held_mib - need_mib
    return judged(
        'memory',
        fact,
        (need_mib > total_mib, FAIL, f'This machine cannot hold it: {less}'),
        (
            spare_mib < 0 and running and plan.device_mib and shares,
            WARN,
            'What they have of it on the GPU is not told here: where ~/status of llm is ready, '
            f'nothing is wrong; else end other programs, or {less}',
        ),
        (spare_mib < 0, FAIL, f'End other programs (the desktop takes most), or {less}'),
        (
            spare_mib < RESERVE_MIB,
            WARN,
            f'Little is left, so that the window may shrink while it runs: end other programs, '
            f'or {less}',
        ),
    )


def _beside(running: dict, held_mib: float) -> str:
    """Return the part of a sentence that names the running processes; '' if there are none."""
    names = ', '.join(f'{name} ({process})' for process, name in running.items())
    return f' beside {names}, which have {held_mib:.0f}' if running else ''


def _running(root: Path) -> dict:
    """Return the processes of this machine that hold a part of a model: {number: name}."""
    found = {}
    for path in root.glob('proc/[0-9]*/cmdline'):
        try:
            words = path.read_text(errors='replace').split('\0')[:3]  # an interpreter, options
        except OSError:  # it has ended
            continue
        for word in map(Path, words):
            if word.parent.name == 'minicpmo_ros' and word.name in EXECUTABLES:
                found[path.parent.name] = word.name
    return found
