# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What several questions at once cost, as ratios to one, on nano and on 0.5B of random weights.

    make alerts                                          # python -m benchmarks.alerts
    python -m benchmarks.alerts --shape 0.5b --llm q8_0

The window is full, and all is measured in this process, by turns: CPU seconds of one thread, which
a busy machine changes little, the median over the repetitions.

four_over_one         four questions asked at once, until all are answered, over one question
first_token_over_one  the first tokens of these four, in the mean, over that of one (wall clock)
riding_over_separate  a unit with four short questions about it in one decode, over a unit and four
                      forks that are read one after the other
riders_over_forks     what these four add to the unit, over the four forks alone
riding_kl             the largest divergence between what the two ways say (Kullback-Leibler)
eight_over_one        a unit with eight such questions, over a unit with one
none_over_before      one question where four may be answered together, over one where only one may
forced_over_free      decodes of an answer in JSON over its tokens
rule_period_s         the longest mean period of eight rules while two people ask again and again,
                      at any time, in seconds of a stream at the pace of real time, with
                      --budget-ms of alerts.budget_ms; as ~/alerts/state tells it
rule_lost_sight       how often one of them was not read for three periods
first_token_beside_rules  the first tokens of these two, in the mean, over those without rules
                      (wall clock)
units_dropped_beside_rules, units_dropped_without  share of the seconds that were not read

