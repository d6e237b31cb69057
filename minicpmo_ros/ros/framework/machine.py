# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Facts about the software and the machine: without them nobody can compare a measurement."""

import os
import platform
import shutil
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ('minicpmo_ros', 'llama-cpp-python', 'numpy', 'soxr', 'av')
MEASURED_PACKAGES = ('llama-cpp-python', 'numpy', 'gguf', 'soxr')
CPU = Path('/sys/devices/system/cpu/cpu0/cpufreq')
UNKNOWN = 'not told by this machine'


def run_start(threads: int | None, workers: int = 1) -> dict:
    """Return the facts at the start of a run, as JSON values.

    threads: None if they are those of the running graph.
    """
    return {
        'time': datetime.now(timezone.utc).isoformat(timespec='seconds'),
        'software': {name: package_version(name) for name in PACKAGES},
        'python': platform.python_version(),
        'host': platform.node(),
        'processor': f'{cpu_name()}, {len(os.sched_getaffinity(0))} cores, {platform.machine()}',
        'system': f'{platform.system()} {platform.release()}',
        'threads': threads,
        'workers': workers,
    }


def machine_facts() -> dict:
    """Return the facts that belong to a table of measurements, as texts by name."""
    return {
        'processor': f'{cpu_name()}, {len(os.sched_getaffinity(0))} cores, {platform.machine()}',
        'power mode': power_mode(),
        'clock MHz': _clocks(),
        'load average': ' '.join(f'{load:.1f}' for load in os.getloadavg()),
        'memory MiB': f'{os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20}',
        'system': f'{platform.system()} {platform.release()}, Python {platform.python_version()}',
        'versions': ', '.join(f'{name} {package_version(name)}' for name in MEASURED_PACKAGES),
        'OMP_WAIT_POLICY': os.environ.get('OMP_WAIT_POLICY', 'not set'),
        'commit': _output('git', '-C', str(Path(__file__).parent), 'rev-parse', '--short', 'HEAD')
        or 'not a checkout',
    }


def power_mode() -> str:
    """Return a Jetson's nvpmodel, else the governor of the CPU's clock."""
    lines = _output('nvpmodel', '-q').splitlines()
    modes = [line.partition(':')[2].strip() for line in lines if 'Power Mode' in line]
    return modes[0] if modes else read_text(CPU / 'scaling_governor') or UNKNOWN


def _clocks() -> str:
    told = [read_text(CPU / f'scaling_{which}_freq') for which in ('cur', 'max')]
    if all(told):
        return ' of '.join(str(int(khz) // 1000) for khz in told)
    return cpuinfo('cpu MHz') or UNKNOWN


def _output(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ''
    done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    return done.stdout.strip() if done.returncode == 0 else ''


def package_version(name: str) -> str:
    """Return the version of an installed Python package."""
    try:
        return version(name)
    except PackageNotFoundError:
        return 'not installed'


def cpu_name() -> str:
    """Return the name of the processor, or of the board if only that is known."""
    return cpuinfo('model name') or read_text('/proc/device-tree/model') or UNKNOWN


def cpuinfo(key: str) -> str:
    """Return the first value of a key in /proc/cpuinfo, or ''."""
    lines = read_text('/proc/cpuinfo').splitlines()
    return next((line.partition(':')[2].strip() for line in lines if line.startswith(key)), '')


def read_text(path) -> str:
    """Return a small file's stripped text, or '' if it cannot be read."""
    try:
        return Path(path).read_text().strip('\0\n ')
    except OSError:
        return ''
