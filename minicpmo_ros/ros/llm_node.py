# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Node `llm`: receives embeddings of audio and images, answers questions.

All computation runs in the engine's thread. Callbacks only hand over their data; the engine's
results come back through `post`, in order.
"""

import time
from functools import partial

from rclpy.qos import QoSProfile
from std_srvs.srv import Trigger

from minicpmo_ros.errors import CancelledError, InputError, ModelFileError
from minicpmo_ros.live.arbiter import DeviceArbiter
from minicpmo_ros.live.engine import Engine
from minicpmo_ros.live.question import EvidenceOptions
from minicpmo_ros.live.status import EngineOptions, EngineStatus, why_failed
from minicpmo_ros.memory.proc import give_back
from minicpmo_ros.msg import Answer, AnswerDelta, AudioEmbedding, ImageEmbedding, Status
from minicpmo_ros.ros.alerts import AlertServer
from minicpmo_ros.ros.ask_server import AskAction, AskService, QuestionRouter
from minicpmo_ros.ros.framework.clock import NodeTime
from minicpmo_ros.ros.framework.lifecycle import LATCHED, ManagedNode
from minicpmo_ros.ros.framework.loading import model_path, open_model
from minicpmo_ros.ros.framework.main import run
from minicpmo_ros.ros.launch.process_specs import EMBEDDINGS
from minicpmo_ros.ros.llm_options import (
    PARAMETERS,
    Loader,
    LoadError,
    check,
    sampling_options,
)
from minicpmo_ros.ros.looking import Looker
from minicpmo_ros.ros.memory import MemoryBudget, MemoryLimiter
from minicpmo_ros.ros.messages import (
    diagnose_engine,
    status_message,
    take_image,
    take_rows,
    time_ns,
)
from minicpmo_ros.ros.model_watch import ModelFiles
from minicpmo_ros.ros.notes import NoteServer
from minicpmo_ros.ros.robots import RobotGroup, refuse_robots, robot_namespaces
from minicpmo_ros.ros.sessions import SessionServer
from minicpmo_ros.ros.stamps import InputClocks
from minicpmo_ros.ros.voice.read_audio import ReadAudioClient
from minicpmo_ros.streams.image import ImageSecond
from minicpmo_ros.streams.time import Instant

EMBEDDING_QOS = QoSProfile(depth=32)
ANSWER_QOS = QoSProfile(depth=10)
DELTA_QOS = QoSProfile(depth=256)
STATUS_PERIOD_S = 1.0
RESET = 'The question was cancelled by ~/reset. Ask again once new input has arrived.'
ALONE = (
    'the encoders are not in this process: the operating system and the driver share the device '
    'among the processes, live seconds do not go before an answer, and their memory is not '
    'planned together. The executable live (composed:=true) does both'
)
INACTIVE = 'The node is inactive: it takes in nothing new and answers no questions.'


class LlmNode(ManagedNode):
    """See the module. `group`: of the robots that it shares an engine with; None: it has none."""

    PARAMETERS = PARAMETERS
    INPUTS = ('audio_embedding', 'image_embedding')
    ROLE = 'engine'
    engine = None
    _inputs = ()
    _action = _leaving = None

    def __init__(
        self,
        arbiter: DeviceArbiter | None = None,
        budget: MemoryBudget | None = None,
        group: RobotGroup | None = None,
        **kwargs,
    ):
        self.group = group
        super().__init__('llm', **kwargs)
        self._is_alone = arbiter is None
        self._arbiter, self._budget = arbiter or DeviceArbiter(), budget or MemoryBudget()
        self._budget.register('llm', self.table)
        self._model = None  # a ModelDirectory, once the engine is ready
        self._refused, self._warned_s = 0, -60.0
        self._seen = ImageEmbedding()  # the newest second that had an image
        self._files = ModelFiles(self)
        self._memory = MemoryLimiter(self, self._files.look, group)
        self._time, self._jumps = NodeTime(self), 0
        self.answers = self.topics.publish(Answer, '~/answer', ANSWER_QOS)
        self.deltas = self.topics.publish(AnswerDelta, '~/answer_delta', DELTA_QOS)
        self._statuses = self.topics.publish(Status, '~/status', LATCHED)
        self.clocks = InputClocks(self)
        self.looker, router = Looker(self), QuestionRouter(self)
        self.notes, self.sessions = NoteServer(self), SessionServer(self)
        self._alerts = AlertServer(self)
        self._reads = ReadAudioClient(self)
        self._service = AskService(self, router)
        self._action = AskAction(self, router)
        self.create_service(Trigger, '~/reset', self._on_reset)
        self.ticks.every(STATUS_PERIOD_S, self._on_tick)

    # The lifecycle.
    def on_setup(self, options) -> None:
        """Check the files, then load in the engine's thread."""
        check(options)
        refuse_robots(options.robots, self.group)
        if self.group is not None:
            self.group.enter(self.get_fully_qualified_name(), options)
        self._files.tell_last_end()
        if self._is_alone:
            self.get_logger().info(ALONE)
        alerts, recall = self._alerts.set_up(options), self.notes.set_up(options)
        leaving, self._leaving = [self._leaving] if self._leaving else [], None
        # Behind an engine that still has its memory, the loader asks once it has ended.
        checks_later = bool(leaving) or self.group is not None
        checked = open_model(
            model_path(options.model_dir), None if checks_later else self._budget.require_llm
        )
        loader = Loader(options, checked, self._budget, self.get_logger(), recall, self.group)
        engine = Engine(
            partial(loader.load, leaving),
            EngineOptions(
                unit_deadline_s=options.unit_deadline,
                max_backlog=options.max_backlog,
                max_waiting=options.max_waiting,
                max_parallel=options.max_parallel,
                evidence=EvidenceOptions(options.required_evidence, options.max_staleness_s),
                restored_max_age_s=options.memory_black_box_max_age_s,
            ),
            self._arbiter,
            on_change=lambda status: self._on_engine_status(engine, status),
            now=self.now,
            alerts=alerts,
            listen=self._listen,
            black_box=self.sessions.set_up(options, checked),
            thread=self.group.thread if self.group is not None else None,
        )
        self._checked, self.engine = checked, engine
        engine.start()

    def on_start(self) -> None:
        """Take embeddings."""
        self._inputs = [
            self.topics.subscribe(message_type, topic, take, EMBEDDING_QOS)
            for message_type, topic, take in (
                (AudioEmbedding, 'audio_embedding', self._on_audio),
                (ImageEmbedding, 'image_embedding', self._on_image),
            )
        ]

    def on_stop(self) -> None:
        """Take no more embeddings."""
        for subscription in self._inputs:
            self.topics.unsubscribe(subscription)
        self._inputs = []

    def on_release(self) -> None:
        """Stop the engine; the current answer ends as cancelled."""
        if self.engine is not None:
            self.looker.cancel_all()
            self.engine.close(timeout_s=0.0)
            self._alerts.release()
            self.sessions.release()
            self._memory.end()
            self._files.unwatch()
            self._leaving, self.engine, self._model = self.engine, None, None
        self.notes.release()  # open before there is an engine
        if self.group is not None:
            self.group.leave(self.get_fully_qualified_name())

    def join(self, timeout_s: float) -> None:
        """Wait for the engine that was told to end."""
        if self._leaving is not None and not self._leaving.close(timeout_s):
            self.get_logger().error('The engine did not stop in time; abandoning its thread.')

    def on_refused(self) -> None:
        """Publish the refusal on ~/status."""
        self._publish_status()

    def retune(self) -> None:
        """Apply the parameters that may change at any time to the next question."""
        if self.engine is not None:
            self.engine.set_sampling(sampling_options(self.table.values()))

    def is_ready(self) -> bool:
        """Return whether the node is ready and the model loaded."""
        return super().is_ready() and self._model is not None

    def busy_s(self) -> float:
        """Return how long the engine has been at one piece of work, in seconds."""
        return self.engine.status().busy_s if self.engine is not None else 0.0

    def now(self) -> Instant:
        """Return the instant by which seconds wait; it may follow simulated time."""
        return self._time.now()

    def on_end(self) -> None:
        """End the action and the memory watch."""
        if self._action is not None:
            self._files.unwatch()
            self._action.destroy()
            self._memory.close()

    def why_no_engine(self) -> str:
        """Return why questions cannot be answered now, a sentence."""
        if self.failure is not None:
            return f'There is no model: {self.failure}'
        return 'No model is loaded. Configure the node first.'

    def why_not_asked(self) -> str:
        """Return why the node takes no questions now, a sentence; '': it takes them."""
        if self.engine is None:
            return self.why_no_engine()
        if self.state == 'inactive' and self.engine.status().state == 'ready':
            return f'{INACTIVE} {self._how_to_activate()}'
        return ''  # while it loads, the engine says how far it is

    def _how_to_activate(self) -> str:
        return f'Activate it first: ros2 lifecycle set {self.get_fully_qualified_name()} activate'

    def _on_engine_status(self, engine: Engine, status: EngineStatus) -> None:
        """Take a status from the engine, in its thread; post it to the executor."""
        if status.state == 'unloaded':
            give_back()
        self.post(lambda: self._on_engine_change(engine, status))

    def _on_engine_change(self, engine: Engine, status: EngineStatus) -> None:
        # The status of an engine that was told to end does not concern the current one.
        if engine is self.engine and status.state == 'failed':
            error = LoadError(status.reason, status.remedy, status.may_pass)
            (self.fail if self._model is None else self.start_anew)(error)
        if engine is self.engine:
            self._memory.on_engine_status(status)
        if engine is self.engine and status.jumps != self._jumps:
            self._jumps = status.jumps
            if status.jumps:
                self.get_logger().warning('Time jumped backwards; the window was cleared.')
        self._publish_status()

    @property
    def exact_space(self) -> str:
        """The model that is loaded, with its very weights; '' where none is."""
        return self._model.exact_space if self._model is not None else ''

    def tell_answer(self, message: Answer, request) -> None:
        """Publish an answer that is not for who asked alone, and let it become a note."""
        if not request.aside:
            self.answers.publish(message)
        self.notes.note_answer(message, request.aside and time_ns(request.heard_until) > 0)

    # Input.
    def _on_audio(self, message: AudioEmbedding) -> None:
        level = message.level_dbfs
        self._forward(message, lambda rows: self.engine.put_audio(message.second, rows, level))

    def _on_image(self, message: ImageEmbedding) -> None:
        tiles = (message.tiles_wide, message.tiles_high, *message.cameras)
        if message.status == ImageEmbedding.OK:
            self._seen = message
        self._forward(message, lambda rows: self.engine.put_image(message.second, rows, tiles))

    def _forward(self, message, put) -> None:
        """Check an embedding and pass its rows (None: none) to `put`; count refused ones."""
        if self.engine is None or self._model is None:
            return  # still loading: this second will be past when the model is ready
        try:
            rows = take_rows(message, self._model.space, self._model.width)
        except InputError as error:
            self._refused += 1
            if time.monotonic() - self._warned_s > 10.0:
                self._warned_s = time.monotonic()
                self.get_logger().warning(str(error))
            return
        self.engine.wait_for(self.get_parameter('wait_for').value)
        put(rows)

    def take_look(self, response) -> ImageSecond:
        """Return the image of a reply of `look`; raise InputError with why there is none."""
        if not response.success:
            raise InputError(response.reason)
        model = self._model or self._checked.result()  # the engine is ready
        image = take_image(response.embedding, model.space, model.width)
        if image is None:
            raise InputError('vision_encoder gave no embedding of it.')
        return image

    def _listen(self, until_ns: int, timeout_s: float, take) -> None:
        """Ask the streaming_encoder for the second that has not ended."""
        model = self._model or self._checked.result()  # the engine is ready
        self._reads.read(until_ns, timeout_s, model.space, model.width, take)

    def _on_reset(self, _, response):
        if self.engine is None:
            response.message = self.why_no_engine()
            return response
        error = CancelledError(RESET) if self.table.values().reset_ends_questions else None
        response.message = self.engine.reset(error)
        response.success = not response.message
        self.get_logger().info(f'~/reset: the window is emptied. {response.message}'.rstrip())
        if error is not None:
            self.looker.cancel_all(error)
        return response

    # Output about itself.
    def _on_tick(self) -> None:
        self.looker.check()
        self._service.cancel_abandoned()
        self._action.cancel_abandoned()
        self._alerts.tick()
        self.notes.tick()
        self._publish_status()

    def _publish_status(self) -> None:
        """Publish the current status, on every change and once a second."""
        status = self.engine.status() if self.engine is not None else EngineStatus()
        if status.state == 'ready' and self._model is None:
            self._model = self._checked.result()
            self._memory.begin(self.engine, self._model)
            self._files.watch(self._model)
            self.get_logger().info(f'ready: {self._model.space}')
        self._statuses.publish(self._status_message(status))

    def _status_message(self, status: EngineStatus) -> Status:
        message = status_message(status)
        message.header.stamp = self.get_clock().now().to_msg()
        if (failure := self.failure) is not None:
            message.state = Status.FAILED
            if isinstance(failure, ModelFileError):
                why = why_failed(failure)
                message.reason, message.remedy = why['reason'], why['remedy']
            elif isinstance(failure, LoadError):
                message.reason, message.remedy = failure.reason, failure.remedy
            else:
                message.reason = str(failure)
        message.model = self._model.space if self._model is not None else ''
        message.image_area, message.image_period_s = self._seen.area, self._seen.period_s
        message.image_slowed = self._seen.slowed
        message.restoring = self.sessions.told(status)
        message.refused = self._refused + status.units_refused + status.units_too_large
        message.memory_mib = self._memory.used_mib
        verdict = self._memory.verdict
        message.refusing = verdict.refuses
        message.clocks = self.clocks.problem
        if self.state == 'inactive' and status.state == 'ready':
            message.reason, message.remedy = INACTIVE, self._how_to_activate()
        if not message.reason:
            message.reason, message.remedy = verdict.reason, verdict.remedy
        return message

    def diagnose(self, report) -> None:
        """Report what the engine is doing, and what is lost and why."""
        status = self.engine.status() if self.engine is not None else EngineStatus()
        report.tell('model', self._model.space if self._model is not None else status.state)
        diagnose_engine(report, status, self._refused)
        self._alerts.diagnose(report)
        self.notes.diagnose(report)
        self.sessions.diagnose(report)
        self._memory.diagnose(report)
        if problem := self.clocks.problem:
            report.warn(problem)
        if status.state == 'loading':
            report.warn(f'loading, {status.progress:.0%} is done')


def make_nodes():
    """Yield the node, or with parameter `robots` one in the namespace of each robot."""
    node = LlmNode()
    namespaces = robot_namespaces(node.table.values().robots, node.get_namespace())
    if not namespaces:
        yield node
        return
    node.destroy_node()
    group, budget = RobotGroup(namespaces), MemoryBudget()
    for namespace in namespaces:
        yield LlmNode(
            budget=budget,
            group=group,
            remappings={'__ns': namespace, **dict(EMBEDDINGS)},
            parameters={'robots': list(namespaces)},
        )


def main(args=None) -> int:
    """Run the node, or those of several robots."""
    return run(make_nodes, args)


if __name__ == '__main__':
    raise SystemExit(main())
