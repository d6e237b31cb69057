# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""How quick the offline runner is, and how much of its time is not the model's.

    source environment/env.sh && python -m benchmarks.replay_speed [--shape nano,0.5b]

The clips that ship are asked their questions. Speed is seconds of stream per second of CPU time,
on one thread: two cores with a worker each do twice as much a second of the clock. Every window is
read anew, so that a second counts each time it is read. Model time is what the encoders' graphs
and llama_decode take, the rest is reading, decoding, resizing, resampling, log-mel, Python. CPU
time, not wall time: the machine may be busy. The 0.5b shape has random weights of that size.
Writes build/replay_speed.json.
"""

import argparse
import json
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from minicpmo_ros.process import prepare

prepare()

from minicpmo_ros.evaluation import replay  # noqa: E402
from minicpmo_ros.evaluation.questions import QuestionSet  # noqa: E402
from minicpmo_ros.evaluation.results import Results, Run  # noqa: E402
from minicpmo_ros.evaluation.runner import CoreOptions  # noqa: E402
from minicpmo_ros.ggml.runtime import Backend  # noqa: E402
from minicpmo_ros.llm.context import llama  # noqa: E402
from minicpmo_ros.modelset.directory import ModelDirectory  # noqa: E402
from minicpmo_ros.synthetic.model import write_model  # noqa: E402

ROOT = Path(__file__).parents[1]
QUESTIONS = ROOT / 'demo' / 'clips' / 'questions.json'


class Meter:
    """CPU seconds spent in the model."""

    def __init__(self):
        self.model_s = 0.0

    def metered(self, call):
        """Give a function that counts what it takes."""

        def counted(*arguments):
            began_s = time.process_time()
            try:
                return call(*arguments)
            finally:
                self.model_s += time.process_time() - began_s

        return counted

    @contextmanager
    def counting(self):
        """Count the graphs of the encoders and llama_decode meanwhile."""
        compute, decode = Backend.compute, llama.llama_decode
        Backend.compute = self.metered(compute)
        llama.llama_decode = self.metered(decode)
        try:
            yield
        finally:
            Backend.compute, llama.llama_decode = compute, decode


def measure(model_dir: Path, questions: QuestionSet, folder: Path) -> dict:
    """Run, and give what it took."""
    options = CoreOptions(device='cpu', threads=1, n_ctx=1024)
    plan = replay.ReplayPlan(ModelDirectory.open(model_dir), questions, options)
    answerer, meter = replay.CoreAnswerer(plan), Meter()
    results = Results(folder, plan.facts())
    try:
        with meter.counting():
            began_s = time.process_time()
            replay.run(plan, results, lambda _: answerer)
            whole_s = time.process_time() - began_s
    finally:
        results.close()
    run = Run.read(folder)
    windows = {(q.clip, *q.span) for q in questions.questions}
    seconds = sum(end_s - start_s for _, start_s, end_s in windows)
    assert not any(cost['error'] for cost in run.costs.values())
    return {
        'questions': len(run.texts),
        'stream_s': seconds,
        'cpu_s': round(whole_s, 2),
        'model_cpu_s': round(meter.model_s, 2),
        'times_real_time_a_core': round(seconds / whole_s, 1),
        'times_real_time_two_cores': round(2 * seconds / whole_s, 1),
        'percent_beside_the_model': round(100 * (1 - meter.model_s / whole_s), 1),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--shape', default='nano,0.5b', help='of nano,0.5b (%(default)s)')
    parser.add_argument('--limit', type=int, default=12, help='questions at the 0.5b shape')
    arguments = parser.parse_args()
    questions, found = QuestionSet.read(QUESTIONS), {}
    with tempfile.TemporaryDirectory(dir=ROOT / 'build') as folder:
        for shape in arguments.shape.split(','):
            model, asked = ROOT / 'models' / 'nano', questions
            if shape != 'nano':
                model = write_model(Path(folder) / shape, shape, llm_type='q4_0')
                asked = questions.first(arguments.limit)
            found[shape] = measure(model, asked, Path(folder) / f'run_{shape}')
    print('| shape | ' + ' | '.join(next(iter(found.values()))) + ' |')
    print('|---|' + '---:|' * len(next(iter(found.values()))))
    for shape, row in found.items():
        print(f'| {shape} | ' + ' | '.join(map(str, row.values())) + ' |')
    (ROOT / 'build' / 'replay_speed.json').write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
    main()
