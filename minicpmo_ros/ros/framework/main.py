# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Runs every executable of this package, and ends it.

SIGINT, SIGTERM and a shutdown of rclpy from code end the process within two seconds with exit
code 0, whatever a worker is doing. A wrong argument or parameter at start, or a machine without
the resources to start, ends it with a sentence and exit code 1. Unforeseen exceptions of callbacks
are logged and counted by their node, and spinning goes on.
"""

import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from contextlib import contextmanager
from pathlib import Path

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.utilities import remove_ros_args

from minicpmo_ros.errors import Error, InputError, TerminatedError
from minicpmo_ros.process import prepare
from minicpmo_ros.ros.framework.faults import PACKAGE, RosHandler, faults_of, shortage

USAGE = """usage: ros2 run minicpmo_ros {} --ros-args [-p NAME:=VALUE] [-r OLD:=NEW] ...

docs/parameters.md has the parameters, docs/topics.md the topics, services and actions."""
# What is left of the two seconds after the nodes have been told to stop.
GRACE_S = 1.7
# So many errors in so short a time, and spinning itself is broken: a new process is the way out.
MOST_ERRORS, ERRORS_S, PAUSE_S = 200, 60.0, 0.05
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run(make_nodes, args=None, own: tuple = ()) -> int:
    """Spin the nodes that `make_nodes()` returns until a signal; return the exit code.

    `args`: all arguments, None: those of the process; `own`: those that are not for ROS.
    """
    prepare()
    faulthandler.enable()  # where ggml aborts or a library crashes, say in which thread and line
    nodes, code, executor, handler = [], 1, None, None
    try:
        _init(args)
        if not _are_read(sys.argv if args is None else args, own):
            raise ExternalShutdownException
        executor = SingleThreadedExecutor()
        # One by one: what was made before a parameter was refused is ended too.
        for node in make_nodes():
            nodes.append(node)
            executor.add_node(node)
        handler = RosHandler(nodes)
        PACKAGE.addHandler(handler)
        code = _spin(executor, nodes)
    except ExternalShutdownException:
        code = 0
    except Error as error:
        print(f'{error}', file=sys.stderr)
    except Exception as error:
        # A signal in the middle of making a node takes the context from under it.
        if not rclpy.ok():
            code = 0
        elif lack := shortage(error):
            print(f'it cannot start: {lack}', file=sys.stderr)
        else:
            raise
    finally:
        _end(nodes, executor, code)
        PACKAGE.removeHandler(handler)
    return code


def _spin(executor, nodes) -> int:
    """Spin until the context is shut down; return the exit code."""
    errors = deque(maxlen=MOST_ERRORS)  # monotonic, of the newest
    while rclpy.ok():
        try:
            executor.spin()
        except ExternalShutdownException:
            return 0
        except Exception as error:
            node = _owner(error, nodes)
            if isinstance(error, Error) and not hasattr(node, 'has_ended'):
                raise  # a player or recorder ends by what is told it on purpose
            errors.append(time.monotonic())
            if len(errors) == MOST_ERRORS and errors[-1] - errors[0] < ERRORS_S:
                print(f'callbacks fail again and again, the newest by {error!r}', file=sys.stderr)
                return 1
            if rclpy.ok() and not getattr(node, 'has_ended', False):
                faults_of(node).tell('a callback', error, starts_anew=False)
                time.sleep(PAUSE_S)  # what fails at once must not keep a core busy
    return 0


def _owner(error: Exception, nodes):
    """Return the node whose code has raised, or the last one."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    held = [value for frame in frames for value in frame.f_locals.values()]
    held += [getattr(value, '_node', None) for value in held]
    return next((node for node in nodes if any(value is node for value in held)), nodes[-1])


def stay_on_this_machine() -> None:
    """Isolate this process and its children from other robots, unless the user says otherwise."""
    os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')


def run_program(name: str, work, args: list | None = None) -> int:
    """Run the `work()` of a program that uses the graph and ends; return the exit code.

    `args`: for ROS; None: those of the process.
    """
    prepare()
    stay_on_this_machine()
    try:
        begin(args)
        with told_termination():
            work()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except TerminatedError as error:
        print(f'{name}: {error}', file=sys.stderr)
        return 128 + signal.SIGTERM
    except Error as error:
        print(f'{name}: {error}', file=sys.stderr)
        return 1
    finally:
        rclpy.try_shutdown()
    return 0


@contextmanager
def told_termination():
    """Raise TerminatedError for whatever fails inside because SIGTERM has shut rclpy down.

    rclpy's own handler does that; then every call of rclpy fails, each in its own way.
    """
    try:
        yield
    except Exception as error:
        if rclpy.ok():
            raise
        raise TerminatedError('it was ended by SIGTERM.') from error


def _are_read(args: list, own: tuple) -> bool:
    """Return whether to run: --help is answered instead. Raise InputError for what nobody reads.

    ROS passes over what does not stand behind --ros-args, and would run with the defaults.
    """
    program, *given = remove_ros_args(args)
    if {'-h', '--help'} & set(given):
        print(USAGE.format(Path(program).name))
        return False
    if unread := [text for text in given if text not in own]:
        raise InputError(
            f'nobody reads {" ".join(unread)}: what is for ROS stands behind --ros-args, such as '
            '--ros-args -p model_dir:=nano'
        )
    return True


def _init(args) -> None:
    """Initialise ROS; a signal during this ends the program afterwards."""
    signalled = []
    # rclpy's own handler shuts the context down, which ends the spinning, and then calls these.
    # Python's would raise KeyboardInterrupt, at any line: in the middle of making a node, or in
    # a finalizer.
    _on_signals(lambda number, _: signalled.append(number))
    try:
        begin(args)
    except InputError:
        if signalled:
            raise ExternalShutdownException from None
        raise
    if signalled:
        raise ExternalShutdownException


def begin(args: list | None = None) -> None:
    """Initialise ROS; raise InputError with what keeps it from that. `args` as in run_program."""
    try:
        rclpy.init(args=args)
    except Exception as error:  # of rclpy, of several types
        text = str(error)
        if 'logging' in text:  # systemd sets no HOME
            raise InputError(
                f'no folder for logs: {text}. Set HOME or ROS_LOG_DIR to one that can be written'
            ) from None
        if 'DOMAIN' in text:
            raise InputError(f'ROS_DOMAIN_ID cannot be read: {text}') from None
        raise InputError(f'the arguments cannot be read: {text}') from None


def _end(nodes, executor, code: int) -> None:
    # The second signal of an impatient user must not turn a clean end into a traceback.
    _on_signals(lambda *_: None)
    # A worker deep in a computation must not keep a robot from shutting down: what has not
    # ended in time is left to the operating system.
    watchdog = threading.Timer(GRACE_S, os._exit, args=(code,))
    watchdog.daemon = True
    # Where C code keeps Python from running, that never runs: this one tells where, and exits.
    faulthandler.dump_traceback_later(2 * GRACE_S, exit=True)
    try:
        watchdog.start()
    except RuntimeError:  # there is no thread to be had: then without
        pass
    for node in nodes:
        node.destroy_node()
    if executor is not None:
        executor.shutdown(timeout_sec=0)
    rclpy.try_shutdown()
    _on_signals(signal.SIG_IGN)  # what Python is left to do would end by it
    watchdog.cancel()
    faulthandler.cancel_dump_traceback_later()


def _on_signals(handler) -> None:
    for number in SIGNALS:
        signal.signal(number, handler)
