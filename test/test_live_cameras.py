# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Of several cameras each is told: in status and answers, and when it is missing or old."""

import queue

import numpy as np
import pytest
from test_live_engine import WAIT_S, Asker, until

from minicpmo_ros.families.minicpm_o_2_6 import ENGLISH
from minicpmo_ros.live.engine import Engine
from minicpmo_ros.live.question import EvidenceOptions, Finish
from minicpmo_ros.live.session import Session
from minicpmo_ros.live.session_options import SessionOptions
from minicpmo_ros.live.status import EngineOptions
from minicpmo_ros.llm.context import ContextOptions
from minicpmo_ros.sessions.keeper import SessionKeeper
from minicpmo_ros.streams.pairing import MOST_CAMERAS
from minicpmo_ros.streams.time import Instant

FRONT, LEFT = 'front', 'left'
ROWS = 64  # of an image


class Robot:
    """An engine on a real window; a clock that only `see` moves, by the seconds of the stamps."""

    def __init__(self, model, required='some', n_ctx=2048, path='', still=False):
        options = SessionOptions(max_tokens=4, max_question_tokens=32, still=still)
        session = Session(model, ENGLISH, ContextOptions(n_ctx=n_ctx, threads=1), options)
        session.close = session.context.close  # the model is others', too
        self.width, self.time_s, ready = model.width, 0.0, queue.Queue()
        self.keeper = SessionKeeper(path, 60 if path else 0, lambda: ('space', model.width))
        self.engine = Engine(
            lambda *_: session,
            EngineOptions(1.0, evidence=EvidenceOptions(required, 5.0)),
            on_change=lambda status: status.state == 'ready' and ready.put(True),
            now=lambda: Instant(self.time_s),
            black_box=self.keeper if path else None,
        )
        self.engine.start()
        assert ready.get(timeout=WAIT_S)

    @property
    def status(self):
        return self.engine.status()

    def see(self, second, *cameras, n_images=0):
        """Let a second come with audio and the image of each camera; wait until it is read."""
        self.time_s = second + 1.0
        n, n_rows = self.status.units_read, ROWS * (n_images or len(cameras))
        rows = np.ones((n_rows, self.width), np.float16) if n_rows else None
        self.engine.put_image(second, rows, (0, 0, *cameras))
        self.engine.put_audio(second, np.ones((25, self.width), np.float16))
        until(lambda: self.status.units_read > n)

    def ask(self):
        return Asker(self.engine, 'what is it', max_tokens=1).result()

    def close(self):
        assert self.engine.close(WAIT_S) and self.keeper.close(WAIT_S)


@pytest.fixture
def make_robot(model):
    robots = []

    def make(**options):
        robots.append(Robot(model, **options))
        return robots[-1]

    yield make
    for robot in robots:
        robot.close()


def test_an_answer_names_every_camera_and_the_one_that_died_is_stale(make_robot):
    robot = make_robot()
    for second in range(3):
        robot.see(second, LEFT, FRONT)
    answer = robot.ask()
    assert (answer.cameras, answer.camera_ends_s) == ((FRONT, LEFT), (3, 3))
    assert robot.status.camera_ends_s == {FRONT: 3, LEFT: 3} and not answer.stale
    for second in range(3, 8):
        robot.see(second, FRONT)
    assert not robot.ask().stale  # 5 s are allowed
    robot.see(8, FRONT)
    robot.see(9, FRONT)
    answer = robot.ask()
    assert answer.stale and answer.reason == 'The newest image of camera left is 7 s old.'
    assert answer.reason == robot.status.stale and answer.finish == Finish.LENGTH
    assert (answer.camera_ends_s, answer.image_end_s) == ((10, 3), 10)
    robot.see(10, LEFT)
    assert not robot.ask().stale and robot.status.camera_ends_s == {FRONT: 10, LEFT: 11}


def test_where_all_cameras_stop_each_is_named(make_robot):
    robot = make_robot()
    robot.see(0, FRONT, LEFT)
    robot.see(2, FRONT)
    for second in range(3, 10):
        robot.see(second)
    assert robot.ask().reason == (
        'The newest image of camera front is 7 s old. The newest image of camera left is 9 s old.'
    )


def test_a_question_that_wants_fresh_evidence_is_refused_while_a_camera_is_missing(make_robot):
    robot = make_robot(required='fresh')
    robot.see(0, FRONT, LEFT)
    assert robot.ask().finish == Finish.LENGTH
    robot.see(9, FRONT)
    refused = robot.ask()
    assert refused.finish == Finish.ERROR and refused.stale
    assert 'image of camera left is 9 s old' in refused.reason
    assert 'required_evidence is fresh' in refused.reason
    robot.see(10, FRONT, LEFT)
    assert robot.ask().finish == Finish.LENGTH


