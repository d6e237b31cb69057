# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What Ray costs: the same shards asked by `replay --cluster local`, and without Ray.

`measure_ray` belongs to scale.py. Without Ray the shards run as the same commands in processes of
this machine, as many at a time, and are joined in the same way (`python -m benchmarks.cluster`,
with the arguments of the verb). `ray_cost_s` is by how many seconds of CPU time a run takes longer
with Ray, all of its processes and their start included, and `ray_overhead` the same as a share of
the time without. Most of it is Ray's start, so the share is smaller in a longer run.
"""

import hashlib
import importlib.util
import os
import statistics
import sys
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from subprocess import DEVNULL, Popen

from minicpmo_ros.cli.cluster import ask_shards, run_shard, shard_command
from minicpmo_ros.evaluation.results import ANSWERS
from minicpmo_ros.evaluation.shards import Shard, join

SHARDS, ROUNDS = 8, 1
MARK, LOOK_S = 'MEASURED_BY', 0.1


class Processes:
    """Shards as processes of this machine, in place of a cluster."""

    def __init__(self, given: list, room: int):
        self.room, self._given, self._running = room, given, {}
        self._pool = ThreadPoolExecutor(room)

    def start(self, shard: Shard) -> None:
        """Start a shard."""
        arguments = shard_command(self._given, shard)
        self._running[self._pool.submit(run_shard, arguments, os.getcwd())] = shard

    def wait(self) -> tuple:
        """Wait for one."""
        done = next(iter(wait(self._running, return_when=FIRST_COMPLETED).done))
        return (self._running.pop(done), *done.result())

    def close(self) -> None:
        """End."""
        self._pool.shutdown()


def run_counted(command: list) -> float:
    """Run a command; return the CPU time of it and of everything that it started, in seconds.

    Ray's processes do not wait for each other, so nobody is told what they took: all that have
    this environment, and what they start, are looked at again and again.
    """
    value, ticks = f'{os.getpid()}-{time.monotonic_ns()}', {}
    with Popen(
        command, env={**os.environ, MARK: value}, stdout=DEVNULL, stderr=DEVNULL
    ) as process:
        while look_at(f'{MARK}={value}'.encode(), ticks) or process.poll() is None:
            time.sleep(LOOK_S)
    if process.returncode:
        raise RuntimeError(f'{" ".join(command)} ended with {process.returncode}')
    return sum(ticks.values()) / os.sysconf('SC_CLK_TCK')


def look_at(mark: bytes, ticks: dict) -> int:
    """Note in {(process, its begin): ticks of CPU time} who runs with this mark; return how many.

    Who was seen once is known again: a process may overwrite its environment with a title.
    """
    known, n_running = {number for number, _ in ticks}, 0
    for folder in Path('/proc').glob('[0-9]*'):
        try:
            fields = (folder / 'stat').read_text().rpartition(')')[2].split()
            key, parent = (folder.name, fields[19]), fields[1]
            is_ours = key in ticks or parent in known
            is_ours = is_ours or mark in (folder / 'environ').read_bytes().split(b'\0')
        except OSError:
            continue  # it has ended, or is another user's
        if is_ours and fields[0] != 'Z':
            ticks[key], n_running = int(fields[11]) + int(fields[12]), n_running + 1
    return n_running


def measure_ray(folder: Path, model: str, questions: Path, options: tuple) -> dict:
    """Compare, by turns; the questions are those of scale.py."""
    if importlib.util.find_spec('ray') is None:
        return {'ray_skipped': 'Ray is not installed: environment/setup.sh ray'}
    ways = {
        'plain': (sys.executable, '-m', 'benchmarks.cluster', 'replay'),
        'ray': (sys.executable, '-m', 'minicpmo_ros.cli.main', 'replay'),
    }
    spent_s, clock_s, hashes = {'plain': [], 'ray': []}, {'plain': [], 'ray': []}, set()
    for number in range(ROUNDS):
        for way, command in ways.items():
            out, began_s = folder / f'{way}{number}', time.monotonic()
            given = [model, str(questions), *options, '--out', str(out), '--cluster', 'local',
                     '--shards', str(SHARDS)]  # fmt: skip
            spent_s[way].append(run_counted([*command, *given]))
            clock_s[way].append(time.monotonic() - began_s)
            hashes.add(hashlib.sha256((out / ANSWERS).read_bytes()).hexdigest())
            print(way, spent_s, clock_s, flush=True)
    plain_s, ray_s = (statistics.mean(spent_s[way]) for way in ways)
    return {
        'ray_identical': len(hashes) == 1,
        'ray_overhead': round(ray_s / plain_s - 1, 4),
        'ray_cost_s': round(ray_s - plain_s, 1),
        'ray_work_s': round(plain_s, 1),
        'ray_cpu_s': {way: [round(each, 1) for each in found] for way, found in spent_s.items()},
    }


def main(given: list) -> None:
    """Ask the shards of `replay --cluster` without a cluster."""
    out, count = Path(given[given.index('--out') + 1]), int(given[given.index('--shards') + 1])
    shards = [Shard(index, count) for index in range(count)]
    cluster = Processes(given, len(os.sched_getaffinity(0)))
    try:
        ask_shards(cluster, shards)
    finally:
        cluster.close()
    join(out, [shard.folder(out) for shard in shards])


if __name__ == '__main__':
    main(sys.argv[1:])
