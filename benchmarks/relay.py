# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A robot with a relay, and the model on another machine: what a bad network costs.

    source environment/env.sh && python -m benchmarks.relay [--only 0,1,5,down,rate]

Two network namespaces are two machines; the link between them (benchmarks/link.py) loses packets,
delays each by 50 ms, and carries 8 Mbit/s without multicast. On the one run media_player and node
relay, on the other `live` with nano, both with config/network/fastdds_wifi.xml. A clip is played
in a loop. Then each second that the relay has sent is counted once: read, late, or lost on the
way. A question is asked every other second; in `down` the link is down for 10 s.

Figures, into build/scale.json (or why there are none, as `relay_skipped`):
units_add_up   whether read + late + lost is what was sent, in all runs
back_after_s   from the return of the link until the window has reached that moment
relay_mbit     all bytes from robot to model, as Ethernet, of a camera whose images are so large
               that only max_mbit limits them
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np

from benchmarks.link import Ends, why_not
from minicpmo_ros.errors import Error

ROOT = Path(__file__).parents[1]
NETWORK = ROOT / 'config' / 'network'
NAMESPACE = '/robot1'
CLIP = ROOT / 'demo' / 'clips' / '010.mcap'
PLAY_S, DOWN_S = 20, 10
WAIT_S = 90.0  # for the graph to come up
STALE_S = 5.0  # as max_staleness_s
QUESTION = 'what color is the shape when you hear "red"?'
ANSWER = 'yellow'
RUNS = {'0': '0', '1': '0.01', '5': '0.05', 'down': '0', 'rate': '0'}  # name: loss