Models of random weights are written to build/bench. Writes build/alerts.json, by figure and model,
beside what else is there.
"""

import argparse
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, median

from minicpmo_ros.process import prepare

prepare()

import numpy as np  # noqa: E402

from benchmarks.alert_truth import record  # noqa: E402
from benchmarks.bench import NANO, synthetic  # noqa: E402
from benchmarks.soak import Lockstep  # noqa: E402
from minicpmo_ros.alerts.reader import AlertAsker  # noqa: E402
from minicpmo_ros.alerts.rules import AlertRule  # noqa: E402
from minicpmo_ros.alerts.watch import AlertWatch, Turns  # noqa: E402
from minicpmo_ros.families.minicpm_o_2_6 import ENGLISH  # noqa: E402
from minicpmo_ros.live.question import Question  # noqa: E402
from minicpmo_ros.live.session import Session  # noqa: E402
from minicpmo_ros.live.session_options import SessionOptions  # noqa: E402
from minicpmo_ros.live.window import Read  # noqa: E402
from minicpmo_ros.llm.context_options import ContextOptions  # noqa: E402
from minicpmo_ros.llm.sampling import log_sum_exp  # noqa: E402
from minicpmo_ros.modelset.gguf_layouts import SHAPES  # noqa: E402
from minicpmo_ros.streams.pairing import Unit  # noqa: E402

QUESTIONS = (
    'what shape is shown now?',
    'what color is the shape now?',
    'how many shapes are shown now?',
    'what is heard now?',
)
TOKENS = 24  # of an answer
ASKED_EACH = 4  # times that two people ask, for a ratio
RULES = tuple(  # of beside_people
    AlertRule(f'r{i}', QUESTIONS[i % len(QUESTIONS)], ('square',), ('circle',)) for i in range(8)
)
BUDGET_MS = 200.0  # as alerts.budget_ms is unless it is set
PARTS = ('together', 'riding', 'people')
JSON = r"""
root ::= "{\"shape\": \"" word "\", \"color\": \"" word "\", \"is_moving\": " bool "}"
word ::= [a-z] [a-z] [a-z] [a-z]
bool ::= "true" | "false"
"""


class Measured:
    """A session whose window is full, and the units that come next."""

    def __init__(self, path: Path, queries: int, max_forks: int, n_ctx: int):
        self.session = Session.load(
            path,
            ENGLISH,
            None,
            ContextOptions(n_ctx=n_ctx, threads=1),
            SessionOptions(max_tokens=96, max_question_tokens=40, max_forks=max_forks),
        )
        self.random, self._second, self._queries = np.random.default_rng(1), 0, queries
        while not self.session.evicted:
            self.session.append(self.unit())

    def unit(self) -> Unit:
        """Return the next second, of random embeddings."""
        width = self.session.model.width
        scale = float(self.session.prompt.prefix.std())
        image, audio = (
            scale * self.random.standard_normal((n, width)).astype(np.float32)
            for n in (self._queries, 25)
        )
        self._second += 1
        return Unit(self._second, image, (0, 0), audio)

    def rows(self, text: str) -> np.ndarray:
        """Return the rows (n, width) of a question."""
        return self.session.prompt.question(self.session.model.vocabulary.encode(text))


def cpu_s(work) -> float:
    """Return the CPU seconds that a call takes."""
    begun_s = time.process_time()
    work()
    return time.process_time() - begun_s


def ratio(first, second, repeats: int) -> float:
    """Return the median of what one call takes over the other, called by turns."""
    first(), second()
    return median(cpu_s(first) / cpu_s(second) for _ in range(repeats))


def together(path: Path, queries: int, n_ctx: int, repeats: int) -> dict:
    """Return the figures of questions that people ask, through the engine."""
    found = {}
    robots = {n: Lockstep(Measured(path, queries, n, n_ctx).session) for n in (1, 4)}
    try:
        robot, texts = robots[4], list(QUESTIONS)
        alone = [robot.ask(text, max_tokens=TOKENS) for text in texts]
        found['texts_equal'] = alone == robot.ask_together(texts, max_tokens=TOKENS)

        def one() -> None:
            robot.ask(texts[0], max_tokens=TOKENS)

        def before() -> None:
            robots[1].ask(texts[0], max_tokens=TOKENS)

        def four() -> None:
            robot.ask_together(texts, max_tokens=TOKENS)

        found['four_over_one'] = ratio(four, one, repeats)
        found['none_over_before'] = ratio(one, before, 2 * repeats)
        firsts = []
        for _ in range(repeats):
            one()
            alone_ms = robot.newest[0].first_token_ms
            four()
            firsts.append(mean(a.first_token_ms for a in robot.newest) / alone_ms)
        found['first_token_over_one'] = median(firsts)
        found['units_dropped'] = robot.engine.status().units_dropped
    finally:
        for robot in robots.values():
            robot.engine.close(20)
    return found


def riding(path: Path, queries: int, n_ctx: int, repeats: int) -> dict:
    """Return the figures of questions that ride with a unit."""
    measured = Measured(path, queries, 8, n_ctx)
    session = measured.session
    rows = [measured.rows(text) for text in QUESTIONS * 2]

    def ride(n: int):
        return lambda: session.append(measured.unit(), (), rows[:n])

    def forks() -> list:
        logits = []
        for each in rows[:4]:
            fork = session.fork(len(each))
            logits.append(session.read([Read(fork, each)])[0][0].copy())
            fork.drop()
        return logits

    def spent_s(way) -> float:
        # Some units in between, so that not always the same way pays for eviction.
        for _ in range(measured.random.integers(3)):
            session.append(measured.unit())
        return cpu_s(way)

    riders = [row.copy() for row in session.append(measured.unit(), (), rows[:4]).riders]
    kl = max(map(divergence, riders, forks()))
    ways = ride(0), ride(1), ride(4), ride(8), forks
    spent = [[spent_s(way) for way in ways] for _ in range(repeats)]
    plain, one, four, eight, alone = np.median(spent, 0).tolist()
    found = {
        'riding_over_separate': four / (plain + alone),
        'riders_over_forks': (four - plain) / alone,
        'riding_kl': kl,
        'eight_over_one': eight / one,
        'forced_over_free': forced(session),
    }
    session.close()
    return found


def beside_people(path: Path, queries: int, n_ctx: int, repeats: int, budget_ms: float) -> dict:
    """Return the figures of eight rules while two people ask and the stream goes on."""
    watches = [AlertWatch(RULES[:n], Turns(budget_ms)) for n in (0, len(RULES))]
    several = [Measured(path, queries, len(RULES) + 4, n_ctx) for _ in watches]
    events, given = [], [0, 0]
    robots = [
        Lockstep(measured.session, AlertAsker(watch, events.extend))
        for measured, watch in zip(several, watches, strict=True)
    ]

    def ask(robot: Lockstep, seed: int) -> float:
        random, found = np.random.default_rng(seed), []
        for _ in range(ASKED_EACH):
            time.sleep(random.uniform(0.2, 1.2))
            robot.ask_together(list(QUESTIONS[:2]), max_tokens=TOKENS)
            found.append(mean(answer.first_token_ms for answer in robot.newest))
        return mean(found)

    def first_token_ms(which: int, seed: int) -> float:
        with ThreadPoolExecutor(1) as people:
            next_s = time.monotonic()
            asked = people.submit(ask, robots[which], seed)
            while not asked.done():
                robots[which].give(several[which].unit())
                given[which] += 1
                next_s += 1.0
                time.sleep(max(0.0, next_s - time.monotonic()))
            return asked.result()

    try:
        ratios = []
        for seed in range(repeats + 1):  # the first one tells what a rule costs
            without, beside = (first_token_ms(which, seed) for which in (0, 1))
            ratios.append(beside / without)
        states = watches[1].states()
        dropped = [robot.engine.status().units_dropped for robot in robots]
    finally:
        for robot in robots:
            robot.engine.close(20)
    return {
        'rule_period_s': max(state.period_s for state in states),
        'first_token_beside_rules': median(ratios[1:]),
        'rule_lost_sight': sum('was read' in event.reason for event in events),
        'rule_evaluated': sum(state.evaluated for state in states),
        'units_dropped_without': dropped[0] / given[0],
        'units_dropped_beside_rules': dropped[1] / given[1],
    }


def divergence(one: np.ndarray, other: np.ndarray) -> float:
    """Return the Kullback-Leibler divergence of the softmax of two rows of logits."""
    p, q = (row - log_sum_exp(row) for row in (one.astype(float), other.astype(float)))
    return float(np.sum(np.exp(p) * (p - q)))


def forced(session: Session) -> float:
    """Return the decodes of an answer in JSON over its tokens."""
    asked, n_decodes = session.ask(Question('what is shown?', grammar=JSON)), 0
    while asked.answer is None:
        asked.step()
        n_decodes += 1
    return n_decodes / asked.answer.answer_tokens


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--shape', choices=('nano', '0.5b'), action='append', help='default: both')
    parser.add_argument('--llm', default='q4_0', help='precision of the 0.5B')
    parser.add_argument('--n-ctx', type=int, default=2048)
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--part', choices=PARTS, action='append', help='default: all')
    parser.add_argument('--budget-ms', type=float, default=BUDGET_MS, help='of the eight rules')
    given = parser.parse_args()
    rows = {}
    for shape in given.shape or ('nano', '0.5b'):
        directory = NANO if shape == 'nano' else synthetic(shape, given.llm, 'f16', 'f16')
        name = shape if shape == 'nano' else f'{shape} {given.llm}'
        what = directory / 'llm.gguf', SHAPES[shape].queries, given.n_ctx, given.repeats
        parts = given.part or PARTS
        rows[name] = together(*what) if 'together' in parts else {}
        rows[name] |= riding(*what) if 'riding' in parts else {}
        rows[name] |= beside_people(*what, given.budget_ms) if 'people' in parts else {}
        rows[name]['load'] = os.getloadavg()[0]
    names = list(next(iter(rows.values())))
    print('| figure | ' + ' | '.join(rows) + ' |\n|---|' + '---:|' * len(rows))
    for name in names:
        print(f'| {name} | ' + ' | '.join(f'{row[name]:.3g}' for row in rows.values()) + ' |')
    record(rows)


if __name__ == '__main__':
    main()
