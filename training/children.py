# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Processes side by side that end together, and with the one that started them."""

import subprocess
import time

from minicpmo_ros.process import end_with_parent


def side_by_side(commands):
    """Run all at once and wait; when one fails, end the others. -> whether all did well"""
    running = [subprocess.Popen(command, preexec_fn=end_with_parent) for command in commands]
    try:
        while any(p.poll() is None for p in running):
            if any(p.poll() for p in running):
                return False
            time.sleep(1)
    finally:
        for p in running:
            if p.poll() is None:
                p.terminate()
                p.wait()
    return not any(p.returncode for p in running)
