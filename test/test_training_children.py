# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The stages of a training end with the one that started them, and never mix seeds."""

import os
import select
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 60  # how long a broken test takes to fail
STAGE = "import os, signal; os.write(1, b'here\\n'); signal.pause()"
PARENT = (
    'import sys\n'
    'from training.children import side_by_side\n'
    'print(side_by_side([[sys.executable, "-c", stage] for stage in sys.argv[1:]]), flush=True)'
)


@contextmanager
def parent(*stages):
    """Start a process that runs stages; what is left of them is ended behind the test."""
    command = [sys.executable, '-c', PARENT, *stages]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, cwd=ROOT, start_new_session=True, bufsize=0
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def told(process, count=-1):
    """Give the next lines of all processes; of all there are, once the last one has ended."""
    text = b''
    while count < 0 or text.count(b'\n') < count:
        assert select.select([process.stdout], [], [], TIMEOUT_S)[0], text
        part = process.stdout.read(4096)
        if not part:
            break
        text += part
    return text.decode().split()


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL])
def test_no_stage_goes_on_alone(number):
    with parent(STAGE, STAGE) as process:
        assert told(process, 2) == ['here'] * 2
        os.kill(process.pid, number)
        assert told(process) == []


def test_a_stage_that_fails_ends_the_others():
    with parent(STAGE, 'raise SystemExit(3)') as process:
        assert told(process)[-1] == 'False'
    with parent('pass', 'pass') as process:
        assert told(process) == ['True']


def test_a_checkpoint_of_another_seed_is_refused_in_words(tmp_path):
    torch = pytest.importorskip('torch')
    from training.runs import Run, checkpoint

    module = torch.nn.Linear(2, 2)
    run = Run(tmp_path, 'llm', seed=2)
    optimizer = torch.optim.SGD(module.parameters())
    for _ in run.steps(module, optimizer, 1, 0.1):
        pass
    assert checkpoint(run.path, 2)['step'] == 1
    with pytest.raises(SystemExit, match='is of seed 2, --seed is 1'):
        next(Run(tmp_path, 'llm', seed=1).steps(module, optimizer, 2, 0.1))
    older = torch.load(run.path, weights_only=True)
    del older['seed']
    torch.save(older, run.path)
    assert checkpoint(run.path, 1)['step'] == 1
