# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Several robots on one engine: the same answers, at what memory, how fast, and who pays a flood.

    source environment/env.sh
    python -m benchmarks.robots [--only same,memory,speed,flood] [--rounds 2]

same: nano reads two streams of the clips that ship, and both robots ask at the same time, while
seconds leave their windows; `two_robots_same` is the share of the answers that each robot gets
from an engine of its own, word by word.
memory: a context of one and of two windows at the 0.5B size, and in the plan of MiniCPM-o 2.6 with
keys and values on a GPU or in 8 bits; `second_robot_mib` and `second_robot_2_6_mib` with the keys
and values alone beside them.
speed: four robots at the 0.5B size (random weights, q4_0), whose windows hold UNITS seconds, get
ANSWERS answers of TOKENS tokens each, by one engine and by four processes with an engine of one
thread each, which run at the same time; by turns, so many rounds. `throughput_four` is the tokens
per second of CPU time of the one engine, with one thread, as a ratio to the four. On the clock,
`throughput_four_on_clock_1` has that one thread, and `_on_clock` one for each core. The same with
`_units`: while every robot also reads a second.
flood: three of the robots get FLOOD_ANSWERS answers each, one after the other. Meanwhile the
fourth asks as they do, or it floods: with as many questions as are taken, and with seconds as
fast as they are read; by turns, as many rounds. `flood_cost` is what the three lose of their
tokens per second of CPU time by that.
All compute with one thread where nothing else is said, speed and flood with fused attention. CPU
time is told because other programs change it less than the time on a clock. What is counted are
answers, so a busy machine takes longer: speed and flood need 250 s of CPU time for two rounds.
Adds to build/scale.json after each part.
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


from benchmarks.robot_group import FOR_EVER_S, WINDOW, Group, measure  # noqa: E402
from benchmarks.soak import question  # noqa: E402
from benchmarks.streams import open_core, read_seconds, units_of  # noqa: E402
from minicpmo_ros.live.question import Question  # noqa: E402
from minicpmo_ros.llm.context import Context  # noqa: E402
from minicpmo_ros.llm.context_options import ContextOptions  # noqa: E402
from minicpmo_ros.llm.model import LanguageModel  # noqa: E402
from minicpmo_ros.memory.llm_formulas import LlmSizes, keys_and_values  # noqa: E402
from minicpmo_ros.memory.plan import PlanOptions, forecast  # noqa: E402
from minicpmo_ros.memory.proc import pss_mib  # noqa: E402
from minicpmo_ros.modelset.directory import ModelDirectory  # noqa: E402
from minicpmo_ros.modelset.gguf_layouts import HALF_B  # noqa: E402
from minicpmo_ros.ros.framework.machine import cpu_name  # noqa: E402
from minicpmo_ros.synthetic.model import write_llm, write_model  # noqa: E402
from minicpmo_ros.units import MIB  # noqa: E402

ROOT = Path(__file__).parents[1]
NANO = ROOT / 'models' / 'nano'
ROBOTS, ANSWERS = 4, 2
N_CORES = len(os.sched_getaffinity(0))
KINDS = {'throughput_four': 0, 'throughput_four_units': ANSWERS}  # answers per second that is read
FLOOD_ANSWERS = 12


