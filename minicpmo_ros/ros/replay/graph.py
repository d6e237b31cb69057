# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Asks the graph, played to in lockstep: for `replay --runner graph`, and as node `replay`.

Every GraphAnswerer starts a `live` in its own namespace, with all parameters that affect answers
set to the values of the plan; it ends with this process, however that ends. The node, which
replay.launch.py uses, asks a `live` that runs already, then ends; the parameters that affect
answers are read from the running nodes and written into the run's folder. Progress is logged.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile
from time import perf_counter

import rclpy
import yaml
from rcl_interfaces.srv import GetParameters
from rclpy.parameter import parameter_value_to_python
from rclpy.serialization import serialize_message

from minicpmo_ros.errors import AskError, InputError, LateError
from minicpmo_ros.evaluation import replay
from minicpmo_ros.evaluation.bags.clip import Clip, Sources
from minicpmo_ros.evaluation.bags.writing import Recording
from minicpmo_ros.evaluation.looks import NO_IMAGE, not_looked
from minicpmo_ros.evaluation.questions import QuestionSet, by_window
from minicpmo_ros.evaluation.replay import ReplayPlan
from minicpmo_ros.evaluation.results import Given, Results, Run
from minicpmo_ros.evaluation.runner import CoreOptions, Variant
from minicpmo_ros.media.audio.format import MEAN
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.msg import Answer
from minicpmo_ros.process import end_with_parent
from minicpmo_ros.ros.framework.loading import model_path
from minicpmo_ros.ros.framework.machine import run_start
from minicpmo_ros.ros.framework.main import begin, run_program, told_termination
from minicpmo_ros.ros.framework.parameters import Parameter, ParameterTable
from minicpmo_ros.ros.launch.process_specs import UNIT_DEADLINE_S, reliable_input_overrides
from minicpmo_ros.ros.playback.recorder import ANSWER, definitions
from minicpmo_ros.ros.replay.demo import executable
from minicpmo_ros.ros.replay.lockstep import LockstepPlayer
from minicpmo_ros.units import NS

KINDS = {
    'audio': 'audio_common_msgs/msg/AudioDataStamped',
    'image/compressed': 'sensor_msgs/msg/CompressedImage',
    'audio_info': 'audio_common_msgs/msg/AudioInfo',
}
RECORDED = ('', 'answers', 'all')
PARAMETERS = (
    Parameter('questions', '', 'Questions, JSON or YAML', is_path=True),
    Parameter('bag', '',
              'Folder of the bags, or a single bag to ask about; empty: the folder of the '
              'questions', is_path=True),
    Parameter('image_topic', '',
              'The camera, if a bag has several; compressed images are expected on this name '
              'with /compressed'),
    Parameter('audio_topic', '', 'The microphone, if a bag has several'),
    Parameter('audio_channel', MEAN, f'{MEAN} of the channels of the audio, or the number of one, '
              'from 0', or_number=True),
    Parameter('audio_format', '',
              'Format of raw audio in a bag without AudioInfo: rate in hertz, channels, sample '
              'format, such as 16000,1,S16LE; or mp3'),
    Parameter('out', 'replay', 'Folder of the run; an existing run is continued', is_path=True),
    Parameter('limit', 0, 'Ask only this many questions; 0: all', '', 0, 2**31 - 1),
    Parameter('input', 'all', 'Inputs the model gets', choices=('all', 'no_picture', 'no_sound')),
    Parameter('max_tokens', 16, 'The longest answer', 'tokens', 1, 100_000),
    Parameter('record', '',
              'Write bags into the folder. answers: the answers; all: also what was played',
              choices=RECORDED),
)  # fmt: skip
STAMPS = 'window_start', 'window_end', 'image_end', 'audio_end', 'look_stamp'  # of an Answer
# Of CoreOptions, by node and parameter.
OPTIONS = {
    'device': ('llm', 'device'),
    'rpc_servers': ('llm', 'rpc_servers'),
    'prompt': ('llm', 'prompt'),
    'speech': ('llm', 'speech'),
    'n_ctx': ('llm', 'n_ctx'),
    'n_ubatch': ('llm', 'n_ubatch'),
    'kv_type': ('llm', 'kv_type'),
    'attention': ('llm', 'attention'),
    'window_policy': ('llm', 'window_policy'),
    'still': ('llm', 'window.still'),
    'max_question_tokens': ('llm', 'max_question_tokens'),
    'max_tiles': ('vision_encoder', 'vision.max_tiles'),
    'area': ('vision_encoder', 'vision.area'),
    'crop': ('vision_encoder', 'vision.crop'),
    'sharp_every': ('vision_encoder', 'vision.sharp_every'),
    'look_tiles': ('vision_encoder', 'vision.look_tiles'),
    'tile_rule': ('vision_encoder', 'vision.tile_rule'),
    'tile_alpha': ('vision_encoder', 'vision.tile_alpha'),
    'unchanged_threshold': ('vision_encoder', 'vision.unchanged_threshold'),
}


