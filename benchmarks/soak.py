# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""An hour of stream, as fast as it goes: is memory flat, and are answers as right at the end?

    make soak

Seconds of the held-out clips are strung together at random to twenty minutes, which are played
three times, through both encoders and the engine, one second after the other. The window holds few
seconds, so that they leave all the time. Every few seconds a question about one of the last three
is asked; those of the first and of the last twenty minutes are the same, at the same places.
Memory is what the kernel says of the process that does it (smaps_rollup), over the last tenth of
the stream against the tenth behind the warm-up: RSS, and PSS, which moves when another process
that has the same libraries open comes or goes. Each way to keep a window has its own process.
Writes build/soak.json.
"""

import argparse
import json
import multiprocessing
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from minicpmo_ros.process import prepare

prepare()

import numpy as np  # noqa: E402

from benchmarks.streams import open_core, question_file, read_seconds, units_of  # noqa: E402
from minicpmo_ros.live.engine import Engine  # noqa: E402
from minicpmo_ros.live.question import Question  # noqa: E402
from minicpmo_ros.modelset.directory import ModelDirectory  # noqa: E402
from training.world import COUNTS, NUMBERS  # noqa: E402

FOR_EVER_S = 600  # for what a busy machine does within seconds
KINDS = {
    'color': 'what color {is} the shape {when}?',
    'shape': 'what shape {is} shown {when}?',
    'count': 'how many shapes {are} shown {when}?',
    'sound': 'what {do} you hear {when}?',
}
NOW = {'is': 'is', 'are': 'are', 'do': 'do'}
PAST = {'is': 'was', 'are': 'were', 'do': 'did'}


@dataclass(frozen=True)
class Soak:
    """One way through the stream."""

    policy: str = 'recent'
    kv_type: str = 'f16'
    seconds: int = 3600  # three times the same
    every: int = 8  # seconds between questions
    units: int = 8  # that the window holds
    clips: int = 100  # that the stream is strung together from
    model: str = 'models/nano'
    seed: int = 3


class Lockstep:
    """An engine that is given one thing at a time."""

    def __init__(self, session, alerts=None):
        self._change, self._units_read = threading.Condition(), 0
        self._refused = self.most_positions = 0
        self.newest = []  # Answers that were waited for last
        self.engine = Engine(lambda *_: session, on_change=self._note, alerts=alerts)
        self.engine.start()
        self._until(lambda: self.engine.status().state == 'ready')

    def read(self, unit) -> None:
        """Give a unit, and wait until it is in the window."""
        before = self._units_read
        self.give(unit)
        self._until(lambda: self._units_read > before)

    def give(self, unit) -> None:
        """Give a unit, and do not wait."""
        self.engine.put_image(unit.second, unit.image_rows, unit.tiles)
        self.engine.put_audio(unit.second, unit.audio_rows)

    def ask(self, text: str, **options) -> str:
        """Ask, and wait for the answer's text."""
        return self.ask_together([text], **options)[0]

    def ask_together(self, texts: list, **options) -> list:
        """Ask all at once, and wait for the texts of all answers; `newest` are these."""
        answers = {}
        for i, text in enumerate(texts):
            self.engine.ask(
                Question(text, **options),
                on_done=lambda answer, i=i: self._keep(answers, i, answer),
            )
        self._until(lambda: len(answers) == len(texts))
        for answer in answers.values():
            if answer.error is not None:
                raise answer.error
        self.newest = [answers[i] for i in range(len(texts))]
        return [answer.text for answer in self.newest]

    def _keep(self, answers: dict, i: int, answer) -> None:
        with self._change:
            answers[i] = answer
            self._change.notify_all()

    def _note(self, status) -> None:
        with self._change:
            self._units_read, self._refused = status.units_read, status.units_refused
            self.most_positions = max(self.most_positions, status.positions)
            self._change.notify_all()

    def _until(self, condition) -> None:
        with self._change:
            done = self._change.wait_for(lambda: condition() or self._refused, FOR_EVER_S)
        if not done or self._refused:
            raise SystemExit(f'the engine does not go on: {self.engine.status()}')


def question(stream: list, second: int, number: int) -> tuple:
    """Give the text and the right answer of a question asked behind `second`."""
    kind, ago = list(KINDS)[number % len(KINDS)], number // len(KINDS) % 3
    shown = stream[second - ago]
    when = 'now' if ago == 0 else f'{NUMBERS[ago]} second{"s" if ago > 1 else ""} ago'
    answer = {
        'color': shown.color,
        'shape': shown.shape,
        'count': COUNTS[shown.count - 1],
        'sound': 'speech' if shown.is_word else shown.sound,
    }[kind]
    return KINDS[kind].format(when=when, **(PAST if ago else NOW)), answer


