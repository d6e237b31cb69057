# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The memory that a plan forecasts, against what the process `live` really takes.

    make build && source environment/env.sh
    python -m benchmarks.memory --forecast       # what is expected; loads nothing, writes headers
    python -m benchmarks.memory                  # the same beside what is measured

For every case: a model of random weights is written into build/memory; the installed executable
`live` is started on it; another process plays two seconds of picture and sound, waits until they
are read, asks a question as long as a batch, and ends; then the kernel is asked what `live` takes.
Its PSS is that of a process alone: the one that played, which has the same libraries open, has
ended, and this one has none of them. Prints a table, writes build/plan_memory.json. The true size
takes minutes and 6 GB of disk and of memory.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

# Nothing that maps a library belongs here: see above. Whatever needs one runs in a child.
FOLDER, OUT = Path('build/memory'), Path('build/plan_memory.json')
CHILD_S = 3600  # what a busy machine takes for the true size


@dataclass(frozen=True)
class Case:
    """One model with one set of parameters."""

    shape: str
    name: str
    vision: str = 'q4_0'  # precision of its file
    llm: str = 'q4_K'
    audio: str = 'q4_0'
    parameters: dict = field(default_factory=dict)  # of the nodes

    @property
    def model(self) -> str:
        """Name of the model directory."""
        return f'{self.shape}-llm_{self.llm}-vision_{self.vision}-audio_{self.audio}'


def cases(shape: str) -> list:
    """Give the configurations that every size is measured in."""
    return [
        Case(shape, 'all 4-bit, 8192 f16', parameters={'n_ctx': 8192}),
        Case(shape, 'vision f16, 8192 f16, read', vision='f16',
             parameters={'n_ctx': 8192, 'use_mmap': False}),
        Case(shape, 'all 4-bit, 4096 q8_0', parameters={'n_ctx': 4096, 'kv_type': 'q8_0'}),
    ]  # fmt: skip


def more_cases(shape: str) -> list:
    """Give what else is measured where it is cheap."""
    return [
        Case(shape, 'all 4-bit, tiles, wide batches, repacked',
             parameters={'n_ctx': 4096, 'vision.max_tiles': 4, 'n_ubatch': 256, 'repack': True}),
        Case(shape, 'all f16, tiles, isolated', 'f16', 'f16', 'f16',
             parameters={'n_ctx': 2048, 'vision.max_tiles': 2, 'isolated': True}),
    ]  # fmt: skip


def in_child(function: str, *arguments) -> str:
    """Run a function of benchmarks/memory_child.py in a process that ends; give what it prints."""
    command = [sys.executable, '-m', 'benchmarks.memory_child', function, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=CHILD_S)
    if done.returncode:
        raise SystemExit(f'{function} failed, see above')
    return done.stdout


def forecast(case: Case, directory: Path) -> dict:
    """Give the plan's figures, MiB by part and what it is for."""
    return json.loads(in_child('forecast', directory, json.dumps(case.parameters)))


def measure(case: Case, directory: Path) -> dict:
    """Start `live`, have it used, and give what it occupies by kind of memory, MiB."""
    namespace = f'/memory_{os.getpid()}_{time.monotonic_ns()}'
    command = json.loads(in_child('command', directory, namespace, json.dumps(case.parameters)))
    environment = {'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST', **os.environ}
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        in_child('use', process.pid, namespace, case.parameters.get('n_ubatch', 128))
        return occupied(process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def occupied(pid: int) -> dict:
    """Give PSS and RSS of a process, and PSS by kind of mapping, MiB."""
    figures, kind = {'pss': 0.0, 'rss': 0.0, 'model file': 0.0, 'files': 0.0, 'anonymous': 0.0}, ''
    for line in Path(f'/proc/{pid}/smaps').read_text().splitlines():
        name, *rest = line.split()
        if name == 'Pss:':
            figures[kind] += int(rest[0]) / 1024
            figures['pss'] += int(rest[0]) / 1024
        elif name == 'Rss:':
            figures['rss'] += int(rest[0]) / 1024
        elif not name.endswith(':'):  # a mapping begins: addresses, rights, ..., perhaps a path
            path = rest[4] if len(rest) > 4 else ''
            kind = 'model file' if path.endswith('.gguf') else (
                'files' if path.startswith('/') else 'anonymous')  # fmt: skip
    return figures


def line(row: dict) -> str:
    """Give one row of the table."""
    planned = row['forecast']['host_mib']
    cells = [row['shape'], row['name'], f'{planned:.0f}']
    if 'measured' in row:
        pss = row['measured']['pss']
        cells += [f'{pss:.0f}', f'{planned - pss:+.0f}', f'{100 * (planned / pss - 1):+.1f}',
                  'yes' if keeps_promise(planned, pss) else 'NO']  # fmt: skip
    return '| ' + ' | '.join(cells) + ' |'


def keeps_promise(planned_mib: float, measured_mib: float) -> bool:
    """Within 3 % or 48 MiB, whichever is more, and never more than 1 % too low."""
    error_mib = planned_mib - measured_mib
    return -0.01 * measured_mib <= error_mib <= max(0.03 * measured_mib, 48.0)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--shapes', default='small,0.5b,2.6', help='synthetic sizes')
    parser.add_argument('--forecast', action='store_true', help='measure nothing')
    parser.add_argument('--only', default='', help='text in the names of the cases; models stay')
    parser.add_argument('--out', type=Path, default=OUT)
    arguments = parser.parse_args()
    columns = ['size', 'case', 'forecast MiB']
    if not arguments.forecast:
        columns += ['measured PSS MiB', 'error MiB', 'error %', 'kept']
    print(f'| {" | ".join(columns)} |\n|---|---|{"---:|" * (len(columns) - 2)}')
    rows = []
    arguments.out.parent.mkdir(exist_ok=True)
    for shape in arguments.shapes.split(','):
        folder = FOLDER / ('headers' if arguments.forecast else 'models')
        for case in cases(shape) + (more_cases(shape) if shape != '2.6' else []):
            if arguments.only not in case.name:
                continue
            directory = folder / case.model
            kind = 'hollow' if arguments.forecast else 'full'
            in_child('write', directory, shape, case.llm, case.vision, case.audio, kind)
            row = {**asdict(case), 'forecast': forecast(case, directory)}
            if not arguments.forecast:
                row['measured'] = measure(case, directory)
            rows.append(row)
            print(line(row), flush=True)
            arguments.out.write_text(json.dumps(rows, indent=1) + '\n')
        if not arguments.only:
            shutil.rmtree(folder)


if __name__ == '__main__':
    main()
