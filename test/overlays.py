# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Message packages of others, built apart from the package's own for child processes.

They are built once for a user, into the same cache as llama.cpp: each takes 20 s.
"""

import fcntl
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
CACHE = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'minicpmo_ros'


def environment(name: str, package: str) -> dict:
    """Build overlay/NAME once; give what a child process needs to have the package in front."""
    source = ROOT / 'overlay' / name
    files = [path for path in sorted(source.rglob('*')) if path.is_file()]
    # The pins say which ROS it is built against where no distribution is sourced.
    files.append(ROOT / 'environment' / 'requirements-ros.txt')
    texts = [path.read_bytes() for path in files]
    texts += [sys.version.encode(), os.environ.get('ROS_DISTRO', '').encode()]
    place = CACHE / f'{name}-{hashlib.sha256(bytes(1).join(texts)).hexdigest()[:16]}'
    place.mkdir(parents=True, exist_ok=True)
    prefix, done = place / 'install', place / 'built'
    with open(place / 'lock', 'w') as lock, open(place / 'log', 'a') as log:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            with tempfile.TemporaryDirectory() as build:
                make = (
                    ['cmake', '-S', source, '-B', build, f'-DCMAKE_INSTALL_PREFIX={prefix}',
                     '-DBUILD_TESTING=OFF', f'-DPython3_EXECUTABLE={sys.executable}'],
                    ['cmake', '--build', build, '-j2', '--target', 'install'],
                )  # fmt: skip
                for command in make:
                    subprocess.run(command, check=True, stdout=log, stderr=log)
            done.touch()
    (module,) = prefix.rglob(f'{package}/__init__.py')
    in_front = {
        'PYTHONPATH': str(module.parents[1]),
        'LD_LIBRARY_PATH': str(prefix / 'lib'),
        'AMENT_PREFIX_PATH': str(prefix),
    }
    return {
        name: ':'.join(filter(None, (path, os.environ.get(name))))
        for name, path in in_front.items()
    }
