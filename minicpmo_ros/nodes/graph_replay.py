# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The graph as an Answerer of `evaluation.replay`: the installed `live`, asked in lock-step.

Every GraphAnswerer starts a `live` in a namespace of its own, with what decides about answers set
to the values of the plan; it ends with this process, however that ends.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import NamedTemporaryFile
from time import perf_counter

import rclpy
import yaml
from rclpy.serialization import serialize_message

from minicpmo_ros.errors import AskError, InputError, LateError
from minicpmo_ros.evaluation.clips import NS, Clip
from minicpmo_ros.evaluation.questions import by_window
from minicpmo_ros.evaluation.recording import Recording
from minicpmo_ros.evaluation.replay import Plan
from minicpmo_ros.evaluation.results import Given
from minicpmo_ros.evaluation.runner import Variant
from minicpmo_ros.msg import Answer
from minicpmo_ros.nodes.demo import executable
from minicpmo_ros.nodes.examiner import Examiner
from minicpmo_ros.nodes.launching import UNIT_DEADLINE_S, lossless
from minicpmo_ros.nodes.recorder import ANSWER, definitions
from minicpmo_ros.process import end_with_parent

KINDS = {
    'audio': 'audio_common_msgs/msg/AudioDataStamped',
    'image/compressed': 'sensor_msgs/msg/CompressedImage',
    'audio_info': 'audio_common_msgs/msg/AudioInfo',
}
RECORDED = ('', 'answers', 'all')


class GraphAnswerer:
    """See the module.

    examiner: asks a graph that somebody else has started, instead.
    record: 'answers' writes them into a bag for every clip in `folder`, 'all' what was played
    beside them; stamps are the clip's own.
    """

    def __init__(
        self,
        plan: Plan,
        folder: Path | None = None,
        record: str = '',
        examiner: Examiner | None = None,
    ):
        check(plan.variant, record)
        self._plan, self._folder, self._record = plan, folder, record
        self._ending, self._taping, self._tape = ExitStack(), ExitStack(), None
        if examiner is not None:
            self.examiner = examiner  # of a graph that is there and ready
            return
        try:
            self._start(f'/replay_{os.getpid()}')
        except BaseException:
            self._ending.close()
            raise

    def _start(self, namespace: str) -> None:
        if not rclpy.ok():
            rclpy.init()
            self._ending.callback(rclpy.try_shutdown)
        self.examiner = Examiner(namespace)
        self._ending.callback(self.examiner.close)
        # A file: a rule of the command line names nodes without their namespace only.
        file = self._ending.enter_context(NamedTemporaryFile('w', suffix='.yaml'))
        yaml.safe_dump(parameters_of(self._plan, namespace), file)
        file.flush()
        arguments = ('--params-file', file.name, '-r', f'/clock:={namespace}/clock')
        live = executable('live', *arguments, namespace=namespace, on_start=end_with_parent)
        self.examiner.processes = [self._ending.enter_context(live)]
        self.examiner.wait_ready()

    def close(self) -> None:
        """End the graph."""
        self._taping.close()
        self._ending.close()

    def answer(self, clip: Clip, asked: list) -> Iterator[Given]:
        """Answer questions about a clip, window by window."""
        tape = self._tape_of(Path(asked[0].clip).stem) if self._record else None
        for window, about in by_window(asked, clip.first_s).items():
            yield from self._answer_window(clip, *window, about, tape)

    def _tape_of(self, name: str) -> 'Tape':
        """Give the recording of a clip, which ends when another one begins."""
        if self._tape is None or self._tape.name != name:
            self._taping.close()
            self._tape = Tape(self._folder, name, self._record == 'all', self.examiner.info)
            self._taping.callback(self._tape.close)
        return self._tape

    def _answer_window(self, clip, start_s: int, end_s: int, asked: list, tape):
        part, began_s = clip.between(start_s, end_s), perf_counter()
        if not part.pictures and not part.sound:
            raise InputError(
                f'0 seconds of the window [{start_s}, {end_s}) have a picture or a sound. Correct '
                'start_s and end_s.'
            )
        try:
            there = self.examiner.play(
                part, start_s, end_s, self._plan.variant.input, tape.keep if tape else None
            )
        except LateError as error:
            yield from (Given(question.id, '', error=str(error)) for question in asked)
            return
        for question in asked:
            given, answer = self._ask(question, there, began_s)
            if tape is not None and answer is not None:
                tape.answer(answer, self.examiner.shift_s)
            began_s = perf_counter()
            yield given

    def _ask(self, question, there: list, began_s: float) -> tuple:
        """Give what is known of an answer, and its message or None."""
        try:
            answer = self.examiner.ask(question, self._plan.options.max_tokens)
        except (AskError, LateError) as error:
            return Given(question.id, '', error=str(error)), None
        error, shift_s = '', self.examiner.shift_s
        if [second - shift_s for second in answer.seconds] != there:
            error = (
                f'{len(answer.seconds)} of {len(there)} seconds of the window were read. Raise '
                'n_ctx, or ask about fewer.'
            )
        return Given(
            question.id,
            '' if error else answer.text,
            round(answer.first_token_ms, 2),
            round(1e3 * (perf_counter() - began_s), 2),
            answer.answer_tokens,
            answer.units,
            round(self.examiner.client.status.memory_mib, 1),
            error,
        ), answer


