# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Node `speaker`: says the llm's answers aloud, sentence by sentence, while they are generated.

It cuts `llm/answer_delta` into sentences and publishes each on `~/sentence`, whoever says it. With
an engine it says them itself: on the topic `~/audio` and, if asked to, on a loudspeaker. With
`say` another node does. `~/state` tells when it speaks and what exactly it has said. Whoever
speaks meanwhile interrupts it.
"""

import itertools
import time
from collections import deque
from dataclasses import dataclass
from functools import partial

from rclpy.action import ActionServer, CancelResponse
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.qos import QoSProfile
from rclpy.task import Future
from std_srvs.srv import Trigger

from minicpmo_ros.action import Say
from minicpmo_ros.errors import InputError
from minicpmo_ros.msg import AnswerDelta, Sentence, Speech
from minicpmo_ros.msg import SpeakerState as SpeakerStateMessage
from minicpmo_ros.ros.framework.faults import Throttle
from minicpmo_ros.ros.framework.lifecycle import ACTION_OPTIONS, ManagedNode
from minicpmo_ros.ros.framework.main import run
from minicpmo_ros.ros.framework.parameters import ANY_TIME, Parameter
from minicpmo_ros.ros.voice.bridges import SAY, Bridge
from minicpmo_ros.ros.voice.self_speech import STATE_QOS
from minicpmo_ros.ros.voice.sound_output import AudioTopic, Loudspeaker
from minicpmo_ros.speech.sentences import SentenceCutter, is_speakable, spoken_form
from minicpmo_ros.speech.speaker import COMPLETE, STOPPED, Speaker
from minicpmo_ros.speech.synthesis import ENGINES, ESPEAK, make_synthesiser

DELTA_QOS, SENTENCE_QOS = QoSProfile(depth=256), QoSProfile(depth=50)
QUIET_ANSWER_S = 60.0  # after which an answer that does not go on is over
KNOWN_ANSWERS = 4096  # whose ids are known again
LONGEST_TURN_S = 30.0  # after which a turn of speech that nobody ends is a false alarm
PARAMETERS = (
    Parameter('engine', ESPEAK, 'Program that speaks; none: only publish ~/sentence',
              choices=ENGINES),
    Parameter('say', SAY[0], 'Who says it instead of engine: node tts_node of audio_common '
              '(mgonzs13), or that of sound_play; none: engine', choices=SAY),
    Parameter('voice', '', 'Of espeak-ng and audio_common a name such as en-gb (empty: en); of '
              'piper the .onnx file of a voice; of sound_play a voice of festival'),
    Parameter('rate', 1.0, "Speed of the speech, as a multiple of the voice's own", '', 0.5, 3.0),
    Parameter('volume', 1.0, 'Loudness', '', 0.0, 1.0),
    Parameter('synthesis_timeout_s', 10.0, 'After this time without the sound of a sentence, the '
              'program is killed and the sentence left out', 'seconds', 0.1, 300.0),
    Parameter('device', '', 'Loudspeaker of this machine: default, or a name or number of python '
              '-m sounddevice; empty: only the topic ~/audio', or_number=True),
    Parameter('speak_answers', True, 'Say all answers of the llm; false: only what ~/say gets',
              when=ANY_TIME),
    Parameter('interrupt', True, 'Speech on voice/speech stops the sound: for good when it ends '
              'as a turn that is addressed to the robot; else the cut sentence is said again',
              when=ANY_TIME),
    Parameter('first_words', 8, 'The first piece of an answer is said from its first comma, or '
              'after so many words; 0: whole sentences only', '', 0, 100, when=ANY_TIME),
)  # fmt: skip


@dataclass
class CutAnswer:
    """An answer that is coming, and who says it."""

    cutter: SentenceCutter
    utterance: object  # an Utterance; None: nobody says it
    index: int = 0  # of the next sentence
    newest_s: float = 0.0  # monotonic: of its newest piece


class SpeakerNode(ManagedNode):
    """See the module."""

    PARAMETERS = PARAMETERS
    INPUTS = ('llm/answer_delta',)
    INPUTS_BESIDE = ('voice/speech',)
    ROLE = 'voice of the robot'
    _speaker = _loudspeaker = _bridge = None
    _answers_in = _speech_in = None  # subscriptions

    def __init__(self):
        super().__init__('speaker')
        self._throttle = Throttle()
        self._engine_problem = self._device_problem = self._newest_problem = ''
        self._answers = {}  # id: CutAnswer
        self._begun = deque(maxlen=KNOWN_ANSWERS)  # ids
        self._goals, self._count = {}, itertools.count()  # goal id: (Utterance, goal)
        self._interrupting = None  # (turn of speech, monotonic) that has paused the sound
        self._counts = dict.fromkeys(('interruptions', 'resumed after a false alarm'), 0)
        self._states = self.topics.publish(SpeakerStateMessage, '~/state', STATE_QOS)
        self._sentences = self.topics.publish(Sentence, '~/sentence', SENTENCE_QOS)
        self._topic = AudioTopic(self)
        self._state = SpeakerStateMessage()
        self._tell_state(self._state, self._stamp())
        self._stopping = self.create_service(Trigger, '~/stop', self._on_stop_request)
        self._server = ActionServer(
            self, Say, '~/say',
            self.faults.replying_to_goals('action ~/say', self._on_say, Say.Result),
            cancel_callback=self._on_cancel, callback_group=ReentrantCallbackGroup(),
            **ACTION_OPTIONS,
        )  # fmt: skip
        self.ticks.every(1.0, self._look)

    # The lifecycle.
    def on_setup(self, options) -> None:
        """Look for engine and loudspeaker; what is missing is told, and the rest works."""
        self._engine_problem = self._device_problem = self._newest_problem = ''
        synthesiser = None
        sounds = options.voice, options.rate, options.volume, options.synthesis_timeout_s
        try:
            if options.say == SAY[0]:
                synthesiser = make_synthesiser(options.engine, *sounds)
            else:
                synthesiser = self._bridge = Bridge(self, options.say, *sounds)
        except InputError as error:
            self._engine_problem = str(error)
            self.get_logger().error(str(error))
        if synthesiser is None:
            return
        if options.device and self._bridge is None:
            try:
                self._loudspeaker = Loudspeaker(options.device)
            except InputError as error:
                self._device_problem = str(error)
                self.get_logger().error(str(error))
        self._speaker = Speaker(synthesiser, self, self._on_change, self._on_problem)
        if self._bridge is not None:
            self._bridge.wake, self._bridge.on_sound = self._speaker.wake, self._topic.play
        if self._topic.problem:
            self.get_logger().warning(self._topic.problem)

    def on_start(self) -> None:
        """Subscribe."""
        self._answers_in = self.topics.subscribe(
            AnswerDelta, 'llm/answer_delta', self._on_delta, DELTA_QOS
        )
        self._speech_in = self.topics.subscribe(
            Speech, 'voice/speech', self._on_speech, SENTENCE_QOS
        )

    def on_stop(self) -> None:
        """Unsubscribe, and be silent."""
        for subscription in (self._answers_in, self._speech_in):
            if subscription is not None:
                self.topics.unsubscribe(subscription)
        self._answers_in = self._speech_in = self._interrupting = None
        self._answers.clear()
        if self._speaker is not None:
            self._speaker.stop()

    def on_release(self) -> None:
        """End the synthesiser and the loudspeaker."""
        if self._bridge is not None:  # what it waits for would come to this thread
            self._speaker.stop()
            self._bridge.close()
        if self._speaker is not None:
            self._speaker.close()
        if self._loudspeaker is not None:
            self._loudspeaker.close()
        self._speaker = self._loudspeaker = self._bridge = None

    def on_end(self) -> None:
        """Leave the graph."""
        self._server.destroy()

    def diagnose(self, report) -> None:
        """Report what is missing, what was said, and what went wrong last."""
        for problem in (self._engine_problem, self._device_problem):
            if problem:
                report.error(problem)
        if self._topic.problem:
            report.warn(self._topic.problem)
        if self._newest_problem:
            report.warn(self._newest_problem)
        if self._bridge is not None:
            self._bridge.diagnose(report)
        speaker = self._speaker
        if speaker is not None:
            report.tell('speaking', speaker.is_speaking)
            report.tell('sentences said', speaker.sentences)
        for name, count in self._counts.items():
            report.tell(name, count)

    # What the Speaker plays to and tells, in its threads.
    def play(self, samples, rate_hz: int) -> None:
        """Play a block of samples (n,) int16 on topic and loudspeaker."""
        self._topic.play(samples, rate_hz)
        if self._loudspeaker is not None:
            self._loudspeaker.play(samples, rate_hz)

    def silence(self) -> None:
        """Drop what the loudspeaker has not played yet."""
        if self._loudspeaker is not None:
            self._loudspeaker.silence()

    def _on_change(self, state) -> None:
        message = SpeakerStateMessage(
            speaking=state.is_speaking, id=state.name, sentence=state.sentence, spoken=state.spoken
        )
        stamp = self._stamp()  # before the first block goes out
        self.post(lambda: self._tell_state(message, stamp))

    def _on_problem(self, text: str) -> None:
        self._newest_problem = text
        self.post(lambda: self._throttle.allows(text) and self.get_logger().error(text))

    # The executor.
    def _stamp(self):
        return self.get_clock().now().to_msg()

    def _tell_state(self, message, stamp) -> None:
        message.header.stamp = stamp
        message.since = stamp if message.speaking != self._state.speaking else self._state.since
        self._state = message
        self._states.publish(message)
        for utterance, goal in self._goals.values():
            if utterance.name == message.id and goal.is_active:
                goal.publish_feedback(Say.Feedback(spoken=message.spoken))

    def _on_delta(self, delta) -> None:
        if not delta.index:
            if delta.id in self._begun:  # the llm was started anew, and counts from 0 again
                self._end_answers(lambda _: True)
                self._begun.clear()
            self._begun.append(delta.id)
        answer = self._answers.get(delta.id)
        if answer is None:
            if delta.index:
                return  # its beginning was before this node's time
            options, utterance = self.table.values(), None
            if options.speak_answers and self._speaker is not None:
                utterance = self._speaker.begin(delta.id)
                if utterance is None:
                    self._on_problem(f'answer {delta.id} is not said: too many wait to be said')
            answer = CutAnswer(SentenceCutter(options.first_words), utterance)
            self._answers[delta.id] = answer
        answer.newest_s = time.monotonic()
        sentences = answer.cutter.push(delta.text)
        self._give(delta.id, answer, sentences, delta.last)

    def _give(self, name: str, answer: CutAnswer, sentences: list, is_last: bool) -> None:
        """Publish sentences and have them said."""
        if is_last:
            sentences = sentences + (answer.cutter.flush() or [''])
            self._answers.pop(name, None)
        stamp = self._stamp()
        for number, text in enumerate(sentences):
            message = Sentence(id=name, index=answer.index, text=text)
            message.last = is_last and number == len(sentences) - 1
            message.header.stamp = stamp
            self._sentences.publish(message)
            answer.index += 1
        if answer.utterance is not None and self._speaker is not None:
            self._speaker.add(answer.utterance, [text for text in sentences if text], is_last)

    def _end_answers(self, is_over) -> None:
        for name, answer in list(self._answers.items()):
            if is_over(answer):
                self._give(name, answer, [], is_last=True)

    def _look(self) -> None:
        """End answers that do not go on, and a pause that nobody ends."""
        now_s = time.monotonic()
        if self._bridge is not None:
            self._bridge.look()
        self._end_answers(lambda answer: now_s - answer.newest_s > QUIET_ANSWER_S)
        if self._interrupting is not None and now_s - self._interrupting[1] > LONGEST_TURN_S:
            self._end_interruption(is_false_alarm=True)

    # Interruptions.
    def _on_speech(self, speech) -> None:
        if self._speaker is None or not self.table.values().interrupt:
            return
        if speech.kind == Speech.STARTED:
            if self._speaker.pause():
                self._interrupting = speech.turn, time.monotonic()
        elif self._interrupting is not None and self._interrupting[0] == speech.turn:
            self._end_interruption(speech.kind == Speech.DISCARDED or not speech.addressed)

    def _end_interruption(self, is_false_alarm: bool) -> None:
        self._interrupting = None
        self._counts[tuple(self._counts)[is_false_alarm]] += 1
        if is_false_alarm:
            self._speaker.resume()
        else:
            self._speaker.stop()

    def _on_stop_request(self, request, response):
        response.success = self._speaker is not None
        response.message = self._why_silent()
        if self._speaker is not None:
            self._interrupting = None
            self._speaker.stop()
        return response

    # The action.
    def _why_silent(self) -> str:
        """Return why nothing can be said; '' if it can."""
        if self._speaker is not None:
            return '' if self.state == 'active' else f'the node is {self.state}; activate it'
        if self._engine_problem:
            return self._engine_problem
        if self.state in ('active', 'inactive'):
            return 'engine is none, so that sentences are only published on ~/sentence. Set engine'
        return f'the node is {self.state}; configure and activate it'

    def _on_cancel(self, goal) -> CancelResponse:
        found = self._goals.get(bytes(goal.goal_id.uuid))
        if found is not None and self._speaker is not None:
            self._speaker.stop(found[0])
        return CancelResponse.ACCEPT

    async def _on_say(self, goal):
        name, result = f'say-{next(self._count)}', Say.Result()
        future, reason, utterance = Future(executor=self.executor), self._why_silent(), None
        if not reason:
            if goal.request.interrupt:
                self._speaker.stop()
            reason = _why_unsayable(goal.request.text)
        if not reason:
            utterance = self._speaker.begin(name, partial(self.finish, future))
            reason = '' if utterance is not None else 'too many texts wait to be said; try later'
        if utterance is None:
            self._give_text(name, goal.request.text, None)
            result.reason = reason
            goal.abort()
            return result
        key = bytes(goal.goal_id.uuid)
        self._goals[key] = utterance, goal
        try:
            self._give_text(name, goal.request.text, utterance)
            if goal.is_cancel_requested:
                self._speaker.stop(utterance)
            await future
        finally:
            del self._goals[key]
            if not utterance.outcome and self._speaker is not None:
                self._speaker.stop(utterance)  # else all that is said later would wait for its end
        return self._finished(goal, utterance, result)

    def _give_text(self, name: str, text: str, utterance) -> None:
        if self.state == 'active':
            cutter = SentenceCutter(0)
            self._give(name, CutAnswer(cutter, utterance), cutter.push(text), is_last=True)

    def _finished(self, goal, utterance, result):
        """Set the terminal state of a goal; return its result."""
        result.spoken = utterance.spoken
        result.reason = utterance.problem
        result.success = utterance.outcome == COMPLETE and not utterance.problem
        if result.success:
            goal.succeed()
        elif utterance.outcome == STOPPED and goal.is_cancel_requested:
            result.reason = 'Cancelled by the client.'
            goal.canceled()
        else:
            result.reason = result.reason or 'It was interrupted.'
            goal.abort()
        return result


def _why_unsayable(text: str) -> str:
    """Return why nothing of a text can be said; '' if something can."""
    if is_speakable(spoken_form(text)):
        return ''
    return f'the text {text[:40]!r} has no letter or digit that could be said; send words'


def main(args=None) -> int:
    """Run the node."""
    return run(lambda: [SpeakerNode()], args)


if __name__ == '__main__':
    raise SystemExit(main())
