# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Notes of node llm: written while nobody asks, found again, read before questions, forgotten."""

import math
import signal
from pathlib import Path

import pytest
from geometry_msgs.msg import PoseStamped
from ros_source import FIRST, SimulatedTime, Source, time_of

from minicpmo_ros.evaluation.bags.clip_reading import read_clip
from minicpmo_ros.msg import Note as NoteMessage
from minicpmo_ros.msg import Status
from minicpmo_ros.notes.database import StoreError
from minicpmo_ros.notes.periodic import NOT_THEN
from minicpmo_ros.notes.recall import content_words
from minicpmo_ros.notes.store import NoteStore
from minicpmo_ros.ros.notes import NOTE_QOS
from minicpmo_ros.srv import Ask, Forget, Recall, Remember

ASK = 'shape: what shape is shown now?; color: what color is shown now?'


class Notes:
    """What an llm node tells of its notes, and its services."""

    def __init__(self, graph):
        self._graph, self.told = graph, []
        graph.create_subscription(NoteMessage, 'llm/note', self.told.append, NOTE_QOS)
        self._clients = {
            kind: graph.create_client(kind, f'llm/{kind.__name__.lower()}')
            for kind in (Ask, Forget, Recall, Remember)
        }

    def call(self, kind, **fields):
        """Call a service and return its response."""
        client = self._clients[kind]
        self._graph.spin_until(client.service_is_ready, kind.__name__)
        return self._graph.result_of(client.call_async(kind.Request(**fields)), kind.__name__)

    def find_again(self) -> None:
        """Wait until the node that follows a killed one answers."""
        for kind in (Ask, Recall):  # of the services of notes, Recall is made last
            self._graph.until_answered(self._clients[kind])


def start(graph, path, *more, **kwargs):
    """Start a node that keeps notes, and wait until it is ready."""
    graph.forget_statuses()
    node = graph.start(
        'live', '-p', 'model_dir:=nano', '-p', 'memory.enabled:=true', '-p',
        f'memory.path:={path}', '-p', 'memory.every_s:=1', '-p', f'memory.questions:="{ASK}"',
        *more, *graph.lossless, **kwargs,
    )  # fmt: skip
    graph.wait_ready()
    return node


def test_notes_are_written_found_read_and_forgotten_and_survive_a_kill(graph, tmp_path):
    path = tmp_path / 'day.db'
    live = start(graph, path, '-p', 'memory.images:=true')
    notes, source = Notes(graph), Source(graph)
    source.wait_heard()
    poses = graph.create_publisher(PoseStamped, 'pose', 10)
    graph.spin_until(poses.get_subscription_count, 'the node to take poses')
    last = source.until_read(FIRST)

    def goes_on():
        """Show a second, with the pose of its end, until the model has written a note."""
        nonlocal last
        if not notes.told:
            here = PoseStamped()
            here.header.frame_id, here.header.stamp = 'map', time_of((last + 1) * 10**9)
            here.pose.position.x, here.pose.orientation.w = 3.0, 1.0
            poses.publish(here)
            source.second(last)
            read = graph.status.units_read
            graph.spin_until(lambda: graph.status.units_read > read, 'the second to be read')
            last += 1
        return bool(notes.told)

    graph.spin_until(goes_on, 'a note of the model')
    written = notes.told[0]
    assert written.kind == NoteMessage.PERIODIC and 'nano' in written.model
    assert written.text.startswith('shape: ') and '; color: ' in written.text
    assert FIRST <= written.begin.sec < written.end.sec <= last + 1
    if written.has_pose:  # one had come for its second
        assert (written.pose.header.frame_id, written.pose.pose.position.x) == ('map', 3.0)

    said = notes.call(Remember, text='The keys are in the red box.')
    assert said.success and said.note.kind == NoteMessage.USER
    found = notes.call(Recall, text='Where did I leave my keys?', images=True)
    assert found.success and found.notes[0].text == 'The keys are in the red box.'
    assert bytes(found.notes[0].image.data).startswith(b'\xff\xd8')
    for radius_m in (-1.0, math.nan):
        assert 'a number above 0' in notes.call(Recall, text='keys', radius_m=radius_m).reason

    answer = notes.call(Ask, question='Where did I leave my keys?', memory='only').answer
    assert [note.text for note in answer.recalled] == ['The keys are in the red box.']
    assert answer.units == 0 and answer.prompt_tokens > 0 and not answer.stale
    here = notes.call(Ask, question='what shape is shown now?')
    assert here.success and not here.answer.recalled and here.answer.units
    past = notes.call(Ask, question='what was shown before the keys?').answer
    assert past.recalled and past.units
    assert not notes.call(Ask, question='where were my keys?', memory='off').answer.recalled
    refused = notes.call(Ask, question='Did a zebra sing?', memory='only')
    assert not refused.success and 'No note belongs to this question' in refused.reason
    refused = notes.call(Ask, question='Q', memory='some')
    assert (
        not refused.success and "memory is 'some'; allowed are auto, off, only" in refused.reason
    )
    graph.spin_until(
        lambda: any(note.kind == NoteMessage.ANSWER for note in notes.told), 'a note of an answer'
    )
    spoken = notes.call(  # as voice asks for a transcript
        Ask, question='Write down what was said.', choices=['where are my keys?', 'hello'],
        aside=True, heard_until=time_of(last * 10**9),
    )  # fmt: skip
    assert spoken.success and spoken.answer.text, spoken.reason
    graph.spin_until(
        lambda: any(note.kind == NoteMessage.SPEECH for note in notes.told), 'a note of speech'
    )
    (speech,) = (note for note in notes.told if note.kind == NoteMessage.SPEECH)
    assert speech.text == f'Somebody said: {spoken.answer.text}'
    assert not any('Write down' in note.text for note in notes.told)

    live.end(signal.SIGKILL)
    with NoteStore(path, is_read_only=True) as store:
        assert any(note.text == 'The keys are in the red box.' for note in store.list())
    start(graph, path, '-p', 'memory.answers:=false')
    notes.find_again()
    again = notes.call(Recall, text='keys')
    assert [note.id for note in again.notes if note.kind == NoteMessage.USER] == [said.note.id]
    forgotten = notes.call(Forget, begin=time_of(0), end=time_of((last + 100) * 10**9))
    assert forgotten.success and forgotten.forgotten >= 3
    assert not notes.call(Recall).notes
    for file in tmp_path.glob('day.db*'):
        assert b'red box' not in file.read_bytes(), file


