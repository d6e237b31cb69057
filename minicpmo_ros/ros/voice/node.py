# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Node `voice`: notices when somebody has finished speaking, and lets the llm answer.

Callbacks only queue the audio; a worker decodes it and finds turns (minicpmo_ros.voice). A turn
that has ended and is addressed to the robot becomes a question of the action `llm/ask`: by default
an empty one, which the model answers from what it heard.
"""

import re
import time
from dataclasses import asdict, fields
from functools import partial

from rclpy.qos import QoSProfile
from std_msgs.msg import String

from minicpmo_ros.errors import Error, InputError
from minicpmo_ros.media.audio.format import parse_channel
from minicpmo_ros.media.audio.log_mel import SAMPLE_RATE_HZ
from minicpmo_ros.media.audio.stream import AudioDecoder
from minicpmo_ros.msg import Speech
from minicpmo_ros.ros.audio_input import INBOX_S, AudioInput, cost_s
from minicpmo_ros.ros.audio_input import PARAMETERS as INPUT_PARAMETERS
from minicpmo_ros.ros.framework.clock import NodeTime, read_until
from minicpmo_ros.ros.framework.faults import Throttle
from minicpmo_ros.ros.framework.lifecycle import ManagedNode
from minicpmo_ros.ros.framework.main import run
from minicpmo_ros.ros.framework.parameters import ANY_TIME, Parameter
from minicpmo_ros.ros.framework.threads import PERIOD_S, TICK_S, Inbox, Worker
from minicpmo_ros.ros.messages import to_time
from minicpmo_ros.ros.stamps import Stamps, stamps_parameter
from minicpmo_ros.ros.voice.asking import Asker
from minicpmo_ros.ros.voice.humans import Humans
from minicpmo_ros.ros.voice.self_speech import INPUTS as OWN_INPUTS
from minicpmo_ros.ros.voice.self_speech import PARAMETERS as LISTEN_PARAMETERS
from minicpmo_ros.ros.voice.self_speech import SelfSpeechInput
from minicpmo_ros.streams.time import Arrival, SampleClock
from minicpmo_ros.units import NS
from minicpmo_ros.voice.detector import WAKE_WORDS, WakeWord, load_detector
from minicpmo_ros.voice.turns import FRAME_S, TurnFinder, TurnKind, TurnOptions, TurnState

SPEECH_QOS = QoSProfile(depth=50)
# Between two looks for audio: rarely while nobody speaks, often when a turn may end.
LOOKS_S = {TurnState.QUIET: 0.1, TurnState.PAUSE: 0.02}
SILENT_S = 1.5  # without a chunk: the audio has stopped
NONE, STOP = 'none', 'stop'
TURNS = TurnOptions()
LIMITED = 'start_speech_s', 'min_speech_s', 'interrupt_start_s', 'interrupt_speech_s'
IS_QUESTION = re.compile(r'[?？؟]\W*$')  # also within quotes, or before an emoji
PARAMETERS = (
    *INPUT_PARAMETERS,
    stamps_parameter('audio'),
    *LISTEN_PARAMETERS,
    Parameter('threshold', TURNS.threshold, 'Probability from which a frame is speech', '',
              0.05, 1.0),
    Parameter('release', TURNS.release, 'Probability below which a frame is silence; at most '
              'threshold', '', 0.0, 1.0),
    Parameter('start_speech_s', TURNS.start_speech_s, 'Speech before a turn is told as STARTED',
              'seconds', 0.03, 5.0),
    Parameter('min_speech_s', TURNS.min_speech_s, 'Speech of a turn; less is DISCARDED',
              'seconds', 0.03, 5.0),
    Parameter('end_silence_s', TURNS.end_silence_s, 'Silence that ends a turn. Shorter answers '
              'sooner, and interrupts who stops to think', 'seconds', 0.1, 10.0),
    Parameter('patience_s', TURNS.patience_s, 'The same, if the answer before was a question '
              '(ended with ?)', 'seconds', 0.1, 10.0),
    Parameter('reply_s', TURNS.reply_s, 'How long after such an answer, or after the robot '
              'has said it, a turn must begin for patience_s', 'seconds', 0.0, 600.0),
    Parameter('max_speech_s', TURNS.max_speech_s, 'The longest turn; behind it there must be '
              'silence before the next', 'seconds', 1.0, 120.0),
    Parameter('wake_word', NONE, 'Only turns with this word, or shortly after it, are asked',
              choices=(NONE, *WAKE_WORDS)),
    Parameter('follow_up_s', TURNS.follow_up_s, 'How long after the wake word or an answer, or '
              'after the robot has said it, a turn may begin without the word', 'seconds',
              0.0, 600.0),
    Parameter('interrupt_threshold', TURNS.interrupt_threshold, 'The same as threshold, for a '
              'turn that begins while the robot speaks (listen: barge_in)', '', 0.05, 1.0),
    Parameter('interrupt_start_s', TURNS.interrupt_start_s, 'The same as start_speech_s; it stops '
              'the sound', 'seconds', 0.03, 5.0),
    Parameter('interrupt_speech_s', TURNS.interrupt_speech_s, 'The same as min_speech_s; less was '
              'a false alarm, and the robot goes on', 'seconds', 0.03, 5.0),
    Parameter('stop_word', NONE, 'Who says it while the robot speaks makes it silent, whatever '
              'listen is', choices=(NONE, *WAKE_WORDS)),
    Parameter('ask', True, 'Ask the llm; false: only tell turns on ~/speech', when=ANY_TIME),
    Parameter('question', '', 'Text asked with what was said; empty: the speech is the question',
              when=ANY_TIME),
    Parameter('remember', False, 'Spoken questions and their answers stay in the window',
              when=ANY_TIME),
    Parameter('timeout_s', 60.0, 'After this time a spoken question is given up', 'seconds',
              0.1, 3600.0, when=ANY_TIME),
    Parameter('transcript', False, 'Also ask the model to write down each turn that is addressed '
              'to the robot, for ~/transcript and LiveSpeech. It costs a second question',
              when=ANY_TIME),
    Parameter('transcript_question', 'Write down exactly what was just said.',
              'The text of that question', when=ANY_TIME),
)  # fmt: skip


def turn_options(options) -> TurnOptions:
    """Return the TurnOptions among a node's parameters; raise InputError if two contradict."""
    for name in ('threshold', 'interrupt_threshold'):
        if options.release > getattr(options, name):
            raise InputError(
                f'release is {options.release:g}, above {name}, {getattr(options, name):g}. Lower '
                'it: a frame would be speech and silence at once'
            )
    for name in LIMITED:
        if getattr(options, name) > options.max_speech_s:
            raise InputError(
                f'{name} is {getattr(options, name):g}, above max_speech_s, '
                f'{options.max_speech_s:g}. Lower it: no turn is ever so long'
            )
    return TurnOptions(**{field.name: getattr(options, field.name) for field in fields(TURNS)})


