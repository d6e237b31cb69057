# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Where the robot's voice goes: a topic of the installed audio_common_msgs, and a loudspeaker."""

from rclpy.qos import QoSProfile

from minicpmo_ros.errors import EngineError, InputError
from minicpmo_ros.media.microphone import device_of, portaudio
from minicpmo_ros.ros.audio_input import INFO_TYPE, PACKAGE, info_message, installed_type
from minicpmo_ros.ros.framework.lifecycle import LATCHED
from minicpmo_ros.ros.messages import to_time

AUDIO_OUT_QOS = QoSProfile(depth=200)
INT16 = 8  # PortAudio's number for it, in mgonzs13's AudioInfo


class AudioTopic:
    """Publishes blocks on `~/audio`, and their format on `~/audio_info`; see audio_input."""

    def __init__(self, node, qos: QoSProfile = AUDIO_OUT_QOS):
        self._node, self._rate_hz, self._info = node, 0, None
        self.problem = ''
        stamped, self.problem = installed_type(f'{PACKAGE}AudioDataStamped')
        self._info_type, lack = installed_type(INFO_TYPE)
        self._has_arrays = stamped is None or bool(lack)
        if self._has_arrays:
            stamped, lack = installed_type(f'{PACKAGE}AudioStamped')
            if stamped is None:
                return
        self.problem, self._type = '', stamped
        self._audio = node.topics.publish(stamped, '~/audio', qos)
        if not self._has_arrays:
            self._info = node.topics.publish(self._info_type, '~/audio_info', LATCHED)

    def play(self, samples, rate_hz: int, stamp_ns: int | None = None) -> None:
        """Publish a block of samples (n,) int16 of this time, None: now; from any thread."""
        if self.problem:
            return
        message = self._type()
        if stamp_ns is None:
            stamp_ns = self._node.get_clock().now().nanoseconds
        message.header.stamp = to_time(stamp_ns)
        if self._has_arrays:
            message.audio.audio_data.int16_data.frombytes(samples.tobytes())
            info = message.audio.info
            info.format, info.channels, info.rate, info.chunk = INT16, 1, rate_hz, len(samples)
        else:
            message.audio.data.frombytes(samples.astype('<i2').tobytes())
        self._node.post(lambda: self._publish(message, rate_hz))

    def silence(self) -> None:
        """Nothing waits here: a block is published when its turn comes."""

    def _publish(self, message, rate_hz: int) -> None:
        if self._info is not None and rate_hz != self._rate_hz:
            self._rate_hz = rate_hz
            self._info.publish(info_message(self._info_type, rate_hz))
        self._audio.publish(message)


class Loudspeaker:
    """Plays blocks on a device of this machine by PortAudio.

    device: `default`, or a name or number of those that `python -m sounddevice` lists. Raises
    InputError, with what to install or choose, if it cannot be had.
    """

    def __init__(self, device: str):
        self._library = portaudio(
            f'device is {device!r}, and the loudspeaker', 'leave device empty and play ~/audio'
        )
        self._stream, self._rate_hz, self._device = None, 0, device_of(device)
        try:
            self._library.query_devices(self._device, 'output')
        except (ValueError, self._library.PortAudioError) as error:
            raise InputError(
                f'device is {device!r}: {error}. python -m sounddevice lists the devices; or '
                'leave it empty and play ~/audio'
            ) from None

    def play(self, samples, rate_hz: int) -> None:
        """Play a block of samples (n,) int16; raise EngineError if the device is gone."""
        try:
            if self._stream is None or rate_hz != self._rate_hz:
                self.close()
                self._stream = self._library.OutputStream(
                    samplerate=rate_hz, device=self._device, channels=1, dtype='int16',
                    latency='low',
                )  # fmt: skip
                self._rate_hz = rate_hz
            if not self._stream.active:
                self._stream.start()
            self._stream.write(samples.copy())
        except self._library.PortAudioError as error:
            self.close()
            raise EngineError(
                f'the loudspeaker does not play: {error}. Check the parameter device and its cable'
            ) from None

    def silence(self) -> None:
        """Drop what has not been heard yet."""
        if self._stream is not None:
            self._stream.abort(ignore_errors=True)

    def close(self) -> None:
        """Give the device back."""
        if self._stream is not None:
            self._stream.close(ignore_errors=True)
            self._stream = None