def memory_mib() -> dict:
    """Give {'Pss': ..., 'Rss': ...} of this process."""
    with open('/proc/self/smaps_rollup') as file:
        lines = [line.split() for line in file if line.startswith(('Pss:', 'Rss:'))]
    return {line[0][:-1]: int(line[1]) / 1024 for line in lines}


def soak(options: Soak) -> dict:
    """Go through the stream; give the figures."""
    pool = read_seconds(question_file(), options.clips)
    core = open_core(
        ModelDirectory.open(options.model),
        options.units,
        window_policy=options.policy,
        kv_type=options.kv_type,
    )
    third = options.seconds // 3
    drawn = np.random.default_rng(options.seed).integers(len(pool), size=third)
    stream = [pool[i] for i in drawn] * 3
    steps, answers, memory = Lockstep(core.session), [[], [], []], []
    started_s = time.process_time()
    for unit in units_of(core, stream):
        steps.read(unit)
        turn, place = divmod(unit.second, third)
        if place >= 3 and place % options.every == 0:
            text, right = question(stream, unit.second, place // options.every)
            said = steps.ask(text)
            answers[turn].append((said, said.strip() == right))
        if unit.second % max(1, options.seconds // 240) == 0:
            memory.append(memory_mib())
    cpu_s = time.process_time() - started_s
    status = steps.engine.status()
    steps.engine.close(FOR_EVER_S)
    return {
        **asdict(options),
        'evicted': status.evicted,
        'most positions': steps.most_positions,
        'context': status.context_size,
        'questions': sum(map(len, answers)),
        'right, first third': _share(right for _, right in answers[0]),
        'right, last third': _share(right for _, right in answers[2]),
        'same answers': _share(a == b for (a, _), (b, _) in zip(answers[0], answers[2])),
        'memory': {name: _ends([each[name] for each in memory]) for name in ('Pss', 'Rss')},
        'CPU ms a second': 1e3 * cpu_s / options.seconds,
    }


def soak_apart(options: Soak) -> dict:
    """Soak in a process of its own, so that the memory is its own."""
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        return pool.apply(soak, (options,))


def _share(rights) -> float:
    return 100 * float(np.mean(list(rights)))


def _ends(values: list) -> dict:
    """Give the mean of the tenth behind the warm-up, which is a tenth too, and of the last."""
    n = max(1, len(values) // 10)
    begin, end = np.mean(values[n : 2 * n]), np.mean(values[-n:])
    return {'begin': float(begin), 'end': float(end), 'growth': 100 * float(end / begin - 1)}


def table(results: list) -> str:
    """Give the Markdown table."""
    head = [
        'window_policy, kv_type',
        'seconds',
        'left the window',
        'most positions of n_ctx',
        'PSS begin, end, growth',
        'RSS growth',
        'right: first, last third',
        'same answers',
    ]
    lines = ['| ' + ' | '.join(head) + ' |', '|---|' + '---:|' * (len(head) - 1)]
    for r in results:
        pss, rss = r['memory']['Pss'], r['memory']['Rss']
        cells = [
            f'{r["policy"]}, {r["kv_type"]}',
            f'{r["seconds"]}',
            f'{r["evicted"]}',
            f'{r["most positions"]} of {r["context"]}',
            f'{pss["begin"]:.1f}, {pss["end"]:.1f} MiB, {pss["growth"]:+.2f} %',
            f'{rss["growth"]:+.2f} %',
            f'{r["right, first third"]:.1f}, {r["right, last third"]:.1f} %',
            f'{r["same answers"]:.1f} %',
        ]
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def main() -> int:
    """Soak, print and write; 1 where RSS moved by 1 % or answers got worse by 3 points."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--seconds', type=int, default=3600)
    parser.add_argument('--model', default='models/nano')
    given = parser.parse_args()
    results = []
    for policy, kv_type in (('recent', 'f16'), ('long', 'q8_0')):
        results.append(soak_apart(Soak(policy, kv_type, given.seconds, model=given.model)))
        print(f'{policy}, {kv_type}: done', file=sys.stderr)
    print(table(results))
    Path('build').mkdir(exist_ok=True)
    Path('build/soak.json').write_text(json.dumps(results, indent=1) + '\n')
    fine = [
        abs(r['memory']['Rss']['growth']) < 1
        and r['right, last third'] > r['right, first third'] - 3
        for r in results
    ]
    return 0 if all(fine) else 1


if __name__ == '__main__':
    raise SystemExit(main())