CLIP = read_clip(Path(__file__).parents[1] / 'demo' / 'clips' / '002.mcap')


class WhiteScene(Source):
    """A camera that shows white shapes all the time, which nano knows."""

    def picture(self, stamp_ns, data):
        super().picture(stamp_ns, CLIP.images[-1].compressed()[1])


def test_a_remembered_second_is_looked_at_again_also_after_a_kill(graph, tmp_path):
    path, asked = tmp_path / 'day.db', 'what color is the shape now?'
    only_by_hand = '-p', 'memory.every_s:=0', '-p', 'memory.answers:=false'
    live = start(graph, path, *only_by_hand)
    notes, source = Notes(graph), WhiteScene(graph)
    source.wait_heard()
    source.until_read(FIRST)
    seen = notes.call(Ask, question=asked, memory='off').answer
    said = notes.call(Remember, text='The color of the keys.').note
    assert said.snapshot and said.end == seen.window_end
    assert not notes.call(Ask, question=asked).answer.snapshots  # it is about now

    live.end(signal.SIGKILL)
    start(graph, path, *only_by_hand)
    notes.find_again()
    again = notes.call(Ask, question=asked, memory='only').answer
    assert (list(again.snapshots), again.text) == ([said.end.sec - 1], seen.text)
    assert [(note.id, note.snapshot) for note in again.recalled] == [(said.id, True)]
    assert again.units == 0 and not again.stale
    past = notes.call(Ask, question='which color did the keys have?', memory='only').answer
    assert list(past.snapshots) == [said.end.sec - 1]
    assert past.prompt_tokens > again.prompt_tokens  # the words of the note, too
    assert notes.call(Forget, begin=time_of(0), end=said.end).forgotten == 1
    assert not notes.call(Ask, question=asked, memory='only').success


def test_without_inputs_a_note_is_of_now_and_not_of_when_they_ended(graph, tmp_path):
    start(graph, tmp_path / 'day.db', '-p', 'max_staleness_s:=2.0', '-p', 'memory.every_s:=0')
    notes, source = Notes(graph), Source(graph)
    source.wait_heard()
    source.until_read(FIRST)
    graph.spin_until(lambda: graph.status.stale, 'the newest second to be old')
    ended_s = graph.status.window_end.sec
    said = notes.call(Remember, text='The keys are in the red box.').note
    assert said.begin.sec > ended_s and not said.snapshot
    asked = 'Where were the keys in the last hour?'
    for found in (
        notes.call(Ask, question=asked, memory='only').answer.recalled,
        notes.call(Recall, text=asked).notes,
    ):
        assert [note.id for note in found] == [said.id]


