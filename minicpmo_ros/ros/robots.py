# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Several robots, one engine: a node `llm` in the namespace of each, in one process.

The nodes share one thread, one copy of the weights and one context; each has its window, its
questions, standing questions, notes and black box, as if it were alone.
"""

from pathlib import Path

from rclpy.exceptions import InvalidNamespaceException
from rclpy.validate_namespace import validate_namespace

from minicpmo_ros.errors import InputError
from minicpmo_ros.live.engine_thread import EngineThread
from minicpmo_ros.ros.framework.parameters import START, Parameter

ROBOTS_PARAMETER = Parameter(
    'robots',
    [''],
    'Namespaces of several robots that executable llm answers for with one model; in each of them '
    'there is a node llm. Empty: one robot, in the namespace of the node itself',
    when=START,
)
# What the nodes of one engine have together, as in their options.
COMMON = (
    'model_dir', 'device', 'rpc_servers', 'threads', 'gpu_layers', 'use_mmap', 'use_mlock',
    'repack', 'n_ctx', 'n_ubatch', 'kv_type', 'attention', 'max_parallel', 'alerts_max_rules',
)  # fmt: skip
# Files of one writer: (its option, what says whether it is written).
FILES = (
    ('memory_path', lambda options: options.memory_enabled),
    ('memory_black_box_path', lambda options: options.memory_black_box_s > 0),
    ('alerts_file', lambda options: options.alerts_persist),
)


class RobotGroup:
    """What the nodes of several robots share; a node enters when it is configured."""

    def __init__(self, namespaces: tuple):
        self.namespaces, self.thread = namespaces, EngineThread()
        self._options = {}  # by the full name of each node that is configured
        self._shared = None  # the SharedContext of the newest session

    def enter(self, name: str, options) -> None:
        """Let a node in; raise InputError where its parameters do not fit those of the others."""
        for other, others in self._options.items():
            if other != name:
                _require_same(name, options, other, others)
                _require_own_files(name, options, other, others)
        self._options[name] = options

    def leave(self, name: str) -> None:
        """Let a node leave; it does nothing if it was not let in."""
        self._options.pop(name, None)

    def is_guard(self, name: str) -> bool:
        """Return whether this node keeps the memory of the process within its bounds."""
        return next(iter(self._options), None) == name

    def shared_context(self):
        """Return the SharedContext if a robot has its window in one; for the engine's thread."""
        return self._shared if self._shared is not None and self._shared.is_open else None

    def note_session(self, session) -> None:
        """Let other robots have their windows where this Session has its own."""
        self._shared = session.shared


def robot_namespaces(given, base: str) -> tuple:
    """Return the whole namespaces that parameter robots names, none for one robot.

    A relative one lies in `base`, the namespace of the process. Raises InputError.
    """
    found = []
    for name in filter(None, given):
        whole = name if name.startswith('/') else f'{base.rstrip("/")}/{name}'
        try:
            validate_namespace(whole)
        except InvalidNamespaceException as error:
            raise InputError(
                f'robots has {name!r}, which is no namespace: {" ".join(str(error).split())}'
            ) from None
        if whole in found:
            raise InputError(f'robots has {name!r} twice; name each robot once')
        found.append(whole)
    return tuple(found)


def refuse_robots(robots, group: RobotGroup | None) -> None:
    """Raise InputError where several robots are named for a node that answers for one."""
    if group is None and any(robots):
        raise InputError(
            f'robots is {robots!r}, and this process answers for one robot: it encodes, too. '
            'Start executable llm with it, and the encoders of each robot in its namespace '
            '(docs/robots.md); or leave robots empty'
        )


def _require_same(name: str, options, other: str, others) -> None:
    for option in COMMON:
        mine, theirs = getattr(options, option), getattr(others, option)
        if mine != theirs:
            parameter = option.replace('alerts_', 'alerts.')
            raise InputError(
                f'{parameter} is {mine!r} for {name} and {theirs!r} for {other}, which share one '
                'model and context. Give all robots the same value, under the key /**/llm'
            )


def _require_own_files(name: str, options, other: str, others) -> None:
    for option, is_written in FILES:
        if not (is_written(options) and is_written(others)):
            continue
        path, theirs = (Path(getattr(each, option)).expanduser() for each in (options, others))
        if path.resolve() == theirs.resolve():  # also by a link, or from the working folder
            parameter = option.replace('_', '.', 1)
            raise InputError(
                f'{parameter} is {str(path)!r} for {name} and {str(theirs)!r} for {other}, which '
                'is one file; a file has one writer. Give each robot its own, under a key such as '
                f'{name}'
            )
