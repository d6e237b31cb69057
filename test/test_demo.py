# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What `make live` runs, as the user runs it."""

import os
import re
import subprocess
import sys

FIGURES = ('preprocessing', 'vision', 'audio', 'prefill', 'whole unit', 'first token',
           'generation', 'units in the window', 'memory of the process')  # fmt: skip


def test_the_demo_prints_two_answers_and_the_table(ros_domain, tiny_model_dir):
    command = [sys.executable, '-m', 'minicpmo_ros.nodes.demo', '--model-dir', tiny_model_dir]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'Traceback' not in done.stderr
    answers = re.findall(r'^A: +(.+)$', done.stdout, re.MULTILINE)
    assert len(answers) == 2
    for figure in FIGURES:
        assert re.search(rf'^\| {figure} \| [\d.]+', done.stdout, re.MULTILINE), figure


def test_the_demo_fails_in_words_without_a_model(ros_domain, tmp_path):
    command = [sys.executable, '-m', 'minicpmo_ros.nodes.demo', '--model-dir', tmp_path / 'none']
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ)
    assert done.returncode == 1
    assert 'no such model directory' in done.stderr and 'Traceback' not in done.stderr