@contextmanager
def graph_of_its_own(model: ModelDirectory, options: CoreOptions, llm: dict | None = None):
    """Start a `live` with these options in its own namespace; yield its LockstepPlayer.

    llm: further parameters of the node llm.
    """
    namespace = f'/replay_{os.getpid()}'
    with ExitStack() as ending:
        if not rclpy.ok():
            begin()
            ending.callback(rclpy.try_shutdown)
        examiner = LockstepPlayer(namespace)
        ending.callback(examiner.close)
        # A file: a rule of the command line names nodes without their namespace only.
        file = ending.enter_context(NamedTemporaryFile('w', suffix='.yaml'))
        yaml.safe_dump(parameters_of(model, options, namespace, llm or {}), file)
        file.flush()
        arguments = ('--params-file', file.name, '-r', f'/clock:={namespace}/clock')
        live = executable('live', *arguments, namespace=namespace, on_start=end_with_parent)
        examiner.processes = [ending.enter_context(live)]
        examiner.wait_ready()
        yield examiner


class GraphAnswerer:
    """See the module.

    examiner: asks a graph that somebody else has started, instead.
    record: 'answers' writes them into a bag for every clip in `folder`, 'all' what was played
    beside them; stamps are the clip's own.
    """

    def __init__(
        self,
        plan: ReplayPlan,
        folder: Path | None = None,
        record: str = '',
        examiner: LockstepPlayer | None = None,
    ):
        check(plan.variant, record)
        self._plan, self._folder, self._record = plan, folder, record
        self._ending, self._taping, self._tape = ExitStack(), ExitStack(), None
        if examiner is not None:
            self.examiner = examiner  # of a graph that is there and ready
            return
        try:
            with told_termination():
                graph = graph_of_its_own(plan.model, plan.options)
                self.examiner = self._ending.enter_context(graph)
        except BaseException:
            self._ending.close()
            raise

    def close(self) -> None:
        """End the graph."""
        self._taping.close()
        self._ending.close()

    def answer(self, clip: Clip, asked: list) -> Iterator[Given]:
        """Answer questions about a clip, window by window."""
        tape = self._tape_of(Path(asked[0].clip).stem) if self._record else None
        with told_termination():
            for window, about in by_window(asked, clip.first_s).items():
                yield from self._answer_window(clip, *window, about, tape)

    def _tape_of(self, name: str) -> 'Tape':
        """Return the recording of a clip, which ends when another one begins."""
        if self._tape is None or self._tape.name != name:
            self._taping.close()
            self._tape = Tape(self._folder, name, self._record == 'all', self.examiner.info)
            self._taping.callback(self._tape.close)
        return self._tape

    def _answer_window(self, clip, start_s: int, end_s: int, asked: list, tape):
        part, began_s = clip.between(start_s, end_s), perf_counter()
        if not part.images and not part.audio:
            raise InputError(
                f'0 seconds of the window [{start_s}, {end_s}) have an image or audio. Correct '
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
            given, answer = self._ask(question, there, bool(part.images), began_s)
            if tape is not None and answer is not None:
                tape.answer(answer, self.examiner.shift_s)
            began_s = perf_counter()
            yield given

    def _ask(self, question, there: list, has_images: bool, began_s: float) -> tuple:
        """Return what is known of an answer, and its message or None."""
        is_blind = question.looks and question.image is None and not has_images
        look = '' if is_blind else question.looks  # vision_encoder has the image of another window
        is_grey = self._plan.variant.input == 'no_picture'
        try:
            answer = self.examiner.ask(question, self._plan.options.max_tokens, look, is_grey)
        except (AskError, LateError, InputError) as error:
            return Given(question.id, '', error=str(error)), None
        error, shift_s = '', self.examiner.shift_s
        note = not_looked(NO_IMAGE) if is_blind else answer.reason if question.looks else ''
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
            '' if error or answer.look_ms else note,
            round(answer.look_ms, 2),
            look_stamp_s(answer.look_stamp, shift_s),
        ), answer


def look_stamp_s(stamp, shift_s: int) -> float:
    """Return the stamp of an image as the clip has it; 0: none, or the image was sent."""
    if not stamp.sec and not stamp.nanosec:
        return 0.0
    return round(stamp.sec - shift_s + stamp.nanosec / NS, 6)


