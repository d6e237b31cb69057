# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The one way every executable of this package runs and ends.

SIGINT and SIGTERM end the process within two seconds with exit code 0, whatever a worker is
doing; a wrong parameter at start ends it with a sentence and exit code 1.
"""

import os
import signal
import sys
import threading

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor

from minicpmo_ros.errors import Error
from minicpmo_ros.process import prepare

# What is left of the two seconds after the nodes have been told to stop.
GRACE_S = 1.7


def run(make_nodes, args=None) -> int:
    """Spin the nodes that `make_nodes()` gives until a signal; give the exit code."""
    prepare()
    # rclpy's own handler shuts the context down, which ends the spinning. Python's would raise
    # KeyboardInterrupt besides, at any line: in the middle of making a node, or in a finalizer.
    signal.signal(signal.SIGINT, lambda *_: None)
    rclpy.init(args=args)
    executor = SingleThreadedExecutor()
    nodes, code = [], 1
    try:
        nodes = list(make_nodes())
        for node in nodes:
            executor.add_node(node)
        executor.spin()
        code = 0
    except ExternalShutdownException:
        code = 0
    except Error as error:
        print(f'{error}', file=sys.stderr)
    except Exception:
        # A signal in the middle of making a node takes the context from under it.
        if rclpy.ok():
            raise
        code = 0
    finally:
        _end(nodes, executor, code)
    return code


def _end(nodes, executor, code: int) -> None:
    # The second signal of an impatient user must not turn a clean end into a traceback.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # A worker deep in a computation must not keep a robot from shutting down: what has not
    # ended in time is left to the operating system.
    watchdog = threading.Timer(GRACE_S, os._exit, args=(code,))
    watchdog.daemon = True
    watchdog.start()
    for node in nodes:
        node.destroy_node()
    executor.shutdown(timeout_sec=0)
    rclpy.try_shutdown()
    watchdog.cancel()
