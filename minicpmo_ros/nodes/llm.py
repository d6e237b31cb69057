# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Node `llm`: embeddings of sound and pictures in, answers out.

All computation is the engine's thread's. Callbacks hand over; what the engine gives comes back
through `post` in the order it was given.
"""

import time

from rclpy.qos import QoSProfile
from std_srvs.srv import Trigger

from minicpmo_ros.errors import EngineError, InputError, ModelFileError
from minicpmo_ros.language.context import KV_TYPES, ContextOptions
from minicpmo_ros.language.model import ModelOptions
from minicpmo_ros.language.prompt import LAYOUTS
from minicpmo_ros.language.sampling import SamplingOptions
from minicpmo_ros.live.arbiter import DeviceArbiter
from minicpmo_ros.live.engine import Engine, EngineOptions
from minicpmo_ros.live.engine_status import EngineStatus
from minicpmo_ros.live.session import Session, SessionOptions
from minicpmo_ros.live.window import POLICIES
from minicpmo_ros.msg import Answer, AnswerDelta, AudioEmbedding, ImageEmbedding, Status
from minicpmo_ros.nodes.asking import Asker, AskingAction, AskingService
from minicpmo_ros.nodes.loading import MODEL_PARAMETERS, model_path, open_model, thread_count
from minicpmo_ros.nodes.managed import LATCHED, ManagedNode
from minicpmo_ros.nodes.memory import MemoryWatch
from minicpmo_ros.nodes.messages import NS, take_rows, to_time
from minicpmo_ros.nodes.node_time import NodeTime
from minicpmo_ros.nodes.parameters import Parameter
from minicpmo_ros.nodes.spinning import run

EMBEDDING_QOS = QoSProfile(depth=32)
ANSWER_QOS = QoSProfile(depth=10)
DELTA_QOS = QoSProfile(depth=256)
STATUS_PERIOD_S = 1.0
STATES = {
    'unloaded': Status.UNLOADED,
    'loading': Status.LOADING,
    'ready': Status.READY,
    'failed': Status.FAILED,
}
PARAMETERS = (
    *MODEL_PARAMETERS,
    Parameter('prompt', 'en', 'Language of the system prompt', choices=('en', 'zh')),
    Parameter('system_text', '', 'Instead of the system prompt of the model; empty: its own'),
    Parameter('gpu_layers', -1, 'Layers of the language model on the GPU; -1: all, where there '
              'is one', '', -1, 1000),
    Parameter('use_mmap', True, 'Map the weights from the file: loads at once, and memory can be '
              'taken back. False reads them'),
    Parameter('repack', False, 'Reorder weights for the CPU: q4_0 reads faster, q4_K slower; '
              'with use_mmap they are then held twice'),
    Parameter('n_ctx', 4096, 'Context: 94 positions hold one second of picture and sound',
              'positions', 256, 1_048_576),
    Parameter('n_ubatch', 128, 'Positions read at once; more take more memory', 'positions',
              16, 4096),
    Parameter('kv_type', 'f16', 'Of keys and values; q8_0 takes half the memory',
              choices=tuple(KV_TYPES)),
    Parameter('window_policy', 'recent', 'Who leaves a full context: recent, the oldest seconds; '
              'long, of older seconds every second, then three of four, to reach three times as '
              'far back', choices=POLICIES),
    Parameter('unit_deadline', 2.0, 'How long the picture of a second waits for its sound, and '
              'the other way round', 'seconds', 0.0, 60.0),
    Parameter('max_backlog', 8, 'Seconds that may wait to be read; the oldest is dropped', '',
              1, 1000),
    Parameter('max_waiting', 16, 'Questions that may wait; more are refused', '', 1, 1000),
    Parameter('max_question_tokens', 384, 'Length of a question', 'tokens', 1, 100_000),
    Parameter('max_tokens', 256, 'Length of an answer', 'tokens', 1, 100_000),
    Parameter('temperature', 0.0, 'Freedom of an answer; 0: greedy, always the same', '',
              0.0, 10.0, live=True),
    Parameter('top_k', 100, 'Only the likeliest tokens; 0: all', 'tokens', 0, 1_000_000,
              live=True),
    Parameter('top_p', 0.8, 'Only the likeliest tokens that hold this share', '', 0.0, 1.0,
              live=True),
    Parameter('repeat_penalty', 1.05, 'Against repetition; 1: none', '', 0.1, 10.0, live=True),
    Parameter('seed', 0, 'Of the dice, where the temperature is not 0', '', 0, 2**31 - 1,
              live=True),
)  # fmt: skip


class LoadError(EngineError):
    """Loading failed in the engine's thread."""

    def __init__(self, reason: str, remedy: str):
        super().__init__(f'{reason}. {remedy}')
        self.reason, self.remedy = reason, remedy


