# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Serve this machine's GPU or CPU to the nodes of another process, as rpc_servers names it.

    source environment/env.sh && python -m benchmarks.device_server 127.0.0.1:50052 --device cpu

It is llama.cpp's RPC server, started from the library that is installed, so that both ends speak
one version. It serves one process at a time, to anybody who reaches the address, without password
or encryption, and its own authors call it insecure: never open it to a network that others share.

Tests and benchmarks start a DeviceServer on loopback: its memory is not theirs, so that what runs
on it shows whether a GPU with memory of its own would get all that it needs.
"""

import argparse
import ctypes
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from minicpmo_ros.process import end_with_parent, prepare

prepare()

from minicpmo_ros.errors import ServerAwayError  # noqa: E402
from minicpmo_ros.ggml import devices  # noqa: E402
from minicpmo_ros.memory.proc import resident_mib  # noqa: E402

ROOT = Path(__file__).parents[1]
START_S = 120.0  # importing takes long on a busy machine
LOOK_S = 0.02
GIVES_BACK = {'MALLOC_MMAP_THRESHOLD_': '65536'}  # of glibc: what is freed is no longer occupied


class DeviceServer:
    """A server of this machine's CPU in a process of its own, on loopback.

    port: 0 for one that is free. Ends with the process that started it.
    """

    def __init__(self, port: int = 0, threads: int = 1):
        self.address = f'127.0.0.1:{port or free_port()}'
        self.process = subprocess.Popen(
            [sys.executable, '-m', 'benchmarks.device_server', self.address, '--device', 'cpu',
             '--threads', str(threads)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            env={**os.environ, **GIVES_BACK},
            preexec_fn=end_with_parent,
        )  # fmt: skip
        self._wait()

    def _wait(self) -> None:
        end_s = time.monotonic() + START_S
        while True:
            try:
                return devices.ask_for_version(self.address)
            except ServerAwayError:
                if self.process.poll() is not None or time.monotonic() > end_s:
                    self.close()
                    raise
                time.sleep(LOOK_S)

    @property
    def memory_mib(self) -> float:
        """What the server has in memory, MiB."""
        return resident_mib(self.process.pid)['VmRSS']

    def close(self) -> None:
        """End the server, as a crash would."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> 'DeviceServer':
        """Return itself."""
        return self

    def __exit__(self, *_) -> None:
        """End the server."""
        self.close()


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def serve(address: str, device: str, threads: int) -> None:
    """Serve the devices until killed."""
    devices.parse_servers(address)
    served = devices.Devices(device)
    start = devices.rpc_function(
        'ggml_backend_rpc_start_server', None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t,
        ctypes.c_size_t, ctypes.c_void_p,
    )  # fmt: skip
    handles = (ctypes.c_void_p * len(served.handles))(*served.handles)
    start(address.encode(), None, threads, len(handles), handles)
    sys.exit(f'{address} cannot be listened on; the lines above may say why')


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        'address', help='where to listen: an IPv4 address of this machine and port'
    )
    parser.add_argument('--device', choices=devices.KINDS, default='auto')
    parser.add_argument('--threads', type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    serve(arguments.address, arguments.device, arguments.threads)


if __name__ == '__main__':
    main()
