# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Beyond one machine: runs in shards, a device of another process, a robot over a bad network.

    source environment/env.sh && python -m benchmarks.scale [--only shards,merge,device,relay,ray]

shards: 960 questions about 192 bags (the clips that ship, under eight names each) are answered by
nano once in one run, and once in 64 shards by two processes at a time, each shard killed three
times by SIGKILL at a random answer and resumed. `shards_identical` is whether both files are equal
to the byte.
merge: 10,000 shards of 1,000 answers are written, with costs, the places dealt at random, so that
neighbours in the joined file are from different shards: the hardest case. `minicpmo merge` joins
them in a process of its own, whose time and largest memory are told; the joined file is compared
with what one run would have written.
device: nano answers the held-out questions on this process's CPU, and on a device with memory of
its own: llama.cpp's RPC server of the same CPU, in another process. There it computes in the form
of a GPU (fused attention, one graph for all seconds), so that few answers may differ.
`device_same` is the share that are equal.
relay: what a bad network between the two machines costs; see relay.py.
ray: what `replay --cluster local` costs beyond its shards, if Ray is installed; see cluster.py.
Writes build/scale.json.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE, Popen

import numpy as np

from benchmarks import cluster, relay
from benchmarks.device_server import DeviceServer
from benchmarks.streams import question_file
from minicpmo_ros.cli import main as cli
from minicpmo_ros.evaluation import replay  # noqa: F401 (for the fork server)
from minicpmo_ros.evaluation.questions import QuestionSet
from minicpmo_ros.evaluation.results import ANSWERS, COSTS, FORMAT, HEAD
from minicpmo_ros.evaluation.runner import Core, CoreOptions, Variant, answer_all
from minicpmo_ros.evaluation.shards import Shard
from minicpmo_ros.modelset.directory import ModelDirectory

ROOT = Path(__file__).parents[1]
CLIPS = ROOT / 'demo' / 'clips'
OPTIONS = ('--device', 'cpu', '--threads', '1', '--n-ctx', '1024')
SHARDS, KILLS, PROCESSES = 64, 3, 2
COPIES, EACH = 8, 5  # names of a clip, and questions about each: 24 * 8 * 5 = 960
MANY, ANSWERS_EACH = 10_000, 1_000
LOOK_S = 0.005  # how often a shard is looked at for the moment of its end
TEXTS = ('yes', 'the red circle', 'left', '"quoted", and a \\ of two\nlines', '左边的红色圆圈')

# The peak of the process itself; what wait4 tells begins with that of the one that started it.
JOIN = """
import re, sys
from pathlib import Path
from minicpmo_ros.cli.main import main
status = main(['merge', sys.argv[1]])
print(re.search(r'VmHWM:\\s+(\\d+) kB', Path('/proc/self/status').read_text())[1])
sys.exit(status)
"""


def write_fleet(folder: Path, copies: int, each: int) -> Path:
    """Write questions about so many copies of the clips that ship; return the file."""
    shipped, made = QuestionSet.read(CLIPS / 'questions.json'), []
    for copy in range(copies):
        (folder / f'robot{copy}').mkdir()
        for clip, asked in shipped.by_clip().items():
            name = f'robot{copy}/{clip}'
            (folder / name).symlink_to(shipped.path_of(clip))
            made += [replace(q, id=f'{copy}-{q.id}', clip=name) for q in asked[:each]]
    QuestionSet(tuple(made), 'fleet').write(folder / 'questions.json')
    return folder / 'questions.json'


