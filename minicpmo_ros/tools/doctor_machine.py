# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Doctor's look at the machine: power and clocks, GPU, swap, load, shared memory, UDP buffers.

`root` is where /proc, /sys, /dev, /etc and /var lie.
"""

import fcntl
import os
import re
from pathlib import Path

from minicpmo_ros.finding import FAIL, OK, WARN, Finding, judged
from minicpmo_ros.nodes.memory import meminfo_mib

MIB = 2**20
GPU_NODES = ('dev/nvidia0', 'dev/nvhost-gpu', 'dev/nvgpu', 'dev/nvmap')
# Governors that let the clock follow the load on any driver; powersave does on these two alone.
DYNAMIC_POWERSAVE = ('intel_pstate', 'amd-pstate-epp')
SWAP_FULL = 0.1  # share that is free
SHM_MIB = 32.0  # what a raw camera needs of /dev/shm with a large segment
RMEM_BYTES = 2 * MIB  # the buffer that a burst of UDP fragments of one raw picture needs
FAST_DDS = ('fastrtps_', 'fastdds_')
NAMED = 6  # stale files that are named


def gpu_node(root: Path) -> str:
    """Give the device node of an NVIDIA GPU; '' where there is none."""
    return next((f'/{name}' for name in GPU_NODES if (root / name).exists()), '')


def gpu(root: Path, name: str) -> Finding:
    """Compare the device nodes with what llama.cpp finds, `name` ('' for nothing)."""
    node = gpu_node(root)
    if name:
        return Finding('gpu', OK, f'llama.cpp computes on {name}')
    if not node:
        return Finding('gpu', OK, 'there is none; the CPU computes')
    return judged(
        'gpu',
        f'{node} is there, and llama.cpp finds no GPU',
        (
            not os.access(root / node[1:], os.R_OK | os.W_OK),
            FAIL,
            f'This user may not open {node}: sudo usermod -aG video,render $USER, and log in anew',
        ),
        (
            True,
            FAIL,
            'Build llama.cpp for it: make build CMAKE_ARGS="-DGGML_CUDA=on"; is the driver loaded '
            '(nvidia-smi, on a Jetson tegrastats)? Else set device to cpu',
        ),
    )


def swap(root: Path) -> Finding:
    """Look whether what was swapped out is about to be all that fits."""
    table = meminfo_mib(root)
    total, free = table.get('SwapTotal', 0.0), table.get('SwapFree', 0.0)
    if not total:
        return Finding('swap', OK, 'there is none')
    return judged(
        'swap',
        f'{free:.0f} of {total:.0f} MiB are free',
        (
            free < SWAP_FULL * total,
            WARN,
            'The machine swaps, so seconds will be late: end other programs, or use smaller files',
        ),
    )


def power(root: Path) -> Finding | None:
    """Read the power mode of a Jetson from what nvpmodel leaves; None on another machine."""
    try:
        status = (root / 'var/lib/nvpmodel/status').read_text()
        table = (root / 'etc/nvpmodel.conf').read_text()
    except OSError:
        return None
    names = dict(re.findall(r'POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)', table))
    found = re.search(r'pmode:(\d+)', status)
    mode = str(int(found.group(1))) if found else '?'
    name = names.get(mode, '?')
    best = next((number for number, each in names.items() if each.startswith('MAXN')), None)
    return judged(
        'power',
        f'mode {mode} ({name}) of {", ".join(names.values())}',
        (
            best is not None and best != mode,
            WARN,
            f'The board is held back: sudo nvpmodel -m {best}, then sudo jetson_clocks, where '
            'its power supply and cooling allow',
        ),
    )


def clocks(root: Path) -> Finding:
    """Look whether the governor or a limit holds the CPU's clock down."""
    slow, capped, governors = [], [], set()
    for folder in sorted((root / 'sys/devices/system/cpu').glob('cpu[0-9]*/cpufreq')):
        values = {}
        for key in ('scaling_governor', 'scaling_driver', 'scaling_max_freq', 'cpuinfo_max_freq'):
            try:
                values[key] = (folder / key).read_text().strip()
            except OSError:
                values[key] = ''
        governor, cpu = values['scaling_governor'], folder.parent.name
        governors.add(governor)
        if governor == 'powersave' and values['scaling_driver'] not in DYNAMIC_POWERSAVE:
            slow.append(cpu)
        limits = [int(values[key] or 0) for key in ('scaling_max_freq', 'cpuinfo_max_freq')]
        if 0 < limits[0] < limits[1]:
            capped.append(f'{cpu} {limits[0] // 1000} of {limits[1] // 1000} MHz')
    if not governors:
        return Finding('clocks', OK, 'this machine does not tell')
    fact = f'governor {", ".join(sorted(governors))}'
    if capped:
        fact += f', limited: {", ".join(capped)}'
    return judged(
        'clocks',
        fact,
        (
            slow,
            WARN,
            f'{", ".join(slow)} stay at their lowest clock: echo schedutil | sudo tee '
            '/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor',
        ),
        (
            capped,
            WARN,
            'The clock is held below what the CPU can do: by the power mode (nvpmodel), or '
            'scaling_max_freq',
        ),
    )


