# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The pages for users: their examples run, their messages exist, their links lead somewhere."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import rclpy
from std_msgs.msg import Empty, String

import minicpmo_ros
from minicpmo_ros.action import Ask as AskAction
from minicpmo_ros.msg import Answer, AnswerDelta
from minicpmo_ros.srv import Ask

ROOT = Path(__file__).parents[1]
CONTRIBUTING = ROOT / 'CONTRIBUTING.md'
PAGES = [ROOT / 'README.md', CONTRIBUTING, *sorted((ROOT / 'docs').glob('*.md'))]
TROUBLES = (ROOT / 'docs' / 'troubleshooting.md').read_text()


def blocks(page: str) -> dict:
    """Give {file name: text} of a page's code blocks whose first line names a file."""
    text = (ROOT / 'docs' / page).read_text()
    found = re.findall(r'```\w+\n(?:#|//|<!--) (\S+\.\w+)[^\n]*\n(.*?)```', text, re.DOTALL)
    return dict(found)


def run_example(graph, name: str, **kwargs):
    """Start an example as a user would, in the graph's namespace."""
    path = graph.log_dir / name
    path.write_text(blocks('clients.md')[name])
    command = [sys.executable, str(path), '--ros-args', '-r', f'__ns:={graph.namespace}']
    return subprocess.Popen(command, env=os.environ, text=True, **kwargs)


def run_readme_example(graph):
    """Run the lines of the README on a node of this process."""
    (lines,) = re.findall(r'```python\n(.*?)```', PAGES[0].read_text(), re.DOTALL)
    names = {'node': rclpy.create_node('reader', namespace=graph.namespace)}
    exec(lines, names)
    names['client'].destroy()
    names['node'].destroy_node()


def test_the_examples_of_the_pages_run(graph, tiny_model_dir, capsys):
    graph.start('live', '-p', f'model_dir:={tiny_model_dir}')
    bells, visitors = graph.create_publisher(Empty, 'bell', 10), []
    graph.create_subscription(String, 'visitor', visitors.append, 10)
    script = run_example(graph, 'look.py', stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    tools = run_example(graph, 'tools.py', stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    node = run_example(graph, 'doorbell.py')
    try:
        graph.wait_ready()
        graph.spin_until(lambda: script.poll() is not None, 'the script to end', 120)
        assert script.returncode == 0, script.stdout.read()
        choice, words = script.stdout.read().split('\n', 1)
        assert re.fullmatch(r'(yes|no) \(based on 0 s\)', choice) and words.strip()
        graph.spin_until(lambda: tools.poll() is not None, 'the tool that was called', 120)
        assert re.match(r'(points at the|says|waits for) ', tools.stdout.read())
        graph.spin_until(bells.get_subscription_count, 'the doorbell')
        bells.publish(Empty())
        graph.spin_until(lambda: visitors, 'the visitor')
        assert visitors[0].data
        run_readme_example(graph)
        assert capsys.readouterr().out.strip()
    finally:
        for process in (script, tools, node):
            process.kill()
            process.communicate()


def test_the_fields_of_the_example_in_cpp_exist():
    source = blocks('clients.md')['look.cpp']
    known = {
        'goal': AskAction.Goal, 'request': Ask.Request, 'result': AskAction.Result,
        'reply': Ask.Response, 'answer': Answer, 'delta': AnswerDelta,
    }  # fmt: skip
    for variable, message_type in known.items():
        fields = message_type.get_fields_and_field_types()
        used = set(re.findall(rf'\b{variable}(?:\.|->)(\w+)', source))
        assert used and used <= set(fields), variable


def messages() -> list:
    """Give every text in the code, with … for what is filled in."""
    texts = []
    for path in (ROOT / 'minicpmo_ros').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(re.sub('%[sd]', '…', node.value))
            elif isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else '…' for p in node.values]
                texts.append(''.join(parts))
    return texts


def test_every_message_of_the_troubleshooting_page_is_in_the_code():
    symptoms = re.findall(r'^\| (?!what you see|---)(.*?) \|', TROUBLES, re.MULTILINE)
    quotes = [quote for symptom in symptoms for quote in re.findall(r'`([^`]+ [^`]+)`', symptom)]
    assert len(quotes) > 50
    known = '\n'.join(messages())
    assert not [quote for quote in quotes if quote not in known]


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file(page):
    text = re.sub(r'```.*?```', '', page.read_text(), flags=re.DOTALL)
    for link in re.findall(r'\]\((?!https?:|#)([^)#]+)', text):
        assert (page.parent / link).exists(), link


def quoted(text: str) -> list:
    """Return what stands in backticks in a text, in order."""
    return re.findall(r'`([^`\n]+)`', text)


def missing_places(steps: list) -> list:
    """Return what a step names and the file named before it does not have."""
    missing = []
    for step in steps:
        paths = []
        for name in quoted(step):
            if re.match(r'[\w.]+(/[\w.]+)*\.[a-z]+$|\w+/$', name):
                paths.append(ROOT / name)
                missing += [] if paths[-1].exists() else [name]
            elif re.fullmatch(r'[\w ]+', name) and paths:
                told = paths[-1].read_text() if paths[-1].is_file() else ''
                missing += [] if re.search(rf'\b{name}\b', told) else [f'{paths[-1].name}: {name}']
    return missing


def steps_of_contributing() -> list:
    """Return the numbered steps of all lists of CONTRIBUTING.md."""
    text = CONTRIBUTING.read_text()
    return re.findall(r'^\d+\. (.*?)(?=^\d+\. |^\n|^#)', text, re.MULTILINE | re.DOTALL)


def test_every_place_that_contributing_names_exists():
    steps = steps_of_contributing()
    assert len(steps) > 15
    assert missing_places(steps) == []


def test_a_place_that_does_not_exist_is_found():
    assert missing_places(['`msg/Colour.msg`: a field.']) == ['msg/Colour.msg']
    assert missing_places(['`msg/Answer.msg`: `colour`.']) == ['Answer.msg: colour']


def test_contributing_lists_the_folders_and_the_rooms_of_the_package():
    text = CONTRIBUTING.read_text()
    folders = re.findall(r'^\| `(\w+)/`', text, re.MULTILINE)
    assert all((ROOT / folder).is_dir() for folder in folders)
    listed = re.search(r'^\| part of .*?\n\n', text, re.MULTILINE | re.DOTALL)[0]
    rooms = re.findall(r'^(\w[\w.]*) {2,}\S', minicpmo_ros.__doc__, re.MULTILINE)
    names = re.findall(r'^\| `([\w/]+)` \|', listed, re.MULTILINE)
    assert names == [room.replace('.', '/') for room in rooms]
