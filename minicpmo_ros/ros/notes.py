# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Notes of node `llm`: written by the model while nobody asks, found again for questions.

Every `memory.every_s` the newest seconds are asked about, one question after the other, each as
any question is; as soon as somebody else asks, what was begun is dropped and tried again later.
Alerts and answers become notes, too. The file belongs to a thread of its own (notes.keeper).
"""

import math
from dataclasses import replace
from functools import partial

from geometry_msgs.msg import PoseStamped
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from rclpy.task import Future
from sensor_msgs.msg import CompressedImage

from minicpmo_ros.alerts.monitor import Kind
from minicpmo_ros.config import MEMORY
from minicpmo_ros.errors import BusyError, Error, InputError
from minicpmo_ros.live.question import Finish, Question
from minicpmo_ros.media.image.compressed import decode_compressed
from minicpmo_ros.msg import Note as NoteMessage
from minicpmo_ros.notes.keeper import NoteKeeper
from minicpmo_ros.notes.note import Filter, Note, Pose, thumbnail
from minicpmo_ros.notes.periodic import NOT_THEN, Schedule, read_questions
from minicpmo_ros.notes.recall import Recaller, Recollection, recall
from minicpmo_ros.notes.snapshots import PeriodicSnapshots, Snapshot
from minicpmo_ros.ros.framework.clock import no_clock
from minicpmo_ros.ros.framework.parameters import ANY_TIME, Parameter
from minicpmo_ros.ros.messages import to_time
from minicpmo_ros.ros.places import Places, pose_of
from minicpmo_ros.srv import Forget, Recall, Remember
from minicpmo_ros.units import NS

NOTE_PARAMETERS = (
    Parameter('memory.enabled', False,
              'Keep notes of what is seen and heard in memory.path, and use them in answers'),
    Parameter('memory.path', MEMORY.path, 'File of the notes, for its owner alone'),
    Parameter('memory.every_s', MEMORY.every_s,
              'How often the model notes what happened; 0: only alerts, answers and ~/remember '
              'become notes', 'seconds', 0, 86_400),
    Parameter('memory.questions', MEMORY.questions,
              'What the model is asked for a note: questions with a semicolon between two, each '
              "with a label in front where its answer is a word ('shape: what shape is shown "
              "now?; ...'). {every} in it stands for memory.every_s in words"),
    Parameter('memory.max_tokens', MEMORY.max_tokens, 'The longest answer of each of them',
              'tokens', 1, 1000),
    Parameter('memory.budget', MEMORY.budget,
              'How much of notes is read before a question about the past', 'tokens', 16, 100_000,
              when=ANY_TIME),
    Parameter('memory.retention_h', MEMORY.retention_h,
              'After so long a note is deleted; 0: never', 'hours', 0.0, 1e6),
    Parameter('memory.max_mib', MEMORY.max_mib,
              'Above this the oldest notes lose their images and are then deleted; 0: no limit',
              'MiB', 0.0, 1e6),
    Parameter('memory.snapshots', MEMORY.snapshots,
              'How many seconds are kept at most so that they can be looked at again: of alerts, '
              'of ~/remember, and of periodic notes; 0: none', 'seconds', 0, 100_000),
    Parameter('memory.map_frame', MEMORY.map_frame,
              'Notes have the place of memory.base_frame in this frame, by TF, unless the topic '
              'pose tells it; empty: not by TF'),
    Parameter('memory.base_frame', MEMORY.base_frame, 'The frame of the robot, for the same'),
    Parameter('memory.answers', True, 'Questions and their answers become notes', when=ANY_TIME),
    Parameter('memory.images', False,
              'A small JPEG of the newest message of image/compressed is kept with each note'),
)  # fmt: skip
OFF = 'The node keeps no notes. Set memory.enabled and memory.path, and configure it anew.'
NOTE_QOS = QoSProfile(depth=100)
ASK_TIMEOUT_S = 60.0


class NoteServer:
    """The notes of one node; `node` as AlertServer has it."""

    def __init__(self, node):
        self._node = node
        self._keeper, self._schedule, self._options = None, None, None
        self._asked = self._asking = None  # a PeriodicNote, and its PendingQuestion
        self._unit, self._periodic = None, PeriodicSnapshots()  # its newest second
        self._places, self._image, self._inputs = Places(node), None, []
        self._published = node.topics.publish(NoteMessage, '~/note', NOTE_QOS)
        for kind, name, callback in (
            (Remember, '~/remember', self._on_remember),
            (Forget, '~/forget', self._on_forget),
        ):
            node.create_service(kind, name, callback, callback_group=ReentrantCallbackGroup())
        node.create_service(Recall, '~/recall', self._on_recall)

    # For the node.
    def set_up(self, options):
        """Open the file; return what an engine looks up notes with, or None; raise InputError."""
        questions = read_questions(options.memory_questions)
        self.release()
        if not options.memory_enabled:
            return None
        if not options.memory_path:
            raise InputError('memory.enabled is true and memory.path is empty. Name a file.')
        self._options, self._schedule = options, Schedule(questions, options.memory_every_s)
        self._keeper = NoteKeeper(
            options.memory_path,
            options.memory_retention_h,
            options.memory_max_mib,
            options.memory_snapshots,
            lambda problem: self._node.post(lambda: self._on_problem(problem)),
        )
        self._places.begin(options.memory_map_frame, options.memory_base_frame)
        if options.memory_images:
            self._inputs.append(
                self._node.topics.subscribe(
                    CompressedImage, 'image/compressed', self._on_image, qos_profile_sensor_data
                )
            )
        return partial(self._look_up, self._keeper)

    def release(self) -> None:
        """Write what waits and close the file."""
        self.let_person_ask()
        keeper, self._keeper = self._keeper, None
        for subscription in self._inputs:
            self._node.topics.unsubscribe(subscription)
        self._inputs = []
        self._places.end()
        if keeper is not None and not keeper.close():
            self._node.get_logger().warning(f'{keeper.path} is not closed yet; its disk is slow')

    def let_person_ask(self) -> None:
        """Drop the note that is being asked for: somebody asks a question."""
        asking, self._asking, self._asked = self._asking, None, None
        if asking is not None:
            asking.cancel()

    def tick(self) -> None:
        """Ask for a note if one is due and nobody else asks; once a second."""
        node = self._node
        if self._keeper is None or self._asked is not None or node.why_not_asked():
            return
        status = node.engine.status()
        if status.state != 'ready' or status.waiting or status.answering:
            return
        asked = self._schedule.due(status.window_end_s)
        if asked is not None:
            self._unit = self._unit_of(asked.end_s)
            self._ask_next(asked)

    def note_alert(self, rule, event) -> None:
        """Write what a standing question says."""
        how = f': {event.text}' if event.text else ''
        text = f'{rule.question} {event.kind.name.lower()}{how}'
        note = Note(event.begin_s or event.at_s, max(event.at_s, event.begin_s), text, 'alert')
        begins = event.kind is Kind.BEGIN
        self._add(note, unit=self._unit_of(event.at_s) if begins else None)

    def note_answer(self, message, is_transcript: bool) -> None:
        """Write a question and its answer; of a transcript only what somebody said."""
        if self._keeper is None or not self._node.table.values().memory_answers:
            return
        if message.finish in (Finish.STOP, Finish.LENGTH) and message.text and message.units:
            end_s = message.window_end.sec
            if is_transcript:
                kind, text = 'speech', f'Somebody said: {message.text}'
            else:
                kind, asked = 'answer', message.question or '(by voice)'
                text = f'Asked: {asked} Answered: {message.text}'
            text += NOT_THEN * message.stale
            self._add(Note(end_s - 1, end_s, text, kind, model=self._node.exact_space))

    def diagnose(self, report) -> None:
        """Report the file and what is wrong with it."""
        if self._keeper is None:
            return
        report.tell('notes', self._keeper.count)
        if self._keeper.problem:
            report.warn(f'notes: {self._keeper.problem}')

    # Questions about the past.
    def _look_up(self, keeper: NoteKeeper, question: Question, seconds: list, count_tokens):
        """Return the Recollection to be read before a question; in the engine's thread."""
        budget = self._node.table.values().memory_budget
        recaller = Recaller(
            keeper.read, count_tokens, None, budget, self._places.here(), self._node.exact_space
        )
        try:
            return recaller.recollect(question.text, question.memory, self._now_s(), seconds)
        except Error as error:
            if question.is_past:
                raise
            self._node.get_logger().warning(f'a question is answered without notes: {error}')
            return Recollection()

    # Writing.
    def _ask_next(self, asked) -> None:
        """Ask the next question of the note; write it when all are answered."""
        if not asked.left:
            self._schedule.written(asked)
            note = asked.note(model=self._node.exact_space)
            if note is not None:
                unit, self._unit = self._unit, None
                self._add(note, unit=unit if self._periodic.wants(unit) else None)
            return
        question = Question(
            asked.left[0].text,
            max_tokens=self._options.memory_max_tokens,
            temperature=0.0,
            timeout_s=ASK_TIMEOUT_S,
            memory='off',
        )
        try:
            self._asking = self._node.engine.ask(
                question,
                on_done=lambda answer: self._node.post(lambda: self._on_part(asked, answer)),
            )
            self._asked = asked
        except Error:  # busy, or on its way out: a later tick tries again
            pass

    def _on_part(self, asked, answer) -> None:
        if asked is not self._asked:
            return  # somebody asked meanwhile
        self._asked = self._asking = None  # whatever fails below, a later tick tries again
        if answer.finish in (Finish.STOP, Finish.LENGTH):
            asked.take(answer.text, answer.stale)
            self._ask_next(asked)

    def _add(self, note: Note, on_done=None, unit=None) -> None:
        """Give a note its pose and image, write it, and publish it once it is in the file.

        `unit`: the second that it can be looked at again by; None: none.
        """
        keeper = self._keeper
        if keeper is None:
            return
        written_s = self._node.get_clock().now().nanoseconds / NS
        note = replace(note, pose=self._places.here(note.end_s), written_s=written_s)
        image, space = self._image, self._node.exact_space

        def write(store):
            snapshot = Snapshot(unit, space) if unit is not None and space else None
            return store.add(replace(note, image=_small(image)), snapshot)

        def done(kept, reason):
            self._node.post(lambda: self._on_added(kept, reason))
            if on_done is not None:
                on_done(kept, reason)

        keeper.do(write, done)

    def _on_added(self, note: Note | None, reason: str) -> None:
        if note is not None:
            self._published.publish(to_message(note))
        elif reason:
            self._node.get_logger().warning(f'a note is not written: {reason}')

    def _on_problem(self, problem: str) -> None:
        if problem:
            self._node.get_logger().warning(f'notes: {problem}')

    # Services.
    async def _on_remember(self, request, response):
        end_s = self._now_s()
        if not end_s and self._keeper is not None:
            response.reason = f'The note would have no time: {no_clock(self._node)}.'
            return response
        note, unit = Note(end_s - 1, end_s, request.text, 'user'), self._unit_of(end_s)
        kept, response.reason = await self._wait(lambda done: self._add(note, done, unit))
        if kept is not None:
            response.success, response.note = True, to_message(kept)
            self._node.get_logger().info(f'~/remember: note {kept.id} is written')
        return response

    async def _on_forget(self, request, response):
        try:
            wanted = Filter(_seconds(request.begin), _seconds(request.end))
        except InputError as error:
            response.reason = str(error)
            return response
        gone, why_not = await self._node.sessions.forget(wanted.begin_s, wanted.end_s)
        count, reason = 0, ''
        if self._keeper is not None or gone is None:
            count, reason = await self._wait(
                lambda done: self._keeper.do(lambda store: store.forget(wanted), done)
            )
        response.success = count is not None and not why_not
        response.reason, response.forgotten = f'{reason} {why_not}'.strip(), count or 0
        told = f'{count or 0} notes and {gone or 0} seconds of the black box are deleted'
        self._node.get_logger().info(f'~/forget: {told}. {response.reason}'.rstrip())
        return response

    async def _wait(self, begin) -> tuple:
        """Begin a piece of work of the keeper; return its (result, reason)."""
        if self._keeper is None:
            return None, OFF
        future = Future(executor=self._node.executor)
        begin(lambda result, reason: self._node.finish(future, (result, reason)))
        return await future

    def _on_recall(self, request, response):
        try:
            if self._keeper is None:
                raise BusyError(OFF)
            response.notes = self._keeper.read(partial(self._recalled, request))
            response.success = True
        except Error as error:
            response.reason = str(error)
        return response

    def _recalled(self, request, store) -> list:
        begin_s, end_s = (_seconds(time) or None for time in (request.begin, request.end))
        radius_m, wanted = request.radius_m, None
        near, limit = pose_of(request.near) if radius_m else None, request.limit or MEMORY.notes
        if near or begin_s or end_s:
            wanted = Filter(begin_s, end_s, near, radius_m or 1.0)
        if request.text:
            now_s, here = self._now_s(), self._places.here()
            found = recall(store, request.text, now_s, None, here, limit, wanted)
            notes = [one.note for one in found]
        else:
            notes = store.list(wanted, limit)[::-1]
        images = [store.image(note.id) if request.images else b'' for note in notes]
        return [to_message(note, image) for note, image in zip(notes, images)]

    def _now_s(self) -> float:
        """Return the time by the stamps: where the window ends, and since then if that is old."""
        engine = self._node.engine
        status = engine.status() if engine is not None else None
        if status is None or not status.window_end_s:
            return self._node.get_clock().now().nanoseconds / NS
        since_s = status.evidence.since_newest_s
        return status.window_end_s + since_s * (since_s > status.max_staleness_s)

    # Inputs.
    def _on_image(self, message: CompressedImage) -> None:
        self._image = message

    def _unit_of(self, end_s: float):
        """Return the Unit that ends then, if it is one of the newest; None else."""
        engine = self._node.engine
        units = engine.status().newest if engine is not None else ()
        return next((unit for unit in units[::-1] if unit.second + 1 == end_s), None)