class TurnAudio:
    """What the worker keeps: decoder, sample clock, turns and their cost."""

    def __init__(self, options):
        self.channel = parse_channel(options.audio_channel)
        word, self.stop_word = (
            None if name == NONE else WakeWord(name)
            for name in (options.wake_word, options.stop_word)
        )
        self.finder = TurnFinder(load_detector(), turn_options(options), word)
        self.decoder, self.clock = None, SampleClock()
        self.own = None  # while the node is active, a SelfSpeechInput
        self.newest = None  # Instant of the newest chunk
        self.cpu_s = 0.0

    def push(self, arrival) -> list:
        """Take a chunk; return the TurnEvents, and STOP if the stop word was said."""
        stamp_ns, (arrived_ns, data, audio_format) = arrival.stamp_ns, arrival.content
        duration_ns = int(audio_format.duration_s(len(data)) * NS)
        if self.decoder is None or self.decoder.format != audio_format:
            self.decoder = AudioDecoder(audio_format, self.channel)
        if stamp_ns is None:
            stamp_ns = self.clock.begin_ns(arrived_ns, duration_ns)
        begin_ns, samples = self.decoder.push(stamp_ns, data)
        self.clock.end_ns, self.newest = stamp_ns + duration_ns, arrival.at
        heard, ungated = self.own.hear(begin_ns, samples)
        self.finder.robot_speaks = self.own.is_interrupted_at
        self.finder.robot_sounds = self.own.speaks_at
        told = self.finder.push(begin_ns, heard)
        if self.stop_word is not None and self.stop_word.hears(ungated):
            end_ns = begin_ns + len(samples) * NS // SAMPLE_RATE_HZ
            told += [STOP] * self.own.has_spoken(begin_ns - NS, end_ns)
        return told


