# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Shards on a cluster: what is lost is asked again, what fails is told, nothing is left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import scale
from minicpmo_ros.cli import cluster
from minicpmo_ros.cli import main as cli
from minicpmo_ros.errors import EngineError
from minicpmo_ros.evaluation.results import ANSWERS
from minicpmo_ros.evaluation.shards import FOLDER, Joined, Shard

MARK = 'MINICPMO_TEST_OF'  # in the environment of everything that a driver starts


class StandInRay:
    """Ray's names that a RayCluster uses when it begins, on machines of so many CPUs."""

    def __init__(self, *cpus):
        self.cpus, self.address, self.asked = cpus, None, {}

    def init(self, address, **options):
        self.address = address

    def cluster_resources(self):
        return {'CPU': float(sum(self.cpus))}

    def nodes(self):
        gone = {'Alive': False, 'Resources': {'CPU': 1000.0}}
        return [{'Alive': True, 'Resources': {'CPU': float(n)}} for n in self.cpus] + [gone]

    def remote(self, **options):
        self.asked = options
        return lambda task: task


class Lossy:
    """A cluster that ends shards as it is told, the newest first."""

    room = 3

    def __init__(self, statuses):
        self.statuses, self.running, self.started, self.most = statuses, [], [], 0

    def start(self, shard):
        self.running.append(shard)
        self.started.append(shard)
        self.most = max(self.most, len(self.running))

    def wait(self):
        shard = self.running.pop()
        told = self.statuses.get(shard.index, [])
        return shard, told.pop(0) if told else 0, 'something'


def shards(count):
    return [Shard(i, count) for i in range(count)]


def test_what_is_lost_is_asked_again_and_the_rest_once():
    lossy, done = Lossy({1: [-1, -9], 4: [-1]}), []
    cluster.ask_shards(lossy, shards(6), done.append)
    assert sorted(done, key=str) == shards(6) and lossy.most == Lossy.room
    assert [lossy.started.count(shard) for shard in shards(6)] == [1, 3, 1, 1, 2, 1]


@pytest.mark.parametrize('statuses', [[2], [-1] * cluster.STARTS])
def test_a_shard_that_cannot_be_asked_ends_the_run_with_its_words(statuses):
    with pytest.raises(EngineError, match=rf'Shard 2/6 .* status {statuses[-1]}.*something'):
        cluster.ask_shards(Lossy({2: list(statuses)}), shards(6))


def test_the_command_of_a_shard_is_that_of_the_run():
    given = [
        'replay',
        'nano',
        'q.json',
        '--cluster',
        'local',
        '--shards=8',
        '--still',
        '--out',
        'x',
    ]
    expected = ['replay', 'nano', 'q.json', '--still', '--out', 'x', '--shard', '3/8']
    assert cluster.shard_command(given, Shard(3, 8)) == expected


@pytest.mark.parametrize('address', ['local', 'auto', 'ray://head:10001'])
def test_ray_gets_the_address_that_was_given(address, monkeypatch):
    # Without one it takes a cluster that happens to run on this machine.
    monkeypatch.setitem(sys.modules, 'ray', ray := StandInRay(4))
    cluster.RayCluster(address, [], 1, False)
    assert ray.address == address


@pytest.mark.parametrize(('wanted', 'asked', 'room'), [(2, 2, 24), (8, 8, 6), (16, 8, 6)])
def test_a_task_asks_for_no_more_than_one_machine_has(wanted, asked, room, monkeypatch):
    monkeypatch.setitem(sys.modules, 'ray', ray := StandInRay(8, 8, 8))
    shards_of = cluster.RayCluster('auto', [], wanted, False)
    assert (ray.asked['num_cpus'], shards_of.room) == (asked, room)


def test_other_software_of_some_shards_is_told_also_of_a_cluster(tmp_path, monkeypatch, capsys):
    ended = Lossy({})
    ended.close = lambda: None
    monkeypatch.setattr(cluster, 'RayCluster', lambda *_: ended)
    joined = Joined(2, 8, ('{"numpy": "1"}', '{"numpy": "2"}'))
    monkeypatch.setattr(cluster, 'join', lambda *_: joined)
    run = ['replay', 'nano', 'q.json', '--out', str(tmp_path), '--cluster', 'auto']
    assert cli.main([*run, '--shards', '2']) == 0
    told = capsys.readouterr().err
    assert '8 answers of 2 shards' in told and 'different software' in told
    assert all(software in told for software in joined.software)


