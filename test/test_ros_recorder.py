# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A recorder whose disk is full goes on, and its bag can be read; the newest seconds are saved."""

import os
import resource
from itertools import count
from pathlib import Path

from audio_common_msgs.msg import AudioData
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from ros_source import DEEP, SimulatedTime, Source, jpeg, picture_of, sound_of, time_of
from rosbags.highlevel import AnyReader
from sensor_msgs.msg import CompressedImage

from minicpmo_ros.evaluation.bags import writing
from minicpmo_ros.evaluation.bags.bags import Bag
from minicpmo_ros.evaluation.bags.clip import AUDIO_INFO, IMAGE
from minicpmo_ros.evaluation.bags.clip_reading import read_clip
from minicpmo_ros.evaluation.bags.writing import Recording
from minicpmo_ros.evaluation.questions import QuestionSet
from minicpmo_ros.evaluation.runner import Core, CoreOptions, Variant, answer_all
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.msg import SpeakerState
from minicpmo_ros.ros.audio_input import PACKAGE
from minicpmo_ros.ros.voice.self_speech import STATE_QOS
from minicpmo_ros.srv import SaveBag

ROOT = Path(__file__).parents[1]


def limit_files(pid: int, size: int) -> None:
    """Let a process write no file beyond a size, which is to it a disk that is full."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def test_a_recorder_on_a_full_disk_goes_on_and_its_bag_can_be_read(graph, tmp_path):
    bag = tmp_path / 'bag.mcap'
    process = graph.start('recorder', '-p', f'bag:={bag}', '-p', 'inputs:=true')
    camera = graph.create_publisher(CompressedImage, 'image/compressed', 10)
    graph.spin_until(camera.get_subscription_count, 'the recorder')
    message, stamps = CompressedImage(format='jpeg'), count(1)
    message.data.frombytes(jpeg(picture_of(1)))
    room = 12 * len(message.data)

    def show():
        message.header.stamp = time_of(next(stamps) * 10**9)
        camera.publish(message)

    graph.spin_until(lambda: show() or bag.stat().st_size > room, 'some messages')
    limit_files(process.popen.pid, bag.stat().st_size + len(message.data) // 2)
    graph.spin_until(lambda: show() or 'nothing more can be written' in process.log, 'the words')
    assert 'the largest size that is allowed' in process.log and process.is_running
    before = len(list(Bag(bag).messages((IMAGE,))))
    assert before >= 10
    limit_files(process.popen.pid, resource.RLIM_INFINITY)
    graph.spin_until(lambda: show() or 'recording goes on; 0 messages' in process.log, 'room')
    assert process.end() == 0 and 'Traceback' not in process.log
    whole = Bag(bag)
    assert len(list(whole.messages((IMAGE,)))) > before and not whole.losses


def test_what_does_not_fit_waits_then_is_lost_and_the_file_stays_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, 'MOST_WAITING', 1000)
    path, real = tmp_path / 'bag.mcap', os.pwrite
    bag, is_full = Recording(path, {}), []

    def pwrite(number, data, at):
        if is_full:
            real(number, data[: len(data) // 2], at)
            raise OSError(28, 'No space left on device')
        return real(number, data, at)

    monkeypatch.setattr(os, 'pwrite', pwrite)
    bag.write('/a', IMAGE, 10**9, bytes(400))
    is_full.append(True)
    refused = 0
    for second in range(2, 10):
        try:
            bag.write('/a', IMAGE, second * 10**9, bytes(400))
        except OSError:
            refused += 1
    assert refused == 8 and bag.lost == 6 and bag.waiting
    assert len(list(Bag(path).messages((IMAGE,)))) == 1
    is_full.clear()
    bag.write('/a', IMAGE, 10 * 10**9, bytes(400))
    bag.close()
    whole = Bag(path)
    assert len(list(whole.messages((IMAGE,)))) == 4 and not whole.losses and bag.lost == 6


class Saving:
    """The service of a recorder."""

    def __init__(self, graph):
        self._graph, self._client = graph, graph.create_client(SaveBag, 'recorder/save_bag')
        graph.spin_until(self._client.service_is_ready, 'the service')

    def begin(self, path, seconds=0.0):
        return self._client.call_async(SaveBag.Request(path=str(path), seconds=seconds))

    def __call__(self, path, seconds=0.0):
        return self._graph.result_of(self.begin(path, seconds), 'the bag')


class Camera:
    """Shows numbered images of a size; the number is the stamp, in seconds."""

    def __init__(self, graph, size):
        self._message = CompressedImage(format='jpeg')
        self._message.data.frombytes(bytes(size))
        qos = QoSProfile(depth=256)
        self._publisher = graph.create_publisher(CompressedImage, 'image/compressed', qos)
        self.count = 0
        graph.spin_until(self._publisher.get_subscription_count, 'the recorder')

    def show(self, n=1):
        for _ in range(n):
            self.count += 1
            self._message.header.stamp = time_of(self.count * 10**9)
            self._publisher.publish(self._message)


def numbers(path) -> list:
    """Give the numbers of a Camera's images in a bag, with another program's reader."""
    with AnyReader([path]) as reader:
        connections = [c for c in reader.connections if c.msgtype == IMAGE]
        rows = reader.messages(connections)
        return [reader.deserialize(data, IMAGE).header.stamp.sec for _, _, data in rows]


def test_the_newest_seconds_are_saved_while_messages_come_and_none_is_lost(graph, tmp_path):
    whole = tmp_path / 'whole.mcap'
    recorder = graph.start(
        'recorder', '-p', 'keep_s:=600.0', '-p', f'bag:={whole}', '-p', 'inputs:=true'
    )
    save, camera = Saving(graph), Camera(graph, 100_000)
    refused = save(tmp_path / 'empty.mcap')
    assert not refused.success and 'Nothing has come in the last 600 s' in refused.reason
    graph.spin_until(lambda: camera.show() or camera.count == 100, 'some images')
    futures = [save.begin(tmp_path / f'{n}.mcap') for n in range(2)]
    graph.spin_until(lambda: camera.show() or all(f.done() for f in futures), 'the bags')
    replies = [future.result() for future in futures]
    done = [reply for reply in replies if reply.success]
    assert done and all('A bag is being written' in r.reason for r in replies if not r.success)
    first = numbers(tmp_path / f'{replies.index(done[0])}.mcap')
    assert first == list(range(1, len(first) + 1)) and len(first) >= 100
    assert done[0].messages == len(first) and done[0].begin.sec > 0 and not done[0].reason
    during = camera.count - len(first)
    camera.show(20)

    def is_there():
        path = tmp_path / f'then_{len(list(tmp_path.iterdir()))}.mcap'
        assert save(path).success
        return numbers(path) == list(range(1, camera.count + 1))

    graph.spin_until(is_there, f'all images, {during} of them shown while a bag was written')
    assert recorder.end() == 0 and 'Traceback' not in recorder.log
    assert numbers(whole) == list(range(1, camera.count + 1))


def test_a_camera_that_comes_again_and_offers_less_is_recorded_again(graph, tmp_path):
    bag, message = tmp_path / 'bag.mcap', CompressedImage(format='jpeg')
    recorder = graph.start('recorder', '-p', f'bag:={bag}', '-p', 'inputs:=true')
    message.data.frombytes(bytes(2**20))
    for number, policy in enumerate(('RELIABLE', 'BEST_EFFORT', 'RELIABLE'), 1):
        qos = QoSProfile(depth=5, reliability=QoSReliabilityPolicy[policy])
        camera = graph.create_publisher(CompressedImage, 'image/compressed', qos)
        graph.spin_until(camera.get_subscription_count, f'camera {number}, {policy}')
        message.header.stamp = time_of(number * 10**9)

        def is_recorded(camera=camera, number=number):
            camera.publish(message)
            # Not how large it is: what was published before may come late.
            found = Bag(bag).messages() if bag.stat().st_size else ()
            return number in {int.from_bytes(m.data[4:8], 'little') for m in found}

        graph.spin_until(is_recorded, 'its image')
        graph.destroy_publisher(camera)
    assert recorder.end() == 0
    assert set(numbers(bag)) == {1, 2, 3}


def test_the_images_of_all_cameras_are_recorded_that_are_named(graph, tmp_path):
    bag, message = tmp_path / 'bag.mcap', CompressedImage(format='jpeg')
    message.data.frombytes(jpeg(picture_of(1)))
    graph.start(
        'recorder', '-p', f'bag:={bag}', '-p', 'inputs:=true', '-p', 'cameras:=[front, left]'
    )
    topics = {graph.resolve_topic_name(f'{name}/image/compressed') for name in ('front', 'left')}
    cameras = [graph.create_publisher(CompressedImage, name, 10) for name in topics]

    def are_recorded():
        for camera in cameras:
            camera.publish(message)
        found = Bag(bag).messages() if bag.exists() and bag.stat().st_size else ()
        return {m.topic for m in found} >= topics

    graph.spin_until(are_recorded, 'images of both')


def test_a_bag_tells_when_the_robot_itself_spoke(graph, tmp_path):
    """Or who plays it would hear what the robot did not."""
    bag, topic = tmp_path / 'bag.mcap', graph.resolve_topic_name('speaker/state')
    states = graph.create_publisher(SpeakerState, 'speaker/state', STATE_QOS)
    states.publish(SpeakerState(speaking=True, id='llm-0'))
    recorder = graph.start('recorder', '-p', f'bag:={bag}', '-p', 'inputs:=true')
    graph.spin_until(states.get_subscription_count, 'the recorder')
    states.publish(SpeakerState(speaking=False, id='llm-0'))
    told = [topic] * 2
    graph.spin_until(
        lambda: bag.stat().st_size and [m.topic for m in Bag(bag).messages()] == told, 'both'
    )
    assert recorder.end() == 0
    with AnyReader([bag]) as reader:
        read = [reader.deserialize(data, c.msgtype) for c, _, data in reader.messages()
                if c.topic == topic]  # fmt: skip
    assert [state.speaking for state in read] == [True, False]


def test_a_microphone_that_comes_again_as_another_type_is_recorded_as_that(graph, tmp_path):
    bag = tmp_path / 'bag.mcap'
    recorder = graph.start('recorder', '-p', f'bag:={bag}', '-p', 'inputs:=true')
    source = Source(graph)
    source.wait_heard(image=False)
    source.sound(10**9, sound_of(1))
    graph.spin_until(lambda: bag.stat().st_size > 32_000, 'the first sound in the bag')
    graph.destroy_publisher(source.audio)
    plain = graph.create_publisher(AudioData, 'audio', DEEP)
    graph.spin_until(plain.get_subscription_count, 'the recorder of the other type')
    message, before = AudioData(), bag.stat().st_size
    message.data.frombytes(bytes(32_000))

    def is_recorded():
        plain.publish(message)
        return bag.stat().st_size > before

    graph.spin_until(is_recorded, 'its sound')
    assert recorder.end() == 0
    with AnyReader([bag]) as reader:
        kinds = {each.msgtype for each in reader.connections if each.topic.endswith('/audio')}
        read = [reader.deserialize(data, c.msgtype) for c, _, data in reader.messages()]
    sounds = [getattr(each, 'audio', each) for each in read if type(each).__msgtype__ in kinds]
    assert kinds == {f'{PACKAGE}AudioData', f'{PACKAGE}AudioDataStamped'}
    assert {len(each.data) for each in sounds} == {32_000}


def test_the_format_of_the_audio_is_in_the_bag_although_it_came_once_and_long_ago(graph, tmp_path):
    graph.start('recorder', '-p', 'keep_s:=1.0')
    save, source, camera = Saving(graph), Source(graph), Camera(graph, 100)
    first = graph.spin_until(
        lambda: camera.show() or (one := save(tmp_path / f'{camera.count}.mcap')).success and one,
        'a bag',
    )

    def is_long_ago():
        camera.show()
        path = tmp_path / f'later_{camera.count}.mcap'
        reply = save(path)
        return reply.success and reply.begin.sec > first.end.sec + 2 and path

    bag = Bag(graph.spin_until(is_long_ago, 'a bag without the first seconds'))
    messages = list(bag.messages())
    assert [m.log_ns for m in bag.messages((AUDIO_INFO,))] == [messages[0].log_ns]
    graph.destroy_publisher(source.info)


def test_what_comes_before_simulated_time_is_recorded_when_that_begins(graph, tmp_path):
    whole = tmp_path / 'whole.mcap'
    recorder = graph.start(
        'recorder', '-p', 'use_sim_time:=true', '-p', 'keep_s:=600.0', '-p', f'bag:={whole}',
        '-p', 'inputs:=true',
    )  # fmt: skip
    save, source, camera = Saving(graph), Source(graph), Camera(graph, 100)
    source.wait_heard(image=False, audio=False)
    camera.show()
    graph.spin_until(lambda: 'nothing is recorded yet: /clock is' in recorder.log, 'the words')
    early = save(tmp_path / 'early.mcap')
    assert not early.success and 'No bag is written: /clock is missing' in early.reason
    simulated = SimulatedTime(graph)
    path = tmp_path / 'saved.mcap'
    simulated.until(lambda: path.exists() or save(path).messages >= 2, 'the bag')
    assert recorder.end() == 0 and 'Traceback' not in recorder.log
    for bag in (Bag(path), Bag(whole)):
        times = {m.log_ns for kind in (AUDIO_INFO, IMAGE) for m in bag.messages((kind,))}
        assert times == {simulated.now_s * 10**9}


def test_a_single_wrong_time_of_the_clock_costs_nothing_that_is_kept(graph, tmp_path):
    recorder = graph.start('recorder', '-p', 'use_sim_time:=true', '-p', 'keep_s:=600.0')
    save, camera, simulated = Saving(graph), Camera(graph, 100), SimulatedTime(graph)
    bags = (tmp_path / f'{number}.mcap' for number in count())

    def saved():
        path = next(bags)
        return numbers(path) if save(path).success else []

    camera.show(10)
    simulated.until(lambda: len(saved()) == 10, 'the images')
    simulated.now_s += 10**6
    simulated.until(lambda: not saved(), 'the wrong time')  # of its last 600 s there is nothing
    simulated.now_s -= 10**6
    simulated.until(lambda: saved() == list(range(1, 11)), 'what was kept before')
    assert recorder.end() == 0 and 'time went back' not in recorder.log


def test_memory_is_bounded_and_the_bag_says_what_had_no_room(graph, tmp_path):
    recorder = graph.start('recorder', '-p', 'keep_s:=600.0', '-p', 'keep_mib:=1')
    save, camera = Saving(graph), Camera(graph, 100_000)
    path = tmp_path / 'fall.mcap'
    graph.spin_until(lambda: camera.show() or camera.count == 50, 'images')
    graph.spin_until(lambda: save(tmp_path / f'{camera.show()}{camera.count}.mcap').messages == 10,
                     'as many as there is room for')  # fmt: skip
    reply = save(path)
    found = numbers(path)
    assert reply.success and 'no room in keep_mib (1). Raise it.' in reply.reason
    assert len(found) == 10 and found == list(range(found[0], found[0] + 10))
    assert path.stat().st_size < 1.1 * 2**20
    few = save(tmp_path / 'few.mcap', seconds=1e-3)
    assert not few.success and 'in the last 0.001 s' in few.reason
    assert recorder.is_running and not list(tmp_path.glob('few*'))


def test_what_keeps_a_bag_from_being_written_is_told_and_the_recorder_goes_on(graph, tmp_path):
    recorder = graph.start('recorder', '-p', 'keep_s:=600.0')
    save, camera = Saving(graph), Camera(graph, 100_000)
    graph.spin_until(lambda: camera.show() or camera.count == 10, 'images')
    there = tmp_path / 'there.mcap'
    there.write_bytes(b'mine')
    for path, why in ((there, 'it is there already'), (tmp_path / 'no' / 'a.mcap', 'folder that'),
                      ('a.mcap', 'an absolute one')):  # fmt: skip
        reply = save(path)
        assert not reply.success and why in reply.reason, reply
    for wrong in (-1.0, float('nan'), float('inf')):
        assert 'seconds is' in save(tmp_path / 'a.mcap', wrong).reason
    limit_files(recorder.popen.pid, 150_000)
    reply = save(tmp_path / 'full.mcap')
    assert not reply.success and 'the messages are still kept' in reply.reason
    limit_files(recorder.popen.pid, resource.RLIM_INFINITY)
    assert there.read_bytes() == b'mine' and not (tmp_path / 'full.mcap').exists()
    reply = save(tmp_path / 'full.mcap')
    assert reply.success and reply.messages >= 1
    assert recorder.end() == 0 and 'Traceback' not in recorder.log


def test_a_bag_of_what_was_played_live_gives_the_answers_of_its_source(graph, tmp_path):
    source, path = ROOT / 'demo' / 'clips' / '002.mcap', tmp_path / '002.mcap'
    graph.start('recorder', '-p', 'keep_s:=600.0')
    save = Saving(graph)
    player = graph.start(
        'media_player', '-p', f'file:={source}', '-p', 'stamps:=recorded', '-p', 'rate:=4.0', '-p',
        'wait_for_subscribers:=true', '-p', 'exit_at_end:=true',
    )  # fmt: skip
    graph.spin_until(lambda: not player.is_running, 'the end of the clip')
    reply = save(path)
    assert reply.success, reply.reason
    clips = [read_clip(file) for file in (source, path)]
    seen = [[(image.stamp_ns, image.compressed()[1]) for image in clip.images] for clip in clips]
    assert seen[0] == seen[1] and len(seen[0]) == 4
    given = []
    for file in (source, path):
        core = Core(ModelDirectory.open(ROOT / 'models' / 'nano'), CoreOptions(threads=1))
        questions = QuestionSet.read(ROOT / 'demo' / 'clips' / 'questions.json', bag=file)
        (answers,) = answer_all(core, questions, [Variant()])
        core.close()
        given.append(answers.answers)
    assert given[0] == given[1] and len(set(given[0].values())) > 2