class Machines:
    """The processes of both; a context manager."""

    def __init__(self, ends: Ends, folder: Path, domain: int):
        self._ends, self._folder, self._processes = ends, folder, []
        own = {**os.environ, 'ROS_DOMAIN_ID': str(domain)}
        own.pop('FASTDDS_DEFAULT_PROFILES_FILE', None)
        self._inside = {**own, 'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST'}
        self._outside = {
            **own,
            'FASTDDS_DEFAULT_PROFILES_FILE': str(NETWORK / 'fastdds_wifi.xml'),
            'ROBOT_ADDRESS': '10.77.0.1',
            'BRAIN_ADDRESS': '10.77.0.2',
            'ROS_AUTOMATIC_DISCOVERY_RANGE': 'SUBNET',
        }

    def start(self, end: int, *command: str, crosses: bool = True, **kwargs):
        """Start a program of this Python at an end; crosses: it uses the link."""
        log = open(self._folder / f'{len(self._processes)}.log', 'wb')
        process = subprocess.Popen(
            [*self._ends.inside(end), sys.executable, '-m', *command],
            env=self._outside if crosses else self._inside, cwd=ROOT, stderr=log,
            stdin=subprocess.PIPE, text=True, **kwargs,
        )  # fmt: skip
        log.close()
        self._processes.append(process)
        return process

    def logs(self) -> str:
        """Return the end of what all have logged."""
        files = sorted(self._folder.glob('*.log'))
        return '\n'.join(path.read_text(errors='replace')[-2000:] for path in files)

    def __enter__(self):
        """Begin."""
        return self

    def __exit__(self, *_):
        """End all."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Monitor:
    """A benchmarks.relay_monitor."""

    def __init__(self, machines: Machines, end: int, role: str):
        self._process = machines.start(
            end, 'benchmarks.relay_monitor', NAMESPACE, role, crosses=False, stdout=subprocess.PIPE
        )

    def tell(self, line: str) -> None:
        """Tell it something."""
        self._process.stdin.write(f'{line}\n')
        self._process.stdin.flush()

    def read(self) -> dict:
        """Return the next that it says."""
        line = self._process.stdout.readline()
        if not line:
            raise Error('a monitor has ended')
        return json.loads(line)

    def end(self) -> tuple:
        """Return (its answers, what it has seen)."""
        self.tell('end')
        answers = []
        while 'images' not in (told := self.read()):
            answers.append(told)
        return answers, told


def start_all(machines: Machines, file: Path) -> tuple:
    """Start the graph; return (monitor of the robot, monitor of the brain) once a unit is read."""
    ros = 'minicpmo_ros.ros'
    names = ('--ros-args', '-r', f'__ns:={NAMESPACE}')
    inputs = (
        '-r', 'image:=relay/image', '-r', 'image/compressed:=relay/image/compressed',
        '-r', 'audio:=relay/audio', '-r', 'audio_info:=relay/audio_info',
    )  # fmt: skip
    parameters = ('--params-file', str(NETWORK / 'brain.yaml'))
    machines.start(
        0, f'{ros}.playback.player', *names, '-p', f'file:={file}', '-p', 'loop:=true',
        '-p', 'wait_for_subscribers:=true', '-p', 'jpeg_quality:=95', crosses=False,
    )  # fmt: skip
    machines.start(0, f'{ros}.relay', *names)
    machines.start(1, f'{ros}.live', *names, *inputs, '-p', 'model_dir:=nano', *parameters)
    robot, brain = Monitor(machines, 0, 'robot'), Monitor(machines, 1, 'brain')
    brain.read()
    return robot, brain


def ledger(robot: dict, brain: dict, begin_s: int, end_s: int) -> dict:
    """Count each second that was sent once, between two times.

    read: as the llm says. lost: of which neither encoder had anything. late: the rest; the llm
    must have counted at least as many halves as late, or units as dropped.
    """
    sent = {int(second) for second in robot['images']} | set(robot['audio'])
    sent = {second for second in sent if begin_s <= second < end_s}
    came = set(brain['images']) | set(brain['audio'])
    read, lost = sent & set(brain['read']), sent - came
    late = sent & came - set(brain['read'])
    told = brain['late'] + brain['units_dropped']
    adds_up = len(read) + len(lost) + len(late) == len(sent) and len(late) <= told
    whole = read & set(brain['images']) & set(brain['audio'])
    return {
        'sent': len(sent), 'read': len(read), 'whole': len(whole), 'lost': len(lost),
        'late': len(late), 'adds_up': adds_up,
    }  # fmt: skip


def run(name: str, folder: Path, file: Path) -> dict:
    """Measure one network; return what was found."""
    with Ends('--loss', RUNS[name], '--no-multicast') as ends:
        with Machines(ends, folder, domain=90) as machines:
            try:
                robot, brain = start_all(machines, file)
                return measure(name, ends, robot, brain)
            except (Error, BrokenPipeError) as error:
                raise Error(f'{error}:\n{machines.logs()}') from None


def measure(name: str, ends: Ends, robot: Monitor, brain: Monitor) -> dict:
    """Play, ask, count."""
    time.sleep(5)  # until all has been discovered
    begin_s, n_asked = int(time.time()), 0
    ends.count()
    play(brain, PLAY_S if name != 'down' else PLAY_S / 2, 100)
    found = {}
    (out, _), passed_s = ends.count(), time.time() - begin_s
    found['mbit'] = round(8 * out['bytes'] / passed_s / 1e6, 3)
    if name == 'down':
        ends.tell('down')
        play(brain, DOWN_S, 200)
        ends.tell('up')
        up_s = time.time()
        play(brain, PLAY_S / 2, 300)
    end_s = int(time.time()) - 3
    brain.tell(f'ask 400 {QUESTION}')
    time.sleep(3)
    (_, sent), (answers, seen) = robot.end(), brain.end()
    n_asked = len(answers)
    found.update(ledger(sent, seen, begin_s, end_s))
    if name == 'down':
        back_s = next((at_s for at_s, end in seen['ends'] if end >= up_s), None)
        found['back_after_s'] = None if back_s is None else round(back_s - up_s, 2)
    # A second of grace: ages are told in whole seconds.
    silent = [a for a in answers if a['age_s'] > STALE_S + 1 and a['success'] and not a['stale']]
    found.update(
        answers=n_asked,
        oldest_s=round(max(a['age_s'] for a in answers), 1),
        told_stale=sum(a['stale'] or not a['success'] for a in answers),
        old_and_silent=len(silent),
    )
    if name != 'rate':  # which is about a street
        found['right_at_end'] = any(a['number'] == 400 and ANSWER in a['text'] for a in answers)
    return found


def play(brain: Monitor, seconds: float, number: int) -> None:
    """Let time pass, and ask every other second."""
    until_s = time.monotonic() + seconds
    while (left_s := until_s - time.monotonic()) > 0:
        brain.tell(f'ask {number} {QUESTION}')
        number += 1
        time.sleep(min(2.0, left_s))


def write_street(path: Path, seconds: int = 8) -> None:
    """Write a video of 640x480 at 10 Hz with much detail, and a tone."""
    rng = np.random.default_rng(0)
    with av.open(str(path), 'w') as container:
        video = container.add_stream('mpeg4', rate=10)
        video.width, video.height, video.bit_rate = 640, 480, 20_000_000
        audio = container.add_stream('aac', rate=16_000, layout='mono')
        for _ in range(10 * seconds):
            pixels = rng.integers(0, 255, (480, 640, 3), np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, 'rgb24')))
        tone = 0.2 * np.sin(np.arange(16_000 * seconds) * 0.2)
        frame = av.AudioFrame.from_ndarray(tone.astype(np.float32)[None], 'fltp', 'mono')
        frame.sample_rate = 16_000
        container.mux(audio.encode(frame))
        container.mux(video.encode()), container.mux(audio.encode())


def measure_relay(names: list) -> dict:
    """Measure these of RUNS; return the figures for build/scale.json."""
    if reason := why_not():
        return {'relay_skipped': reason}
    runs = {}
    for name in names:
        with tempfile.TemporaryDirectory(dir=ROOT / 'build') as folder:
            file = CLIP
            if name == 'rate':
                file = Path(folder) / 'street.mp4'
                write_street(file)
            runs[name] = run(name, Path(folder), file)
            print(name, runs[name], flush=True)
    found = {'relay_runs': runs, 'units_add_up': all(each['adds_up'] for each in runs.values())}
    if 'down' in runs:
        found['back_after_s'] = runs['down']['back_after_s']
    if 'rate' in runs:
        found['relay_mbit'] = runs['rate']['mbit']
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--only', default=','.join(RUNS), help='of %(default)s')
    print(json.dumps(measure_relay(parser.parse_args().only.split(',')), indent=1))


if __name__ == '__main__':
    main()