def test_a_camera_is_still_expected_when_its_last_image_has_left_the_window(make_robot):
    robot = make_robot(n_ctx=768)
    robot.see(0, FRONT, LEFT)
    for second in range(1, 30):
        robot.see(second, FRONT)
    answer = robot.ask()
    assert 0 not in answer.seconds and answer.cameras == (FRONT, LEFT)
    assert answer.camera_ends_s == (30, None)
    assert 'No image of camera left has come for 29 s, and none is left' in answer.reason
    robot.engine.reset()
    until(lambda: robot.status.units == 0)
    robot.see(30, FRONT)
    assert 'No image of camera left has come for 30 s' in robot.ask().reason


def test_one_camera_without_a_name_is_told_as_ever(make_robot):
    robot = make_robot()
    robot.see(0)
    robot.see(1, n_images=1)
    for second in range(2, 9):
        robot.see(second)
    answer = robot.ask()
    assert answer.cameras == answer.camera_ends_s == () and robot.status.camera_ends_s == {}
    assert answer.reason == 'The newest image is 7 s old.'


def test_a_still_second_shows_all_its_cameras(make_robot):
    robot = make_robot(still=True)
    for second in range(4):
        robot.see(second, FRONT, LEFT)
    assert robot.status.still == 3
    assert robot.ask().camera_ends_s == (4, 4)


def test_names_that_change_all_the_time_do_not_fill_the_memory(make_robot):
    robot = make_robot(n_ctx=768)
    for second in range(3 * MOST_CAMERAS):
        robot.see(second, f'c{second}')
    for second in range(3 * MOST_CAMERAS, 3 * MOST_CAMERAS + 30):
        robot.see(second)
    newest = [f'c{second}' for second in range(2 * MOST_CAMERAS, 3 * MOST_CAMERAS)]
    assert sorted(robot.status.camera_ends_s) == newest


def test_cameras_of_restored_seconds_are_told_and_expected(make_robot, tmp_path):
    path = tmp_path / 'box'
    robot = make_robot(path=path)
    for second in range(4):
        robot.see(second, FRONT, LEFT)
    robot.close()
    robot = make_robot(path=path, n_ctx=768)
    assert robot.status.camera_ends_s == {}
    robot.see(8, FRONT)
    until(lambda: robot.status.restored and robot.status.camera_ends_s.get(FRONT) == 9)
    assert robot.status.camera_ends_s[LEFT] == 4
    assert not robot.ask().stale  # 5 s are allowed
    robot.see(9, FRONT)
    assert robot.ask().reason == 'The newest image of camera left is 6 s old.'
    for second in range(10, 40):
        robot.see(second, FRONT)
    answer = robot.ask()
    assert answer.camera_ends_s == (40, None)
    assert 'No image of camera left has come for 36 s' in answer.reason


def test_a_sense_that_only_the_life_before_had_is_expected_too(make_robot, tmp_path):
    path = tmp_path / 'box'
    robot = make_robot(path=path)
    robot.see(0, FRONT, LEFT)
    robot.close()
    robot = make_robot(path=path)
    robot.see(10)
    until(lambda: robot.status.restored)
    assert robot.ask().reason == (
        'The newest image of camera front is 10 s old. '
        'The newest image of camera left is 10 s old.'
    )


def test_cameras_of_a_loaded_session_are_told(make_robot, tmp_path):
    saved, done = tmp_path / 'saved', queue.Queue()
    robot = make_robot(path=tmp_path / 'box')
    for second in range(3):
        robot.see(second, FRONT, LEFT)
    robot.keeper.save(saved, [0, 1, 2], lambda *result: done.put(result))
    assert done.get(timeout=WAIT_S) == (3, '')
    other = make_robot()
    other.keeper.load(saved, lambda *result: done.put(result))
    session, _ = done.get(timeout=WAIT_S)
    other.engine.load_session(session, lambda *result: done.put(result))
    assert done.get(timeout=WAIT_S) == (3, '')
    until(lambda: other.status.units == 3)
    answer = other.ask()
    assert (answer.cameras, answer.camera_ends_s) == ((FRONT, LEFT), (3, 3)) and not answer.stale
    other.see(20, FRONT)
    assert other.ask().reason == 'The newest image of camera left is 18 s old.'
