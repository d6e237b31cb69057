# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What `make live` runs, as the user runs it."""

import os
import re
import shutil
import signal
import subprocess
import sys
import wave

import numpy as np
import pytest

FIGURES = ('preprocessing', 'vision', 'audio', 'prefill', 'whole unit', 'first token',
           'generation', 'units in the window', 'memory of the process')  # fmt: skip


def test_the_demo_tells_the_truth_asks_and_prints_answers_and_the_table(ros_domain, tmp_path):
    wav = tmp_path / 'answer.wav'
    command = [sys.executable, '-m', 'minicpmo_ros.ros.replay.demo', '--wav', wav]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=os.environ)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'Traceback' not in done.stderr
    answers = re.findall(r'^A: +(.+)$', done.stdout, re.MULTILINE)
    # Of the picture, of the sound, of both at once; nano was found to answer them rightly.
    assert answers[:3] == ['cross', 'woman', 'yellow']
    if shutil.which('espeak-ng') is None:
        assert 'not asked by voice: espeak-ng is not installed' in done.stdout
    else:  # the spoken one is answered, whatever nano takes it for, and heard
        assert len(answers) == 4 and answers[3].strip()
        with wave.open(str(wav)) as file:
            heard = np.frombuffer(file.readframes(file.getnframes()), '<i2')
            assert len(heard) > 0.1 * file.getframerate() and np.abs(heard).max() > 1000
    for figure in FIGURES:
        assert re.search(rf'^\| {figure} \| .*\w', done.stdout, re.MULTILINE), figure


def test_the_demo_fails_in_words_without_a_model(ros_domain, tmp_path):
    demo = ('-m', 'minicpmo_ros.ros.replay.demo')
    command = [sys.executable, *demo, '--model-dir', tmp_path / 'none']
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=os.environ)
    assert done.returncode == 1
    assert 'no such model directory' in done.stderr and 'Traceback' not in done.stderr


def test_the_demo_names_its_clips_when_it_has_no_such():
    command = [sys.executable, '-m', 'minicpmo_ros.ros.replay.demo', '--clip', 'foo.mcap']
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=os.environ)
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert 'no clip foo.mcap; there are 000.mcap, ' in done.stderr


def test_the_page_with_its_nodes_is_ended_by_sigterm(ros_domain, tmp_path):
    pytest.importorskip('aiohttp')
    page = ('-m', 'minicpmo_ros.ros.web.session', '--page', 'port=0')
    command = [sys.executable, *page, '--model-dir', tmp_path / 'none']
    out = subprocess.PIPE
    with subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, text=True) as session:
        lines = iter(session.stdout.readline, '')
        assert any('the page is at' in line for line in lines)
        session.send_signal(signal.SIGTERM)
        told = session.stdout.read()  # ends with the last of the nodes
        assert session.wait(60) == 128 + signal.SIGTERM
    assert 'ended by SIGTERM' in told and 'Traceback' not in told
