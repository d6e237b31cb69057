# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Node `llm`: embeddings of sound and pictures in, answers out.

All computation is the engine's thread's. Callbacks hand over; what the engine gives comes back
through `post` in the order it was given.
"""

import time

from rclpy.qos import QoSProfile
from std_srvs.srv import Trigger

from minicpmo_ros.errors import InputError, ModelFileError
from minicpmo_ros.live.arbiter import DeviceArbiter
from minicpmo_ros.live.engine import Engine, EngineOptions
from minicpmo_ros.live.engine_status import EngineStatus
from minicpmo_ros.msg import Answer, AnswerDelta, AudioEmbedding, ImageEmbedding, Status
from minicpmo_ros.nodes.asking import Asker, AskingAction, AskingService
from minicpmo_ros.nodes.llm_options import (
    PARAMETERS,
    LoadError,
    check,
    make_loader,
    sampling_options,
)
from minicpmo_ros.nodes.loading import model_path, open_model
from minicpmo_ros.nodes.managed import LATCHED, ManagedNode
from minicpmo_ros.nodes.memory import give_back
from minicpmo_ros.nodes.memory_keeper import MemoryKeeper
from minicpmo_ros.nodes.memory_room import Room
from minicpmo_ros.nodes.messages import NS, take_rows, to_time
from minicpmo_ros.nodes.node_time import NodeTime
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


class LlmNode(ManagedNode):
    """See the module."""

    PARAMETERS = PARAMETERS
    INPUTS = ('audio_embedding', 'image_embedding')
    ROLE = 'engine'
    engine = None
    _inputs = ()
    _action = _leaving = None

    def __init__(self, arbiter: DeviceArbiter | None = None, room: Room | None = None, **kwargs):
        super().__init__('llm', **kwargs)
        self._arbiter, self._room = arbiter or DeviceArbiter(), room or Room()
        self._room.enter('llm', self.table)
        self._model = None  # the ModelDirectory, once the engine is ready
        self._refused, self._told_s = 0, -60.0
        self._memory = MemoryKeeper(self)
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
        leaving, self._leaving = [self._leaving] if self._leaving else [], None
        # Behind an engine that still has its memory, the loader asks once it has ended.
        checked = open_model(
            model_path(options.model_dir), None if leaving else self._room.require_llm
        )
        engine = Engine(
            make_loader(options, checked, leaving, self._room, self.get_logger().warning),
            EngineOptions(
                unit_deadline_s=options.unit_deadline,
                max_backlog=options.max_backlog,
                max_waiting=options.max_waiting,
            ),
            self._arbiter,
            on_change=lambda status: self._hear(engine, status),
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
            self._memory.end()
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

    def _hear(self, engine: Engine, status: EngineStatus) -> None:
        """Hand on what the engine says, in whose thread this is."""
        if status.state == 'unloaded':
            give_back()
        self.post(lambda: self._on_engine_change(engine, status))

    def _on_engine_change(self, engine: Engine, status: EngineStatus) -> None:
        # What an engine says that was told to end is not about the one there is now.
        if engine is self.engine and status.state == 'failed':
            self.fail(LoadError(status.reason, status.remedy))
        if engine is self.engine:
            self._memory.hear(status)
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
            self._memory.begin(self.engine, self._model.headers['llm'])
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
        message.refused = self._refused + status.units_refused + status.units_too_large
        message.memory_mib = self._memory.used_mib
        verdict = self._memory.verdict
        message.refusing = verdict.refuses
        if not message.reason:
            message.reason, message.remedy = verdict.reason, verdict.remedy
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
            'late',
            status.late,
            'embeddings come after their unit was closed. Raise unit_deadline; where that changes '
            'nothing, the stamps of picture and sound are of different clocks',
        )
        report.count(
            'refused',
            self._refused + status.units_refused,
            "embeddings are not this model's, or damaged; the log says more. Give all nodes the "
            'same model_dir',
        )
        report.count(
            'too large',
            status.units_too_large,
            'seconds take more positions than the window has. Raise n_ctx, or lower '
            'vision.max_tiles, max_tokens or max_question_tokens; the log has the numbers',
        )
        report.count('windows lost', status.rebuilds, f'{status.lost_window} The log says more')
        report.tell('questions waiting', status.waiting)
        report.tell('prefill of the newest unit [ms]', status.prefill_ms)
        self._memory.diagnose(report)
        if status.state == 'loading':
            report.warn(f'loading, {status.progress:.0%} is done')


def main(args=None) -> int:
    """Run the node."""
    return run(lambda: [LlmNode()], args)


if __name__ == '__main__':
    raise SystemExit(main())
