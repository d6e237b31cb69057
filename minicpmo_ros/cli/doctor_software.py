# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Doctor's look at what is installed, and at the environment a process would start in."""

import importlib.util
import sys
from importlib.metadata import distributions
from pathlib import Path

from minicpmo_ros.errors import FAIL, OK, WARN, Error, Finding, judged
from minicpmo_ros.process import DEFAULTS

PYTHONS = ((3, 10), (3, 12))  # the first and the last that are known to work
NUMPY = (1, 21)
LLAMA = 'llama-cpp-python'
PINNED = '0.3.36'
MIDDLEWARE_SETTINGS = (
    'ROS_DOMAIN_ID', 'FASTDDS_BUILTIN_TRANSPORTS', 'ROS_LOCALHOST_ONLY',
    'ROS_AUTOMATIC_DISCOVERY_RANGE',
)  # fmt: skip
MAX_DOMAIN = 232  # above, the ports of DDS end, and with them the process
PACKAGES = ('gguf', 'soxr', 'av', 'pillow', 'pyyaml', 'rosbags', 'mcap', 'zstandard', 'lz4')
DISTRIBUTIONS = ('humble', 'jazzy', 'kilted')
WITH_NUMPY_1 = ('humble', 'jazzy')  # what they compile against numpy crashes under numpy 2
REQUIREMENTS = 'make build, or pip install -r environment/requirements.txt in the environment'


def installed(name: str, path=None) -> str:
    """Return the version of a Python package in `path` (default: sys.path); '' without it."""
    found = distributions(name=name, **({} if path is None else {'path': path}))
    return next((distribution.version for distribution in found), '')


def python(version: tuple = sys.version_info[:2]) -> Finding:
    """Compare Python with those that are known to work."""
    return judged(
        'python',
        '.'.join(map(str, version)) + f' ({sys.executable})',
        (version < PYTHONS[0], FAIL, 'Use Python 3.10 or later: make build PYTHON=python3.10'),
        (version > PYTHONS[1], WARN, 'Nobody has tried it: 3.10 to 3.12 are known to work'),
    )


def numpy(version: str, distribution: str, is_from_distribution: bool) -> Finding:
    """Compare numpy with what the ROS distribution was compiled against."""
    if not version:
        return Finding('numpy', FAIL, 'it is not installed', REQUIREMENTS)
    number = tuple(map(int, version.split('.')[:2]))
    return judged(
        'numpy',
        version,
        (number < NUMPY, FAIL, 'Install 1.21 or later'),
        (
            number[0] > 1 and is_from_distribution and distribution in WITH_NUMPY_1,
            FAIL,
            f'ROS {distribution} was compiled for numpy 1 and crashes: pip uninstall numpy in the '
            'environment, so that the one of the distribution is used',
        ),
    )


def packages(path=None) -> Finding:
    """Check that the packages without a rosdep key are installed."""
    missing = [name for name in PACKAGES if not installed(name, path)]
    return judged(
        'packages',
        f'missing: {", ".join(missing)}' if missing else 'all are installed',
        (missing, FAIL, REQUIREMENTS),
    )


def llama(path=None) -> Finding:
    """Compare the version of llama.cpp's binding with the one this package was made for."""
    version = installed(LLAMA, path)
    return judged(
        'llama.cpp',
        f'{LLAMA} {version or "is not installed"}',
        (not version, FAIL, REQUIREMENTS),
        (
            version != PINNED,
            FAIL,
            f'Install {PINNED}: layouts in memory differ between versions. {REQUIREMENTS}',
        ),
    )


def llama_gpu() -> tuple:
    """Load llama.cpp; give (name of the GPU it finds or '', Finding or None)."""
    try:
        from minicpmo_ros.ggml.devices import gpu_name
    except Error as error:
        return '', Finding('llama.cpp', FAIL, str(error), REQUIREMENTS)
    return gpu_name(), None


