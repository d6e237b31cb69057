# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A report in the forms that other evaluation tools read.

lm-evaluation-harness (0.4): results_TIME.json with a task a family, and samples_TASK_TIME.jsonl.
inspect_ai: a log of version 2, of which its viewer and its data frames take TIME_..._ID.json.
Sources: lm_eval/loggers/evaluation_tracker.py and lm_eval/utils.py; inspect_ai/log/_log.py.
"""

import hashlib
import json
import re
from pathlib import Path

from minicpmo_ros.evaluation.report.comparison import Cell, Judged
from minicpmo_ros.evaluation.report.runs import RunReport
from minicpmo_ros.evaluation.statistics import NORMAL_95

NO_TIME = '1970-01-01T00:00:00+00:00'  # of a run that does not say when it was made
METRICS = {'right': 'acc', 'tolerant': 'acc_tolerant'}


def write(report: RunReport, folder) -> list:
    """Write a folder a run, with the files of both tools; give their paths."""
    written = []
    folders, tasks = _file_names(report.names), _file_names(report.families)
    for k, run in enumerate(report.runs):
        of_run = Path(folder) / folders[run.name]
        of_run.mkdir(parents=True, exist_ok=True)
        time = _time(run).replace(':', '-')
        files = {
            f'results_{time}.json': json.dumps(lm_eval(report, k), ensure_ascii=False, indent=1)
        }
        for family in report.families:
            lines = (
                json.dumps(line, ensure_ascii=False) for line in lm_eval_samples(report, k, family)
            )
            files[f'samples_{tasks[family]}_{time}.jsonl'] = '\n'.join(lines) + '\n'
        log = inspect_log(report, k)
        name = f'{time}_{_file_name(log["eval"]["task"])}_{log["eval"]["task_id"]}.json'
        files[name] = json.dumps(log, ensure_ascii=False, indent=1)
        for name, text in files.items():
            (of_run / name).write_text(text, encoding='utf-8')
            written.append(of_run / name)
    return written


def lm_eval(report: RunReport, k: int) -> dict:
    """Return what lm-eval writes of a run: a task a family, all of them a group."""
    run, families = report.runs[k], report.families
    group = report.questions.name or 'replay'
    group += ' (all)' * (group in families)
    results = {name: _lm_eval_result(name, cells[k], report) for name, cells in families.items()}
    everything = _lm_eval_result(group, report.total[k], report)
    counts = {name: sum(q.family == name for q in report.questions.questions) for name in families}
    facts, start = run.run.facts, _start(run)
    return {
        'results': {group: everything, **results},
        'groups': {group: everything},
        'group_subtasks': {group: list(families), **{name: [] for name in families}},
        'configs': {name: {'task': name, 'num_fewshot': 0} for name in families},
        'versions': dict.fromkeys((group, *families), 1),
        'n-shot': dict.fromkeys((group, *families), 0),
        'higher_is_better': {
            name: {metric: True for metric in _metrics(report).values()}
            for name in (group, *families)
        },
        'n-samples': {name: {'original': n, 'effective': n} for name, n in counts.items()},
        'config': {'model': 'minicpmo_ros', 'model_args': facts, 'batch_size': 1, 'limit': None},
        'git_hash': None,
        'date': _seconds(run),
        'lm_eval_version': '0.4',
        'task_hashes': {},
        'model_source': 'minicpmo_ros',
        'model_name': run.name,
        'model_name_sanitized': _file_name(run.name),
        'start_time': None,
        'end_time': None,
        'total_evaluation_time_seconds': None,
        'minicpmo_ros': start,
    }


def _metrics(report: RunReport) -> dict:
    return METRICS if report.is_by_letter else {'right': 'acc'}


def _lm_eval_result(name: str, cell: Cell, report: RunReport) -> dict:
    told = {
        'alias': name,
        'acc,none': cell.right.share,
        'acc_stderr,none': (cell.right.high - cell.right.low) / 2 / NORMAL_95,
    }
    return {**told, 'acc_tolerant,none': cell.tolerant} if report.is_by_letter else told


def lm_eval_samples(report: RunReport, k: int, family: str) -> list:
    """Return a line a question of a family."""
    run, lines = report.runs[k], []
    for i, question in enumerate(report.questions.questions):
        if question.family != family:
            continue
        document = {'id': question.id, 'clip': question.clip, 'start_s': question.start_s,
                    'end_s': question.end_s, 'question': question.text}  # fmt: skip
        target = list(question.answers)
        metrics = {METRICS[name]: float(getattr(run, name)[i]) for name in _metrics(report)}
        lines.append(
            {
                'doc_id': i,
                'doc': document,
                'target': target,
                'arguments': {'gen_args_0': {'arg_0': question.text, 'arg_1': {}}},
                'resps': [[run.texts[i]]],
                'filtered_resps': [run.texts[i]],
                'filter': 'none',
                'metrics': list(metrics),
                'doc_hash': _hash(document),
                'prompt_hash': _hash(question.text),
                'target_hash': _hash(target),
                **metrics,
            }
        )
    return lines


def inspect_log(report: RunReport, k: int) -> dict:
    """Return a run as a log of inspect_ai."""
    run, asked = report.runs[k], report.questions
    task, facts = asked.name or 'replay', run.run.facts
    count, unanswered = len(asked.questions), len(_errors(run))
    return {
        'version': 2,
        'status': 'success',
        'eval': {
            'eval_id': _id(run, 'eval'),
            'run_id': _id(run, 'run'),
            'created': _time(run),
            'task': task,
            'task_id': _id(run, 'task'),
            'task_version': 1,
            'dataset': {
                'name': task,
                'samples': count,
                'sample_ids': [question.id for question in asked.questions],
                'shuffled': False,
            },
            'model': f'minicpmo_ros/{facts.get("model") or run.name}',
            'config': {},
            'packages': _start(run).get('software', {}),
            'metadata': {'run': run.name, 'facts': facts, 'start': _start(run)},
        },
        'plan': {'name': 'replay', 'steps': [], 'config': {}},
        'results': {
            'total_samples': count,
            'completed_samples': count - unanswered,
            'scores': [_inspect_score(report, k, name) for name in _metrics(report)],
        },
        'stats': {'started_at': _time(run), 'completed_at': _time(run), 'model_usage': {}},
        'samples': [_inspect_sample(report, k, i) for i in range(count)],
    }


def _inspect_score(report: RunReport, k: int, name: str) -> dict:
    cell = report.total[k]
    values = {'accuracy': cell.right.share if name == 'right' else cell.tolerant}
    if name == 'right':
        values['stderr'] = (cell.right.high - cell.right.low) / 2 / NORMAL_95
    metrics = {metric: {'name': metric, 'value': value} for metric, value in values.items()}
    return {'name': name, 'scorer': name, 'params': {}, 'metrics': metrics}


def _inspect_sample(report: RunReport, k: int, i: int) -> dict:
    run, question = report.runs[k], report.questions.questions[i]
    text, error = run.texts[i], _errors(run).get(question.id, '')
    scores = {
        name: {'value': 'C' if getattr(run, name)[i] else 'I', 'answer': text}
        for name in _metrics(report)
    }
    choices = list(question.choices or question.options)
    window = {name: getattr(question, name) for name in ('clip', 'start_s', 'end_s', 'family')}
    message = {'role': 'assistant', 'content': text, 'source': 'generate'}
    return {
        'id': question.id,
        'epoch': 1,
        'input': question.text,
        **({'choices': choices} if choices else {}),
        'target': list(question.answers),
        'messages': [{'role': 'user', 'content': question.text, 'source': 'input'}, message],
        'output': {
            'model': 'minicpmo_ros',
            'choices': [{'message': message, 'stop_reason': 'stop'}],
        },
        'scores': scores,
        'metadata': {**window, **run.run.costs.get(question.id, {})},
        **({'error': _inspect_error(error)} if error else {}),
    }


def _inspect_error(error: str) -> dict:
    return {'message': error, 'traceback': error, 'traceback_ansi': error}


def _errors(run: Judged) -> dict:
    return run.run.unanswered


def _start(run: Judged) -> dict:
    return run.run.head.starts[-1] if run.run.head.starts else {}


def _time(run: Judged) -> str:
    told = _start(run).get('time')
    is_time = isinstance(told, str) and re.match(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d', told)
    return told if is_time else NO_TIME


def _seconds(run: Judged) -> float:
    from datetime import datetime

    return datetime.fromisoformat(_time(run)).timestamp()


def _id(run: Judged, what: str) -> str:
    """Return an id of 22 letters and digits, the same for the same run."""
    return _hash([what, run.name, run.run.facts, run.texts])[:22]


def _hash(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _file_names(names) -> dict:
    """Return {name: its file's}, no two alike."""
    files = {}
    for name in names:
        file = _file_name(name)
        files[name] = f'{file}-{len(files)}' if file in files.values() else file
    return files


def _file_name(name: str) -> str:
    """Return a name without what file systems and the tools' patterns make something of."""
    return re.sub(r'[^\w.-]+', '-', name).strip('.-_').replace('_', '-')[:40] or 'run'
