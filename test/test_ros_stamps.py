# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Camera and microphone of different clocks, through the installed nodes: told, and mended."""

import time

import numpy as np
import pytest
from ros_source import RATE_HZ, Source, jpeg, picture_of, sound_of

from minicpmo_ros.msg import AudioEmbedding, ImageEmbedding
from minicpmo_ros.ros.stamps import SKEW_LOOKS, LongChunks, SkewWatch
from minicpmo_ros.streams.time import OTHER

NS = 10**9
WRONG = {
    'since boot': lambda now_ns: time.monotonic_ns() % (10**6 * NS),
    'tai': lambda now_ns: now_ns + 37 * NS,
    'still': lambda now_ns: 1234 * NS,
}


class Live:
    """A camera and a microphone of now, at the pace of real time; one has another clock.

    ahead_s: of the clock of both, another machine's.
    """

    def __init__(self, graph, wrong: str = '', clock=None, ahead_s: float = 0.0):
        self._source, self.wrong, self.clock = Source(graph), wrong, clock
        self._ahead_ns = int(ahead_s * NS)
        self._next_s = time.monotonic()
        self.seconds = {'image': {}, 'audio': {}}  # by input: {second: newest status}
        for kind, name, node in (
            (ImageEmbedding, 'image', 'vision_encoder'),
            (AudioEmbedding, 'audio', 'streaming_encoder'),
        ):
            seconds = self.seconds[name]
            graph.create_subscription(
                kind, f'{node}/embedding',
                lambda m, seconds=seconds: seconds.update({m.second: m.status}), 50,
            )  # fmt: skip
        self._source.wait_heard()

    def play(self) -> None:
        """Publish what is due."""
        while self._next_s <= time.monotonic():
            self._next_s += 0.1
            now_ns = time.time_ns() + self._ahead_ns
            stamps = {'image': now_ns, 'audio': now_ns - NS // 10}
            if self.wrong:
                stamps[self.wrong] = self.clock(stamps[self.wrong])
            self._source.picture(stamps['image'], jpeg(picture_of(now_ns // NS)))
            self._source.sound(stamps['audio'], sound_of(now_ns // NS)[: RATE_HZ // 10])

    def send_clip(self, length_s: int) -> None:
        """Publish silence of this length in one message, stamped now."""
        self._source.sound(time.time_ns(), np.zeros(length_s * RATE_HZ, np.float32))

    def are_together(self, ahead_s: int = 0) -> bool:
        """Say whether one of the newest seconds has both an image and audio."""
        self.play()
        now_s = time.time_ns() // NS + ahead_s
        return any(
            self.seconds['image'].get(s) == self.seconds['audio'].get(s) == 0
            for s in range(now_s - 20, now_s + 1)
        )


def start_apart(graph, model_dir, *arguments):
    common = ('-p', f'model_dir:={model_dir}', *graph.lossless, *arguments)
    processes = {
        'audio': graph.start('streaming_encoder', *common),
        'image': graph.start('vision_encoder', *common),
    }
    graph.start(
        'llm', '-r', 'audio_embedding:=streaming_encoder/embedding',
        '-r', 'image_embedding:=vision_encoder/embedding', *common,
    )  # fmt: skip
    graph.wait_ready()
    return processes


@pytest.mark.parametrize('wrong, clock', [('image', 'since boot'), ('audio', 'tai')])
def test_a_clock_of_its_own_is_told_and_its_input_dated_by_arrival(
    graph, tiny_model_dir, wrong, clock
):
    """In three processes: what the encoders tell each other goes over the graph."""
    processes = start_apart(graph, tiny_model_dir)
    live = Live(graph, wrong, WRONG[clock])
    graph.spin_until(live.are_together, 'a second of both')

    def is_told():
        live.play()
        return f'{wrong}.stamps' in graph.status.clocks

    graph.spin_until(is_told, 'a word on the status')
    assert f'the stamps of the {wrong} input are' in processes[wrong].log
    assert 'the times of arrival are taken' in processes[wrong].log
    assert 'the stamps of' not in processes[OTHER[wrong]].log
    for process in processes.values():
        assert process.end() == 0


def test_stamps_of_now_are_taken_as_they_are(graph, tiny_model_dir):
    process = graph.start('live', '-p', f'model_dir:={tiny_model_dir}', *graph.lossless)
    graph.wait_ready()
    live = Live(graph)
    graph.spin_until(live.are_together, 'a second of both')
    begun_s = max(live.seconds['image'])
    graph.spin_until(
        lambda: live.play() or max(live.seconds['image']) > begun_s + 4, 'four seconds more'
    )
    assert not graph.status.clocks and 'the stamps of' not in process.log
    assert process.end() == 0


def test_a_clock_that_is_to_rule_is_told_and_one_that_is_not_is_not_read(graph, tiny_model_dir):
    process = graph.start(
        'live', '-p', f'model_dir:={tiny_model_dir}', '-p', 'audio.stamps:=arrival',
        '-p', 'image.stamps:=header', *graph.lossless,
    )  # fmt: skip
    graph.wait_ready()
    live = Live(graph, 'audio', WRONG['still'])
    graph.spin_until(live.are_together, 'a second of both')
    assert not graph.status.clocks
    live.wrong, live.clock = 'image', WRONG['tai']
    graph.spin_until(
        lambda: live.play() or 'set image.stamps to arrival' in graph.status.clocks, 'a word'
    )
    assert process.end() == 0


def watched(*offsets_s):
    watch = SkewWatch('audio')
    for offset_s in offsets_s:
        watch.look(int(offset_s * NS))
    return watch.problem


def test_a_clock_that_is_ahead_or_behind_is_told_and_a_recording_is_not():
    assert "ahead of this machine's clock: by 0.7 s" in watched(*[0.7] * SKEW_LOOKS)
    assert "behind this machine's clock: by 0.8 s" in watched(*[-0.8] * SKEW_LOOKS)
    assert not watched(*[0.4] * SKEW_LOOKS) and not watched(*[-0.4] * SKEW_LOOKS)
    assert not watched(*[-86_400.0] * SKEW_LOOKS)


def test_messages_that_are_late_for_a_while_are_no_skew():
    assert not watched(*[0.9] * (SKEW_LOOKS - 1))
    assert not watched(*[-3.0] * (SKEW_LOOKS - 1), -0.1)
    assert not watched(*[-3.0] * (SKEW_LOOKS - 1), -0.1, -3.0)


def test_the_clock_of_another_machine_is_told_and_its_seconds_are_paired(graph, tiny_model_dir):
    process = graph.start('live', '-p', f'model_dir:={tiny_model_dir}', *graph.lossless)
    graph.wait_ready()
    live = Live(graph, ahead_s=2.0)
    graph.spin_until(lambda: live.are_together(2), 'a second of both')

    def is_told():
        live.play()
        return all(f"{name} input are ahead of this machine's clock" in graph.status.clocks
                   for name in ('image', 'audio'))  # fmt: skip

    graph.spin_until(is_told, 'a word on the status')
    assert 'chrony' in graph.status.clocks and graph.status.units_read > 5
    assert 'the times of arrival are taken' not in process.log
    assert process.end() == 0


def test_a_long_chunk_among_others_begins_before_its_stamp():
    """Whatever comes in one message, what follows is not of a time that is over."""
    chunks, now_ns = LongChunks(), 10**6 * NS
    for _ in range(3):
        now_ns += NS // 10
        assert chunks.begin_ns(now_ns - NS // 10, NS // 10, now_ns) == now_ns - NS // 10
    assert chunks.begin_ns(now_ns, 300 * NS, now_ns) == now_ns - 300 * NS


@pytest.mark.parametrize('ahead_s', [-1000, -15, -1, 0, 1, 15])
@pytest.mark.parametrize('length_s', [0.02, 1, 2, 15])
@pytest.mark.parametrize('is_stamped_at_end', [True, False])
def test_a_stream_of_chunks_keeps_its_stamps(ahead_s, length_s, is_stamped_at_end):
    chunks, length_ns = LongChunks(), int(length_s * NS)
    for n in range(10):
        now_ns = 10**6 * NS + n * length_ns
        stamp_ns = now_ns + ahead_s * NS - (0 if is_stamped_at_end else length_ns)
        assert chunks.begin_ns(stamp_ns, length_ns, now_ns) == stamp_ns


def test_one_message_with_seconds_of_audio_leaves_the_robot_its_senses(graph):
    graph.start('live', *graph.lossless)
    live = Live(graph)
    graph.wait_ready()
    graph.spin_until(live.are_together, 'image and audio')
    live.send_clip(60)
    begun_s = time.time()

    def goes_on():
        live.play()
        return min(graph.status.image_end.sec, graph.status.audio_end.sec) > begun_s + 3

    graph.spin_until(goes_on, 'image and audio of now')
    told = [(each.window_end.sec, each.header.stamp.sec) for each in graph.statuses]
    assert all(end_s <= now_s + 1 for end_s, now_s in told), told
