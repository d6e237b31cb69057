# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Every code block of every page runs, or is read by what it is meant for."""

import json
import os
import re
import shutil
import subprocess
from xml.etree import ElementTree

import page_blocks
import pytest
import yaml
from page_blocks import ROOT, blocks
from scored_clips import write_test_clip

from minicpmo_ros.alerts.rules import FORMAT as RULES_FORMAT
from minicpmo_ros.alerts.rules import read_rules
from minicpmo_ros.cli import main as cli
from minicpmo_ros.evaluation.alert_scores import AlertTruth
from minicpmo_ros.evaluation.questions import QuestionSet

LANGUAGES = ('bash', 'python', 'yaml', 'json', 'xml', 'cmake', 'cpp', 'text')


def test_every_block_says_its_language():
    found = blocks()
    assert len(found) > 30
    assert not [str(block) for block in found if block.language not in LANGUAGES]


@pytest.mark.parametrize('block', blocks('bash'), ids=str)
def test_every_command_exists_with_its_options(block, tmp_path, monkeypatch):
    parsed = subprocess.run(['bash', '-n'], input=block.text, text=True, capture_output=True)
    assert parsed.returncode == 0, parsed.stderr
    of_page = [other for other in blocks('python') if other.page == block.page]
    monkeypatch.setenv('HOME', str(tmp_path))
    for command in block.commands:
        page_blocks.check_command(command, of_page)


@pytest.mark.parametrize(
    'line',
    [
        'minicpmo replay DIR questions.yaml --out run --colour red',
        'minicpmo replya DIR',
        'make everything',
        'make live COLOUR=red',
        'ros2 launch minicpmo_ros live.launch.py colour:=red',
        'ros2 launch minicpmo_ros live.launch.py preset:=orin',
        'ros2 launch minicpmo_ros life.launch.py',
        'ros2 run minicpmo_ros player',
        'ros2 run minicpmo_ros recorder --ros-args -p colour:=red',
        'ros2 service call /llm/ask minicpmo_ros/srv/Ask "{colour: red}"',
        'ros2 topic echo /llm/colour',
        'python -m training.colour',
        'python -m pytest test/test_colour.py',
        'python -c "from minicpmo_ros.process import colour"',
        'source environment/colour.sh',
        'paint red',
    ],
)
def test_a_command_that_does_not_exist_is_found(line):
    (command,) = page_blocks.Block('page', 1, 'bash', line).commands
    with pytest.raises(AssertionError):
        page_blocks.check_command(command, [])


@pytest.mark.parametrize('block', blocks('python'), ids=str)
def test_python_is_python_and_its_imports_exist(block):
    """They run in test_docs, on a graph."""
    page_blocks.check_imports(block.text)


@pytest.mark.parametrize('block', blocks('xml'), ids=str)
def test_xml_is_xml(block):
    ElementTree.fromstring(f'<page>{block.text}</page>')


@pytest.mark.parametrize('block', blocks('yaml', 'json'), ids=str)
def test_a_file_is_taken_by_its_reader(block, tmp_path):
    data = yaml.safe_load(block.text)
    if isinstance(data, dict) and 'format' in data:
        path = tmp_path / f'file.{block.language}'
        path.write_text(block.text)
        if data['format'] == RULES_FORMAT:
            assert read_rules(path)
        elif 'alerts_truth' in data:
            for clip in data['clips']:
                (tmp_path / clip).touch()
            assert AlertTruth.read(path).alerts
        else:
            for question in data['questions']:
                (tmp_path / question.get('image', path.name)).touch()
            assert QuestionSet.read(path, needs_clips=False).questions
        return
    tables = (ROOT / 'docs' / 'parameters.md').read_text()
    for key, section in data.items():  # of parameters
        assert key.startswith('/'), key
        names = [name for name in _flat(section['ros__parameters']) if 'qos_overrides' not in name]
        assert not [name for name in names if f'| `{name}` |' not in tables]


def _flat(parameters: dict, before: str = '') -> list:
    flat = []
    for name, value in parameters.items():
        is_group = isinstance(value, dict)
        flat += _flat(value, f'{before}{name}.') if is_group else [before + name]
    return flat


@pytest.mark.parametrize('page, name', [('alerts.md', 'heard'), ('notes.md', 'memory.questions')])
def test_what_a_page_asks_nano_is_what_nano_has_learned(page, name):
    learned = {q['text'] for q in _read_json(ROOT / 'demo' / 'clips' / 'questions.json')}
    asked = re.findall(r'[a-z ]*\?', re.search(f'{name}.*', block_with(page, name).text)[0])
    assert asked and {text.strip() for text in asked} <= learned


def _read_json(path) -> list:
    return json.loads(path.read_text())['questions']


def block_with(page: str, text: str) -> page_blocks.Block:
    (found,) = [b for b in blocks('bash', 'yaml') if b.page == page and text in b.text]
    return found


def test_the_evaluation_page_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    """Its questions about its bag, both runs, the report; MODEL_DIR and OTHER_DIR are nano's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'questions.yaml').write_text(block_with('evaluation.md', 'id: door-1').text)
    commands = block_with('evaluation.md', 'runs/after --workers 2').commands
    assert [command[1] for command in commands] == ['replay', 'replay', 'report']
    models = {'MODEL_DIR': ROOT / 'models' / 'nano', 'OTHER_DIR': ROOT / 'models' / 'nano_q4'}
    given = [[str(models.get(word, word)) for word in command[1:]] for command in commands]
    assert cli.main(given[0]) == 2
    assert 'monday.mcap of the question' in capsys.readouterr().err  # it is not there yet
    write_test_clip(tmp_path / 'monday.mcap', 60)
    assert [cli.main(words) for words in given] == [0, 0, 0]
    assert 'after against before' in (tmp_path / 'report.md').read_text()


def test_the_model_verbs_of_the_pages_run(tiny_model_dir, tmp_path, monkeypatch, capsys):
    """Those of quantization.md, models.md and jetson.md that a small model takes seconds for."""
    home = tmp_path / 'home'
    monkeypatch.setenv('HOME', str(home))
    monkeypatch.chdir(tmp_path)
    (home / 'models').mkdir(parents=True)
    shutil.copytree(tiny_model_dir, home / 'models' / 'minicpm-o-2.6')
    shutil.copytree(tiny_model_dir, home / 'download')
    shutil.copytree(tiny_model_dir, tmp_path / 'DIR')
    shutil.copy(ROOT / 'docs' / 'quantization_rules.yaml', tmp_path / 'FILE')
    (home / 'download' / 'manifest.yaml').unlink()
    ran = set()
    of_pages = [block for block in blocks('bash') if block.page in PAGES]
    for program, *words in (command for block in of_pages for command in block.commands):
        is_here = program == 'minicpmo' and not any(word.startswith('/mnt') for word in words)
        if not is_here or words[0] not in VERBS:
            continue
        shutil.rmtree(tmp_path / 'NEW', ignore_errors=True)
        words = [os.path.expanduser(word) for word in words]
        if words[0] in ('adopt', 'quantize'):
            words.append('--force')  # the pages make one directory in several ways
        status = cli.main([*words, *MORE.get(words[0], ())])
        assert status == 0, (words, capsys.readouterr().err)
        ran.add(words[0])
    assert ran == VERBS


PAGES = ('quantization.md', 'models.md', 'jetson.md')
VERBS = {'adopt', 'check', 'quantize', 'importance', 'plan'}
MORE = {'importance': ('--limit', '2')}