def load(root: Path, cpus: int) -> Finding:
    """Compare how many programs want to run with how many can."""
    waiting = float((root / 'proc/loadavg').read_text().split()[0])
    return judged(
        'load',
        f'{waiting:.1f} on {cpus} CPUs',
        (
            waiting > cpus,
            WARN,
            'More wants to run than can: end what is not needed (top), or set threads lower',
        ),
    )


def shared_memory(root: Path, needed_mib: float = SHM_MIB) -> Finding:
    """Look whether the middleware has shared memory to pass large pictures through."""
    path = root / 'dev/shm'
    remedy = 'In a container: docker run --ipc=host, or --shm-size=512m'
    if not path.is_dir() or not os.access(path, os.W_OK):
        return Finding(
            'shm',
            FAIL,
            '/dev/shm is not there, or not to be written to; large pictures would go by UDP',
            remedy,
        )
    stat = os.statvfs(path)
    free_mib = stat.f_bavail * stat.f_frsize / MIB
    return judged(
        'shm',
        f'{free_mib:.0f} MiB are free in /dev/shm, {needed_mib:.0f} are enough',
        (free_mib < needed_mib, WARN, remedy),
    )


def stale_shared_memory(root: Path) -> Finding:
    """Look for what killed processes have left: files of Fast DDS whose lock nobody holds."""
    stale, size_bytes = stale_files(root / 'dev/shm')
    names = ' '.join(f'/dev/shm/{name}' for name in stale[:NAMED])
    more = f' and {len(stale) - NAMED} more' if len(stale) > NAMED else ''
    return judged(
        'stale',
        f'{len(stale)} files ({size_bytes / MIB:.1f} MiB) of Fast DDS processes that are gone '
        'lie in /dev/shm',
        (stale, WARN, f'Remove them: fastdds shm clean, or rm {names}{more}'),
    )


def stale_files(folder: Path) -> tuple:
    """Give (names of files without a living owner, their size).

    Whoever has a file `x` open holds a lock on `x_el` or `x_sl`; a lock dies with its process.
    """
    stale, size_bytes = [], 0
    for path in sorted(folder.glob('*')):
        if not path.name.startswith(FAST_DDS) or path.name.endswith(('_el', '_sl')):
            continue
        locks = [lock for end in ('_el', '_sl') if (lock := Path(f'{path}{end}')).exists()]
        if locks and not any(map(_is_held, locks)):
            semaphore = folder / f'sem.{path.name}_mutex'
            for each in (path, *locks, *([semaphore] if semaphore.exists() else [])):
                stale.append(each.name)
                size_bytes += each.stat().st_size
    return stale, size_bytes


def _is_held(lock: Path) -> bool:
    try:
        with open(lock) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # closing gives it back
    except OSError:  # it is held, is another user's, or has gone meanwhile
        return True
    return False


def udp(root: Path) -> Finding:
    """Look whether the kernel can put together a raw picture that comes as UDP fragments."""
    try:
        size_bytes = int((root / 'proc/sys/net/core/rmem_max').read_text())
    except OSError:
        return Finding('udp', OK, 'this machine does not tell net.core.rmem_max')
    return judged(
        'udp',
        f'net.core.rmem_max is {size_bytes / MIB:.1f} MiB',
        (
            size_bytes < RMEM_BYTES,
            WARN,
            'Raw pictures from another machine or container would be lost: publish compressed '
            f'ones, or sudo sysctl -w net.core.rmem_max={8 * MIB} '
            'net.ipv4.ipfrag_high_thresh=134217728 net.ipv4.ipfrag_time=3',
        ),
    )
