# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The files for Slurm and Kubernetes are well formed, and their commands are commands of ours."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from minicpmo_ros.cli.main import make_parser
from minicpmo_ros.documents import StrictLoader
from minicpmo_ros.evaluation.shards import Shard

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / 'config' / 'fleet'
PAGE = ROOT / 'docs' / 'fleet.md'
VALUES = {'SLURM_ARRAY_TASK_ID': '3', 'JOB_COMPLETION_INDEX': '3', 'SHARDS': '64'}


def jobs() -> list:
    return list(yaml.load_all((FOLDER / 'kubernetes.yaml').read_text(), StrictLoader))


def container_of(job: dict) -> dict:
    (container,) = job['spec']['template']['spec']['containers']
    return container


def scripts() -> dict:
    """Return {name: shell text} of all that is run."""
    told = {path.name: path.read_text() for path in sorted(FOLDER.glob('*.sh'))}
    for job in jobs():
        (told[job['metadata']['name']],) = container_of(job)['args']
    return told


def parsed(line: str):
    """Parse a command line of ours, its variables replaced; SystemExit where it is none."""
    line = re.sub(r'\$\{?(\w+)\}?', lambda found: VALUES.get(found[1], '7'), line)
    verb, *rest = shlex.split(line)
    assert verb == 'minicpmo'
    return make_parser().parse_args(rest)


def commands(text: str) -> list:
    return re.findall(r'^\s*(minicpmo .*)$', text, re.MULTILINE)


@pytest.mark.parametrize('name', sorted(scripts()))
def test_every_script_is_bash_and_runs_one_verb_of_ours(name):
    text = scripts()[name]
    subprocess.run(['bash', '-n'], input=text, text=True, check=True)
    (line,) = commands(text)
    given = parsed(line)
    assert given.verb == ('merge' if 'merge' in name else 'replay')
    if given.verb == 'replay':
        assert Shard.parse(given.shard) == Shard(3, 64)


@pytest.mark.parametrize('name', sorted(scripts()))
def test_every_script_comes_to_its_verb_where_setup_files_read_what_is_not_set(name, tmp_path):
    """ROS's setup.bash does; our env.sh is the true one."""
    (tmp_path / 'setup.bash').write_text('[ -n "$AMENT_TRACE_SETUP_FILES" ] || true\n')
    (tmp_path / 'minicpmo').write_text('#!/bin/sh\necho reached "$1"\n')
    (tmp_path / 'minicpmo').chmod(0o755)
    text = scripts()[name].replace('/opt/ros/jazzy/setup.bash', f'{tmp_path}/setup.bash')
    text = text.replace('/minicpmo_ros/environment', f'{ROOT}/environment')
    # Behind the folders of env.sh, which come first in PATH.
    text = text.replace('minicpmo ', f'{tmp_path}/minicpmo ')
    given = {'CHECKOUT': str(ROOT), 'MODEL': 'm', 'QUESTIONS': 'q', 'OUT': 'o', 'HOME': '/'}
    given |= {'SLURM_ARRAY_TASK_ID': '3', 'SLURM_CPUS_PER_TASK': '4', 'PATH': os.defpath}
    given |= {'JOB_COMPLETION_INDEX': '3'}
    ran = subprocess.run(['bash', '-c', text], env=given, text=True, capture_output=True)
    assert (ran.returncode, ran.stdout.split()[:1]) == (0, ['reached']), ran.stderr


def test_a_command_that_is_none_would_be_found():
    with pytest.raises(SystemExit):
        parsed('minicpmo replay "$MODEL" "$QUESTIONS" --out "$OUT" --shards-of 64')
    with pytest.raises(SystemExit):
        parsed('minicpmo join "$OUT"')


def test_as_many_tasks_are_started_as_there_are_shards():
    ask, merge = jobs()
    assert ask['spec']['completionMode'] == 'Indexed'
    assert ask['spec']['completions'] == 64 >= ask['spec']['parallelism']
    assert '#SBATCH --array=0-63%' in (FOLDER / 'slurm.sh').read_text()
    for job in (ask, merge):
        spec = job['spec']['template']['spec']
        assert (job['apiVersion'], job['kind']) == ('batch/v1', 'Job')
        mounted = {mount['name'] for mount in container_of(job)['volumeMounts']}
        assert mounted == {volume['name'] for volume in spec['volumes']}
        assert spec['restartPolicy'] == 'Never'  # else an index is not counted by its backoff


def test_the_commands_of_the_page_are_ours():
    lines = commands(PAGE.read_text())
    assert len(lines) >= 5
    for line in lines:
        parsed(re.split('[|#>]', line)[0])


def test_the_tables_of_the_page_follow_from_its_formula():
    rows = re.findall(
        r'^\| (\S+), .*? \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d,]+) \|',
        PAGE.read_text(),
        re.MULTILINE,
    )
    assert len(rows) == 3
    for _, unit_s, first_s, tokens_per_s, hours, all_hours in rows:
        questions, tokens = 120, 16
        answer_s = float(first_s) + tokens / float(tokens_per_s)
        expected = float(unit_s) + questions * answer_s / 3600
        assert float(hours) == pytest.approx(expected, rel=0.02)
        assert float(all_hours.replace(',', '')) == pytest.approx(1e4 * expected, rel=0.02)