def ask_alone(path: str, number: int, plan: list, begin, results) -> None:
    """Be one of four processes: a robot with an engine of its own; end if the first one does."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    group = Group(path, 1).fill(number)
    for per in plan:
        begin.wait(FOR_EVER_S)
        results.put(measure(group, ANSWERS, per))
    group.close()


class Apart:
    """Robots in processes of their own, which measure what is planned at the same time."""

    def __init__(self, path, plan: list):
        context = multiprocessing.get_context('spawn')
        self._results, self._begin = context.Queue(), context.Barrier(ROBOTS + 1)
        self._processes = [
            context.Process(
                target=ask_alone,
                args=(str(path), number, plan, self._begin, self._results),
                daemon=True,  # they end with this one, whatever happens
            )
            for number in range(ROBOTS)
        ]
        for process in self._processes:
            process.start()

    def measure(self) -> dict:
        """Let them measure what comes next; return it as if one had done it."""
        self._begin.wait(FOR_EVER_S)
        found = [self._results.get(timeout=FOR_EVER_S) for _ in self._processes]
        return {
            'tokens': [n for each in found for n in each['tokens']],
            'cpu_s': sum(each['cpu_s'] for each in found),
            'begun_s': min(each['begun_s'] for each in found),
            'end_s': max(each['end_s'] for each in found),
        }


def measure_speed(path, rounds: int) -> dict:
    """Compare one engine for four robots with four engines."""
    plan = list(KINDS) * rounds
    apart = Apart(path, [KINDS[name] for name in plan])
    groups = {
        'one': Group(path, ROBOTS).fill(),
        'all': Group(path, ROBOTS, replace(WINDOW, threads=N_CORES)).fill(),
    }
    rates = {name: {} for name in KINDS}  # lists of tokens per second by what was measured
    for name in plan:
        found = {'apart': apart.measure()}
        found |= {key: measure(group, ANSWERS, KINDS[name]) for key, group in groups.items()}
        for key, one in found.items():
            print(name, key, one, flush=True)
            n_tokens, clock_s = sum(one['tokens']), one['end_s'] - one['begun_s']
            rates[name].setdefault(f'{key}_cpu', []).append(n_tokens / one['cpu_s'])
            rates[name].setdefault(f'{key}_clock', []).append(n_tokens / clock_s)
    for group in groups.values():
        group.close()
    figures = {}
    for name, found in rates.items():
        mean = {key: statistics.mean(each) for key, each in found.items()}
        figures |= {
            name: round(mean['one_cpu'] / mean['apart_cpu'], 2),
            f'{name}_on_clock_1': round(mean['one_clock'] / mean['apart_clock'], 2),
            f'{name}_on_clock': round(mean['all_clock'] / mean['apart_clock'], 2),
            f'{name}_tokens_per_s': {k: [round(r, 1) for r in each] for k, each in found.items()},
        }
    return figures


def measure_flood(path, rounds: int) -> dict:
    """Compare what three robots get beside a fourth that asks as they do, and that floods."""
    group = Group(path, ROBOTS).fill()
    found = {'asks': [], 'floods': []}
    for _ in range(rounds):
        for beside, results in found.items():
            read = group.robots[-1].units_read
            results.append(measure(group, FLOOD_ANSWERS, beside=beside))
            print(beside, results[-1], flush=True)
            results[-1]['read'] = group.robots[-1].units_read - read
    group.close()
    rates = {k: [sum(one['tokens'][:-1]) / one['cpu_s'] for one in v] for k, v in found.items()}
    mean = {beside: statistics.mean(each) for beside, each in rates.items()}
    return {
        'flood_cost': round(1 - mean['floods'] / mean['asks'], 3),
        'flood_rates': {
            beside: [round(rate, 1) for rate in each] for beside, each in rates.items()
        },
        'flood_tokens': {
            beside: sum(one['tokens'][-1] for one in v) for beside, v in found.items()
        },
        'flood_units_read': sum(one['read'] for one in found['floods']),
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

    kv = keys_and_values(LlmSizes.of(read_header(path)), 4096, 'f16', 0).host / MIB
    large = ModelDirectory.open(write_model(folder / '2.6', '2.6', None, 'q4_K', 'f16', 'q4_0'))
    plan = PlanOptions(attention='fused', device='cpu', parts=('llm',))
    planned = [forecast(large, replace(plan, n_robots=n)).total_mib for n in (1, 2)]
    kv_large = keys_and_values(LlmSizes.of(large.headers['llm']), 4096, 'f16', 0).host / MIB
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
    parser.add_argument('--rounds', type=int, default=2, help='of speed and flood')
    arguments = parser.parse_args()
    wanted, rounds = arguments.only.split(','), max(1, arguments.rounds)
    path = ROOT / 'build' / 'scale.json'
    found = json.loads(path.read_text()) if path.exists() else {}
    with tempfile.TemporaryDirectory(dir=ROOT / 'build') as folder:
        folder = Path(folder)
        model = folder / 'llm.gguf'
        if set(wanted) & {'memory', 'speed', 'flood'}:
            write_llm(model, HALF_B, 1, 'q4_0')
        for name, work in (
            ('same', measure_same),
            ('memory', lambda: measure_memory(model, folder)),
            ('speed', lambda: measure_speed(model, rounds)),
            ('flood', lambda: measure_flood(model, rounds)),
        ):
            if name not in wanted:
                continue
            begun_s, loads = time.monotonic(), [os.getloadavg()[0]]
            figures = work()
            loads.append(os.getloadavg()[0])
            figures[f'{name}_measured_on'] = (
                f'{cpu_name()}, {N_CORES} cores, load {loads[0]:.0f} before and {loads[1]:.0f} '
                f'after it, {time.monotonic() - begun_s:.0f} s'
            )
            for key, value in figures.items():
                print(f'{key:36}{value}', flush=True)
            found.update(figures)
            path.write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
    main()
