# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Doctor's look at a model directory, and at the room there is for it."""

from pathlib import Path

from minicpmo_ros.errors import ModelFileError
from minicpmo_ros.finding import FAIL, OK, WARN, Finding, judged
from minicpmo_ros.models.directory import ModelDirectory
from minicpmo_ros.models.llm_memory import llm_memory
from minicpmo_ros.nodes.memory import available_mib, meminfo_mib, shares_memory_with_gpu

PROCESS_MIB = 150.0  # Python, ROS and what encoders compute in
RESERVE_MIB = 128.0  # memory_reserve_mib of node llm


def files(path: Path) -> tuple:
    """Give (the ModelDirectory or None, findings)."""
    try:
        model = ModelDirectory.open(path)
    except ModelFileError as error:
        return None, [Finding('files', FAIL, f'{error.path}: {error.problem}', error.remedy)]
    size_mib = sum(header.size_bytes for header in model.headers.values()) / 2**20
    kinds = ', '.join(f'{role} {kind or "?"}' for role, kind in model.precision.items())
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


def memory(root: Path, model: ModelDirectory, n_ctx: int, kv_type: str, gpu: str) -> Finding:
    """Compare what the model will take with what this machine has."""
    llm = llm_memory(model.headers['llm'], n_ctx, kv_type=kv_type)
    encoders_mib = sum(model.headers[role].size_bytes for role in ('vision', 'audio')) / 2**20
    need_mib = llm.total_mib + encoders_mib + PROCESS_MIB
    total_mib, free_mib = meminfo_mib(root)['MemTotal'], available_mib(root)
    fact = (
        f'{need_mib:.0f} MiB are needed (language model {llm.weights_mib:.0f}, {n_ctx} positions '
        f'{llm.kv_mib:.0f} in {kv_type}, encoders {encoders_mib:.0f}, the rest '
        f'{llm.compute_mib + PROCESS_MIB:.0f}), {free_mib:.0f} of {total_mib:.0f} are available'
    )
    if gpu and not shares_memory_with_gpu(root):
        return Finding('memory', OK, f'{fact}; with a GPU of its own memory most of it lies there')
    less = 'lower n_ctx, set kv_type to q8_0, or take smaller files (minicpmo quantize)'
    return judged(
        'memory',
        fact,
        (need_mib > total_mib, FAIL, f'This machine cannot hold it: {less}'),
        (need_mib > free_mib, FAIL, f'End other programs (the desktop takes most), or {less}'),
        (
            need_mib + RESERVE_MIB > free_mib,
            WARN,
            f'Little is left, so that the window may shrink while it runs: end other programs, '
            f'or {less}',
        ),
    )
