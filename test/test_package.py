# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The package as a whole: versions, licences, build."""

import ast
import os
import shutil
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import setuptools
from test_house import imported

ROOT = Path(__file__).parents[1]
INTERFACES = {*ROOT.glob('msg/*.msg'), *ROOT.glob('srv/*.srv'), *ROOT.glob('action/*.action')}
COMPILED = 'msg/AnswerDelta.msg'
SOURCES = sorted((ROOT / 'minicpmo_ros').rglob('*.py'))


def test_every_python_file_says_its_licence():
    files = subprocess.run(
        ['git', 'ls-files', '*.py'], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert files
    for name in files:
        assert 'SPDX-License-Identifier: Apache-2.0' in (ROOT / name).read_text()[:200], name


def test_every_interface_field_has_a_comment():
    for path in INTERFACES:
        for line in path.read_text().splitlines():
            bare = line.strip()
            if bare and bare != '---' and not bare.startswith('#') and '=' not in bare:
                told = '#' in line or bare in ('Answer answer', 'AnswerDelta delta')
                assert told or bare.startswith('uint8 '), f'{path.name}: {line}'


def test_every_import_is_declared():
    package = ElementTree.parse(ROOT / 'package.xml').getroot()
    declared = {tag.text for tag in package if tag.tag.endswith('depend')}
    pages = ('.txt', '-voice.txt', '-sound.txt', '-fetch.txt', '-ray.txt')
    pinned = ''.join((ROOT / 'environment' / f'requirements{page}').read_text() for page in pages)
    named = {'PIL': 'python3-pil', 'yaml': 'python3-yaml'}
    named.update(
        {name: f'python3-{name}' for name in ('aiohttp', 'jinja2', 'matplotlib', 'numpy')}
    )
    pinned_names = ('gguf', 'soxr', 'av', 'rosbags', 'mcap', 'zstandard', 'lz4')
    distributions = {'llama_cpp': 'llama-cpp-python', **{name: name for name in pinned_names}}
    distributions |= {'onnxruntime': 'onnxruntime', 'pymicro_wakeword': 'pymicro-wakeword'}
    distributions |= {'sounddevice': 'sounddevice', 'ray': 'ray[client]'}
    distributions |= {'pywebrtc_audio': 'pywebrtc-audio'}
    used_if_installed = {'hri_msgs'}
    # httpx is one of huggingface_hub's own.
    distributions |= {'huggingface_hub': 'huggingface_hub', 'httpx': 'huggingface_hub'}
    for path in SOURCES:
        for name in filter(None, imported(ast.parse(path.read_text()))):
            top = name.partition('.')[0]
            if top in sys.stdlib_module_names or top in ('minicpmo_ros', *used_if_installed):
                continue
            if top in distributions:
                assert f'{distributions[top]}==' in pinned, top
            else:
                assert named.get(top, top) in declared, f'{top} of {path} is not in package.xml'


def source_environment(tmp_path, commands, **variables):
    """Run bash as strict as our scripts are, in a tree that has env.sh; give what it prints."""
    (tmp_path / 'environment').mkdir()
    shutil.copy(ROOT / 'environment' / 'env.sh', tmp_path / 'environment')
    done = subprocess.run(
        ['bash', '-euo', 'pipefail', '-c', commands],
        env={'PATH': os.environ['PATH'], **variables},
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize('given', ['', '/usr/local/cuda/lib64', '/a:/b'])
def test_the_environment_keeps_the_library_path_of_the_user(tmp_path, given):
    told = source_environment(
        tmp_path,
        'for _ in 1 2; do source environment/env.sh; echo "$LD_LIBRARY_PATH"; done',
        **({'LD_LIBRARY_PATH': given} if given else {}),
    )
    assert told[0] == told[1]  # twice is as good as once
    folders = told[0].split(':')
    assert folders[0] == f'{tmp_path}/.venv/lib' and folders[2:] == given.split(':') * bool(given)


def test_the_environment_of_a_distribution_can_be_sourced_by_strict_scripts(tmp_path):
    for name in ('install/local_setup.bash', '.venv/bin/activate'):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text('[ -n "$NEVER_SET" ] || export SOURCED="${SOURCED:-}+"\n')
    told = source_environment(
        tmp_path,
        'source environment/env.sh; echo $MINICPMO_ROS $SOURCED $-',
        ROS_DISTRO='humble',
    )
    assert told[:2] == ['distribution', '++'] and 'u' in told[2]


def test_an_environment_of_another_ros_is_not_taken_over(tmp_path):
    shutil.copytree(ROOT / 'environment', tmp_path / 'environment')
    (tmp_path / '.venv' / 'bin').mkdir(parents=True)
    (tmp_path / '.venv' / 'bin' / 'python').symlink_to(sys.executable)
    (tmp_path / '.venv' / '.mode').write_text('distribution')
    without_ros = {name: os.environ[name] for name in ('PATH', 'HOME') if name in os.environ}
    done = subprocess.run(
        [tmp_path / 'environment' / 'setup.sh'], env=without_ros, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert 'distribution' in done.stderr and 'make clean' in done.stderr


def test_colcon_builds_the_package(tmp_path):
    """Without any target of the Makefile, from the tracked files alone.

    Of the interfaces one is compiled: `make build` has compiled all by the same CMakeLists.txt.
    """
    listed = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True)
    tracked, source = listed.stdout.splitlines(), tmp_path / 'src' / 'minicpmo_ros'
    assert {str(path.relative_to(ROOT)) for path in INTERFACES} <= set(tracked)
    for name in tracked:
        if (ROOT / name).is_file() and (ROOT / name not in INTERFACES or name == COMPILED):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    done = subprocess.run(
        [sys.executable, '-m', 'colcon', 'build', '--packages-select', 'minicpmo_ros'],
        cwd=tmp_path, capture_output=True, text=True, timeout=600,
        env={**os.environ, 'PYTHONWARNINGS': 'ignore'},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    prefix = tmp_path / 'install' / 'minicpmo_ros'
    for executable in ('streaming_encoder', 'vision_encoder', 'llm', 'live', 'media_player'):
        assert os.access(prefix / 'lib' / 'minicpmo_ros' / executable, os.X_OK)
    # The documents call the tools by this name; ament's hook has bin in the path.
    found = subprocess.run(
        ['bash', '-c', 'source install/setup.bash && type -P minicpmo'],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert found.stdout.strip() == str(prefix / 'bin' / 'minicpmo'), found.stderr
    share = prefix / 'share' / 'minicpmo_ros'
    assert (share / 'launch' / 'live.launch.py').exists()
    assert (share / 'config' / 'nano.yaml').exists()
    assert (share / 'demo' / 'clips' / 'questions.json').exists()
    assert list(prefix.glob('lib/python3*/site-packages/minicpmo_ros/msg/_answer_delta.py'))


def test_ctrl_c_while_a_verb_is_imported_ends_it_quietly(tmp_path):
    # Imported by the verb's module, before there is a main() that could catch anything.
    # As a terminal starts it: what a script starts in the background ignores Ctrl-C.
    (tmp_path / 'argparse.py').write_text(
        'import signal\n\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n'
        'signal.raise_signal(signal.SIGINT)\n'
    )
    path = ':'.join(filter(None, (str(tmp_path), os.environ.get('PYTHONPATH'))))
    done = subprocess.run(
        [shutil.which('minicpmo'), 'doctor'], env={**os.environ, 'PYTHONPATH': path},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGINT, '', '')


@pytest.mark.parametrize('folder', ['a b', 'x' * 150, 'quo"te $HOME `id`'])
def test_executables_start_wherever_their_python_lies(tmp_path, folder):
    home = tmp_path / folder
    (home / 'egg').mkdir(parents=True)
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', home / 'venv'], check=True)
    python = home / 'venv' / 'bin' / 'python'
    mine = {'PYTHONPATH': str(Path(setuptools.__file__).parents[1])}  # of this environment
    subprocess.run(
        [python, '-W', 'ignore', 'setup.py', '-q', 'egg_info', '--egg-base', home / 'egg',
         'install_scripts', '--install-dir', home / 'scripts'],
        cwd=ROOT, env={**os.environ, **mine}, check=True,
    )  # fmt: skip
    egg = {'PYTHONPATH': f'{mine["PYTHONPATH"]}:{ROOT}:{home / "egg"}'}
    told = subprocess.run(
        [home / 'scripts' / 'minicpmo', '--help'], env={**os.environ, **egg}, check=True,
        capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert 'adopt' in told