def check(variant: Variant, record: str) -> None:
    """Refuse what the graph cannot do."""
    if variant.audio != 'streaming':
        raise InputError(
            f'The graph hears second by second; audio is {variant.audio!r}. Use the offline '
            'runner for it.'
        )
    if record not in RECORDED:
        raise InputError(f'record is {record!r}; it takes {", ".join(map(repr, RECORDED))}.')


def parameters_of(plan: Plan, namespace: str) -> dict:
    """Give the parameters of `live` for a plan, as a file of them has it."""
    o = plan.options
    by_node = {
        '/**': {
            'model_dir': str(plan.model.path.resolve()),
            'device': o.device,
            'threads': o.threads,
            'use_sim_time': True,
            **lossless(namespace),
        },
        f'{namespace}/llm': {
            'prompt': o.prompt,
            'n_ctx': o.n_ctx,
            'n_ubatch': o.n_ubatch,
            'kv_type': o.kv_type,
            'window_policy': o.window_policy,
            'max_tokens': o.max_tokens,
            'max_question_tokens': o.max_question_tokens,
            'unit_deadline': UNIT_DEADLINE_S,  # units wait for their halves
        },
        f'{namespace}/vision_encoder': {
            'vision.max_tiles': o.max_tiles,
            'vision.unchanged_threshold': float(o.unchanged_threshold),
        },
    }
    return {node: {'ros__parameters': given} for node, given in by_node.items()}


class Tape:
    """A recording of what one clip's questions were about, and the answers."""

    def __init__(self, folder: Path, name: str, has_inputs: bool, info):
        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.glob(f'{name}_*.mcap')))  # a run that goes on begins another
        self._recording = Recording(folder / f'{name}_{number}.mcap', definitions())
        self.name, self._has_inputs, self._info = name, has_inputs, info
        self._seconds, self._earlier = set(), set()  # recorded; in the windows before

    def keep(self, second: int, topic: str, message) -> None:
        """Record an input once, however many windows it is in."""
        if not self._has_inputs or second in self._earlier:
            return
        stamp_ns = message.header.stamp.sec * NS + message.header.stamp.nanosec
        if not self._seconds:
            self._write('audio_info', stamp_ns, self._info)
        self._seconds.add(second)
        self._write(topic, stamp_ns, message)

    def answer(self, message: Answer, shift_s: int) -> None:
        """Record an answer with the clip's stamps: it was given at the end of its window."""
        self._earlier |= self._seconds
        for stamp in (message.window_start, message.window_end):
            stamp.sec -= shift_s
        message.seconds = [second - shift_s for second in message.seconds]
        message.header.stamp = message.window_end
        end_ns = message.window_end.sec * NS
        self._recording.write('/llm/answer', ANSWER, end_ns, serialize_message(message))

    def close(self) -> None:
        """Close the file."""
        self._recording.close()

    def _write(self, topic: str, stamp_ns: int, message) -> None:
        self._recording.write(f'/{topic}', KINDS[topic], stamp_ns, serialize_message(message))