def check(variant: Variant, record: str) -> None:
    """Raise InputError for options that the graph does not support."""
    if variant.audio != 'streaming':
        raise InputError(
            f'The graph hears second by second; audio is {variant.audio!r}. Use the offline '
            'runner for it.'
        )
    if record not in RECORDED:
        raise InputError(f'record is {record!r}; it takes {", ".join(map(repr, RECORDED))}.')


def parameters_of(model: ModelDirectory, o: CoreOptions, namespace: str, llm: dict) -> dict:
    """Return the parameters of `live`, in the layout of a parameter file; `llm`: of that node."""
    by_node = {
        '/**': {
            'model_dir': str(model.path.resolve()),
            'device': o.device,
            'rpc_servers': o.rpc_servers,
            'threads': o.threads,
            'use_sim_time': True,
            **reliable_input_overrides(namespace),
        },
        f'{namespace}/llm': {
            'prompt': o.prompt,
            'speech': o.speech,
            'n_ctx': o.n_ctx,
            'n_ubatch': o.n_ubatch,
            'kv_type': o.kv_type,
            'attention': o.attention,
            'window_policy': o.window_policy,
            'window.still': o.still,
            'max_tokens': o.max_tokens,
            'max_question_tokens': o.max_question_tokens,
            'unit_deadline': UNIT_DEADLINE_S,  # units wait for their halves
            'wait_for': 'both',  # until a window is known to have one sense
            **llm,
        },
        f'{namespace}/vision_encoder': {
            'vision.governor': False,
            'vision.max_tiles': o.max_tiles,
            'vision.area': float(o.area),
            'vision.crop': o.crop,
            'vision.sharp_every': o.sharp_every,
            'vision.look_tiles': o.look_tiles,
            'vision.tile_rule': o.tile_rule,
            'vision.tile_alpha': o.tile_alpha,
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
        for name in STAMPS:
            stamp = getattr(message, name)
            if stamp.sec or stamp.nanosec:  # 0: there is none
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


def answer(examiner: LockstepPlayer) -> None:
    """Run all questions."""
    given = ParameterTable(examiner, PARAMETERS).values()
    if not given.questions:
        raise InputError('parameter questions is empty; give a file: questions:=FILE')
    questions = QuestionSet.read(given.questions, given.bag or None)
    questions = questions.first(given.limit) if given.limit else questions
    examiner.wait_ready()
    told = {name: value_of(examiner, *where) for name, where in OPTIONS.items()}
    options = CoreOptions(**told, max_tokens=given.max_tokens)
    model = ModelDirectory.open(model_path(value_of(examiner, 'llm', 'model_dir')))
    sources = Sources(
        given.image_topic, given.audio_topic, given.audio_channel, given.audio_format
    )
    plan = replay.ReplayPlan.make(model, questions, options, Variant(given.input), sources)
    begun = run_start(value_of(examiner, 'llm', 'threads'))
    results = Results(given.out, plan.facts('graph'), questions, begun)
    log = examiner.get_logger()
    if plan.refused:
        log.warning(plan.refusals())
    log.info(f'{len(results.done)} of {len(questions.questions)} questions were answered before')
    folder = Path(given.out) / 'bags'
    try:
        replay.run(
            plan,
            results,
            partial(GraphAnswerer, folder=folder, record=given.record, examiner=examiner),
            on_progress=lambda progress: log.info(str(progress), throttle_duration_sec=10.0),
        )
    finally:
        results.close()
    made = Run.read(given.out)
    for sentence in made.summary():
        log.warning(sentence)
    if made.is_empty:
        raise InputError(f'{given.out}: no question has an answer; see above why.')
    log.info(f'all {len(results.done)} questions have been asked: {given.out}')


def value_of(examiner: LockstepPlayer, node: str, name: str):
    """Return the value of another node's parameter."""
    client = examiner.create_client(GetParameters, f'{node}/get_parameters')
    try:
        examiner.wait_until(client.service_is_ready, f'finding {node}')
        future = client.call_async(GetParameters.Request(names=[name]))
        examiner.wait_until(future.done, f'asking {node} for {name}')
        return parameter_value_to_python(future.result().values[0])
    finally:
        examiner.destroy_client(client)


def main() -> int:
    """Run the node; return the exit code."""

    def work() -> None:
        examiner = LockstepPlayer()
        try:
            answer(examiner)
        finally:
            examiner.close()

    return run_program('replay', work)


if __name__ == '__main__':
    raise SystemExit(main())
