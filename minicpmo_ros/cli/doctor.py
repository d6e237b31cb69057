# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The verb doctor: everything that it looks at, in order."""

import importlib.util
import json
import os
from dataclasses import asdict
from pathlib import Path

from minicpmo_ros.cli.options import HELP, model_path
from minicpmo_ros.config import LLM
from minicpmo_ros.errors import FAIL, WARN, Finding
from minicpmo_ros.streams.pairing import cameras_of
from minicpmo_ros.verbs.arguments import amount, namespace


def add_doctor_arguments(parser) -> None:
    """Declare the options of `doctor`."""
    parser.add_argument(
        'directory', nargs='?', type=model_path, metavar='DIR', default='nano', help=HELP
    )
    parser.add_argument(
        '--hashes',
        action='store_true',
        help='also compare the SHA-256 of every file; takes seconds per gigabyte',
    )
    parser.add_argument(
        '--n-ctx', type=int, default=LLM.n_ctx, help='parameter n_ctx of the node llm'
    )
    parser.add_argument(
        '--kv-type',
        choices=('f32', 'f16', 'q8_0'),
        default=LLM.kv_type,
        help='parameter kv_type of the node llm',
    )
    parser.add_argument(
        '--topics',
        choices=('auto', 'yes', 'no'),
        default='auto',
        help='look at the graph; auto: if ROS is installed; yes: expect sources and nodes in it',
    )
    parser.add_argument('--namespace', type=namespace, default='/', help='namespace of the nodes')
    parser.add_argument('--image-topic', default='image', help='as given to the launch file')
    parser.add_argument(
        '--cameras', default='', help='names of several cameras, as parameter cameras has them'
    )
    parser.add_argument('--audio-topic', default='audio', help='as given to the launch file')
    parser.add_argument('--audio-info-topic', default='', help='as given to the launch file')
    parser.add_argument(
        '--wait', type=amount, default=3.0, help='how long to wait for the graph, in seconds'
    )
    parser.add_argument(
        '--root', type=Path, default=Path('/'), help='folder that contains /proc and /sys'
    )
    parser.add_argument('--json', action='store_true', help='print JSON')


def run_doctor(arguments) -> int:
    """Check this machine, a model directory and the running graph, and say what to do.

    Prints one line for each check: ok, warn (works, with a loss) or FAIL. The exit status is 1 if
    anything fails. It changes nothing. It also works without ROS, and then says so.
    """
    found = findings(arguments, os.environ)
    failed = any(finding.level == FAIL for finding in found)
    if arguments.json:
        print(json.dumps({'ok': not failed, 'checks': [asdict(each) for each in found]}, indent=1))
    else:
        for finding in found:
            print(finding.line())
        counts = [sum(each.level == level for each in found) for level in (FAIL, WARN)]
        print(f'{len(found)} checks, {counts[0]} FAIL, {counts[1]} warn')
    return int(failed)


def findings(arguments, environment) -> list:
    """Check everything, from what is installed to what is running."""
    from minicpmo_ros.cli import doctor_machine as machine
    from minicpmo_ros.cli import doctor_software as software

    has_ros = importlib.util.find_spec('rclpy') is not None
    distribution = environment.get('ROS_DISTRO', '')
    from_distribution = bool(distribution) and '_ROS_WHEELS_BOOTSTRAP_COMPLETE' not in environment
    found = [
        software.python(),
        software.numpy(software.installed('numpy'), distribution, from_distribution),
        software.packages(),
        software.llama(),
    ]
    gpu_name, broken = software.llama_gpu()
    if broken:
        text = 'the model was not looked at, because llama.cpp does not load'
        found += [broken, Finding('files', WARN, text, 'Mend that first')]
    else:
        found += [machine.gpu(arguments.root, gpu_name), *_model(arguments, gpu_name)]
    found += _running_on(arguments.root, environment, has_ros)
    found = [finding for finding in found if finding is not None]
    if arguments.topics == 'no':
        return found
    if any(finding.check == 'rmw' and finding.level == FAIL for finding in found):
        # Importing rclpy would end this process.
        text = 'the graph was not looked at, because the middleware would not start'
        return [*found, Finding('topics', WARN, text, 'Mend that first')]
    return found + _topics(arguments, environment, has_ros)


def _running_on(root, environment, has_ros: bool) -> list:
    """Check the machine and its middleware; None in place of what does not concern it."""
    from minicpmo_ros.cli import doctor_machine as machine
    from minicpmo_ros.cli import doctor_software as software

    return [
        machine.swap(root),
        machine.power(root),
        machine.clocks(root),
        machine.load(root, len(os.sched_getaffinity(0))),
        software.openmp(environment),
        *software.ros(environment),
        software.middleware(environment) if has_ros else None,
        machine.shared_memory(root),
        machine.stale_shared_memory(root),
        machine.udp(root),
        machine.log_folder(environment) if has_ros else None,
        machine.descriptors(),
        machine.threads(root),
    ]


def _model(arguments, gpu_name: str) -> list:
    from minicpmo_ros.cli import doctor_model as model

    directory, found = model.files(arguments.directory)
    if directory is None:
        return found
    if arguments.hashes:
        found.append(model.hashes(directory))
    return [
        *found,
        *model.context(directory, arguments.n_ctx),
        model.memory(arguments.root, directory, arguments.n_ctx, arguments.kv_type, gpu_name),
    ]


def _topics(arguments, environment, has_ros: bool) -> list:
    if not has_ros:
        expected = arguments.topics == 'yes'
        remedy = 'Source the setup.bash of ROS, or environment/env.sh'
        text = 'the graph cannot be looked at without rclpy'
        return [Finding('topics', FAIL, text, remedy)] if expected else []
    from minicpmo_ros.ros.doctor import look
    from minicpmo_ros.ros.image_input import camera_topics

    images = [camera_topics(name)['raw'] for name in cameras_of(arguments.cameras)]
    return look(
        arguments.namespace,
        images or [arguments.image_topic],
        arguments.audio_topic,
        arguments.audio_info_topic,
        arguments.wait,
        expects=arguments.topics == 'yes',
        transports=environment.get('FASTDDS_BUILTIN_TRANSPORTS', ''),
        profile=environment.get('FASTDDS_DEFAULT_PROFILES_FILE', ''),
    )
