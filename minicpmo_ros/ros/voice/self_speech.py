# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What a node hears while the robot speaks, by `speaker/state` and `speaker/audio`."""

from rclpy.qos import QoSDurabilityPolicy, QoSProfile

from minicpmo_ros.errors import InputError
from minicpmo_ros.media.audio.log_mel import SAMPLE_RATE_HZ
from minicpmo_ros.media.audio.stream import AudioDecoder
from minicpmo_ros.msg import SpeakerState
from minicpmo_ros.ros.audio_input import AudioInput
from minicpmo_ros.ros.framework.parameters import Parameter
from minicpmo_ros.ros.framework.topics import LOOK_AGAIN_PERIOD_S
from minicpmo_ros.ros.messages import stamp_ns_of
from minicpmo_ros.speech.self_speech import (
    ALWAYS,
    BARGE_IN,
    HALF_DUPLEX,
    LISTEN,
    TAIL_S,
    EchoRemover,
    ResidueGate,
    SelfSpeech,
)
from minicpmo_ros.units import NS
from minicpmo_ros.voice.detector import FRAME, load_detector

STATE, SOUND = 'speaker/state', 'speaker/audio'
INPUTS = (STATE, SOUND, f'{SOUND}_info')
# None may be missed: each begins or ends a time in which nobody listens.
STATE_QOS = QoSProfile(depth=20, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)
PARAMETERS = (
    Parameter('listen', HALF_DUPLEX, 'While the robot speaks (speaker/state): half_duplex hears '
              'silence instead of the microphone; barge_in takes the sound of speaker/audio out '
              'of it, and who speaks interrupts; always hears everything', choices=LISTEN),
    Parameter('listen_tail_s', TAIL_S, 'How long half_duplex and barge_in go on after the robot '
              'has spoken, while the room still sounds', 'seconds', 0.0, 10.0),
    Parameter('echo_delay_ms', 40, 'Of barge_in: how much later the microphone hears what is on '
              'speaker/audio, about', 'milliseconds', 0, 500),
)  # fmt: skip


def make_gate() -> ResidueGate:
    """Return a gate; raise InputError without a detector of speech."""
    try:
        return ResidueGate(load_detector(), FRAME)
    except InputError as error:
        raise InputError(f'listen is barge_in; it is half_duplex until then. {error}') from error


class SelfSpeechInput:
    """What a node hears of the robot's own speech, from its start until `close`.

    has_gate: with barge_in, what is left of the echo becomes silence unless somebody speaks: for a
    window, and not for who looks for that somebody. `problem`: why it is half_duplex although
    barge_in was wanted, a sentence; or ''.
    """

    def __init__(self, node, options, has_gate: bool = False):
        self._node, self._speech = node, SelfSpeech(options.listen_tail_s)
        self.listen, self.problem = options.listen, ''
        self._echo = self._sound = self._decoder = self._gate = None
        self._is_gated = False  # the chunk before was
        self._subscription = node.topics.subscribe(SpeakerState, STATE, self._on_state, STATE_QOS)
        self._tick = node.ticks.every(LOOK_AGAIN_PERIOD_S, self._look)
        if self.listen == BARGE_IN:
            try:
                self._gate = make_gate() if has_gate else None
                self._echo = EchoRemover(options.echo_delay_ms, learns_room=not has_gate)
                self._sound = AudioInput(node, None, self._on_sound, SOUND)
            except InputError as error:
                self.listen, self.problem = HALF_DUPLEX, str(error)
                node.get_logger().error(self.problem)

    def close(self) -> None:
        """Unsubscribe."""
        self._node.ticks.end(self._tick)
        self._node.topics.unsubscribe(self._subscription)
        if self._sound is not None:
            self._sound.close()

    def diagnose(self, report) -> None:
        """Report what is missing, and how much of the robot's own sound has come."""
        if self._echo is not None:
            report.tell('own sound [s]', self._echo.played_s)
        if self.problem:
            report.warn(self.problem)

    def hear(self, begin_ns: int, samples) -> tuple:
        """Return samples (n,) float32 at 16 kHz as they are listened to, and as no gate has them.

        With barge_in both lack the echo, and are late by 20 ms.
        """
        if self.listen == ALWAYS:
            return samples, samples
        clean = None
        if self._echo is not None:
            samples, clean = self._echo.hear(begin_ns, samples)
            clean = clean if self._gate is None else self._gated(begin_ns, clean)
        heard = self._speech.silence(begin_ns, samples, SAMPLE_RATE_HZ, clean)
        return heard, samples if clean is None else heard

    def _gated(self, begin_ns: int, clean):
        """Return samples without echo as a window hears them."""
        end_ns = begin_ns + len(clean) * NS // SAMPLE_RATE_HZ
        was_gated, self._is_gated = self._is_gated, self.has_spoken(begin_ns, end_ns)
        if self._is_gated and not was_gated:
            self._gate.reset()
        return self._gate.listen(clean) if self._is_gated else clean

    def muted_ms(self, begin_ns: int, end_ns: int) -> int:
        """Return how many milliseconds of a time are not listened to."""
        is_muted = self.listen == HALF_DUPLEX
        return self._speech.duration_ms(begin_ns, end_ns) if is_muted else 0

    def speaks_at(self, stamp_ns: int) -> bool:
        """Return whether the robot speaks at a time, without the tail."""
        return self._speech.speaks_at(stamp_ns)

    def is_interrupted_at(self, stamp_ns: int) -> bool:
        """Return whether who speaks at a time interrupts the robot, by barge_in."""
        return self.listen == BARGE_IN and self.speaks_at(stamp_ns)

    def has_spoken(self, begin_ns: int, end_ns: int) -> bool:
        """Return whether the robot spoke in a time, or just before it."""
        return self._speech.duration_ms(begin_ns, end_ns) > 0

    def _look(self) -> None:
        """Listen again where the speaker has ended while it spoke: it will not tell of that."""
        if not self._node.count_publishers(self._node.resolve_topic_name(STATE)):
            self._speech.tell(self._node.get_clock().now().nanoseconds, is_speaking=False)

    def _on_state(self, message) -> None:
        self._speech.tell(stamp_ns_of(message), message.speaking)

    def _on_sound(self, stamp_ns, data, audio_format) -> None:
        """Take a block of the robot's own sound; in the thread that polls."""
        if stamp_ns is None or not len(data):
            return
        try:
            if self._decoder is None or self._decoder.format != audio_format:
                self._decoder = AudioDecoder(audio_format)
            self._echo.play(*self._decoder.push(stamp_ns, data))
        except InputError as error:
            self.problem = f'{SOUND} is no audio, and its echo is heard: {error}'
