# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""`make web`: the visitor's own camera and microphone as the robot's, and a page to ask it.

Starts the installed `live` and `web` in the namespace /web. The page publishes what the browser
gives as the ordinary topics of a camera and a microphone, so everything behind them is what a
robot runs.
"""

import argparse
import subprocess
from pathlib import Path

import rclpy
from ament_index_python.packages import get_package_share_directory

from minicpmo_ros.errors import Error
from minicpmo_ros.ros.framework.main import run_program
from minicpmo_ros.ros.replay.demo import executable

NAMESPACE = '/web'
ADVICE = """
The node web prints the address of the page: open it in a browser on this machine. From another
machine: ssh -L 8080:localhost:8080 THIS_MACHINE, with the port of the address in place of 8080;
then open the same address there. Ctrl-C ends it.
"""


def serve(model_dir: str, preset: str, parameters: list) -> None:
    """Run the graph and the page until one of the two ends."""
    config = Path(get_package_share_directory('minicpmo_ros')) / 'config' / f'{preset}.yaml'
    given = [part for one in parameters for part in ('-p', one.replace('=', ':=', 1))]
    live = ('--params-file', str(config), '-p', f'model_dir:={model_dir}')
    page = ('-p', 'senses:=true', *given)
    with (
        executable('web', *page, namespace=NAMESPACE) as web,
        executable('live', *live, namespace=NAMESPACE) as eyes,
    ):
        print(ADVICE, flush=True)
        while True:
            if not rclpy.ok():
                raise Error('rclpy has ended')  # by SIGTERM, which nothing else here notices
            for process in (web, eyes):
                try:
                    process.wait(timeout=0.5)
                except subprocess.TimeoutExpired:
                    continue
                raise Error('a process ended; see the log above')


def main() -> int:
    """Run it; return the exit code."""
    parser = argparse.ArgumentParser(prog='web', description=__doc__.splitlines()[0])
    parser.add_argument('--model-dir', default='nano', help='directory, or an embedded model')
    parser.add_argument('--preset', default='nano', help='of the parameters (%(default)s)')
    parser.add_argument(
        '--page', nargs='*', default=[], metavar='NAME=VALUE',
        help='parameters of the node web, such as port=8081 or certificate=FILE',
    )  # fmt: skip
    arguments = parser.parse_args()
    return run_program('web', lambda: serve(arguments.model_dir, arguments.preset, arguments.page))


if __name__ == '__main__':
    raise SystemExit(main())
