# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""`minicpmo ask`, `watch`, `status` and `top`, and the same verbs of `ros2 minicpmo`."""

import configparser
import json
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from ros_graph import TIMEOUT_S

from minicpmo_ros.msg import Answer, Status
from minicpmo_ros.verbs.arguments import VERBS
from minicpmo_ros.verbs.robot import rows_of

SETUP = Path(__file__).parents[1] / 'setup.cfg'
GROUP = 'minicpmo_ros.verb'


@pytest.fixture(scope='module')
def robot(shared_graph, tiny_model_dir):
    """Give a graph whose language model is ready, and the answers that it has given."""
    shared_graph.answers = []
    shared_graph.create_subscription(Answer, 'llm/answer', shared_graph.answers.append, 10)
    parameters = ('-p', f'model_dir:={tiny_model_dir}', '-p', 'max_tokens:=8')
    shared_graph.start('llm', *parameters)
    shared_graph.wait_ready()
    return shared_graph


def start(robot, *words):
    """Start `minicpmo VERB ...` about this robot."""
    verb, *rest = words
    command = [sys.executable, '-m', 'minicpmo_ros.cli.main', verb, '--namespace', robot.namespace]
    return subprocess.Popen(
        [*command, *rest], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(robot, process):
    """Let the graph work until a verb has ended; give what it printed."""
    try:
        robot.spin_until(lambda: process.poll() is not None, 'the end of a verb')
    finally:
        process.kill()  # does nothing where it has ended; else it would outlive the tests
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, err
    return out, err


def test_ask_prints_the_answer_and_what_it_rests_on(robot):
    out, err = finish(robot, start(robot, 'ask', 'x:=y --ros-args?', '--choices', 'tea', 'cake'))
    answer = robot.spin_until(lambda: robot.answers and robot.answers[-1], 'the answer')
    assert answer.question == 'x:=y --ros-args?'  # nothing for ROS
    assert out == f'{answer.text}\n' and answer.text in ('tea', 'cake')
    assert 'first token' in err
    for choice, share in zip(('tea', 'cake'), answer.probabilities):
        assert f'{choice} {100 * share:.0f} %' in err


def test_ask_sends_an_image_that_is_read_and_says_which_file_cannot_be(robot, tmp_path):
    path = tmp_path / 'seen.jpg'
    path.write_bytes(b'no image')
    for words, told in (
        (('what?', '--image', str(path)), 'The image was not read'),
        (('what?', '--image', str(tmp_path / 'none.jpg')), 'none.jpg: it cannot be read (No such'),
        (('what?', '--memory', 'only'), 'none are kept'),
        (('--choices', 'tea', 'cake', 'which?'), 'there is no question: write it before'),
    ):
        process = start(robot, 'ask', *words)
        robot.spin_until(lambda p=process: p.poll() is not None, 'the refusal')
        out, err = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 1 and not out.strip() and told in err, err
    _, err = finish(robot, start(robot, 'ask', 'what?', '--look', 'sharp'))
    assert 'not looked at closer: Nobody offers look' in err


def test_ask_says_why_there_is_no_answer(robot):
    process = start(robot, 'ask', 'word ' * 2000)
    robot.spin_until(lambda: process.poll() is not None, 'the refusal')
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 1 and not out.strip() and 'max_question_tokens' in err


def test_watch_prints_an_answer_as_one_line_that_a_terminal_may_show(robot):
    process = start(robot, 'watch', '--count', '1')
    topic = f'{robot.namespace}/llm/answer'
    try:
        robot.spin_until(lambda: robot.count_subscribers(topic) == 2, 'who watches')
        # The graph knows of who watches before the llm sends to it: it is asked until one arrives.
        robot.spin_until(
            lambda: robot.ask('two\nlines and \033[2J') and process.poll() is not None,
            'an answer to arrive',
        )
    finally:
        out, _ = finish(robot, process)
    assert out.count('\n') == 1 and '\033' not in out
    assert 'two lines and [2J' in out


@pytest.mark.parametrize(
    'area, period_s, slowed, told',
    [
        (0.0, 0, '', None),
        (1.0, 1, '', 'area 1'),
        (0.56, 1, 'too slow', 'area 0.56: too slow'),
        (0.25, 4, 'too slow', 'area 0.25, one second in 4: too slow'),
    ],
)
def test_status_tells_how_much_is_seen_and_why(area, period_s, slowed, told):
    status = Status(image_area=area, image_period_s=period_s, image_slowed=slowed)
    assert dict(rows_of(status)).get('images') == told


def test_status_and_top_tell_of_the_window_and_the_memory(robot):
    table, _ = finish(robot, start(robot, 'status'))
    assert 'ready' in table and 'positions' in table and 'MiB' in table
    fields = json.loads(finish(robot, start(robot, 'status', '--json'))[0])
    assert fields['model'] == robot.status.model and fields['seconds'] == []
    shown, _ = finish(robot, start(robot, 'top', '--count', '1'))
    assert shown.startswith(f'{robot.namespace}/llm') and 'ready' in shown


def test_ros2_has_the_same_verbs():
    config = configparser.ConfigParser()
    config.read(SETUP)
    told = config['options.entry_points']
    names = [line.split(' = ')[0] for line in told[GROUP].strip().splitlines()]
    assert names == list(VERBS)
    installed = entry_points(group='ros2cli.command') if sys.version_info >= (3, 10) else ()
    assert 'minicpmo' in {one.name for one in installed}


def test_the_command_of_ros2_loads():
    pytest.importorskip('ros2cli', reason='ros2cli comes with a ROS 2 distribution')
    (command,) = entry_points(group='ros2cli.command', name='minicpmo')
    command.load()
    for verb in entry_points(group=GROUP):
        assert verb.load().verb == verb.name
