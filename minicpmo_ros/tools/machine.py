# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What a measurement was taken on: without these facts nobody can compare it."""

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

CPU = Path('/sys/devices/system/cpu/cpu0/cpufreq')
PACKAGES = ('llama-cpp-python', 'numpy', 'gguf', 'soxr')
UNKNOWN = 'not told by this machine'


def machine_facts() -> dict:
    """Give the facts, as texts by name."""
    return {
        'processor': f'{_cpu_name()}, {len(os.sched_getaffinity(0))} cores, {platform.machine()}',
        'power mode': power_mode(),
        'clock MHz': _clocks(),
        'load average': ' '.join(f'{load:.1f}' for load in os.getloadavg()),
        'memory MiB': f'{os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20}',
        'system': f'{platform.system()} {platform.release()}, Python {platform.python_version()}',
        'versions': ', '.join(f'{name} {_version(name)}' for name in PACKAGES),
        'OMP_WAIT_POLICY': os.environ.get('OMP_WAIT_POLICY', 'not set'),
        'commit': _output('git', '-C', str(Path(__file__).parent), 'rev-parse', '--short', 'HEAD')
        or 'not a checkout',
    }


def power_mode() -> str:
    """Give a Jetson's nvpmodel, else the governor of the CPU's clock."""
    lines = _output('nvpmodel', '-q').splitlines()
    modes = [line.partition(':')[2].strip() for line in lines if 'Power Mode' in line]
    return modes[0] if modes else _read(CPU / 'scaling_governor') or UNKNOWN


def _clocks() -> str:
    told = [_read(CPU / f'scaling_{which}_freq') for which in ('cur', 'max')]
    if all(told):
        return ' of '.join(str(int(khz) // 1000) for khz in told)
    return _of_cpuinfo('cpu MHz') or UNKNOWN


def _cpu_name() -> str:
    return _of_cpuinfo('model name') or _read('/proc/device-tree/model') or UNKNOWN


def _of_cpuinfo(key: str) -> str:
    lines = _read('/proc/cpuinfo').splitlines()
    return next((line.partition(':')[2].strip() for line in lines if line.startswith(key)), '')


def _read(path) -> str:
    try:
        return Path(path).read_text().strip('\0\n ')
    except OSError:
        return ''


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return 'not installed'


def _output(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ''
    done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    return done.stdout.strip() if done.returncode == 0 else ''
