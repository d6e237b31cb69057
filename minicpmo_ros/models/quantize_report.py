# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What became of every tensor, as a table to read and as JSON."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from minicpmo_ros.errors import InputError
from minicpmo_ros.models.appearing import appearing
from minicpmo_ros.models.quantize import TensorReport

HEAD = (
    '| tensor | shape | was | is | was MiB | is MiB | error % | weighted % |\n'
    '|---|---|---|---|---:|---:|---:|---:|'
)
SUFFIXES = ('.json', '.md')


def row(report: TensorReport) -> str:
    """Return a tensor's row of the table; the weighted error is empty where it is not known."""
    weighted = report.weighted_error
    return (
        f'| {report.name} | {"x".join(map(str, report.shape))} | {report.old_type.name} '
        f'| {report.new_type.name} | {report.old_bytes / 2**20:.2f} '
        f'| {report.new_bytes / 2**20:.2f} | {100 * report.relative_error:.3f} '
        f'| {"" if weighted is None else f"{100 * weighted:.3f}"} |'
    )


def check_path(path: Path) -> None:
    """InputError for a name that is neither JSON's nor markdown's."""
    if path.suffix not in SUFFIXES:
        raise InputError(f'The report {path} must end in {" or ".join(SUFFIXES)}.')


def write_report(path: Path, reports: Mapping[str, Sequence[TensorReport]]) -> None:
    """Write the reports of files by their names, as the path's suffix says."""
    check_path(path)
    if path.suffix == '.json':
        told = {name: [_told(report) for report in of_file] for name, of_file in reports.items()}
        text = json.dumps(told, indent=1)
    else:
        text = '\n\n'.join(
            '\n'.join([f'## {name}', '', HEAD, *map(row, of_file)])
            for name, of_file in reports.items()
        )
    with appearing(path) as sink:
        sink.write(f'{text}\n'.encode())


def _told(report: TensorReport) -> dict:
    return {
        'name': report.name,
        'shape': list(report.shape),
        'from': report.old_type.name,
        'to': report.new_type.name,
        'bytes_before': report.old_bytes,
        'bytes_after': report.new_bytes,
        'relative_error': report.relative_error,
        'weighted_error': report.weighted_error,
    }
