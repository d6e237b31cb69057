# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The tutorial, read literally: every command of docs/tutorial.md runs, in its order, in bash.

Its blocks are given to terminals with a bare environment and a home folder of their own. What a
test must not do or does not have is stood in for, and nothing else:

- `sudo`, `rosdep` and /opt/ros do nothing; `make` does its work without setting up and building,
  which has happened, and the page listens at any free port;
- the camera is nano's clip, in a loop; the video is a film of shapes; Hugging Face is a server at
  loopback that has a model of random weights under the published names;
- where `ros2` is missing (it comes with a distribution), the same executables are started with
  the same arguments, and the same service is called;
- the board's preset is the one for a machine without GPU.
"""

import gc
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import page_blocks
import pytest
from hub_server import HubServer
from ros_graph import TIMEOUT_S, Graph

from minicpmo_ros.synthetic.model import write_model

pytest.importorskip('aiohttp')
pytest.importorskip('huggingface_hub')

ROOT = Path(__file__).parents[1]
CLIP = ROOT / 'demo' / 'clips' / '010.mcap'
VIDEO = ROOT / 'test' / 'data' / 'scene.mp4'  # a red circle in its first three seconds
BLOCKS = [b for b in page_blocks.blocks('bash', 'yaml') if b.page == 'tutorial.md']
# All that a new terminal has; and what keeps the tests' graph apart from others.
BARE = {'PATH': '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin', 'LANG': 'C.UTF-8'}
KEPT = ('ROS_DOMAIN_ID', 'FASTDDS_DEFAULT_PROFILES_FILE', 'ROS_AUTOMATIC_DISCOVERY_RANGE')
STAND_INS = """
set -eo pipefail
sudo() { :; }
rosdep() { :; }
source() { case $1 in /opt/ros/*) ;; *) builtin source "$@" ;; esac; }
make() {
  local page=()
  [ "$1" != web ] || page=(PAGE=port=0)
  command make -o setup -o setup-web -o setup-fetch -o build/installed "$@" "${page[@]}"
}
command -v ros2 >/dev/null || ros2() { python ~/minicpmo_ros/test/ros2_stand_in.py "$@"; }
"""
PARTS = {
    'llm': 'MiniCPM-o-4_5-Q4_K_M.gguf',
    'vision': 'vision/MiniCPM-o-4_5-vision-F16.gguf',
    'audio': 'audio/MiniCPM-o-4_5-audio-F16.gguf',
}


class Terminal:
    """A terminal of the reader: what a block sets holds in the next one, and nothing else does."""

    def __init__(self, home: Path, hub: str):
        self.home, self.folder, self.served, self.log = home, home, None, None
        with_ros = os.environ if os.environ.get('MINICPMO_ROS') == 'distribution' else BARE
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        self.variables = {**with_ros, **kept, 'HOME': str(home), 'HF_ENDPOINT': hub}

    def _script(self, text: str) -> list:
        after = 'env -0 > "$HOME/variables"'
        return ['bash', '-c', f'{STAND_INS}\n{text}\n{after}\n']

    def run(self, text: str) -> str:
        """Run the lines of a block; give what they printed."""
        done = subprocess.run(
            self._script(text), cwd=self.folder, env=self.variables, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == 0, f'{text}\n{done.stdout}'
        told = (self.home / 'variables').read_text().strip('\0').split('\0')
        self.variables = dict(one.split('=', 1) for one in told)
        self.folder = Path(self.variables['PWD'])
        return done.stdout

    def serve(self, text: str) -> None:
        """Run the lines of a block whose last command goes on."""
        self.log = self.home / f'served-{time.monotonic_ns()}.log'
        with open(self.log, 'wb') as log:
            self.served = subprocess.Popen(
                self._script(text), cwd=self.folder, env=self.variables, stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def interrupt(self) -> None:
        """Press Ctrl-C: every process of the terminal gets the signal, and all end."""
        if self.served is not None:
            os.killpg(self.served.pid, signal.SIGINT)
            self.served.wait(TIMEOUT_S)
            self.served = None


@pytest.fixture(scope='module')
def hub(tmp_path_factory):
    """Serve a model of random weights under the published names."""
    folder = tmp_path_factory.mktemp('published')
    write_model(folder, 'tiny-4.5', 1, 'q4_K', 'q4_0', 'q8_0', hashes=False)
    files = {name: (folder / f'{part}.gguf').read_bytes() for part, name in PARTS.items()}
    with HubServer({'openbmb/MiniCPM-o-4_5-gguf': files}) as server:
        yield server.url


@pytest.fixture
def open_terminal(ros, hub, tmp_path):
    """Give a function that opens a terminal; sources and video are where the page says."""
    (tmp_path / 'minicpmo_ros').symlink_to(ROOT)
    (tmp_path / 'video.mp4').symlink_to(VIDEO)
    gc.collect()  # or doctor finds the nodes of tests before in this process
    terminals = []

    def give() -> Terminal:
        terminals.append(Terminal(tmp_path, hub))
        return terminals[-1]

    yield give
    for terminal in terminals:
        terminal.interrupt()  # what a failed test has left: killed, it would leave nodes behind


@pytest.fixture
def robot(ros, tmp_path):
    """Give a function that plays the clip as camera and microphone until seconds were read."""
    graphs = []

    def play(terminal: Terminal, namespace: str, *remappings: str) -> Graph:
        graph = Graph(tmp_path, namespace)
        graphs.append(graph)
        rules = [part for rule in remappings for part in ('-r', rule)]
        graph.start('media_player', '-p', f'file:={CLIP}', '-p', 'loop:=true', *rules)
        graph.spin_until(
            lambda: (
                terminal.served.poll() is not None or (graph.status and graph.status.units > 1)
            ),
            'seconds that were read',
        )
        assert terminal.served.poll() is None, terminal.log.read_text()
        return graph

    yield play
    for graph in graphs:
        graph.close()


def blocks_of(title: str) -> list:
    """Give the blocks of one step of the page, by the title of its section."""
    page = (ROOT / 'docs' / 'tutorial.md').read_text()
    begin = page[: page.index(f'\n## {title}\n')].count('\n') + 1
    end = page.find('\n## ', page.index(f'\n## {title}\n') + 1)
    last = page[:end].count('\n') + 1 if end >= 0 else page.count('\n')
    return [block for block in BLOCKS if begin < block.line <= last]


def test_the_tutorial_runs_as_it_stands(open_terminal, robot, tmp_path):
    ran = []

    def step(title: str) -> list:
        found = blocks_of(title)
        assert found, title
        ran.extend(found)
        return [block.text for block in found]

    first, second = open_terminal(), open_terminal()
    (beginning,) = step('The first question')
    told = first.run(beginning)
    aloud = shutil.which('espeak-ng') is not None  # the last question
    assert len(re.findall(r'^A: +\w', told, re.MULTILINE)) == 3 + aloud  # test_demo has the words

    serving, asking = step('Your own camera')
    first.serve(serving)
    camera = robot(first, '/web')
    told = second.run(asking)
    assert re.search(r'^(circle|square|star|cross)\b', told, re.MULTILINE), told
    assert 'first token' in told and 'positions' in told
    assert re.search(r'http://127\.0\.0\.1:\d+/\?t=\S+', first.log.read_text())
    first.interrupt()
    camera.processes[0].end()

    making, questions, answering = step('Your own bag')
    second.run(making)
    folder = tmp_path / 'robot'
    assert second.folder == folder and (folder / 'desk.png').stat().st_size
    (folder / 'questions.yaml').write_text(questions)
    assert '100.0 % of 2 questions' in second.run(answering)
    assert (folder / 'report.html').stat().st_size

    fetching, comparing, serving = step('Your own model')
    second.run(fetching)
    model = tmp_path / 'models' / 'minicpm-o-4.5'
    assert (model / PARTS['llm']).is_file()
    assert 'apache-2.0' in (model / 'manifest.yaml').read_text()
    assert '| minicpm |' in second.run(comparing)
    second.serve(serving)
    camera = robot(second, '/web')
    assert '4.5' in camera.status.model
    second.interrupt()
    camera.processes[0].end()

    first, third = open_terminal(), open_terminal()  # on the board
    planning, building, launching, asking = step('Your own board')
    assert 'MiB' in second.run(planning)
    assert re.search(r'^ok +files .*4\.5', first.run(building), re.MULTILINE)
    first.serve(launching.replace('preset:=orin_nx_16gb', 'preset:=cpu'))
    robot(
        first, '/', 'image/compressed:=/camera/image_raw/compressed',
        'audio:=/audio/audio_stamped', 'audio_info:=/audio/audio_info',
    )  # fmt: skip
    told = third.run(asking)
    assert 'success=True' in told and 'minicpm-o-4.5' in told
    first.interrupt()

    assert ran == BLOCKS  # each block once, in the order of the page
