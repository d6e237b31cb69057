# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A bad network between two namespaces of one machine, for programs that are to run on two.

    python -m benchmarks.link PID PID [--loss 0.01] [--delay-ms 50] [--mbit 8] [--no-multicast]

Kernels without netem cannot lose or delay packets. This holds a tap device in the network
namespace of each process and hands every Ethernet frame of the one to the other: not the lost
share, after the delay, at most as fast as the rate; what does not fit into the queue is dropped.
One is 10.77.0.1, the other 10.77.0.2; nothing leads out of the two namespaces.

It reads lines from its standard input: `loss 0.05`, `up`, `down`, and `count`, which prints as
JSON what has gone over the link since the last `count`. It ends when its input ends. It needs
root; `Ends` makes the namespaces, which end with it.
"""

import argparse
import fcntl
import heapq
import json
import os
import random
import select
import shutil
import struct
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ADDRESSES = ('10.77.0.1', '10.77.0.2')
DEVICE = 'link0'  # in both namespaces
MAX_QUEUE_S = 0.5  # what would wait longer for the rate is dropped
FRAME_BYTES = 65536
TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000


def why_not() -> str:
    """Return why this machine cannot have such a link, or ''."""
    if os.geteuid():
        return 'only root may make network namespaces'
    if missing := [name for name in ('unshare', 'nsenter', 'ip') if not shutil.which(name)]:
        return f'there is no {" and no ".join(missing)} (util-linux, iproute2)'
    if not Path('/dev/net/tun').exists():
        return 'there is no /dev/net/tun'
    done = subprocess.run(['unshare', '--net', 'true'], capture_output=True, text=True)
    if done.returncode:
        return f'unshare: {done.stderr.strip()}'
    try:
        with open('/dev/net/tun', 'r+b', buffering=0) as file:
            open_tap(file, 'linktest%d')
    except OSError as error:
        return f'no tap device can be made: {error.strerror}'
    return ''


def open_tap(file, name: str) -> str:
    """Make a tap device; return its name. It is gone when the file is closed."""
    request = struct.pack('16sH22x', name.encode(), IFF_TAP | IFF_NO_PI)
    made = fcntl.ioctl(file, TUNSETIFF, request)
    return made[:16].rstrip(b'\0').decode()


class Tap:
    """The end of the link in the namespace of a process."""

    def __init__(self, pid: int, address: str):
        self.file = open('/dev/net/tun', 'r+b', buffering=0)
        name = open_tap(self.file, 'link%d')
        run('ip', 'link', 'set', name, 'netns', str(pid), 'name', DEVICE)
        inside = ('nsenter', '--target', str(pid), '--net')
        run(*inside, 'ip', 'address', 'add', f'{address}/24', 'dev', DEVICE)
        run(*inside, 'ip', 'link', 'set', DEVICE, 'up')
        os.set_blocking(self.file.fileno(), False)


def run(*command: str) -> None:
    """Run a command that must succeed."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


@dataclass
class Lane:
    """One direction: what is on its way, and what was."""

    source: Tap
    sink: Tap
    free_s: float = 0.0  # when the sender has sent all that it has
    waiting: list = field(default_factory=list)  # heap of (due_s, number, frame)
    number: int = 0
    counts: Counter = field(default_factory=Counter)


