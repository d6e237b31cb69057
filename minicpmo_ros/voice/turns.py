# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Turns of speech in a stamped stream of samples: when somebody begins to speak, and has finished.

Decided on stamps and samples alone, frame by frame (32 ms), so the same audio gives the same turns
however fast it comes and however it is cut into chunks.

    QUIET -- p >= threshold --> ONSET -- speech for start_speech_s --> SPEAKING, told as STARTED
      |                           +---- p < release for ONSET_GAP_S --> QUIET, nothing is told
    SPEAKING -- p < release --> PAUSE -- p >= threshold --> SPEAKING
    PAUSE -- end_silence_s --> QUIET, told as ENDED; DISCARDED below min_speech_s of speech
    SPEAKING, PAUSE -- max_speech_s --> TOO_LONG, told as ENDED -- end_silence_s --> QUIET
    all -- the audio stops, or time jumps --> QUIET, a turn is told as DISCARDED

The detector takes a while to fall silent behind a word, a longer or shorter one by where the word
ends in a frame. So the silence behind a turn is counted from where it was loud last (LOUD), and is
over at that stamp plus end_silence_s, which may lie within a frame.

A turn that begins while the robot speaks interrupts it. What is left of its echo must not, so such
a turn starts by stricter rules: interrupt_threshold, interrupt_start_s, interrupt_speech_s.
"""

from dataclasses import dataclass, replace
from enum import Enum, IntEnum

import numpy as np

from minicpmo_ros.media.audio.log_mel import SAMPLE_RATE_HZ
from minicpmo_ros.streams.held_audio import samples_in
from minicpmo_ros.streams.time import LIMITS
from minicpmo_ros.units import NS
from minicpmo_ros.voice.detector import FRAME

ONSET_GAP_S = 0.1
FRAME_S = FRAME / SAMPLE_RATE_HZ
FRAME_NS = FRAME * NS // SAMPLE_RATE_HZ
BLOCKS = 8  # of a frame, each loud or not
LOUD = 0.01  # of the mean power of the turn's speech: -20 dB
MOST_FADING_NS = NS // 10  # that the detector takes for speech behind what was loud
LEAST_AFTER_S, MOST_AFTER_S = 0.05, 0.3  # of what follows the speech, that an answer hears
AFTER_WAKE_WORD_S = 0.1  # of speech behind the noticed wake word: less is that word alone
JUMP, LONGEST_GAP = samples_in(LIMITS.jump_s), samples_in(LIMITS.longest_gap_s)
STEP_BACK = samples_in(LIMITS.step_back_s)


class TurnKind(IntEnum):
    """What is told of a turn; the numbers of Speech.msg."""

    STARTED = 0
    ENDED = 1
    DISCARDED = 2


class TurnState(Enum):
    """See the module."""

    QUIET = 'quiet'
    ONSET = 'onset'
    SPEAKING = 'speaking'
    PAUSE = 'pause'
    TOO_LONG = 'too long'


@dataclass(frozen=True)
class TurnOptions:
    """When speech is a turn; seconds, and probabilities from 0 to 1."""

    threshold: float = 0.6  # speech begins
    release: float = 0.35  # speech has ended
    start_speech_s: float = 0.2  # before it is told
    min_speech_s: float = 0.25  # of a turn; less was a cough
    end_silence_s: float = 0.6  # that ends a turn
    patience_s: float = 1.2  # the same, behind a question of the robot
    reply_s: float = 15.0  # how long that is waited for
    max_speech_s: float = 15.0  # the longest turn
    follow_up_s: float = 8.0  # behind wake word or answer, in which no wake word is needed
    interrupt_threshold: float = 0.7  # speech that interrupts begins
    interrupt_start_s: float = 0.3  # before it is told
    interrupt_speech_s: float = 0.6  # of such a turn; less was a false alarm


@dataclass(frozen=True)
class TurnEvent:
    """Something to tell of a turn; stamps in nanoseconds."""

    kind: TurnKind
    turn: int
    stamp_ns: int  # end of the audio by which it was decided
    start_ns: int
    end_ns: int  # of the speech, so far
    probability: float  # mean over the turn
    addressed: bool = True
    reason: str = ''

    @property
    def heard_until_ns(self) -> int:
        """The audio that an answer must have heard.

        A whole second if it was over by the decision; else some silence behind the speech.
        """
        least_ns = self.end_ns + int(LEAST_AFTER_S * NS)
        edge_ns = (least_ns // NS + 1) * NS
        if self.stamp_ns >= edge_ns:
            return edge_ns
        return min(self.stamp_ns, self.end_ns + int(MOST_AFTER_S * NS))


class FrameSplitter:
    """Cuts stamped chunks into frames of 512 samples; tells where the stream begins anew.

    A gap up to 2 s is silence, what repeats earlier audio is dropped; else time has jumped.
    """

    def __init__(self):
        self._end = self._rest = None  # sample at which the next chunk is due; samples

    @property
    def end_ns(self) -> int:
        """The stamp up to which samples have come."""
        return self._end * NS // SAMPLE_RATE_HZ

    def push(self, stamp_ns: int, samples: np.ndarray) -> tuple:
        """Return (whether time jumped, [(end_ns, frame (512,) float32)])."""
        stamp, is_jump = stamp_ns * SAMPLE_RATE_HZ // NS, self._end is None
        late = 0 if is_jump else stamp - self._end
        is_jump |= late > LONGEST_GAP or late < -STEP_BACK
        if is_jump:
            self._end, self._rest = stamp, np.empty(0, np.float32)
        elif late > JUMP:
            samples = np.concatenate([np.zeros(late, np.float32), samples])
        elif late < -JUMP:
            samples = samples[-late:]
        self._end += len(samples)
        held = np.concatenate([self._rest, samples])
        begin, frames = self._end - len(held), []
        for i in range(0, len(held) - FRAME + 1, FRAME):
            frames.append(((begin + i + FRAME) * NS // SAMPLE_RATE_HZ, held[i : i + FRAME]))
        self._rest = held[len(frames) * FRAME :]
        return is_jump, frames


class TurnDetector:
    """The state machine of the module, fed with the probability of each frame."""

    def __init__(self, options: TurnOptions):
        self.options, self.state, self.turn = options, TurnState.QUIET, -1
        self._patient_until_ns = 0  # of turns that begin before
        self._interrupts = False  # the turn at hand began while the robot spoke
        self._clear()

    @property
    def end_silence_s(self) -> float:
        """The silence that ends the turn at hand."""
        is_patient = self.expects_reply(self._start_ns)
        return self.options.patience_s if is_patient else self.options.end_silence_s

    def expects_reply(self, stamp_ns: int) -> bool:
        """Whether a turn that begins then is patiently waited for: see `expect_reply`."""
        return stamp_ns < self._patient_until_ns

    def expect_reply(self, stamp_ns: int) -> None:
        """Have patience with the next turn: the robot has asked something."""
        self._patient_until_ns = stamp_ns + int(self.options.reply_s * NS)

    def push(
        self, end_ns: int, probability: float, robot_speaks: bool = False, powers=None
    ) -> TurnEvent | None:
        """Take the next frame, which ends at end_ns; return what there is to tell.

        powers: (BLOCKS,) float32, mean squares of its samples; None: all of it is loud.
        """
        options = self.options
        if self.state is TurnState.QUIET:
            self._interrupts = robot_speaks
        is_strict = self._interrupts and self.state in (TurnState.QUIET, TurnState.ONSET)
        is_speech = probability >= (
            options.interrupt_threshold if is_strict else options.threshold
        )
        is_silence = probability < options.release
        if self.state is TurnState.QUIET:
            if not is_speech:
                return None
            self.state, self._start_ns = TurnState.ONSET, end_ns - FRAME_NS
            self._silent_from_ns = self._start_ns
        self._sum, self._frames = self._sum + probability, self._frames + 1
        loud_ns = self._loud_ns(powers, is_speech)
        if is_speech:
            self._speech_s += FRAME_S
            loud_until_ns = end_ns - FRAME_NS + loud_ns if loud_ns else 0
            self._end_ns = max(self._end_ns, loud_until_ns, end_ns - MOST_FADING_NS)
            self._silent_from_ns = max(self._silent_from_ns, self._end_ns)
        elif not is_silence:
            self._silent_from_ns += loud_ns  # a doubtful frame counts as neither
        return self._advance(end_ns, is_speech, is_silence)

    def reach(self, stamp_ns: int) -> TurnEvent | None:
        """Return what the silence up to a stamp decides, before which all frames were pushed."""
        due_ns = self._silent_from_ns + int(self.end_silence_s * NS)
        if self.state in (TurnState.QUIET, TurnState.ONSET) or stamp_ns < due_ns:
            return None
        if self.state is TurnState.TOO_LONG:
            return self._clear()
        name = 'interrupt_speech_s' if self._interrupts else 'min_speech_s'
        if self._speech_s < getattr(self.options, name):
            reason = f'there were {self._speech_s:.2f} s of speech, less than {name}'
            return self._finish(TurnKind.DISCARDED, due_ns, reason)
        return self._finish(TurnKind.ENDED, due_ns)

    def stop(self, stamp_ns: int, reason: str) -> TurnEvent | None:
        """End the stream; return the turn that is discarded with it, if any."""
        is_told = self.state in (TurnState.SPEAKING, TurnState.PAUSE)
        return self._finish(TurnKind.DISCARDED, stamp_ns, reason) if is_told else self._clear()

    def _loud_ns(self, powers, is_speech: bool) -> int:
        """Return how much of the frame at hand there is up to the end of its last loud block."""
        if powers is None:
            return FRAME_NS
        if is_speech:
            self._power, self._powers = self._power + float(powers.mean()), self._powers + 1
        if self.state is TurnState.ONSET:
            return FRAME_NS
        loud = np.flatnonzero(powers >= LOUD * self._power / max(self._powers, 1))
        return (int(loud[-1]) + 1) * FRAME_NS // BLOCKS if len(loud) else 0

    def _advance(self, end_ns: int, is_speech: bool, is_silence: bool) -> TurnEvent | None:
        options = self.options
        if self.state is TurnState.ONSET:
            if end_ns - self._silent_from_ns >= ONSET_GAP_S * NS:
                return self._clear()
            starts_s = options.interrupt_start_s if self._interrupts else options.start_speech_s
            if self._speech_s < starts_s:
                return None
            self.state, self.turn = TurnState.SPEAKING, self.turn + 1
            return self._event(TurnKind.STARTED, end_ns)
        if self.state is not TurnState.TOO_LONG:
            self.state = (
                TurnState.SPEAKING if is_speech else TurnState.PAUSE if is_silence else self.state
            )
        event = self.reach(end_ns)
        if event is not None or self.state in (TurnState.QUIET, TurnState.TOO_LONG):
            return event
        if end_ns - self._start_ns >= options.max_speech_s * NS:
            event = self._event(TurnKind.ENDED, end_ns, 'it was max_speech_s long')
            self.state = TurnState.TOO_LONG
            return event
        return None

    def _finish(self, kind: TurnKind, stamp_ns: int, reason: str = '') -> TurnEvent:
        event = self._event(kind, stamp_ns, reason)
        self._clear()
        return event

    def _event(self, kind: TurnKind, stamp_ns: int, reason: str = '') -> TurnEvent:
        mean = self._sum / self._frames
        return TurnEvent(
            kind, self.turn, stamp_ns, self._start_ns, self._end_ns, mean, reason=reason
        )

    def _clear(self) -> None:
        self.state = TurnState.QUIET
        self._start_ns = self._end_ns = self._silent_from_ns = self._frames = self._powers = 0
        self._sum = self._speech_s = self._power = 0.0


class TurnFinder:
    """Samples and stamps in, events out: frames, probabilities, turns, and the wake word.

    With a wake word a turn is addressed if the word was said in it, with more speech behind it,
    or follow_up_s before it at most; or if the robot has answered so long before it, and says
    nothing as it begins.
    `robot_speaks(stamp_ns)` returns whether a turn that begins then interrupts the robot, and
    `robot_sounds(stamp_ns)` whether it says something then: an answer that is said aloud is over
    when it has been said, often long after it was generated.
    """

    robot_speaks = robot_sounds = staticmethod(lambda stamp_ns: False)

    def __init__(self, detector, options: TurnOptions, wake_word=None):
        self._frames, self._detector = FrameSplitter(), detector
        self.turns, self._wake_word = TurnDetector(options), wake_word
        self._woken_ns = None  # when the wake word was heard last
        self._open_until_ns = 0  # turns that begin before, and into no answer, are addressed
        self._follow_up_ns = int(options.follow_up_s * NS)
        self.stamp_ns, self.frames, self.wakes, self.probability = 0, 0, 0, 0.0

    def push(self, stamp_ns: int, samples: np.ndarray) -> list:
        """Take samples (n,) float32 at 16 kHz; return the TurnEvents."""
        events = []
        is_jump, frames = self._frames.push(stamp_ns, samples)
        if is_jump:
            events += self.stop('the stamps of the audio jumped')
            self._detector.reset()
            self._woken_ns, self._open_until_ns = None, 0
            self.turns.expect_reply(-(10**18))
        for stamp_ns, frame in frames:
            events += self._told(self.turns.reach(stamp_ns - 1))
            events += self._told(self._hear(stamp_ns, frame))
        return events + self._told(self.turns.reach(self._frames.end_ns))

    def _hear(self, stamp_ns: int, frame: np.ndarray) -> TurnEvent | None:
        """Take the next frame, which ends at a stamp; return what there is to tell."""
        self.stamp_ns, self.frames = stamp_ns, self.frames + 1
        if self.robot_sounds(stamp_ns):
            self._count_from_here()
        if self._wake_word is not None and self._wake_word.hears(frame):
            self._wake()
        self.probability = self._detector.probability(frame)
        powers = np.square(frame).reshape(BLOCKS, -1).mean(1)
        return self.turns.push(stamp_ns, self.probability, self.robot_speaks(stamp_ns), powers)

    def _told(self, event: TurnEvent | None) -> list:
        """Return an event in a list, with whether it is addressed; or none."""
        return [] if event is None else [replace(event, addressed=self._is_addressed(event))]

    def stop(self, reason: str) -> list:
        """The audio has stopped: return the turn that is discarded, in a list."""
        return self._told(self.turns.stop(self.stamp_ns, reason))

    def answered(self, is_question: bool) -> None:
        """Note that the robot has answered now, and whether by a question of its own."""
        self._open(self.stamp_ns)
        if is_question:
            self.turns.expect_reply(self.stamp_ns)

    def _count_from_here(self) -> None:
        """Let follow_up_s and reply_s that are not over begin now."""
        if self.stamp_ns < self._open_until_ns:
            self._open(self.stamp_ns)
        if self.turns.expects_reply(self.stamp_ns):
            self.turns.expect_reply(self.stamp_ns)

    def _wake(self) -> None:
        self.wakes += 1
        self._woken_ns = self.stamp_ns
        self._open(self.stamp_ns)

    def _open(self, stamp_ns: int) -> None:
        self._open_until_ns = stamp_ns + self._follow_up_ns

    def _is_addressed(self, event: TurnEvent) -> bool:
        if self._wake_word is None:
            return True
        woken_ns = self._woken_ns
        if woken_ns is not None and woken_ns >= event.start_ns:
            return event.end_ns - woken_ns >= int(AFTER_WAKE_WORD_S * NS)
        if woken_ns is not None and event.start_ns < woken_ns + self._follow_up_ns:
            return True
        # Who speaks into an answer follows nothing up: it may be anybody.
        return event.start_ns < self._open_until_ns and not self.robot_sounds(event.start_ns)
