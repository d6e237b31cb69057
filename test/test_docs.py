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

from minicpmo_ros.action import Ask as AskAction
from minicpmo_ros.msg import Answer, AnswerDelta
from minicpmo_ros.srv import Ask

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
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
    node = run_example(graph, 'doorbell.py')
    try:
        graph.wait_ready()
        graph.spin_until(lambda: script.poll() is not None, 'the script to end', 120)
        assert script.returncode == 0, script.stdout.read()
        choice, words = script.stdout.read().split('\n', 1)
        assert re.fullmatch(r'(yes|no) \(based on 0 s\)', choice) and words.strip()
        graph.spin_until(bells.get_subscription_count, 'the doorbell')
        bells.publish(Empty())
        graph.spin_until(lambda: visitors, 'the visitor')
        assert visitors[0].data
        run_readme_example(graph)
        assert capsys.readouterr().out.strip()
    finally:
        for process in (script, node):
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