def make_loader(options, checked, leaving: list, warn):
    """Give what the engine calls in its thread to load the session.

    `leaving` holds the engine before, if there was one: two models at a time may not fit into
    memory, so its end is waited for.
    """

    def load(on_progress, abort) -> Session:
        while leaving:
            if leaving[0].close(timeout_s=5.0):
                leaving.clear()
            else:
                warn('the model before has not ended yet; loading waits for it')
        model = checked.result()
        layout = LAYOUTS.get(f'{model.family}/{options.prompt}')
        if layout is None:
            raise InputError(
                f'there is no prompt {options.prompt!r} for {model.family}; '
                f'known are {", ".join(LAYOUTS)}'
            )
        gpu_layers = 0 if options.device == 'cpu' else options.gpu_layers
        return Session.load(
            model.llm_path,
            layout,
            ModelOptions(gpu_layers, options.use_mmap, options.repack),
            ContextOptions(
                n_ctx=options.n_ctx,
                n_batch=options.n_ubatch,
                kv_type=options.kv_type,
                threads=thread_count(options.threads),
                offload_kv=options.device != 'cpu',
            ),
            session_options(options),
            on_progress,
            abort,
        )

    return load


def session_options(options) -> SessionOptions:
    """Give what the parameters say about questions and answers."""
    return SessionOptions(
        max_tokens=options.max_tokens,
        max_question_tokens=options.max_question_tokens,
        window_policy=options.window_policy,
        system_text=options.system_text or None,
        sampling=sampling_options(options),
    )


def sampling_options(options) -> SamplingOptions:
    """Give what the parameters say about choosing tokens; these may change at any time."""
    return SamplingOptions(
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        repeat_penalty=options.repeat_penalty,
        seed=options.seed,
    )


def check(options) -> None:
    """Refuse parameters that contradict each other."""
    if options.n_ubatch > options.n_ctx:
        raise InputError(
            f'n_ubatch is {options.n_ubatch}, more than n_ctx, which is {options.n_ctx}; '
            'no more can be read at once than there is room for. Lower n_ubatch'
        )
    if options.device == 'cpu' and options.gpu_layers > 0:
        raise InputError(
            f"gpu_layers is {options.gpu_layers} and device 'cpu'; set gpu_layers to 0 or -1, or "
            "device to 'gpu' or 'auto'"
        )


