# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""From Python's logging, which the floors below use, to ROS: on /rosout, with level and node."""

import logging
import time

TELL_PERIOD_S = 10.0
PACKAGE = logging.getLogger('minicpmo_ros')


class Throttle:
    """Says of each key at most once in ten seconds that it is time to tell it."""

    def __init__(self):
        self._told = {}  # key: monotonic

    def lets(self, key) -> bool:
        """Tell whether it is time, and remember that it was told."""
        now_s = time.monotonic()
        self._told = {known: s for known, s in self._told.items() if now_s - s < TELL_PERIOD_S}
        is_new = key not in self._told
        self._told.setdefault(key, now_s)
        return is_new


class RosHandler(logging.Handler):
    """Hands what is logged to the logger of a node, each message at most once in ten seconds.

    The node is the one whose worker logs; workers are threads with the names of their nodes. Where
    there is none of the name, it is the last one.
    """

    def __init__(self, nodes):
        super().__init__()
        self._loggers = {node.get_name(): node.get_logger() for node in nodes}
        self._throttle = Throttle()

    def emit(self, record: logging.LogRecord) -> None:
        """Hand a record on."""
        if not self._throttle.lets((record.name, record.msg)):
            return
        *_, last = self._loggers.values()
        logger, text = self._loggers.get(record.threadName, last), self.format(record)
        # A line each: rclpy allows a line of code one level only.
        if record.levelno >= logging.ERROR:
            logger.error(text)
        elif record.levelno >= logging.WARNING:
            logger.warning(text)
        else:
            logger.info(text)
