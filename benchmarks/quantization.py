# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What types of weights cost in answers (nano), and in time (a language model of 0.5B).

    python -m benchmarks.quantization             # nano: sizes, errors, answers; minutes
    python -m benchmarks.quantization --search    # and the smallest types that keep them
    python -m benchmarks.quantization --sweep     # time by type; 4 GB under build/ meanwhile

Importance is collected from the first third of the questions that ship, answers are compared over
the rest. Writes build/quantization.json, where what this run did not measure stays as it was, and
prints the tables.
"""

import argparse
import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

from minicpmo_ros.process import prepare

prepare()

from benchmarks import type_sweep  # noqa: E402
from minicpmo_ros.evaluation.precision_search import (  # noqa: E402
    Search,  # noqa: E402
    agreement,
    answered,
    collect,  # noqa: E402
)
from minicpmo_ros.evaluation.questions import QuestionSet  # noqa: E402
from minicpmo_ros.evaluation.runner import CoreOptions  # noqa: E402
from minicpmo_ros.modelset.directory import ModelDirectory  # noqa: E402
from minicpmo_ros.quantize.quantizer import (  # noqa: E402
    QuantizeOptions,
    overall_error,
    quantize_directory,
)
from minicpmo_ros.quantize.report import measured_groups, pattern_of  # noqa: E402
from minicpmo_ros.quantize.rules import Rule  # noqa: E402

OUT = Path('build/quantization.json')
CORE = CoreOptions(device='cpu', threads=1)
ROLES = ('llm', 'vision', 'audio')
KEPT = ('f16', 'bf16', 'q8_0', 'q6_K', 'q5_K', 'q4_K', 'q4_1', 'q4_0', 'q3_K', 'q2_K')
PLAIN = ('q4_K', 'q4_1', 'q4_0', 'q3_K', 'q2_K')  # everything in one type
PROBE = 'q2_K'  # a kind of tensors alone, to see which matter


class Answers:
    """nano in other types, asked about the clips that ship."""

    def __init__(self, model: ModelDirectory, questions: QuestionSet, work: Path):
        third = len(questions.questions) // 3
        self.model, self.work = model, work
        self.asked = replace(questions, questions=questions.questions[third:])
        importance = collect(model, questions.first(third), CORE)
        self.importance = importance
        self.reference = None
        self.reference = self.row('f32', 'f32')['answers']

    def row(self, name: str, precision: str, rules=(), weigh: bool = False) -> dict:
        """Write, load, ask; give size, errors, agreement with f32 and share of right answers."""
        options = QuantizeOptions(
            [Rule(*rule) for rule in rules], importance=self.importance if weigh else None
        )
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            model, reports = quantize_directory(
                self.model.path, Path(folder) / 'm', dict.fromkeys(ROLES, precision), options
            )
            answers = answered(model, self.asked, CORE)
        told = [report for role in ROLES for report in reports[role]]
        texts = answers.of(self.asked)
        right = [q.is_right(text) for q, text in zip(self.asked.questions, texts)]
        found = {
            'name': name,
            'mib': sum(report.new_bytes for report in told) / 2**20,
            'error': overall_error(told),
            'weighted_error': overall_error(told, weighted=True) if weigh else None,
            'same': agreement(self.asked, self.reference, answers) if self.reference else 1.0,
            'right': sum(right) / len(right),
            'answers': answers,
        }
        print(name, round(found['same'], 4), flush=True)
        return found


def of_nano(answers: Answers) -> dict:
    """Ask nano in all types: with key layers higher, everything alike, with importance, and one
    kind of the language model's tensors at a time.
    """
    rows = [answers.row(name, name) for name in KEPT]
    alike, kinds = [], []
    for name in PLAIN:
        rule = [('*', Rule.parse(f'*={name}').type)]
        alike.append(answers.row(name, 'keep', rule))
        alike.append(answers.row(f'{name}, importance', 'keep', rule, weigh=True))
    probe = Rule.parse(f'*={PROBE}').type
    for pattern in dict.fromkeys(map(pattern_of, answers.model.headers['llm'].tensors)):
        if pattern.endswith('.weight') and 'norm' not in pattern:
            kinds.append(answers.row(pattern, 'keep', [(pattern, probe, 'llm')]))
    tables = {'key_layers_higher': rows, 'alike': alike, 'one_kind': kinds}
    for table in tables.values():
        for row in table:
            del row['answers']
    return {'questions': len(answers.asked.questions), **tables}


def searched(answers: Answers, wanted: float, limit: int) -> dict:
    """Search the smallest types by the same questions."""
    options = QuantizeOptions(importance=answers.importance)
    groups = measured_groups(answers.model, options=options, work=answers.work)
    search = Search(answers.model, groups, answers.asked, wanted, CORE, options, work=answers.work)
    whole = search.best.size_bytes
    best = search.run(limit)
    types = {
        f'{group.part} {group.pattern}': group.rungs[n].precision
        for group, n in zip(groups, best.levels)
    }
    return {
        'wanted': wanted,
        'asked': search.n_tried,
        'mib_before': whole / 2**20,
        'mib': best.size_bytes / 2**20,
        'same': best.agreement,
        'types': types,
    }


def machine() -> dict:
    """Say where and on what this ran."""
    lines = Path('/proc/cpuinfo').read_text().splitlines()
    names = [line.split(':')[1].strip() for line in lines if line.startswith('model name')]
    commit = subprocess.run(
        ['git', 'rev-parse', '--short', 'HEAD'], capture_output=True, text=True
    ).stdout.strip()
    return {
        'cpu': names[0] if names else 'unknown',
        'cores': os.cpu_count(),
        'load': round(os.getloadavg()[0], 1),
        'commit': commit,
    }


def table(rows: list) -> str:
    """Print rows of nano; the weighted error is empty where importance was not used."""
    lines = [
        '| types | MiB | error % | weighted error % | same answers as f32 % | right % |',
        '|---|---:|---:|---:|---:|---:|',
    ]
    for row in rows:
        weighted = row['weighted_error']
        lines.append(
            f'| {row["name"]} | {row["mib"]:.2f} | {100 * row["error"]:.2f} '
            f'| {"" if weighted is None else f"{100 * weighted:.2f}"} '
            f'| {100 * row["same"]:.1f} | {100 * row["right"]:.1f} |'
        )
    return '\n'.join(lines)


def show(report: dict) -> None:
    """Print all tables there are."""
    if 'nano' in report:
        for name in ('key_layers_higher', 'alike', 'one_kind'):
            print(f'\n{name}\n\n{table(report["nano"][name])}')
    if 'search' in report:
        found = report['search']
        print(
            f'\nsearch for {100 * found["wanted"]:.0f} %: {found["mib_before"]:.2f} -> '
            f'{found["mib"]:.2f} MiB, same answers {100 * found["same"]:.1f} %, '
            f'{found["asked"]} sets of types asked\n'
        )
        print('| tensors | type |\n|---|---|')
        for name, precision in found['types'].items():
            print(f'| {name} | {precision} |')
    if 'sweep' in report:
        print(f'\nsweep\n\n{type_sweep.markdown(report["sweep"]["rows"])}')


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', type=Path, default=Path('models/nano'))
    parser.add_argument(
        '--questions', type=Path, default=Path('demo/clips/questions.json'), metavar='FILE'
    )
    parser.add_argument('--search', action='store_true', help='also search the smallest types')
    parser.add_argument('--agreement', type=float, default=0.98, help='that the search keeps')
    parser.add_argument('--evaluations', type=int, default=30, help='of the search at most')
    parser.add_argument('--sweep', action='store_true', help='measure time by type instead')
    parser.add_argument('--pairs', type=int, default=5, help='of measurements of the sweep')
    parser.add_argument('--keep', action='store_true', help='keep the files of the sweep')
    arguments = parser.parse_args()
    OUT.parent.mkdir(exist_ok=True)
    report = json.loads(OUT.read_text()) if OUT.exists() else {}
    if arguments.sweep:
        folder = OUT.parent / 'type_sweep'
        rows = type_sweep.sweep(folder, arguments.pairs)
        report['sweep'] = {'machine': machine(), 'rows': rows}
        if not arguments.keep:
            shutil.rmtree(folder)
    else:
        questions = QuestionSet.read(arguments.questions)
        answers = Answers(ModelDirectory.open(arguments.model), questions, OUT.parent)
        report['nano'] = {'machine': machine(), **of_nano(answers)}
        if arguments.search:
            report['search'] = searched(answers, arguments.agreement, arguments.evaluations)
    OUT.write_text(json.dumps(report, indent=1) + '\n')
    show(report)


if __name__ == '__main__':
    main()