def openmp(environment) -> Finding:
    """Check that waiting threads do not spin."""
    name = 'OMP_WAIT_POLICY'
    value = environment.get(name, DEFAULTS[name])
    return judged(
        'openmp',
        f'{name} is {value}',
        (
            value.lower() != DEFAULTS[name],
            WARN,
            'Threads that wait then spin, and all is 5 to 60 times slower beside any other load: '
            f'unset {name}',
        ),
    )


def ros(environment, find=importlib.util.find_spec) -> list:
    """Check for a ROS distribution, our interfaces, and the audio messages."""
    distribution = environment.get('ROS_DISTRO', '')
    if find('rclpy') is None:
        return [_without_rclpy(distribution)]
    found = judged(
        'ros',
        distribution or 'rclpy is there, ROS_DISTRO is not set',
        (not distribution, WARN, 'Source environment/env.sh, or the setup.bash of ROS'),
        (
            distribution not in DISTRIBUTIONS,
            WARN,
            f'Nobody has tried it: {", ".join(DISTRIBUTIONS)} are known',
        ),
    )
    return [found, _messages(distribution, find)]


def _without_rclpy(distribution: str) -> Finding:
    return judged(
        'ros',
        f'{distribution or "no ROS distribution"}, and no rclpy in this Python',
        (
            bool(distribution),
            FAIL,
            'This Python is not that of the distribution, or its setup.bash was not sourced '
            'after the environment was made: source environment/env.sh',
        ),
        (
            True,
            WARN,
            'Nodes cannot run: source the setup.bash of a ROS distribution, or '
            'environment/env.sh after make build',
        ),
    )


def _messages(distribution: str, find) -> Finding:
    if find('minicpmo_ros.msg') is None:
        remedy = 'make build, then source environment/env.sh'
        return Finding('messages', FAIL, 'the messages of minicpmo_ros are not built', remedy)
    if find('audio_common_msgs') is None:
        text = 'audio_common_msgs is not installed, so that nothing is heard'
        remedy = f'sudo apt install ros-{distribution}-audio-common-msgs, or make build'
        return Finding('messages', WARN, text, remedy)
    return Finding('messages', OK, 'those of minicpmo_ros and audio_common_msgs')


def is_domain(text: str) -> bool:
    """Return whether processes start with this ROS_DOMAIN_ID."""
    return text.isascii() and text.isdecimal() and int(text) <= MAX_DOMAIN


def middleware(environment) -> Finding:
    """Check which middleware would be loaded, and by which settings."""
    rmw = environment.get('RMW_IMPLEMENTATION') or 'rmw_fastrtps_cpp'
    is_there = any(
        (Path(entry) / below / f'lib{rmw}.so').exists()
        for key, below in (('AMENT_PREFIX_PATH', 'lib'), ('LD_LIBRARY_PATH', ''))
        for entry in environment.get(key, '').split(':')
        if entry
    )
    profiles = [
        environment[key]
        for key in ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE')
        if environment.get(key)
    ]
    lost = [path for path in profiles if not Path(path).is_file()]
    settings = [f'{key}={environment[key]}' for key in MIDDLEWARE_SETTINGS if environment.get(key)]
    return judged(
        'rmw',
        ', '.join([rmw, *settings, *(f'profile {path}' for path in profiles)]),
        (
            bool(lost),
            FAIL,
            f'There is no file {", ".join(lost)}: correct FASTDDS_DEFAULT_PROFILES_FILE',
        ),
        (
            not is_there,
            FAIL,
            f'It is not installed: sudo apt install ros-$ROS_DISTRO-{rmw.replace("_", "-")}, or '
            'unset RMW_IMPLEMENTATION',
        ),
        (
            not is_domain(environment.get('ROS_DOMAIN_ID') or '0'),
            FAIL,
            f'ROS_DOMAIN_ID is no whole number from 0 to {MAX_DOMAIN}: set it to 0 to 101',
        ),
    )