def test_a_shard_runs_in_a_process_whose_status_and_words_are_told(tmp_path):
    status, wrote = cluster.run_shard(['replay', 'nowhere', 'q.json', '--out', 'x'], tmp_path)
    assert status == 2 and wrote.startswith('minicpmo replay: ')


def test_options_that_do_not_go_with_a_cluster_are_refused(tmp_path, capsys):
    run = ['replay', 'nano', str(tmp_path / 'q.json'), '--out', str(tmp_path)]
    assert cli.main([*run, '--cluster', 'local', '--shard', '0/2']) == 2
    assert '--shard' in capsys.readouterr().err
    assert cli.main([*run, '--shards', '4']) == 2
    assert '--cluster' in capsys.readouterr().err
    (tmp_path / ANSWERS).touch()
    assert cli.main([*run, '--cluster', 'local']) == 2
    assert 'a run is there already' in capsys.readouterr().err


def started_by(mark: str) -> dict:
    """Return {pid: command} of the living processes with that mark in their environment."""
    found = {}
    for folder in Path('/proc').glob('[0-9]*'):
        try:
            if f'{MARK}={mark}'.encode() in (folder / 'environ').read_bytes().split(b'\0'):
                found[int(folder.name)] = (folder / 'cmdline').read_bytes().replace(b'\0', b' ')
        except OSError:
            continue  # it has ended, or is another's
    return found


def parent_of(pid: int) -> int:
    """Return the process that started one; 0 where it has ended."""
    try:
        return int(Path(f'/proc/{pid}/status').read_text().split('PPid:')[1].split()[0])
    except OSError:
        return 0


def wait_until(condition, what: str, seconds: float = 300) -> None:
    end_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end_s, what
        time.sleep(0.05)


def test_workers_and_driver_are_killed_and_the_answers_are_the_same(tmp_path):
    pytest.importorskip('ray', reason='environment/requirements-ray.txt')
    questions = scale.write_fleet(tmp_path, copies=1, each=1)
    run = ['replay', str(scale.ROOT / 'models' / 'nano'), str(questions), *scale.OPTIONS]
    assert cli.main([*run, '--out', str(tmp_path / 'whole')]) == 0
    command = [sys.executable, '-m', 'minicpmo_ros.cli.main', *run, '--out', str(tmp_path / 'run')]
    command += ['--cluster', 'local', '--shards', '4']
    # Ray's workers are nice to others, which makes the test slow on a busy machine.
    environment = {**os.environ, MARK: str(tmp_path), 'RAY_worker_niceness': '0'}

    def asking():
        mine = started_by(str(tmp_path)).items()
        return {pid for pid, command in mine if b' --shard ' in command}

    def start():
        return subprocess.Popen(command, env=environment, cwd=tmp_path)

    try:
        driver = start()
        wait_until(lambda: asking() or driver.poll() is not None, 'a shard is asked')
        assert driver.poll() is None
        driver.kill()
        driver.wait()
        wait_until(lambda: not started_by(str(tmp_path)), 'all of the driver has ended')
        driver, killed = start(), set()
        while driver.poll() is None and len(killed) < 2:
            for pid in list(asking() - killed)[:1]:
                # First the worker that has started it, then a shard's own process.
                victim = parent_of(pid) if not killed else pid
                if victim in started_by(str(tmp_path)):
                    os.kill(victim, signal.SIGKILL)
                    killed.add(pid)
            time.sleep(0.05)
        assert driver.wait() == 0 and len(killed) == 2
        wait_until(lambda: not started_by(str(tmp_path)), 'all of the driver has ended')
    finally:
        for pid in started_by(str(tmp_path)):
            os.kill(pid, signal.SIGKILL)
    whole = (tmp_path / 'whole' / ANSWERS).read_bytes()
    assert (tmp_path / 'run' / ANSWERS).read_bytes() == whole
    assert len(list((tmp_path / 'run' / FOLDER).iterdir())) == 4