class Link:
    """Hands frames over; `serve` returns when standard input ends."""

    def __init__(self, taps: list, loss: float, delay_s: float, mbit: float, multicast: bool):
        self._lanes = [Lane(taps[0], taps[1]), Lane(taps[1], taps[0])]
        self._loss, self._delay_s, self._bits_per_s = loss, delay_s, mbit * 1e6
        self._is_up, self._multicast, self._random = True, multicast, random.Random(17)
        self._text = b''

    def serve(self) -> None:
        """Hand frames over until there is no more input."""
        files = {lane.source.file.fileno(): lane for lane in self._lanes}
        while True:
            due_s = min((lane.waiting[0][0] for lane in self._lanes if lane.waiting), default=None)
            timeout_s = None if due_s is None else max(0.0, due_s - time.monotonic())
            ready, _, _ = select.select([*files, 0], [], [], timeout_s)
            now_s = time.monotonic()
            for number in ready:
                if number == 0:
                    if not self._obey():
                        return
                else:
                    self._take(files[number], now_s)
            for lane in self._lanes:
                self._deliver(lane, now_s)

    def _obey(self) -> bool:
        data = os.read(0, 4096)
        *lines, self._text = (self._text + data).split(b'\n')
        for line in lines:
            verb, *values = line.decode().split()
            if verb == 'loss':
                self._loss = float(values[0])
            elif verb in ('up', 'down'):
                self._is_up = verb == 'up'
            elif verb == 'count':
                print(json.dumps([lane.counts for lane in self._lanes]), flush=True)
                for lane in self._lanes:
                    lane.counts.clear()
        return bool(data)

    def _take(self, lane: Lane, now_s: float) -> None:
        while True:
            try:
                frame = os.read(lane.source.file.fileno(), FRAME_BYTES)
            except BlockingIOError:
                return
            is_multicast = frame[0] & 1 and frame[:6] != b'\xff' * 6  # ARP is broadcast
            lane.counts['frames'] += 1
            if is_multicast and not self._multicast:
                lane.counts['multicast'] += 1
                continue
            lane.counts['bytes'] += len(frame)
            begin_s = max(now_s, lane.free_s)
            if begin_s - now_s > MAX_QUEUE_S:
                lane.counts['dropped'] += 1
                continue
            lane.free_s = begin_s + 8 * len(frame) / self._bits_per_s
            if not self._is_up or self._random.random() < self._loss:
                lane.counts['lost'] += 1
                continue
            lane.number += 1
            heapq.heappush(lane.waiting, (lane.free_s + self._delay_s, lane.number, frame))

    def _deliver(self, lane: Lane, now_s: float) -> None:
        while lane.waiting and lane.waiting[0][0] <= now_s:
            _, _, frame = heapq.heappop(lane.waiting)
            try:
                os.write(lane.sink.file.fileno(), frame)
            except OSError:  # its end is down
                lane.counts['dropped'] += 1


class Ends:
    """Two network namespaces and the link between them; a context manager."""

    def __init__(self, *options: str):
        self._options, self._holders, self._link = options, [], None

    def __enter__(self):
        """Make them."""
        for _ in ADDRESSES:
            # A process holds each namespace, and ends with its input.
            command = ['unshare', '--net', 'sh', '-c', 'ip link set lo up && echo && exec cat']
            holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self._holders.append(holder)
            holder.stdout.readline()
        pids = map(str, self.pids)
        self._link = subprocess.Popen(
            [sys.executable, __file__, *pids, *self._options],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._link.stdout.readline() == 'ready\n', 'the link did not begin'
        return self

    @property
    def pids(self) -> list:
        """The processes that hold the namespaces."""
        return [holder.pid for holder in self._holders]

    def inside(self, end: int) -> tuple:
        """Return the command before which a program runs at an end, 0 or 1."""
        return 'nsenter', '--target', str(self.pids[end]), '--net', '--'

    def tell(self, line: str) -> None:
        """Tell the link something; see the module."""
        self._link.stdin.write(f'{line}\n')
        self._link.stdin.flush()

    def count(self) -> list:
        """Return the counts from end 0 to 1, and back, since the last call."""
        self.tell('count')
        return json.loads(self._link.stdout.readline())

    def __exit__(self, *_):
        """End all of it."""
        for process in (self._link, *self._holders):
            if process is not None:
                process.stdin.close()
                process.wait()
                process.stdout.close()


def main() -> None:
    """Hold the link."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('pids', nargs=2, type=int)
    parser.add_argument('--loss', type=float, default=0.0, help='share of frames')
    parser.add_argument('--delay-ms', type=float, default=50.0, help='one way')
    parser.add_argument('--mbit', type=float, default=8.0, help='rate, each way')
    parser.add_argument('--no-multicast', action='store_true', help='as many wireless networks')
    given = parser.parse_args()
    taps = [Tap(pid, address) for pid, address in zip(given.pids, ADDRESSES)]
    link = Link(taps, given.loss, given.delay_ms / 1e3, given.mbit, not given.no_multicast)
    print('ready', flush=True)
    link.serve()


if __name__ == '__main__':
    main()
