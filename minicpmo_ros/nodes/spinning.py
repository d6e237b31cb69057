# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The one way every executable of this package runs and ends.

SIGINT and SIGTERM end the process within two seconds with exit code 0, whatever a worker is
doing; a wrong argument or parameter at start ends it with a sentence and exit code 1.
"""

import faulthandler
import os
import signal
import sys
import threading

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor

from minicpmo_ros.errors import Error, InputError
from minicpmo_ros.nodes.logs import PACKAGE, RosHandler
from minicpmo_ros.process import prepare

# What is left of the two seconds after the nodes have been told to stop.
GRACE_S = 1.7
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run(make_nodes, args=None) -> int:
    """Spin the nodes that `make_nodes()` gives until a signal; give the exit code."""
    prepare()
    faulthandler.enable()  # where ggml aborts or a library crashes, say in which thread and line
    nodes, code, executor, handler = [], 1, None, None
    try:
        _init(args)
        executor = SingleThreadedExecutor()
        # One by one: what was made before a parameter was refused is ended too.
        for node in make_nodes():
            nodes.append(node)
            executor.add_node(node)
        handler = RosHandler(nodes)
        PACKAGE.addHandler(handler)
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
        PACKAGE.removeHandler(handler)
    return code


def stay_on_this_machine() -> None:
    """Let this process and its children find no other's robot, unless the user says otherwise."""
    os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')


def run_program(name: str, work) -> int:
    """Do the `work()` of a program that asks the graph and ends; give the exit code."""
    prepare()
    stay_on_this_machine()
    rclpy.init()
    try:
        work()
    except (KeyboardInterrupt, ExternalShutdownException):
        return 130
    except Error as error:
        print(f'{name}: {error}', file=sys.stderr)
        return 1
    finally:
        rclpy.try_shutdown()
    return 0


def _init(args) -> None:
    """Initialise ROS; a signal that comes meanwhile ends what follows."""
    signalled = []
    # rclpy's own handler shuts the context down, which ends the spinning, and then calls these.
    # Python's would raise KeyboardInterrupt, at any line: in the middle of making a node, or in
    # a finalizer.
    _on_signals(lambda number, _: signalled.append(number))
    try:
        rclpy.init(args=args)
    except Exception as error:
        if signalled:
            raise ExternalShutdownException from None
        raise InputError(f'the arguments cannot be read: {error}') from None
    if signalled:
        raise ExternalShutdownException


def _end(nodes, executor, code: int) -> None:
    # The second signal of an impatient user must not turn a clean end into a traceback.
    _on_signals(lambda *_: None)
    # A worker deep in a computation must not keep a robot from shutting down: what has not
    # ended in time is left to the operating system.
    watchdog = threading.Timer(GRACE_S, os._exit, args=(code,))
    watchdog.daemon = True
    watchdog.start()
    for node in nodes:
        node.destroy_node()
    if executor is not None:
        executor.shutdown(timeout_sec=0)
    rclpy.try_shutdown()
    _on_signals(signal.SIG_IGN)  # what Python is left to do would end by it
    watchdog.cancel()


def _on_signals(handler) -> None:
    for number in SIGNALS:
        signal.signal(number, handler)