def ask(arguments: list) -> None:
    """Run `minicpmo replay` in this process, and say nothing; exits with its status."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 2)
    sys.exit(cli.main(['replay', *arguments]))


def count_answers(folder: Path) -> int:
    """Return how many answers a run has."""
    try:
        return max((folder / ANSWERS).read_bytes().count(b'\n') - 1, 0)
    except FileNotFoundError:
        return 0


class KilledShards:
    """Asks shards, each killed so many times at a random answer before it may end."""

    def __init__(self, arguments: list, out: Path, count: int, kills: int):
        self._arguments, self._out, self._count, self._to_kill = arguments, out, count, kills
        self.kills = 0
        # A server that has imported everything forks quickly, and has no threads.
        self._context = multiprocessing.get_context('forkserver')
        self._context.set_forkserver_preload([__name__])

    def run(self, processes: int) -> None:
        """Ask all of them, so many at a time."""
        with ThreadPoolExecutor(processes) as pool:
            self.kills = sum(pool.map(self._run_shard, range(self._count)))

    def _run_shard(self, index: int) -> int:
        shard, rng, killed = Shard(index, self._count), random.Random(index), 0
        folder = shard.folder(self._out)
        arguments = [*self._arguments, '--out', str(self._out), '--shard', str(shard)]
        for _ in range(self._to_kill):
            process = self._start(arguments)
            wanted, delay_s = count_answers(folder) + rng.choice((0, 1, 2)), rng.random() * 0.2
            process.join(delay_s)  # at any moment of loading, if no answer is waited for
            while process.is_alive() and count_answers(folder) < wanted:
                process.join(LOOK_S)
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
            process.join()
            killed += process.exitcode == -signal.SIGKILL
        process = self._start(arguments)
        process.join()
        if process.exitcode:
            raise RuntimeError(f'shard {shard} ended with {process.exitcode}')
        return killed

    def _start(self, arguments: list):
        process = self._context.Process(target=ask, args=(arguments,))
        process.start()
        return process


def sha256(path: Path) -> str:
    """Return the hash of a file."""
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def measure_shards(folder: Path) -> dict:
    """Compare one run with 64 shards that were killed."""
    questions = write_fleet(folder, COPIES, EACH)
    arguments = [str(ROOT / 'models' / 'nano'), str(questions), *OPTIONS]
    assert cli.main(['replay', *arguments, '--out', str(folder / 'whole')]) == 0
    killed = KilledShards(arguments, folder / 'run', SHARDS, KILLS)
    killed.run(PROCESSES)
    assert cli.main(['merge', str(folder / 'run')]) == 0
    hashes = {sha256(folder / name / ANSWERS) for name in ('whole', 'run')}
    return {
        'shards': SHARDS,
        'kills': killed.kills,
        'answers': count_answers(folder / 'run'),
        'shards_identical': len(hashes) == 1,
    }


def answer_line(at: int, place: str = '') -> str:
    """Return the line of an answer."""
    text = json.dumps(TEXTS[at % len(TEXTS)], ensure_ascii=False)
    return f'{{"id": "question-{at}", "text": {text}, "asked": "{at:064x}"{place}}}\n'


def write_many(folder: Path, shards: int, each: int) -> list:
    """Write shards of so many answers; return their folders."""
    dealt = np.random.default_rng(0).permutation(np.repeat(np.arange(shards), each))
    places = np.argsort(dealt, kind='stable').reshape(shards, each)
    folders = []
    for index, mine in enumerate(places.tolist()):
        shard = Shard(index, shards)
        folders.append(shard.folder(folder))
        folders[-1].mkdir(parents=True)
        head = {**many_head(shards * each), 'shard': {**vars(shard), 'answers': each}}
        lines = [answer_line(at, f', "at": {at}') for at in mine]
        text = json.dumps(head) + '\n' + ''.join(lines)
        (folders[-1] / ANSWERS).write_text(text, encoding='utf-8')
        costs = [
            f'{{"id": "question-{at}", "first_token_ms": 21.3, "answer_ms": 46.52, "tokens": 2, '
            '"units": 30, "memory_mib": 241.7, "error": "", "note": ""}\n'
            for at in mine
        ]
        (folders[-1] / COSTS).write_text(''.join(costs))
        (folders[-1] / HEAD).write_text('{"begun": {"time": "2026-01-01", "software": {}}}\n')
    return folders


def many_head(count: int) -> dict:
    """Return the facts of a run of so many questions."""
    options = {f'option{i}': i for i in range(16)}
    return {'format': FORMAT, 'model': 'nano', 'count': count, 'options': options}


def hash_of_whole(count: int, each: int) -> str:
    """Return the hash of the file that one run would have written."""
    digest = hashlib.sha256((json.dumps(many_head(count)) + '\n').encode())
    for begin in range(0, count, each):
        digest.update(''.join(map(answer_line, range(begin, begin + each))).encode())
    return digest.hexdigest()


def measure_merge(folder: Path, shards: int, each: int) -> dict:
    """Join many shards in a process of its own."""
    write_many(folder, shards, each)
    began_s = time.perf_counter()
    process = Popen([sys.executable, '-c', JOIN, str(folder)], stdout=PIPE)
    with process.stdout:
        peak_kib = int(process.stdout.read())
    _, status, used = os.wait4(process.pid, 0)
    merge_s = time.perf_counter() - began_s
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    assert sha256(folder / ANSWERS) == hash_of_whole(shards * each, each)
    return {
        'merged': f'{shards} x {each}',
        'merge_s': round(merge_s, 1),
        'merge_cpu_s': round(used.ru_utime + used.ru_stime, 1),
        'merge_mib': round(peak_kib / 1024),
    }


def measure_device(limit: int | None = None) -> dict:
    """Compare nano's answers on a server's device with those on the CPU."""
    questions = QuestionSet.read(question_file())
    questions = questions.first(limit) if limit else questions
    model, texts = ModelDirectory.open(ROOT / 'models' / 'nano'), []
    with DeviceServer() as server:
        for device, servers in (('cpu', ''), ('gpu', server.address)):
            options = CoreOptions(device, threads=1, n_ctx=1024, rpc_servers=servers)
            with closing(Core(model, options)) as core:
                texts.append(answer_all(core, questions, [Variant()])[0].answers)
    same = sum(text == texts[1][name] for name, text in texts[0].items())
    return {
        'device_questions': len(texts[0]),
        'device_same': round(same / len(texts[0]), 4),
    }


def measure_ray(folder: Path) -> dict:
    """Ask the questions of `shards`, twice as many, with Ray and without."""
    questions = write_fleet(folder, COPIES, 2 * EACH)
    return cluster.measure_ray(folder, str(ROOT / 'models' / 'nano'), questions, OPTIONS)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    only = 'shards,merge,device,relay,ray'
    parser.add_argument('--only', default=only, help='of %(default)s')
    parser.add_argument('--many', type=int, default=MANY, help='shards that are joined')
    arguments = parser.parse_args()
    path = ROOT / 'build' / 'scale.json'
    found = json.loads(path.read_text()) if path.exists() else {}
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found['open_files_allowed'] = soft
    for name in arguments.only.split(','):
        with tempfile.TemporaryDirectory(dir=ROOT / 'build') as folder:
            if name == 'shards':
                found.update(measure_shards(Path(folder)))
            elif name == 'device':
                found.update(measure_device())
            elif name == 'ray':
                found.update(measure_ray(Path(folder)))
            elif name == 'relay':
                found.pop('relay_skipped', None)
                found.update(relay.measure_relay(list(relay.RUNS)))
            else:
                found.update(measure_merge(Path(folder), arguments.many, ANSWERS_EACH))
        found['load_average'] = round(os.getloadavg()[0], 1)
    for name, value in found.items():
        print(f'{name:20}{value}')
    path.write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
    main()
