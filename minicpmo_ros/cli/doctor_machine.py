# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Doctor's look at the machine and at what a node is allowed to use of it.

Power and clocks, GPU, swap, load, shared memory and UDP buffers; and the limits of a process:
a folder for logs, descriptors, threads. A node that is started from the same shell has these
limits; a service has its own (LimitNOFILE, TasksMax, Environment=ROS_LOG_DIR of its unit). `root`
is where /proc, /sys, /dev, /etc and /var lie.
"""

import fcntl
import os
import re
import resource
import shutil
from pathlib import Path

from minicpmo_ros.errors import FAIL, OK, WARN, Finding, judged
from minicpmo_ros.memory.proc import meminfo_mib
from minicpmo_ros.units import MIB

GPU_NODES = ('dev/nvidia0', 'dev/nvhost-gpu', 'dev/nvgpu', 'dev/nvmap')
# Governors that let the clock follow the load on any driver; powersave does on these two alone.
DYNAMIC_POWERSAVE = ('intel_pstate', 'amd-pstate-epp')
SWAP_FULL = 0.1  # share that is free
SHM_MIB = 32.0  # what a raw camera needs of /dev/shm with a large segment
SHM_LEAST_MIB = 4.0  # half a MiB for each process of the middleware
RMEM_BYTES = 2 * MIB  # the buffer that a burst of UDP fragments of one raw image needs
FAST_DDS = ('fastrtps_', 'fastdds_')
NAMED = 6  # stale files that are named
# `live` with nano has 23 open files and 24 threads; sources, clients and a GPU's runtime add some.
FEW_FILES, ENOUGH_FILES = 64, 256
FEW_THREADS, ENOUGH_THREADS = 32, 128
LOG_MIB = 64.0  # free on the disk of the logs


def gpu_node(root: Path) -> str:
    """Return the device node of an NVIDIA GPU; '' where there is none."""
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
    """Check that the swap is not nearly full."""
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
    """Check whether the governor or a limit holds the CPU's clock down."""
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
    """Check that the middleware has shared memory to pass large images through."""
    path = root / 'dev/shm'
    remedy = (
        'In a container: docker run --ipc=host, or --shm-size=512m; else mount -o '
        'remount,size=512m /dev/shm'
    )
    if not path.is_dir() or not os.access(path, os.W_OK):
        return Finding(
            'shm',
            FAIL,
            '/dev/shm is not there, or not to be written to; large images would go by UDP',
            remedy,
        )
    stat = os.statvfs(path)
    free_mib = stat.f_bavail * stat.f_frsize / MIB
    return judged(
        'shm',
        f'{free_mib:.0f} MiB are free in /dev/shm, {needed_mib:.0f} are enough',
        (
            free_mib < min(SHM_LEAST_MIB, needed_mib),
            FAIL,
            f'A process that finds it full ends with a bus error. {remedy}, or without shared '
            'memory: export FASTDDS_BUILTIN_TRANSPORTS=UDPv4',
        ),
        (free_mib < needed_mib, WARN, remedy),
    )


def stale_shared_memory(root: Path) -> Finding:
    """Find what killed processes have left: files of Fast DDS whose lock nobody holds."""
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
    """Return (names of files without a living owner, their size).

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
    """Check that the kernel can put together a raw image that comes as UDP fragments."""
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
            'Raw images from another machine or container would be lost: publish compressed '
            f'ones, or sudo sysctl -w net.core.rmem_max={8 * MIB} '
            'net.ipv4.ipfrag_high_thresh=134217728 net.ipv4.ipfrag_time=3',
        ),
    )


def log_folder(environment, can_write=os.access) -> Finding:
    """Check that ROS can write its logs; otherwise no node starts."""
    folder = _log_folder(environment)
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    remedy = (
        'No node starts without it: export ROS_LOG_DIR=/tmp/ros_log (or any folder that can be '
        'written), in a container a volume or --tmpfs'
    )
    if not existing.is_dir() or not can_write(existing, os.W_OK | os.X_OK):
        return Finding('logs', FAIL, f'{folder} cannot be written (at {existing})', remedy)
    free_mib = shutil.disk_usage(existing).free / MIB
    return judged(
        'logs',
        f'{folder} can be written, {free_mib:.0f} MiB are free there',
        (
            free_mib < LOG_MIB,
            WARN,
            'Logs and bags end where the disk is full: free some, or set ROS_LOG_DIR elsewhere',
        ),
    )


def _log_folder(environment) -> Path:
    """Return where ROS writes logs, as rcl_logging finds it."""
    if given := environment.get('ROS_LOG_DIR'):
        return Path(given).expanduser().absolute()
    home = environment.get('ROS_HOME') or str(Path(environment.get('HOME', '~')) / '.ros')
    return (Path(home).expanduser() / 'log').absolute()


def descriptors(limit: int | None = None) -> Finding:
    """Check how many files a process may have open; limit: instead of this process's own."""
    if limit is None:
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return Finding('descriptor', OK, 'as many as wanted')
    remedy = 'Raise it: ulimit -n 1024 before the launch, LimitNOFILE= of a service'
    return judged(
        'descriptor',
        f'a process may have {limit}, {ENOUGH_FILES} are enough',
        (limit < FEW_FILES, FAIL, f'The nodes need about 40. {remedy}'),
        (limit < ENOUGH_FILES, WARN, f'Many clients or topics would not fit. {remedy}'),
    )


def threads(root: Path, limit: int | None = None) -> Finding:
    """Check how many threads this user may still start in this control group."""
    if limit is None:
        limit, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    rooms = [] if limit == resource.RLIM_INFINITY or _is_exempt() else [limit - _own_threads(root)]
    rooms += [room for room in [_group_room(root)] if room is not None]
    if not rooms:
        return Finding('threads', OK, 'as many as wanted')
    room = max(0, min(rooms))
    remedy = (
        'Raise ulimit -u, TasksMax= of a service, or pids.max of a container (--pids-limit), or '
        'end what runs so many'
    )
    return judged(
        'threads',
        f'{room} more can be started, {ENOUGH_THREADS} are enough',
        (room < FEW_THREADS, FAIL, f'The nodes take about 30. {remedy}'),
        (room < ENOUGH_THREADS, WARN, remedy),
    )


def _is_exempt() -> bool:
    """The limit of processes does not bind root."""
    return os.geteuid() == 0


def _own_threads(root: Path) -> int:
    """Count the threads of this user."""
    count = 0
    for path in (root / 'proc').glob('[0-9]*'):
        try:
            if path.stat().st_uid == os.geteuid():
                count += len(os.listdir(path / 'task'))
        except OSError:  # it has ended meanwhile
            continue
    return count


def _group_room(root: Path) -> int | None:
    """How many more the control group allows, version 2 and 1; None where it bounds nothing."""
    rooms = []
    for folder in _groups(root):
        try:
            most, now = (int((folder / name).read_text()) for name in ('pids.max', 'pids.current'))
        except (OSError, ValueError):  # not there, or 'max'
            continue
        rooms.append(most - now)
    return min(rooms, default=None)


def _groups(root: Path):
    try:
        lines = (root / 'proc/self/cgroup').read_text().splitlines()
    except OSError:
        lines = []
    for base, start in (('sys/fs/cgroup', '0::'), ('sys/fs/cgroup/pids', ':pids:')):
        yield root / base  # in a container its own group is the root of what is there
        for line in lines:
            if start in line:
                yield root / base / line.rpartition(':')[2].lstrip('/')
