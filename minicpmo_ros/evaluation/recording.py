# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Messages into a bag of one MCAP file, as rosbag2 has them: CDR, with ros2msg definitions.

Every message is whole on the disk once it is written, with its index at the end of the file when
it is closed; a recording that was killed can be read all the same.
"""

from pathlib import Path

from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.clip import type_store


class Recording:
    """One file; it is never written over."""

    def __init__(self, path, definitions: dict):
        """Begin; InputError where the file is there, or cannot be written.

        definitions: {kind: text of its .msg file}, of what is not in every ROS 2.
        """
        from mcap.writer import CompressionType, Writer
        from rosbags.typesys import get_types_from_msg

        self._types = type_store(definitions)
        for kind, text in definitions.items():
            if kind not in self._types.types:
                self._types.register(get_types_from_msg(text, kind))
        try:
            self._file = Path(path).open('xb')
        except FileExistsError as error:
            raise InputError(f'{path}: it is there already. Name another file.') from error
        except OSError as error:
            raise InputError(
                f'{path}: it cannot be written ({error.strerror}). Name a file in a folder that '
                'is there.'
            ) from error
        # A chunk a message: what was recorded is not in memory when the power goes.
        self._writer = Writer(self._file, chunk_size=1, compression=CompressionType.NONE)
        self._writer.start('ros2', 'minicpmo_ros')
        self._channels, self.count = {}, 0

    def write(self, topic: str, kind: str, log_ns: int, data: bytes) -> None:
        """Append a message; kind: such as sensor_msgs/msg/Image, data: CDR."""
        if topic not in self._channels:
            text, _ = self._types.generate_msgdef(kind, ros_version=2)
            schema = self._writer.register_schema(kind, 'ros2msg', text.encode())
            self._channels[topic] = self._writer.register_channel(topic, 'cdr', schema)
        self._writer.add_message(self._channels[topic], log_ns, bytes(data), log_ns)
        self._file.flush()
        self.count += 1

    def close(self) -> None:
        """Write the index and close the file."""
        self._writer.finish()
        self._file.close()
