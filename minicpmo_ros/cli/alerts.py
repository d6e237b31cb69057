# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The verb alerts, and what `replay` does with standing questions and the proactive task."""

import csv
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from minicpmo_ros.config import ALERTS_TOGETHER, LLM
from minicpmo_ros.documents import make_folder, make_place
from minicpmo_ros.errors import InputError


def add_alerts_arguments(parser) -> None:
    """Declare the options of `alerts`."""
    parser.add_argument('action', choices=('fit',), help='fit: see above')
    parser.add_argument('folder', type=Path, metavar='FOLDER', help='folder of replay --alerts')
    parser.add_argument('--write', type=Path, metavar='RULES', help='file of rules to write')


def run_alerts(arguments) -> None:
    """Fit standing questions to labelled bags that `replay --alerts` has followed.

    For each alert, `fit` finds scale and bias under which a probability means what it says, and
    thresholds for it. It prints how well calibrated the alert was and is, and what other
    thresholds would give, and draws reliability.svg into the folder of the run. With --write, it
    writes the rules with these values.
    """
    from minicpmo_ros.alerts.rules import read_rules, write_rules
    from minicpmo_ros.evaluation.alerts import AlertRun, fit_run
    from minicpmo_ros.evaluation.report.plots import reliability_diagram

    run = AlertRun.read(arguments.folder)
    if arguments.write:
        make_place(arguments.write)
        if arguments.write.exists():  # nothing but rules is written over
            read_rules(arguments.write)
    fitted = fit_run(run)
    print(fitted.report(), end='')
    diagram = reliability_diagram({one.after.id: one.bins for one in fitted.fitted})
    (arguments.folder / 'reliability.svg').write_text(diagram, encoding='utf-8')
    if arguments.write:
        after = {rule.id: rule for rule in fitted.rules}
        write_rules(arguments.write, [after.get(rule.id, rule) for rule in run.rules])
        print(f'{len(run.rules)} alerts are in {arguments.write}.')


def watch_rules(arguments, options, sources) -> int:
    """Follow the rules of `replay --alerts` over bags: write the run, print the table."""
    from minicpmo_ros.alerts.rules import read_rules
    from minicpmo_ros.evaluation import alerts
    from minicpmo_ros.evaluation.alert_scores import AlertTruth, table
    from minicpmo_ros.evaluation.runner import Core
    from minicpmo_ros.modelset.directory import ModelDirectory

    rules = read_rules(arguments.alerts)
    if not rules:
        raise InputError(f'{arguments.alerts}: it has no alerts to follow.')
    truth = AlertTruth.read(arguments.questions, arguments.bag)
    truth.check(rules)
    model = ModelDirectory.open(arguments.model)
    make_folder(arguments.out)
    options = replace(
        options,
        max_forks=min(len(rules), ALERTS_TOGETHER),
        max_question_tokens=options.max_question_tokens or LLM.max_question_tokens,
    )
    core = Core(model, options)
    try:
        blank = alerts.watch_blank(core, rules)
        tell = partial(print, file=sys.stderr)
        watched = alerts.watch_all(core, rules, truth, sources, _tell(len(truth.clips)), tell)
    finally:
        core.close()
    facts = {'model': model.model_id, 'precision': model.precision, 'weights': model.fingerprint}
    run = alerts.AlertRun(rules, watched, truth, blank, facts)
    run.write(arguments.out)
    if drawn := _draw(run):
        (arguments.out / 'probabilities.svg').write_text(drawn, encoding='utf-8')
    else:
        print('In no second would the model say a word of an alert: nothing is drawn. Ask it the '
              'question, and use the words that it answers.', file=sys.stderr)  # fmt: skip
    print(table(run.scores), end='')
    return 0


def follow_proactive(arguments, options, sources) -> int:
    """Follow the proactive task as published, for `replay`; write proactive.csv, print a table."""
    from minicpmo_ros.evaluation.bags.clip_reading import read_windows
    from minicpmo_ros.evaluation.runner import Core
    from minicpmo_ros.evaluation.streamingbench import follow, poll_of, read_proactive
    from minicpmo_ros.llm.model import load_vocabulary
    from minicpmo_ros.modelset.directory import ModelDirectory

    asked, defects = read_proactive(arguments.questions)
    folder = arguments.bag or arguments.questions.parent
    there = [one for one in asked if (folder / one.bag).exists()][: arguments.limit]
    for line in [*defects, f'{len(asked) - len(there)} of {len(asked)} questions are not asked.']:
        print(line, file=sys.stderr)
    if not there:
        raise InputError(
            f'{folder}: it has no bag of the videos. `minicpmo streamingbench` makes them.'
        )
    model = ModelDirectory.open(arguments.model)
    vocabulary = load_vocabulary(model.llm_path, model.manifest.pre_tokenizer)
    longest = max(len(vocabulary.encode(poll_of(one))) for one in there)
    allowed = options.max_question_tokens or max(LLM.max_question_tokens, longest)
    make_folder(arguments.out)
    core, spoken = Core(model, replace(options, max_question_tokens=allowed)), []
    try:
        for one in there:
            with read_windows(folder / one.bag, [(one.span, False)], sources) as kept:
                spoken.append(follow(core, kept.clip(), one))
    finally:
        core.close()
    _write_proactive(arguments.out / 'proactive.csv', spoken)
    _print_proactive(spoken)
    return 0


def _write_proactive(path: Path, spoken: list) -> None:
    with open(path, 'w', newline='', encoding='utf-8') as file:
        rows = csv.writer(file, lineterminator='\n')
        rows.writerow(('question', 'bag', 'asked_s', 'truth_s', 'output', 'spoken_s', 'text'))
        for s in spoken:
            one = s.asked
            rows.writerow(
                (one.index, one.bag, one.asked_s, one.truth_s, one.output, s.at_s, s.text)
            )


def _print_proactive(spoken: list) -> None:
    from minicpmo_ros.evaluation.statistics import share_by_clip

    print('| questions | spoke | time right (95 %) | time and answer right (95 %) |')
    print('|---|---|---|---|')
    bags = [s.asked.bag for s in spoken]
    shares = [
        share_by_clip([right(s) for s in spoken], bags)
        for right in (lambda s: s.is_in_time, lambda s: s.is_right)
    ]
    told = [f'{100 * s.share:.1f} % ({100 * s.low:.1f} to {100 * s.high:.1f})' for s in shares]
    count = sum(s.at_s is not None for s in spoken)
    print(f'| {len(spoken)} | {count} | {told[0]} | {told[1]} |')


def _draw(run) -> str:
    """Return the picture of every rule in every second that was read; '' where there is none."""
    from minicpmo_ros.alerts.calibration import Calibration
    from minicpmo_ros.evaluation.alert_scores import held_seconds
    from minicpmo_ros.evaluation.report.plots import alert_course

    shown, edges = {}, []
    for rule in run.rules:
        log_odds, held, clips = held_seconds(run.truth, rule, run.watched)
        if not len(held):
            continue
        probability = Calibration(rule.scale, rule.bias).probability(log_odds)
        shown[rule.id] = probability, held, rule.on, rule.off
        edges = [i for i in range(1, len(clips)) if clips[i] != clips[i - 1]]
    return alert_course(shown, edges) if shown else ''


def _tell(total: int):
    def tell(clip: str, number: int) -> None:
        end = '' if sys.stderr.isatty() else '\n'
        if sys.stderr.isatty() or number % 20 == 0 or number == total:
            print(f'\r{number} of {total}: {clip} ', end=end, file=sys.stderr, flush=True)

    return tell