class VoiceNode(ManagedNode):
    """See the module."""

    PARAMETERS = PARAMETERS
    INPUTS = ('audio',)
    INPUTS_BESIDE = ('audio_info', *OWN_INPUTS)
    ROLE = 'turns of speech'
    _input = _audio = _own = stamps = None

    def __init__(self, **kwargs):
        super().__init__('voice', **kwargs)
        self.time, self.worker, self._throttle = NodeTime(self), Worker(self, INBOX_S), Throttle()
        self._speech = self.topics.publish(Speech, '~/speech', SPEECH_QOS)
        self._transcripts = self.topics.publish(String, '~/transcript', SPEECH_QOS)
        self._humans = Humans(self)
        self._asker = Asker(self, self._on_answer)
        self._counts, self._stops = dict.fromkeys(TurnKind, 0), 0

    # The lifecycle.
    def on_setup(self, options) -> None:
        """Load the detector; start the worker."""
        self._options, self._audio = options, (audio := TurnAudio(options))
        self.worker.start(lambda stop: partial(self._work_once, audio))

    def on_start(self) -> None:
        """Subscribe."""
        self.stamps = Stamps(self, 'audio', self._options.audio_stamps)
        self._own = self._audio.own = SelfSpeechInput(self, self._options)
        self._input = AudioInput(self, self._options, self._on_chunk)

    def on_stop(self) -> None:
        """Unsubscribe; a turn at hand is discarded by the worker, as the audio has stopped."""
        for part in (self._input, self.stamps, self._own):
            if part is not None:
                part.close()
        self._input = self.stamps = self._own = None

    def on_release(self) -> None:
        """Stop the worker."""
        super().on_release()
        self._audio = None

    def on_end(self) -> None:
        """Leave the graph."""
        self._asker.close()

    def diagnose(self, report) -> None:
        """Report the state of the turn at hand, the counts, and what the detection costs."""
        audio = self._audio
        if audio is not None:
            finder, heard_s = audio.finder, audio.finder.frames * FRAME_S
            report.tell('turn', finder.turns.state.value)
            report.tell('probability of speech', finder.probability)
            report.tell('seconds of audio', heard_s)
            report.tell('cost [ms per second of audio]', 1e3 * audio.cpu_s / max(heard_s, FRAME_S))
            report.tell('wake words', finder.wakes)
        for kind, count in self._counts.items():
            report.tell(f'turns {kind.name.lower()}', count)
        report.tell('stop words', self._stops)
        if self._own is not None:
            self._own.diagnose(report)
        report.count('chunks dropped', self.worker.inbox.dropped, 'the machine is too busy')
        self._asker.diagnose(report)
        if self._input is not None and self._input.waiting:
            report.warn(self._input.waiting)
        if self.stamps is not None:
            self.stamps.diagnose(report)

    # Input.
    def _on_chunk(self, stamp_ns, data, audio_format) -> None:
        if not len(data):
            return
        duration_s = audio_format.duration_s(len(data))
        stamp_ns = self.stamps.stamp_ns(stamp_ns, int(duration_s * NS))
        arrived_ns = self.get_clock().now().nanoseconds
        arrival = Arrival(stamp_ns, self.time.now(), (arrived_ns, data, audio_format))
        self.worker.inbox.put(arrival, cost=cost_s(audio_format, len(data)))

    # The worker.
    def _work_once(self, audio: TurnAudio, inbox: Inbox) -> None:
        # All that came until this instant is in the inbox.
        now, begun_s = read_until(self._input, self.time), time.thread_time()
        items = inbox.take(TICK_S)
        for item in items:
            self._attempt(audio.push, item)
        if not items and audio.newest is not None:
            self._stop_turn(audio, now)
        self._look_as_needed(audio)
        audio.cpu_s += time.thread_time() - begun_s

    def _look_as_needed(self, audio: TurnAudio) -> None:
        """Look for audio as often as the state of the turn at hand wants it."""
        audio_input = self._input
        if audio_input is not None:
            audio_input.look_every(LOOKS_S.get(audio.finder.turns.state, PERIOD_S))

    def _stop_turn(self, audio: TurnAudio, now) -> None:
        """Discard the turn at hand if the audio has stopped."""
        if now.waited_s(audio.newest) >= SILENT_S:
            audio.newest = None
            self._attempt(audio.finder.stop, f'no audio came for {SILENT_S:g} s: the microphone '
                          'has stopped')  # fmt: skip

    def _attempt(self, work, argument) -> None:
        try:
            for event in work(argument):
                tell = self._stop_robot if event == STOP else partial(self._tell, event)
                self.post(tell)
        except Error as error:
            if self._throttle.allows('audio'):
                self.get_logger().warning(str(error))

    # Output, on the executor.
    def _tell(self, event) -> None:
        self._counts[event.kind] += 1
        message = Speech(kind=int(event.kind))
        for name in ('turn', 'probability', 'addressed', 'reason'):
            setattr(message, name, getattr(event, name))
        message.header.stamp = to_time(event.stamp_ns)
        message.start, message.end = to_time(event.start_ns), to_time(event.end_ns)
        self._speech.publish(message)
        self._humans.speaks(event)
        self.get_logger().debug(str(asdict(event)))
        if event.kind is not TurnKind.ENDED or not event.addressed:
            return
        values = self.table.values()
        if self._own is not None and self._own.has_spoken(event.start_ns, event.end_ns):
            self._asker.cancel()  # somebody spoke into the answer
        if values.ask:
            self._asker.ask(event, values.question, values.remember, values.timeout_s)
        if values.transcript:
            self._asker.transcribe(
                event, values.transcript_question, values.timeout_s, self._on_transcript
            )

    def _stop_robot(self) -> None:
        self._stops += 1
        self._asker.silence()

    def _on_answer(self, text: str) -> None:
        if self._audio is not None:
            self._audio.finder.answered(IS_QUESTION.search(text) is not None)

    def _on_transcript(self, event, text: str) -> None:
        self._transcripts.publish(String(data=text))
        self._humans.said(event, text)


def main(args=None) -> int:
    """Run the node."""
    return run(lambda: [VoiceNode()], args)


if __name__ == '__main__':
    raise SystemExit(main())
