# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Finding and checking a node's model directory without holding up the executor."""

import os
import threading
from concurrent.futures import Future, TimeoutError
from pathlib import Path

from ament_index_python.packages import get_package_share_directory

from minicpmo_ros.config import COMPUTING
from minicpmo_ros.errors import ModelFileError
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.ros.framework.parameters import Parameter

# What is left of the 50 ms in which a transition answers. Headers of a real model take longer
# on a small board: then the check goes on in the worker, and a failure comes by status.
CHECK_TIMEOUT_S = 0.04

MODEL_PARAMETERS = (
    Parameter('model_dir', 'nano',
              'Model directory, or the name of a model that ships with the package'),
    Parameter('device', COMPUTING.device,
              'Where this part of the model runs; auto: on the GPU if there is one',
              choices=('auto', 'cpu', 'gpu')),
    Parameter('rpc_servers', COMPUTING.rpc_servers,
              'Addresses of RPC servers of llama.cpp (host:port, separated by commas), whose '
              'devices are then the GPUs. What crosses the network is neither encrypted nor '
              'protected; empty: nothing connects'),
    Parameter('threads', COMPUTING.threads,
              'CPU threads that compute; 0: all cores except one', '',
              0, 256),
)  # fmt: skip


def thread_count(given: int) -> int:
    """Return the number of threads; the core left out is for ROS."""
    return given or max(1, len(os.sched_getaffinity(0)) - 1)


def model_path(given: str) -> Path:
    """Return the directory of a path or of an embedded model's name."""
    path = Path(given).expanduser()
    if path.is_dir():
        return path
    embedded = Path(get_package_share_directory('minicpmo_ros')) / 'models'
    if '/' not in given and (embedded / given).is_dir():
        return embedded / given
    names = sorted(p.name for p in embedded.glob('*') if p.is_dir())
    raise ModelFileError(
        given or 'model_dir',
        'no such model directory',
        f'Set model_dir to one, or to an embedded model ({", ".join(names) or "there is none"})',
    )


def open_model(path: Path, examine=None, timeout_s: float = CHECK_TIMEOUT_S) -> Future:
    """Check a model directory in a thread; raise its error if that comes within `timeout_s`.

    examine(model): what else must hold of it; raises an Error.
    """
    checked = Future()

    def check():
        try:
            model = ModelDirectory.open(path)
            if examine is not None:
                examine(model)
            checked.set_result(model)
        except Exception as error:
            checked.set_exception(error)

    threading.Thread(target=check, name='check_model', daemon=True).start()
    try:
        checked.result(timeout=timeout_s)
    except TimeoutError:
        pass
    return checked
