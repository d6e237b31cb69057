# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Simulated time, pauses, loops and clocks that disagree, through the installed executables.

`ros2 bag play --clock` comes with a ROS 2 distribution only; here media_player stands for it with
`stamps:=recorded publish_clock:=true`: a bag's own stamps, which go back where it loops, and
/clock beside them.
"""

import time

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from ros_source import FIRST, SimulatedTime, Source, jpeg, picture_of, sound_of
from rosgraph_msgs.msg import Clock
from std_srvs.srv import SetBool

from minicpmo_ros.evaluation.bags.media_source import open_source
from minicpmo_ros.evaluation.bags.writing import write_clip
from minicpmo_ros.msg import AudioEmbedding, ImageEmbedding
from minicpmo_ros.ros.playback.player import rechunked, to_s16

NS = 10**9
SECONDS = 3
APART_S = 4  # what comes so much later is no jump of the stamps
CHUNK_MS = 100
JUMP = 'Time jumped backwards; the window was cleared.'
# Units wait for their halves however busy the machine is: this is about stamps, not about speed.
PATIENT = ('-p', 'unit_deadline:=30.0')
SIMULATED = ('-p', 'use_sim_time:=true')


@pytest.fixture
def bag(tmp_path):
    """Give a bag of three seconds: four pictures each, and sound in pieces of 100 ms."""
    pictures = [(i * NS // 4, jpeg(picture_of(10 * (i // 4) + i % 4))) for i in range(4 * SECONDS)]
    sound = np.concatenate([sound_of(second) for second in range(SECONDS)])
    write_clip(tmp_path / 'clip.mcap', FIRST, pictures, sound)
    return tmp_path / 'clip.mcap'


class Embeddings:
    """What the two encoders publish."""

    def __init__(self, graph):
        self._graph, self.seen, self.heard = graph, [], []
        graph.create_subscription(ImageEmbedding, 'vision_encoder/embedding', self.seen.append, 50)
        graph.create_subscription(
            AudioEmbedding, 'streaming_encoder/embedding', self.heard.append, 50
        )

    def take(self, first=FIRST) -> tuple:
        """Wait for the whole bag, give it without seconds that had no input, and forget it."""

        def given(messages):
            return [m for m in messages if m.status != m.EMPTY and m.second >= first]

        taken = []
        for messages in (self.seen, self.heard):
            self._graph.spin_until(lambda ms=messages: len(given(ms)) >= SECONDS, 'embeddings')
            taken.append(given(messages)[:SECONDS])
            messages.clear()
        return tuple(taken)


def start_live(graph, model_dir, *arguments):
    process = graph.start(
        'live', '-p', f'model_dir:={model_dir}', *PATIENT, *graph.lossless, *arguments
    )
    graph.wait_ready()
    return process


def start_apart(graph, model_dir, *arguments):
    """Start the three nodes as three processes, remapped as the launch file does."""
    common = ('-p', f'model_dir:={model_dir}', *PATIENT, *graph.lossless, *arguments)
    graph.start('streaming_encoder', *common)
    graph.start('vision_encoder', *common)
    graph.start(
        'llm', '-r', 'audio_embedding:=streaming_encoder/embedding',
        '-r', 'image_embedding:=vision_encoder/embedding', *common,
    )  # fmt: skip
    graph.wait_ready()


def window(status) -> tuple:
    return status.units, status.window_start.sec, status.window_end.sec


WHOLE = (SECONDS, FIRST, FIRST + SECONDS)


def play_in_lock_step(graph, source, bag, embeddings=None) -> int:
    """Publish what the player would, second by second, each when the one before was read.

    Return its first second. embeddings: of nodes that must find each other first, and that shall
    forget what they saw until then.
    """
    media, first = open_source(str(bag)), FIRST
    pictures = list(media.images)
    chunks = list(rechunked(media.audio, media.rate_hz, CHUNK_MS))
    # It stands still: however long a busy machine takes, no second is given up for silence.
    simulated = SimulatedTime(graph)
    simulated.wait_known()
    if embeddings:
        first = source.until_read(FIRST, simulated) + APART_S
        assert graph.reset().success
        embeddings.seen.clear(), embeddings.heard.clear()
    read_before = graph.status.units_read
    for second in range(SECONDS):
        for offset_ns, _, data in pictures:
            if offset_ns // NS == second:
                source.picture(first * NS + offset_ns, data)
        for offset_ns, samples in chunks:
            if offset_ns // NS == second:
                source.raw_sound(first * NS + offset_ns, to_s16(samples).tobytes())
        simulated.until(
            lambda second=second: graph.status.units_read - read_before >= second, 'a second'
        )
    simulated.now_s += 2  # of silence, in which the last one ends
    whole = (SECONDS, first, first + SECONDS)
    simulated.until(lambda: window(graph.status) == whole, 'the whole window')
    simulated.close()
    return first


def start_player(graph, bag, *arguments):
    return graph.start(
        'media_player', '-p', f'file:={bag}', '-p', 'wait_for_subscribers:=true', '-p',
        f'chunk_ms:={CHUNK_MS}', '-p', 'stamps:=recorded', *arguments,
    )  # fmt: skip


def facts(messages, first=FIRST) -> list:
    """Give what must not depend on how quickly something was played, with seconds from `first`."""
    found = []
    for message in messages:
        if message.tokens:
            stamp = getattr(message, 'picture_stamp', message.header.stamp)
            found.append((message.second - first, stamp.sec - first, stamp.nanosec,
                          bytes(message.data)))  # fmt: skip
    return found


def test_a_bag_gives_the_window_of_the_lock_step_run_at_every_rate_and_in_a_loop(
    graph, tiny_model_dir, bag
):
    process = start_live(graph, tiny_model_dir, *SIMULATED)
    embeddings, source = Embeddings(graph), Source(graph)
    source.wait_heard()
    play_in_lock_step(graph, source, bag)
    seen, heard = map(facts, embeddings.take())
    assert len(seen) == len(heard) == SECONDS

    # Each run begins earlier than the one before has ended: the streams start anew.
    for jumps, (rate, loop) in enumerate(((0.5, False), (1.0, False), (2.0, True)), 1):
        before, read_before = len(graph.statuses), graph.status.units_read
        player = start_player(
            graph, bag, '-p', f'rate:={rate}', '-p', 'publish_clock:=true', '-p',
            f'loop:={str(loop).lower()}',
        )  # fmt: skip
        whole = graph.spin_until(
            lambda n=before, read=read_before: [
                status
                for status in graph.statuses[n:]
                if status.units_read >= read + SECONDS and window(status) == WHOLE
            ],
            f'the window at rate {rate}',
        )
        assert whole[0].late == 0
        seen_now, heard_now = map(facts, embeddings.take())
        # On a busy machine a picture may be OVERLOADED; sound and stamps may not.
        assert heard_now == heard and all(picture in seen for picture in seen_now)
        if not loop:  # where the next turn may take the place of this one's last second
            assert whole[0].units_read == read_before + SECONDS
            assert process.log.count(JUMP) == jumps
            assert player.end() == 0

    def is_refilled():
        windows = [window(status) for status in graph.statuses[graph.statuses.index(whole[0]) :]]
        begun = [n for n, (units, *_) in enumerate(windows) if units < SECONDS]
        return begun and WHOLE in windows[begun[0] :]

    graph.spin_until(is_refilled, 'the window after the loop')
    graph.spin_until(lambda: process.log.count(JUMP) > jumps, 'the loop to be told')
    assert graph.status.late == 0
    reply = graph.ask('What do you see?', max_tokens=4)
    assert reply.success and reply.answer.units
    assert graph.status.late == graph.status.units_dropped == graph.status.refused == 0


def test_a_clock_that_stands_still_pauses_the_stream(graph, tiny_model_dir):
    process = start_live(graph, tiny_model_dir, *SIMULATED)
    embeddings, source = Embeddings(graph), Source(graph)
    source.wait_heard()
    simulated = SimulatedTime(graph)
    simulated.wait_known()
    source.second(FIRST)
    source.second(FIRST + 1)
    simulated.until(lambda: graph.status.units_read == 1, 'the first second')
    # Nothing must happen here, so there is nothing to wait for but time: more than the steady
    # clock would need to give a second up.
    paused_s = time.monotonic()
    simulated.until(lambda: time.monotonic() - paused_s > 2.0, 'a pause')
    assert [m.second for m in embeddings.seen + embeddings.heard] == [FIRST, FIRST]
    source.second(FIRST + 2)
    simulated.until(lambda: graph.status.units_read == 2, 'the second before the pause')
    simulated.now_s += 2
    simulated.until(lambda: graph.status.units_read == 3, 'the last second')
    simulated.until(
        lambda: len(embeddings.heard) >= 4 and len(embeddings.seen) >= 4, 'a second of silence'
    )
    for messages in (embeddings.seen, embeddings.heard):
        assert [(m.second - FIRST, m.status) for m in messages[:4]] == [
            (0, 0), (1, 0), (2, 0), (3, AudioEmbedding.EMPTY),
        ]  # fmt: skip
    assert window(graph.status) == WHOLE and JUMP not in process.log


def test_what_was_paused_goes_on_in_its_window(graph, tiny_model_dir, bag):
    """Without simulated time seconds go by empty meanwhile; they are taken back."""
    process = start_live(graph, tiny_model_dir)
    embeddings = Embeddings(graph)
    start_player(graph, bag)
    pause = graph.create_client(SetBool, 'media_player/pause')
    graph.spin_until(lambda: embeddings.heard and embeddings.seen, 'the first second')
    graph.spin_until(pause.service_is_ready, 'the pause')
    assert graph.result_of(pause.call_async(SetBool.Request(data=True)), 'the pause').success
    graph.spin_until(
        lambda: all(
            sum(not m.tokens for m in ms) > 1 for ms in (embeddings.seen, embeddings.heard)
        ),
        'seconds without anything',
    )
    assert graph.result_of(pause.call_async(SetBool.Request(data=False)), 'going on').success
    graph.spin_until(lambda: window(graph.status) == WHOLE, 'the whole window')
    assert JUMP not in process.log


def test_one_process_and_three_give_the_same(graph, tiny_model_dir, bag):
    embeddings, source = Embeddings(graph), Source(graph)
    given = []
    for start in (start_live, start_apart):
        start(graph, tiny_model_dir, *SIMULATED)
        source.wait_heard()
        first = play_in_lock_step(graph, source, bag, embeddings)
        reply = graph.ask('What do you hear?', max_tokens=8)
        assert reply.success, reply.reason
        seen, heard = embeddings.take(first)
        answer = reply.answer
        given.append((
            facts(seen, first), facts(heard, first), answer.text, answer.window_start.sec - first,
            answer.window_end.sec - first, answer.units, answer.prompt_tokens,
        ))  # fmt: skip
        for process in graph.processes:
            process.end()
        graph.forget_statuses()
    assert given[0] == given[1]


def test_of_publishers_on_one_topic_the_copy_and_the_stranger_change_nothing(
    graph, tiny_model_dir
):
    process = graph.start(
        'streaming_encoder', '-p', f'model_dir:={tiny_model_dir}', *graph.lossless
    )
    embeddings = Embeddings(graph)
    source = Source(graph)  # one for all, or their messages could come in any order
    source.wait_heard(image=False)
    for i in range(12):
        part = sound_of(0)[i % 4 * 4000 :][:4000]
        for begin in (FIRST, 5, FIRST):  # one lives in 1970
            source.sound(begin * NS + i * NS // 4, part)
    graph.spin_until(
        lambda: {m.second - FIRST for m in embeddings.heard if m.tokens} >= {0, 1}, 'two seconds'
    )
    seconds = [m.second for m in embeddings.heard]
    assert min(seconds[: seconds.index(FIRST + 1) + 1]) == FIRST
    graph.spin_until(lambda: 'two publishers' in process.log, 'the warning')


def test_a_camera_whose_stamps_stand_still_is_seen_on(graph, tiny_model_dir):
    process = graph.start('vision_encoder', '-p', f'model_dir:={tiny_model_dir}', *graph.lossless)
    embeddings, source = Embeddings(graph), Source(graph)
    source.wait_heard(audio=False)

    def show():
        source.picture(FIRST * NS + 1, jpeg(picture_of(len(embeddings.seen))))

    def shown():
        return [m.second - FIRST for m in embeddings.seen if m.tokens]

    # On a busy machine no picture may arrive in one of the seconds.
    graph.spin_until(lambda: len(shown()) >= 3 or show(), 'three seconds')
    assert shown()[0] == 0 and (np.diff(shown()) > 0).all()
    assert 'stand still' in process.log


def test_bursts_gaps_and_rare_pictures_give_every_second_once(graph, tiny_model_dir):
    """240 Hz, then nothing for 5 s, then a burst at 30 Hz, then one picture in 9 s."""
    # Of a burst the middleware holds all, however busy the machine is.
    depth = f'qos_overrides.{graph.namespace}/image/compressed.subscription.depth:=300'
    start_live(graph, tiny_model_dir, *SIMULATED, '-p', depth)
    embeddings, source = Embeddings(graph), Source(graph)
    source.wait_heard()
    simulated = SimulatedTime(graph)
    simulated.wait_known()

    def until_over(second):
        simulated.until(
            lambda: embeddings.seen and embeddings.seen[-1].second - FIRST == second, 'a second'
        )

    def show(*offsets_s):
        """Show pictures; the last one, alone in its second, ends the one before: all are read."""
        for offset_s in offsets_s:
            source.picture(FIRST * NS + int(offset_s * NS), jpeg(picture_of(int(offset_s))))
        until_over(int(offsets_s[-1]) - 1)

    def show_nothing_for(passed_s, over):
        simulated.now_s += passed_s
        until_over(over)

    show(*(i / 240 for i in range(241)))
    show_nothing_for(5, over=4)  # a second is given up half a second after its end
    show(*(6 + i / 30 for i in range(61)))
    show_nothing_for(9, over=15)
    show(17.5)
    show_nothing_for(2.5, over=18)
    seen = {m.second - FIRST: m for m in embeddings.seen}
    assert list(seen) == [m.second - FIRST for m in embeddings.seen] == list(range(19))
    assert [n for n, m in seen.items() if m.status == ImageEmbedding.EMPTY] == [
        n for n in range(19) if n not in (0, 1, 6, 7, 8, 17)
    ]
    # Of 6 and 7 at once, the newer.
    assert all(seen[n].tokens for n in (0, 7, 8, 17))
    assert seen[0].picture_stamp.nanosec == int(239 / 240 * NS)


def test_sound_without_stamps_follows_simulated_time_back(graph, tiny_model_dir):
    graph.start(
        'streaming_encoder', '-p', f'model_dir:={tiny_model_dir}', *SIMULATED, *graph.lossless
    )
    embeddings, source = Embeddings(graph), Source(graph)
    source.wait_heard(image=False)
    simulated = SimulatedTime(graph)
    for now_s in (900, 100):
        simulated.now_s = now_s

        def is_heard(now_s=now_s):
            source.sound(0, sound_of(0)[:1600])
            return any(m.tokens and now_s <= m.second < now_s + 100 for m in embeddings.heard)

        simulated.until(is_heard, f'a second after {now_s}')


def test_a_clock_that_never_comes_is_missing_in_log_and_diagnostics(graph, tiny_model_dir):
    found = {}

    def hear(array):
        found.update({status.name: status for status in array.status})

    graph.create_subscription(DiagnosticArray, '/diagnostics', hear, 50)
    process = graph.start('live', '-p', f'model_dir:={tiny_model_dir}', '-p', 'use_sim_time:=true')

    def told():
        own = [s for name, s in found.items() if name.startswith(graph.namespace[1:])]
        return [s for s in own if '/clock is missing' in s.message]

    graph.spin_until(lambda: len(told()) == 3, 'three nodes that say so')
    assert process.log.count('/clock is missing') == 3 and 'nobody publishes it' in process.log
    clock = graph.create_publisher(Clock, '/clock', 10)
    now = Clock()
    now.clock.sec = 5

    def tick():
        clock.publish(now)
        return not told()

    graph.spin_until(tick, 'three nodes whose time runs')
