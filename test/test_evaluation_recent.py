# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Messages kept in memory: the newest, within time and bytes, and a bag of them that is whole."""

import os
import random

import pytest
from rosbags.highlevel import AnyReader

from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.bags.bags import Bag
from minicpmo_ros.evaluation.bags.clip import AUDIO_INFO, IMAGE
from minicpmo_ros.evaluation.bags.recent import (
    OVERHEAD_BYTES,
    KeptMessage,
    RecentMessages,
    write_bag,
)
from minicpmo_ros.units import NS

ROOM = 100_000


def image(at_s, size=100):
    return KeptMessage('/image', IMAGE, int(at_s * NS), bytes(size))


def info(at_s):
    return KeptMessage('/audio_info', AUDIO_INFO, int(at_s * NS), bytes(8), holds=True)


def pass_time(recent, begin_s, end_s):
    """Let time pass in which nothing comes."""
    for half in range(round(2 * (end_s - begin_s)) + 1):
        recent.expire(int((begin_s + half / 2) * NS))


@pytest.mark.parametrize('seed', range(5))
def test_the_newest_are_kept_within_time_and_bytes(seed):
    draw, recent, now_s = random.Random(seed), RecentMessages(10, ROOM), 1000.0
    came = []
    for _ in range(2000):
        for _ in range(18 if draw.random() < 0.01 else 0):  # a silence, as the recorder looks
            now_s += 0.5
            recent.expire(int(now_s * NS))
        now_s += draw.choice((0.0, 0.01, 0.3, 0.3, 0.1))
        came.append(image(now_s, draw.choice((0, 100, 5000, 40_000))))
        assert recent.add(came[-1]) == ''
        found = recent.since()
        young = [m for m in came if m.log_ns >= came[-1].log_ns - 10 * NS]
        size = sum(len(m.data) + OVERHEAD_BYTES for m in found)
        assert size == recent.size_bytes <= ROOM
        assert found == came[-len(found) :] and len(found) <= len(young)
        if len(found) < len(young):  # for want of room only
            assert size + len(young[-len(found) - 1].data) + OVERHEAD_BYTES > ROOM
            assert recent.lacks(young[0].log_ns)
        middle_ns = came[-1].log_ns - 5 * NS
        assert recent.since(middle_ns) == [m for m in found if m.log_ns >= middle_ns]
    pass_time(recent, now_s, now_s + 11)
    assert recent.since() == [] and recent.size_bytes == 0


def test_what_holds_until_the_next_one_is_there_however_old_it_is():
    recent = RecentMessages(10, ROOM)
    for message in (info(1), info(2), image(3)):
        recent.add(message)
    for second in range(100, 130):
        recent.add(image(second))
    first, *rest = recent.since()
    assert (first.topic, first.data, first.log_ns) == ('/audio_info', bytes(8), 119 * NS)
    assert [m.log_ns for m in rest] == [second * NS for second in range(119, 130)]
    recent.add(info(130))
    recent.add(image(131))
    first, second = recent.since(131 * NS)  # the newest of them that is older, and only that
    assert (first.topic, second.topic) == ('/audio_info', '/image') and first.log_ns == 131 * NS
    assert len([m for m in recent.since() if m.holds]) == 2
    pass_time(recent, 131, 1000)
    assert recent.since() == [] and recent.size_bytes == info(0).size_bytes
    recent.add(image(1000))
    assert [m.topic for m in recent.since()] == ['/audio_info', '/image']


def test_one_that_is_larger_than_all_the_room_is_told_and_costs_no_other():
    recent = RecentMessages(10, ROOM)
    recent.add(image(1))
    told = recent.add(image(2, ROOM))
    assert 'is not kept' in told and 'Raise keep_mib' in told and recent.refused == 1
    assert [m.log_ns for m in recent.since()] == [NS]
    held = KeptMessage('/map', IMAGE, 3 * NS, bytes(ROOM - 600), holds=True)
    recent.add(held)
    recent.add(image(4, 5000))  # what is held has no right to all of the room either
    assert recent.size_bytes <= ROOM and recent.since()[-1] == image(4, 5000)


def test_times_that_go_back_begin_anew_and_small_corrections_do_not():
    recent = RecentMessages(10, ROOM)
    for message in (info(100), image(101), image(100.5)):
        assert recent.add(message) == ''
    assert [m.log_ns for m in recent.since()] == [100 * NS, 101 * NS, 101 * NS]
    assert 'time went back by 51.0 s: the 3 messages' in recent.add(image(50))
    assert [(m.topic, m.log_ns) for m in recent.since()] == [
        ('/audio_info', 50 * NS), ('/image', 50 * NS),
    ]  # fmt: skip
    assert recent.began_anew(49 * NS) and not recent.began_anew(50 * NS)


@pytest.mark.parametrize('ahead_s', [1.5, 1e6])
@pytest.mark.parametrize('meanwhile', ['nothing', 'a look', 'messages'])
def test_a_single_time_far_ahead_costs_nothing_that_is_kept(ahead_s, meanwhile):
    recent = RecentMessages(10, ROOM)
    for eighth in range(40):
        recent.add(image(eighth / 8))
    if meanwhile == 'a look':
        recent.expire(int((5 + ahead_s) * NS))
    for size in (101, 102) if meanwhile == 'messages' else ():
        assert recent.add(image(5 + ahead_s, size)) == ''
    assert recent.add(image(5)) == ''
    came = [m.log_ns / NS for m in recent.since()]
    between = [4.875] * 2 * (meanwhile == 'messages')
    assert came == [eighth / 8 for eighth in range(40)] + between + [5]
    pass_time(recent, 5, 15.5)
    assert recent.since() == []


def test_a_time_that_goes_on_far_ahead_is_the_time():
    recent = RecentMessages(10, ROOM)
    for at_s in (1, 2, 1000, 1000.5, 1001.5):
        assert recent.add(image(at_s)) == ''
    assert [m.log_ns / NS for m in recent.since()] == [1000, 1000.5, 1001.5]
    assert 'time went back' in recent.add(image(3))


def test_a_bag_of_them_is_read_by_us_and_by_rosbags(tmp_path):
    recent, path = RecentMessages(60, ROOM), tmp_path / 'fall.mcap'
    for second in range(10):
        recent.add(image(second + 1))
    write_bag(path, {}, recent.since(3 * NS))
    bag = Bag(path)
    assert [m.log_ns // NS for m in bag.messages()] == list(range(3, 11)) and not bag.losses
    with AnyReader([path]) as reader:
        assert [log_ns // NS for _, log_ns, _ in reader.messages()] == list(range(3, 11))
    before = path.read_bytes()
    with pytest.raises(InputError, match='is there already'):
        write_bag(path, {}, recent.since())
    assert path.read_bytes() == before
    with pytest.raises(InputError, match='in a folder that is there'):
        write_bag(tmp_path / 'no' / 'fall.mcap', {}, recent.since())


def test_a_disk_that_is_full_leaves_no_half_bag(tmp_path, monkeypatch):
    real, path = os.pwrite, tmp_path / 'fall.mcap'

    def pwrite(number, data, at):
        if at > 1000:
            raise OSError(28, 'No space left on device')
        return real(number, data, at)

    monkeypatch.setattr(os, 'pwrite', pwrite)
    with pytest.raises(InputError, match='No space left.*Free some room.*still kept'):
        write_bag(path, {}, [image(second, 400) for second in range(9)])
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    write_bag(path, {}, [image(1)])
    assert len(list(Bag(path).messages())) == 1