def test_no_question_finds_a_note_by_its_mark():
    assert not content_words(NOT_THEN)


def test_a_note_of_an_input_that_was_missing_or_old_says_so(graph, tmp_path):
    """The camera stops, the microphone goes on: what is said of the image then is of before."""
    start(graph, tmp_path / 'day.db', '-p', 'max_staleness_s:=1.0')
    notes, source = Notes(graph), Source(graph)
    source.wait_heard()
    last = source.until_read(FIRST)
    blind_s = last + 3  # by then each is without an image for longer than that

    def is_blind_for(kind):
        nonlocal last
        source.second(last, picture=False)
        read = graph.status.units_read
        graph.spin_until(lambda: graph.status.units_read > read, 'the second to be read')
        last += 1
        return any(note.kind == kind and note.begin.sec >= blind_s for note in notes.told)

    graph.spin_until(lambda: is_blind_for(NoteMessage.PERIODIC), 'a note without a camera')
    answer = notes.call(Ask, question='what shape is shown now?').answer
    assert answer.stale
    graph.spin_until(lambda: is_blind_for(NoteMessage.ANSWER), 'a note of an answer')
    for note in notes.told:
        if note.begin.sec >= blind_s:
            assert note.text.endswith(NOT_THEN), note.text


def test_without_notes_the_services_say_how_to_have_them(graph):
    graph.start('llm', '-p', 'model_dir:=nano')
    graph.wait_ready()
    notes = Notes(graph)
    for kind, fields in ((Recall, {}), (Remember, {'text': 'x'}), (Forget, {})):
        response = notes.call(kind, **fields)
        assert not response.success and 'Set memory.enabled' in response.reason
    refused = notes.call(Ask, question='Where were my keys?', memory='only')
    assert not refused.success and 'none are kept' in refused.reason


def test_a_node_that_is_not_configured_leaves_its_file_to_others(graph, tmp_path):
    path = tmp_path / 'day.db'
    keeps = ('-p', 'memory.enabled:=true', '-p', f'memory.path:={path}')
    graph.start('llm', '-p', f'model_dir:={tmp_path}/none', *keeps)
    graph.spin_until(lambda: graph.status and graph.status.state == Status.FAILED, 'the refusal')

    def is_free():  # a moment after the refusal
        try:
            NoteStore(path).close()
        except StoreError:
            return False
        return True

    graph.spin_until(is_free, 'the file')


def test_before_simulated_time_nothing_is_remembered_as_of_1970(graph, tmp_path):
    path = tmp_path / 'day.db'
    keeps = ('-p', 'memory.enabled:=true', '-p', f'memory.path:={path}')
    graph.start('llm', '-p', 'model_dir:=nano', '-p', 'use_sim_time:=true', *keeps)
    graph.wait_ready()
    notes, text = Notes(graph), 'the keys are on the shelf'
    refused = notes.call(Remember, text=text)
    assert not refused.success and '/clock is missing' in refused.reason
    simulated = SimulatedTime(graph)
    simulated.until(lambda: notes.call(Remember, text=text).success, 'the note')
    with NoteStore(path, is_read_only=True) as store:
        assert [(note.text, note.end_s) for note in store.list()] == [(text, simulated.now_s)]


@pytest.mark.parametrize('kind', ('a folder', 'no database'))
def test_a_file_that_cannot_be_used_is_told_and_the_node_answers(graph, tmp_path, kind):
    path = tmp_path / 'day.db'
    if kind == 'a folder':
        path.mkdir()
    else:
        path.write_bytes(b'This is no database at all. ' * 100)
    live = start(graph, path)
    notes = Notes(graph)
    graph.spin_until(lambda: 'notes: ' in live.log, 'the problem to be told')
    source = Source(graph)
    source.wait_heard()
    source.until_read(FIRST)
    assert notes.call(Ask, question='what shape was shown before?').success
    remembered = notes.call(Remember, text='A cup.')
    assert not remembered.success
    if kind == 'no database':
        assert 'a file of another program' in remembered.reason
        assert path.read_bytes() == b'This is no database at all. ' * 100
