# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The shards of a replay as tasks of a Ray cluster: `minicpmo replay --cluster`.

A task runs the command of its shard in a process of its own, as Slurm or Kubernetes would: what
Ray adds is where and when, and that what was lost is started again. A shard's process ends with
the worker that started it, and the workers end with the driver; the same command resumes.
"""

import os
import subprocess
import sys
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Protocol

from minicpmo_ros.errors import EngineError, InputError
from minicpmo_ros.evaluation.results import ANSWERS
from minicpmo_ros.evaluation.shards import Shard, join
from minicpmo_ros.process import end_with_parent

SHARDS = 64
STARTS = 4  # of a shard whose process or machine is lost, at most
MOST_TOLD = 500  # characters of what a shard wrote
LOST = -1  # the status of a task whose worker is gone


class Cluster(Protocol):
    """Where shards are asked."""

    room: int  # shards that it is given at once

    def start(self, shard: Shard) -> None:
        """Begin to ask a shard."""

    def wait(self) -> tuple:
        """Return (shard, status, what it wrote) of one that has ended; negative: it was lost."""

    def close(self) -> None:
        """End everything that was started."""


def ask_shards(
    cluster: Cluster, shards: Iterable, on_done: Callable[[Shard], None] | None = None
) -> None:
    """Ask all shards, and those that are lost again; EngineError where one cannot be asked."""
    waiting, running, starts = list(shards)[::-1], 0, Counter()
    while waiting or running:
        while waiting and running < cluster.room:
            cluster.start(waiting[-1])
            starts[waiting.pop()] += 1
            running += 1
        shard, status, wrote = cluster.wait()
        running -= 1
        if status == 0:
            if on_done is not None:
                on_done(shard)
        elif status < 0 and starts[shard] < STARTS:
            waiting.append(shard)
        else:
            times = f', and was lost {starts[shard]} times' * (status < 0)
            raise EngineError(
                f'Shard {shard} ended with status {status}{times}. It wrote: '
                f'{wrote[-MOST_TOLD:].strip() or "nothing"} The same command resumes.'
            )


def shard_command(given: list, shard: Shard) -> list:
    """Return the arguments of a shard's command, of those of the whole run's."""
    parser = ArgumentParser(add_help=False)
    parser.add_argument('--cluster')
    parser.add_argument('--shards')
    _, rest = parser.parse_known_args(given)
    return [*rest, '--shard', str(shard)]


def run_shard(arguments: list, folder: str) -> tuple:
    """Run a shard's command in that folder; return its status and what it wrote.

    It runs in a worker, with the Python of the worker; the process ends with it.
    """
    process = subprocess.Popen(
        [sys.executable, '-m', 'minicpmo_ros.cli.main', *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors='replace',
        preexec_fn=end_with_parent,
    )
    try:
        wrote, _ = process.communicate()
    finally:
        process.kill()
        process.wait()
    return process.returncode, wrote


class RayCluster:
    """A Ray cluster; a shard takes so many CPUs, and a GPU where the cluster has some."""

    def __init__(self, address: str, given: list, cpus: int, wants_gpu: bool):
        os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')
        try:
            import ray
        except ImportError as error:
            raise InputError(
                f'--cluster needs Ray ({error}). Install it: environment/setup.sh ray, or '
                'pip install -r environment/requirements-ray.txt.'
            ) from error
        self._ray, self._given, self._running = ray, given, {}
        try:
            ray.init(
                address,
                include_dashboard=None if address != 'local' else False,
                log_to_driver=False,
                logging_level='ERROR',
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(f'--cluster {address}: there is no Ray cluster ({error}).') from error
        have = ray.cluster_resources()
        gpus = int(wants_gpu and have.get('GPU', 0) >= 1)
        # A task that fits no machine would wait for ever, and say nothing.
        machines = [node['Resources'] for node in ray.nodes() if node['Alive']]
        most = max((machine.get('CPU', 1) for machine in machines), default=1)
        cpus = min(cpus, max(int(most), 1))
        self.room = max(2 * int(have.get('CPU', 1)) // cpus, 1)  # the next ones are there
        # What is lost is started again by ask_shards, with its own count.
        self._task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(run_shard)

    def start(self, shard: Shard) -> None:
        """Submit a shard."""
        arguments = shard_command(self._given, shard)
        self._running[self._task.remote(arguments, os.getcwd())] = shard

    def wait(self) -> tuple:
        """Wait for one."""
        (done, *_), _ = self._ray.wait(list(self._running), num_returns=1)
        shard = self._running.pop(done)
        try:
            return (shard, *self._ray.get(done))
        except self._ray.exceptions.RayTaskError as error:
            return shard, 1, str(error)
        except self._ray.exceptions.RayError as error:  # the worker or its machine is gone
            return shard, LOST, str(error)

    def close(self) -> None:
        """Leave the cluster, which ends what it does for this driver; end it if it is local."""
        self._ray.shutdown()


def replay_on_cluster(arguments, tell: Callable[[str], None]) -> None:
    """Ask all shards of a replay on a cluster and join them; arguments: those of the verb."""
    if (arguments.out / ANSWERS).exists():
        raise InputError(f'{arguments.out}: a run is there already. Name another folder.')
    shards = [Shard(i, arguments.shards or SHARDS) for i in range(arguments.shards or SHARDS)]
    cpus = arguments.threads * arguments.workers
    cluster = RayCluster(arguments.cluster, arguments.given, cpus, arguments.device != 'cpu')
    done = []

    def note(shard):
        done.append(shard)
        tell(f'{len(done)} of {len(shards)} shards')

    try:
        ask_shards(cluster, shards, note)
    finally:
        cluster.close()
    joined = join(arguments.out, [shard.folder(arguments.out) for shard in shards])
    for sentence in joined.sentences(arguments.out):
        tell(sentence)