class LlmNode(ManagedNode):
    """See the module."""

    PARAMETERS = PARAMETERS
    INPUTS = ('audio_embedding', 'image_embedding')
    ROLE = 'engine'
    engine = None
    _inputs = ()
    _action = _leaving = None

    def __init__(self, arbiter: DeviceArbiter | None = None, **kwargs):
        super().__init__('llm', **kwargs)
        self._arbiter = arbiter or DeviceArbiter()
        self._model = None  # the ModelDirectory, once the engine is ready
        self._refused, self._told_s = 0, -60.0
        self._memory = MemoryWatch()
        self._time, self._jumps = NodeTime(self), 0
        self.answers = self.topics.publish(Answer, '~/answer', ANSWER_QOS)
        self.deltas = self.topics.publish(AnswerDelta, '~/answer_delta', DELTA_QOS)
        self._statuses = self.topics.publish(Status, '~/status', LATCHED)
        asker = Asker(self)
        AskingService(self, asker)
        self._action = AskingAction(self, asker)
        self.create_service(Trigger, '~/reset', self._on_reset)
        self.steady_timer(STATUS_PERIOD_S, self._publish_status)

    # The lifecycle.
    def on_setup(self, options) -> None:
        """Check the files, then load in the engine's thread."""
        check(options)
        checked = open_model(model_path(options.model_dir))
        leaving, self._leaving = [self._leaving] if self._leaving else [], None
        engine = Engine(
            make_loader(options, checked, leaving, self.get_logger().warning),
            EngineOptions(
                unit_deadline_s=options.unit_deadline,
                max_backlog=options.max_backlog,
                max_waiting=options.max_waiting,
            ),
            self._arbiter,
            on_change=lambda status: self.post(lambda: self._on_engine_change(engine, status)),
            now=self._time.now,
        )
        self._checked, self.engine = checked, engine
        engine.start()

    def on_start(self) -> None:
        """Take embeddings."""
        self._inputs = [
            self.topics.subscribe(message_type, topic, take, EMBEDDING_QOS)
            for message_type, topic, take in (
                (AudioEmbedding, 'audio_embedding', self._on_sound),
                (ImageEmbedding, 'image_embedding', self._on_picture),
            )
        ]

    def on_stop(self) -> None:
        """Take no more embeddings."""
        for subscription in self._inputs:
            self.topics.unsubscribe(subscription)
        self._inputs = []

    def on_release(self) -> None:
        """Tell the engine to end: what is being answered ends as cancelled."""
        if self.engine is not None:
            self.engine.close(timeout_s=0.0)
            self._leaving, self.engine, self._model = self.engine, None, None

    def join(self, timeout_s: float) -> None:
        """Wait for the engine that was told to end."""
        if self._leaving is not None and not self._leaving.close(timeout_s):
            self.get_logger().error('the engine did not end in time; it is left behind')

    def on_refused(self) -> None:
        """Say it on ~/status."""
        self._publish_status()

    def retune(self) -> None:
        """Let what may change at any time hold for the next question."""
        if self.engine is not None:
            self.engine.retune(sampling_options(self.table.values()))

    def busy_s(self) -> float:
        """Give for how long the engine has been at one piece of work."""
        return self.engine.status().busy_s if self.engine is not None else 0.0

    def destroy_node(self):
        """End the engine and the memory watch, then destroy."""
        if self._action is not None:
            self._action.destroy()
            self._memory.close()
        super().destroy_node()

    def why_no_engine(self) -> str:
        """Tell somebody who asks why there is nobody to answer."""
        if self.failure is not None:
            return f'There is no model: {self.failure}'
        return 'No model is loaded. Configure the node first.'

    def _on_engine_change(self, engine: Engine, status: EngineStatus) -> None:
        # What an engine says that was told to end is not about the one there is now.
        if engine is self.engine and status.state == 'failed':
            self.fail(LoadError(status.reason, status.remedy))
        if engine is self.engine and status.jumps != self._jumps:
            self._jumps = status.jumps
            if status.jumps:
                self.get_logger().warning('time went back: the window starts anew')
        self._publish_status()

    # Input.
    def _on_sound(self, message: AudioEmbedding) -> None:
        rows = self._rows(message)
        if rows is not False:
            self.engine.put_sound(message.second, rows)

    def _on_picture(self, message: ImageEmbedding) -> None:
        rows = self._rows(message)
        if rows is not False:
            self.engine.put_picture(message.second, rows, (message.tiles_wide, message.tiles_high))

    def _rows(self, message):
        """Give the message's rows, None where it has none, or False where it is refused."""
        if self.engine is None or self._model is None:
            return False  # still loading: what is seen and heard now is past when it is ready
        try:
            return take_rows(message, self._model.space, self._model.width)
        except InputError as error:
            self._refused += 1
            if time.monotonic() - self._told_s > 10.0:
                self._told_s = time.monotonic()
                self.get_logger().warning(str(error))
            return False

    def _on_reset(self, _, response):
        response.success = self.engine is not None
        if response.success:
            self.engine.reset()
        else:
            response.message = self.why_no_engine()
        return response

    # Output about itself.
    def _publish_status(self) -> None:
        """Publish what is, on every change and once a second."""
        status = self.engine.status() if self.engine is not None else EngineStatus()
        if status.state == 'ready' and self._model is None:
            self._model = self._checked.result()
            self.get_logger().info(f'ready: {self._model.space}')
        self._statuses.publish(self._status_message(status))

    def _status_message(self, status: EngineStatus) -> Status:
        message = Status(state=STATES[status.state], progress=status.progress)
        message.header.stamp = self.get_clock().now().to_msg()
        message.reason, message.remedy = status.reason, status.remedy
        if (failure := self.failure) is not None:
            message.state = Status.FAILED
            if isinstance(failure, ModelFileError):
                message.reason = f'{failure.path}: {failure.problem}'
                message.remedy = failure.remedy
            elif isinstance(failure, LoadError):
                message.reason, message.remedy = failure.reason, failure.remedy
            else:
                message.reason = str(failure)
        message.model = self._model.space if self._model is not None else ''
        message.window_start = to_time(status.window_start_s * NS)
        message.window_end = to_time(status.window_end_s * NS)
        for name in ('units', 'positions', 'context_size', 'waiting', 'answering', 'units_read',
                     'units_dropped', 'late', 'evicted', 'prefill_ms'):  # fmt: skip
            setattr(message, name, getattr(status, name))
        message.refused = self._refused + status.units_refused
        message.memory_mib = self._memory.mib
        return message

    def diagnose(self, report) -> None:
        """Write what the engine is doing, and what is lost and why."""
        status = self.engine.status() if self.engine is not None else EngineStatus()
        report.tell('model', self._model.space if self._model is not None else status.state)
        report.tell('units in the window', status.units)
        report.tell('positions', f'{status.positions} of {status.context_size}')
        report.count('units read', status.units_read)
        report.count(
            'units dropped',
            status.units_dropped,
            'reading a second takes longer than a second. Lower vision.max_tiles, raise '
            'vision.unchanged_threshold, or take a smaller model or more gpu_layers',
        )
        report.count(
            'late', status.late, 'embeddings come after their unit was closed. Raise unit_deadline'
        )
        report.count(
            'refused',
            self._refused + status.units_refused,
            "embeddings are not this model's, or damaged; the log says more. Give all nodes the "
            'same model_dir',
        )
        report.count('windows lost', status.rebuilds, f'{status.reason} The log says more')
        report.tell('questions waiting', status.waiting)
        report.tell('prefill of the newest unit [ms]', status.prefill_ms)
        report.tell('memory [MiB]', self._memory.mib)
        if status.state == 'loading':
            report.warn(f'loading, {status.progress:.0%} is done')


def main(args=None) -> int:
    """Run the node."""
    return run(lambda: [LlmNode()], args)


if __name__ == '__main__':
    raise SystemExit(main())
