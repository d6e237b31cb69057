# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The Dockerfiles and the compose file are well formed; nobody has built them here."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from minicpmo_ros.documents import StrictLoader

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / 'environment' / 'containers'
DOCKERFILES = sorted(FOLDER.glob('Dockerfile.*'))
KNOWN = {
    'FROM', 'SHELL', 'ENV', 'RUN', 'WORKDIR', 'COPY', 'ARG', 'ENTRYPOINT', 'CMD',
}  # fmt: skip


def instructions(text: str) -> list:
    """Return (name, rest) of every instruction, its lines joined and comments left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith('#')]
    joined = re.sub(r'\\\n\s*', ' ', '\n'.join(lines))
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def copied(text: str) -> list:
    """Return the sources of all COPY."""
    sources = []
    for name, rest in instructions(text):
        if name == 'COPY':
            sources += rest.split()[:-1]
    return sources


def apt_packages(text: str) -> list:
    found = []
    for name, rest in instructions(text):
        if name == 'RUN':
            for told in re.findall(r'apt-get install ([^&|;]*)', rest):
                found += [word for word in told.split() if not word.startswith('-')]
    return found


def problems(text: str) -> list:
    """Return what is wrong with a Dockerfile."""
    told = instructions(text)
    found = [f'instruction {name}' for name, *_ in told if name not in KNOWN]
    found += [f'{name} is empty' for name, *rest in told if not rest]
    found += ['no FROM'] * (told[0][0] != 'FROM')
    found += [f'{source} is not there' for source in copied(text) if not (ROOT / source).exists()]
    packages = apt_packages(text)
    found += [f'{name} twice' for name in set(packages) if packages.count(name) > 1]
    found += [
        f'{name} is no package' for name in packages if not re.fullmatch(r'[a-z0-9+.-]+', name)
    ]
    for name, rest in told:
        if name == 'RUN' and subprocess.run(['bash', '-n'], input=rest, text=True).returncode:
            found.append(f'no bash: {rest}')
        if name == 'RUN' and 'apt-get install' in rest:
            found += ['lists are not updated'] * ('apt-get update &&' not in rest)
            found += ['lists are left'] * ('rm -rf /var/lib/apt/lists/*' not in rest)
    return found


@pytest.mark.parametrize('path', DOCKERFILES, ids=lambda path: path.name)
def test_a_dockerfile_is_well_formed_and_its_sources_are_there(path):
    text = path.read_text()
    assert problems(text) == []
    assert 'Not built by us' in text
    assert len(apt_packages(text)) >= 8 and 'g++' in apt_packages(text)


def test_all_that_the_build_needs_is_copied():
    needed = {'package.xml', 'setup.py', 'setup.cfg', 'CMakeLists.txt', 'Makefile', 'environment'}
    cmake = (ROOT / 'CMakeLists.txt').read_text()
    (installed,) = re.findall(r'install\(DIRECTORY ([\w ]+) DESTINATION share', cmake)
    needed |= {*installed.split(), 'minicpmo_ros', 'msg', 'srv', 'action', 'overlay'}
    for path in DOCKERFILES:
        assert needed <= set(copied(path.read_text())), path.name


@pytest.mark.parametrize(
    ('old', 'new', 'said'),
    [
        ('COPY msg msg', 'COPY messages msg', 'messages is not there'),
        ('      cmake \\\n', '      cmake make \\\n', 'make twice'),
        ('FROM ros', 'FORM ros', 'instruction FORM'),
        ('&& make build', '&& (make build', 'no bash'),
        ('apt-get update && apt-get install', 'apt-get install', 'lists are not updated'),
    ],
)
def test_what_is_wrong_is_found(old, new, said):
    text = (FOLDER / 'Dockerfile.jazzy').read_text()
    assert old in text
    assert any(said in found for found in problems(text.replace(old, new, 1)))


def test_compose_starts_our_image_with_camera_and_microphone():
    text = (FOLDER / 'compose.yaml').read_text()
    services = yaml.load(text, StrictLoader)['services']
    assert set(services) == {'live', 'camera', 'microphone'} and 'Not run by us' in text
    build = services['live']['build']
    assert (FOLDER / build['context'] / build['dockerfile']).resolve() == DOCKERFILES[0]
    assert {service['image'] for service in services.values()} == {'minicpmo_ros:jazzy'}
    assert services['camera']['devices'] == ['${CAMERA:-/dev/video0}:/dev/video0']
    assert services['microphone']['devices'] == ['/dev/snd:/dev/snd']
    packages = apt_packages(DOCKERFILES[0].read_text())
    for service in ('camera', 'microphone'):
        package = services[service]['command'].split()[2]
        assert f'ros-jazzy-{package.replace("_", "-")}' in packages
    topics = re.findall(r'(?:image|audio)_topic:=/(\w+)/', services['live']['command'])
    told = services['camera']['command'] + services['microphone']['command']
    assert re.findall(r'__ns:=/(\w+)', told) == topics


def test_the_entrypoint_is_bash():
    path = FOLDER / 'entrypoint.sh'
    subprocess.run(['bash', '-n', path], check=True)
    assert path.stat().st_mode & 0o111
