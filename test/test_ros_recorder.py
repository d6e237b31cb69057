# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A recorder whose disk is full goes on, and its bag can be read."""

import os
import resource
from itertools import count

from ros_source import jpeg, picture_of, time_of
from sensor_msgs.msg import CompressedImage

from minicpmo_ros.evaluation.bags import writing
from minicpmo_ros.evaluation.bags.bags import Bag
from minicpmo_ros.evaluation.bags.clip import IMAGE
from minicpmo_ros.evaluation.bags.writing import Recording


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
