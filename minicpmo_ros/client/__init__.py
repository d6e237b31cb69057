# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Ask the llm node from a node or script of your own: see `Client`, and docs/clients.md."""

from minicpmo_ros.client.answer_types import read_as, schema_of
from minicpmo_ros.client.calls import Stream
from minicpmo_ros.client.client import Client
from minicpmo_ros.errors import AskError, BusyError, CancelledError, Error, InputError, LateError

__all__ = [
    'AskError',
    'BusyError',
    'CancelledError',
    'Client',
    'Error',
    'InputError',
    'LateError',
    'Stream',
    'read_as',
    'schema_of',
]
