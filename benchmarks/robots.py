# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Several robots on one engine: the same answers, at what memory, how fast, and who pays a flood.

    source environment/env.sh && python -m benchmarks.robots [--only same,memory,speed,flood]

same: nano reads two streams of the clips that ship, and both robots ask at the same time, while
seconds leave their windows; `two_robots_same` is the share of the answers that each robot gets
from an engine of its own, word by word.
memory: a context of one and of two windows at the 0.5B size, and in the plan of MiniCPM-o 2.6 with
keys and values on a GPU or in 8 bits; `second_robot_mib` and `second_robot_2_6_mib` with the keys
and values alone beside them.
speed: four robots at the 0.5B size (random weights, q4_0), whose windows hold UNITS seconds, ask
again and again; `throughput_four` is their tokens per second of CPU time with one engine, as a
ratio to an engine for each in four processes at the same time. `throughput_four_units` is the same
while every robot also reads a second for every ANSWERS answers.
flood: three of the robots ask again and again. The fourth does so, too, or it floods: as many
questions as are taken, and seconds as fast as they are read. `flood_cost` is what the three lose
of their tokens per second of CPU time by that.
All compute with one thread, speed and flood with fused attention. CPU time is told because other
programs change it less than the time on a clock, and that, too. Adds to build/scale.json.
"""

import argparse
import json
import multiprocessing
import os
import queue
import statistics
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

from minicpmo_ros.process import prepare

prepare()

import numpy as np  # noqa: E402

from benchmarks.soak import question  # noqa: E402
from benchmarks.streams import open_core, read_seconds, units_of  # noqa: E402
from minicpmo_ros.errors import BusyError  # noqa: E402
from minicpmo_ros.families.minicpm_o_2_6 import ENGLISH  # noqa: E402
from minicpmo_ros.live.engine import Engine  # noqa: E402
from minicpmo_ros.live.engine_thread import EngineThread  # noqa: E402
from minicpmo_ros.live.question import Question  # noqa: E402
from minicpmo_ros.live.session import Session  # noqa: E402
from minicpmo_ros.live.session_options import SessionOptions  # noqa: E402
from minicpmo_ros.live.status import EngineOptions, EvidenceOptions  # noqa: E402
from minicpmo_ros.llm.context import Context  # noqa: E402
from minicpmo_ros.llm.context_options import ContextOptions  # noqa: E402
from minicpmo_ros.llm.model import LanguageModel, ModelOptions  # noqa: E402
from minicpmo_ros.memory.llm_formulas import LlmSizes, kv_mib_per_position  # noqa: E402
from minicpmo_ros.memory.plan import PlanOptions, forecast  # noqa: E402
from minicpmo_ros.memory.proc import pss_mib  # noqa: E402
from minicpmo_ros.modelset.directory import ModelDirectory  # noqa: E402
from minicpmo_ros.modelset.gguf_layouts import HALF_B  # noqa: E402
from minicpmo_ros.synthetic.model import write_llm, write_model  # noqa: E402

ROOT = Path(__file__).parents[1]
NANO = ROOT / 'models' / 'nano'
FOR_EVER_S = 600
ROBOTS, UNITS, TOKENS, ANSWERS = 4, 4, 24, 2
WINDOW = ContextOptions(n_ctx=2048, threads=1, attention='fused')
OPTIONS = SessionOptions(max_tokens=TOKENS, max_question_tokens=40, max_forks=4)
FLOOD_QUESTIONS = 4  # at once, as many as are answered together
PHASE_S, PHASES = 6.0, 3  # of CPU time; of each kind


class Group:
    """Engines of so many robots on one thread, in one context."""

    def __init__(self, path, n: int, window: ContextOptions = WINDOW, repack: bool = True):
        self._shared, self._change = None, threading.Condition()
        options = EngineOptions(0.0, max_backlog=2, evidence=EvidenceOptions('none'))
        thread = EngineThread()

        def load(_, abort):
            if self._shared is not None:
                return Session(self._shared.model, ENGLISH, options=OPTIONS, shared=self._shared)
            given = replace(window, n_windows=n)
            model_options = ModelOptions(repack=repack)
            session = Session.load(path, ENGLISH, model_options, given, OPTIONS, abort=abort)
            self._shared = session.shared
            return session

        self.engines = [
            Engine(load, options, on_change=self.note, thread=thread) for _ in range(n)
        ]
        for engine in self.engines:
            engine.start()
        self.until(lambda: all(each.status().state == 'ready' for each in self.engines))

    def note(self, _=None) -> None:
        """Look again at what is waited for."""
        with self._change:
            self._change.notify_all()

    def until(self, condition) -> None:
        """Wait for something that a change of a status or an answer may bring."""
        with self._change:
            if not self._change.wait_for(condition, FOR_EVER_S):
                raise SystemExit(f'waited in vain: {[each.status() for each in self.engines]}')

    def close(self) -> None:
        """End all of them."""
        for engine in self.engines:
            engine.close(FOR_EVER_S)


class Robot:
    """One robot that keeps so many questions open, and reads a second with every `per` answers.

    per: 0: none; math.inf would be none either; -1: as fast as they are read.
    """

    def __init__(self, group: Group, engine: Engine, number: int):
        self._group, self._engine = group, engine
        self._rng, self._second = np.random.default_rng(number), 0
        self.tokens = self.answers = 0
        self._open, self._wanted, self._per = 0, 0, 0
        self._lock = threading.Lock()

    def put(self) -> None:
        """Send a second of random embeddings."""
        width = self._engine.session.model.width
        image, audio = (self._rng.normal(size=(n, width)).astype(np.float32) for n in (64, 25))
        self._engine.put_image(self._second, image)
        self._engine.put_audio(self._second, audio)
        self._second += 1

    def read(self, n: int) -> None:
        """Send so many seconds, each when the one before has been read."""
        for _ in range(n):
            before = self._engine.status().units_read
            self.put()
            self._group.until(lambda n=before: self._engine.status().units_read > n)

    def begin(self, open_questions: int, per: int = 0) -> None:
        """Ask from now on."""
        self._wanted, self._per = open_questions, per
        self.go_on()

    def stop(self) -> None:
        """Ask no more, and wait for the answers."""
        self._wanted, self._per = 0, 0
        self._group.until(lambda: not self._open and not self._engine.status().answering)

    def go_on(self) -> None:
        """Ask what is wanted, and flood with seconds."""
        with self._lock:
            n = max(0, self._wanted - self._open)
            self._open += n
        for _ in range(n):
            try:
                self._engine.ask(Question('what is it'), on_done=self._done)
            except BusyError:
                self._open -= 1
        if self._per < 0:
            self.put()

    def _done(self, answer) -> None:
        with self._lock:
            self._open -= 1
            self.tokens += answer.answer_tokens
            self.answers += 1
        if self._per > 0 and self.answers % self._per == 0:
            self.put()
        self._group.note()


def measure(group: Group, robots: list, cpu_s: float) -> dict:
    """Let the robots ask for so long; return {robot: tokens} and the seconds it took."""
    before = [robot.tokens for robot in robots]
    begun_s, begun_cpu_s = time.monotonic(), time.process_time()
    while time.process_time() - begun_cpu_s < cpu_s:
        for robot in robots:
            robot.go_on()
        time.sleep(0.002)  # of a token's 20 ms; questions come from other processes on a robot
    return {
        'tokens': [robot.tokens - n for robot, n in zip(robots, before)],
        'cpu_s': time.process_time() - begun_cpu_s,
        's': time.monotonic() - begun_s,
    }


def ask_alone(path: str, number: int, per: int, ready, go, results) -> None:
    """Be one of four processes: a robot with an engine of its own."""
    results.put(ask_as_group(path, [number], per, lambda: (ready.put(number), go.wait())))


def ask_as_group(path, numbers: list, per: int, wait=lambda: None) -> dict:
    """Open an engine for these robots, and measure."""
    group = Group(path, len(numbers))
    robots = [Robot(group, engine, n) for engine, n in zip(group.engines, numbers)]
    try:
        for robot in robots:
            robot.read(UNITS)
        wait()
        for robot in robots:
            robot.begin(1, per)
        found = measure(group, robots, PHASE_S * len(numbers) / 2)
        for robot in robots:
            robot.stop()
    finally:
        group.close()
    return found


def ask_apart(path, per: int) -> list:
    """Ask in four processes at the same time; return what each has found."""
    context = multiprocessing.get_context('spawn')
    ready, results, go = context.Queue(), context.Queue(), context.Event()
    processes = [
        context.Process(target=ask_alone, args=(str(path), number, per, ready, go, results))
        for number in range(ROBOTS)
    ]
    for process in processes:
        process.start()
    for _ in processes:
        ready.get(timeout=FOR_EVER_S)
    go.set()
    found = [results.get(timeout=FOR_EVER_S) for _ in processes]
    for process in processes:
        process.join()
    return found


def measure_speed(path) -> dict:
    """Compare one engine for four robots with four engines."""
    figures = {}
    for name, per in (('throughput_four', 0), ('throughput_four_units', ANSWERS)):
        apart = ask_apart(path, per)
        together = ask_as_group(path, list(range(ROBOTS)), per)
        rates = {
            'apart': sum(sum(each['tokens']) for each in apart) / sum(e['cpu_s'] for e in apart),
            'together': sum(together['tokens']) / together['cpu_s'],
        }
        clock_apart = sum(sum(each['tokens']) / each['s'] for each in apart)
        clock_together = sum(together['tokens']) / together['s']
        figures[name] = round(rates['together'] / rates['apart'], 2)
        figures[f'{name}_on_clock'] = round(clock_together / clock_apart, 2)
        figures[f'{name}_tokens_per_cpu_s'] = {k: round(v, 1) for k, v in rates.items()}
    return figures


def measure_flood(path) -> dict:
    """Compare what three robots get beside a fourth that asks as they do, and that floods."""
    group, rates = Group(path, ROBOTS), {'asks': [], 'floods': []}
    robots = [Robot(group, engine, number) for number, engine in enumerate(group.engines)]
    taken = dict.fromkeys(rates, 0)
    try:
        for robot in robots:
            robot.read(UNITS)
        for _ in range(PHASES):
            for kind, how in (('asks', (1, 0)), ('floods', (FLOOD_QUESTIONS, -1))):
                for robot in robots[1:]:
                    robot.begin(1)
                robots[0].begin(*how)
                found = measure(group, robots, PHASE_S)
                rates[kind].append(sum(found['tokens'][1:]) / found['cpu_s'])
                taken[kind] += found['tokens'][0]
                for robot in robots:
                    robot.stop()
        read = group.engines[0].status().units_read - UNITS
    finally:
        group.close()
    cost = 1 - statistics.median(rates['floods']) / statistics.median(rates['asks'])
    return {
        'flood_cost': round(cost, 3),
        'flood_rates': {kind: [round(rate, 1) for rate in found] for kind, found in rates.items()},
        'flood_units_read': read,
        'flood_tokens': taken,
    }


def measure_memory(path, folder: Path) -> dict:
    """Compare contexts of one and of two windows, and their plans."""
    model, found = LanguageModel.load(path), []
    options = ContextOptions(n_ctx=4096, n_sequences=13, attention='fused', threads=1)
    for n in (1, 2):
        context = Context(model, replace(options, n_windows=n, n_sequences=12 + n))
        found.append(pss_mib())
        context.close()
    model.close()
    from minicpmo_ros.ggml.gguf_file import read_header

    kv = 4096 * kv_mib_per_position(LlmSizes.of(read_header(path)))
    large = ModelDirectory.open(write_model(folder / '2.6', '2.6', None, 'q4_K', 'f16', 'q4_0'))
    plan = PlanOptions(attention='fused', device='cpu', parts=('llm',))
    planned = [forecast(large, replace(plan, n_robots=n)).total_mib for n in (1, 2)]
    kv_large = 4096 * kv_mib_per_position(LlmSizes.of(large.headers['llm']))
    return {
        'second_robot_mib': round(found[1] - found[0], 1),
        'second_robot_kv_mib': round(kv, 1),
        'second_robot_2_6_mib': round(planned[1] - planned[0], 1),
        'second_robot_2_6_kv_mib': round(kv_large, 1),
    }


def measure_same(seconds: int = 40, attention: tuple = ('auto', 'auto')) -> dict:
    """Count the answers of nano that are the same for two robots together and alone."""
    core = open_core(ModelDirectory.open(NANO), 6)
    stream = read_seconds(ROOT / 'demo' / 'clips' / 'questions.json', 2 * seconds)
    streams = [stream[:seconds], stream[seconds : 2 * seconds]]
    units = [list(units_of(core, each)) for each in streams]
    core.close()
    said = {}
    for way, sizes, how in (('together', (2,), attention[0]), ('alone', (1, 1), attention[1])):
        window = ContextOptions(n_ctx=512, threads=1, attention=how)
        groups = [Group(NANO / 'llm.gguf', n, window) for n in sizes]
        engines = [engine for group in groups for engine in group.engines]
        said[way] = [
            text for asked in ask_streams(groups, engines, streams, units) for text in asked
        ]
        for group in groups:
            group.close()
    same = [one == other for one, other in zip(said['together'], said['alone'])]
    return {'two_robots_same': round(sum(same) / len(same), 4), 'two_robots_answers': len(same)}


def ask_streams(groups: list, engines: list, streams: list, units: list):
    """Yield the answers of both robots to questions about their newest seconds."""
    for second in range(len(streams[0])):
        for engine, mine in zip(engines, units):
            engine.put_image(second, mine[second].image_rows, mine[second].tiles)
            engine.put_audio(second, mine[second].audio_rows)
        for group in groups:
            group.until(lambda n=second + 1, group=group: all(
                each.status().units_read == n for each in group.engines))  # fmt: skip
        if second < 4:
            continue
        texts = [
            (engine, question(shown, second, number)[0])
            for number in (second, second + 1)
            for engine, shown in zip(engines, streams)
        ]
        asked = [queue.Queue() for _ in texts]
        for answers, (engine, text) in zip(asked, texts):
            engine.ask(Question(text), on_done=answers.put)
        yield [answers.get(timeout=FOR_EVER_S).text for answers in asked]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--only', default='same,memory,speed,flood', help='of %(default)s')
    wanted = parser.parse_args().only.split(',')
    path = ROOT / 'build' / 'scale.json'
    found, load = (json.loads(path.read_text()) if path.exists() else {}), os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=ROOT / 'build') as folder:
        folder = Path(folder)
        model = folder / 'llm.gguf'
        if set(wanted) & {'memory', 'speed', 'flood'}:
            write_llm(model, HALF_B, 1, 'q4_0')
        for name, work in (
            ('same', measure_same),
            ('memory', lambda: measure_memory(model, folder)),
            ('speed', lambda: measure_speed(model)),
            ('flood', lambda: measure_flood(model)),
        ):
            if name in wanted:
                found.update(work())
    found['robots_load_average'] = round(load, 1)
    for name, value in found.items():
        print(f'{name:36}{value}')
    path.write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
    main()