def to_message(note: Note, image: bytes = b'') -> NoteMessage:
    """Return a Note as a message."""
    message = NoteMessage(
        id=note.id,
        kind=note.kind,
        text=note.text,
        count=note.count,
        model=note.model,
        snapshot=note.snapshot,
    )
    message.begin, message.end = to_time(note.begin_s * NS), to_time(note.end_s * NS)
    if note.pose is not None:
        message.has_pose = True
        message.pose = _to_pose(note.pose, message.end)
    if image:
        message.image = CompressedImage(format='jpeg', data=image)
        message.image.header.stamp = message.end
    return message


def _small(image: CompressedImage | None) -> bytes:
    """Return a small JPEG of an image; b'' where there is none that can be read."""
    if image is None:
        return b''
    try:
        return thumbnail(decode_compressed(bytes(image.data), image.format))
    except Exception:  # of a damaged image a decoder raises almost anything; the note is kept
        return b''


def _to_pose(pose: Pose, stamp) -> PoseStamped:
    message = PoseStamped()
    message.header.frame_id, message.header.stamp = pose.frame, stamp
    message.pose.position.x, message.pose.position.y = pose.x, pose.y
    message.pose.position.z = pose.z
    message.pose.orientation.z = math.sin(pose.yaw / 2)
    message.pose.orientation.w = math.cos(pose.yaw / 2)
    return message


def _seconds(time) -> float:
    return time.sec + time.nanosec / NS
