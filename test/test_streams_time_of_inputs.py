# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Inputs of different clocks are noticed in seconds and dated by arrival; recordings are not."""

import pytest

from minicpmo_ros.streams.time import InputClock
from minicpmo_ros.units import NS

NOW_S = 1_700_000_000.0  # of the node's clock, at steady time 0


def run(image, audio, seconds=30.0, modes=('auto', 'auto'), simulated=False, late=None):
    """Play 10 images and 20 pieces of audio a second; give the clocks and what was believed.

    image, audio: from seconds since the begin to the stamp, seconds, or None: nothing comes.
    """
    clocks = InputClock('image', modes[0]), InputClock('audio', modes[1])
    believed = [], []  # of each, (seconds, whether its stamp was)
    for tick in range(int(seconds * 20)):
        t = tick / 20
        for clock, stamps, period, took in zip(clocks, (image, audio), (2, 1), believed):
            stamp_s = stamps(t) if tick % period == 0 else None
            if stamp_s is None:
                continue
            arrived_s = NOW_S + t + (late(tick) if late else 0.0)
            took.append(
                (t, clock.is_believed(int(stamp_s * NS), int(arrived_s * NS), t, simulated))
            )
        if tick % 20 == 0:
            for clock, other in (clocks, clocks[::-1]):
                if other.offset is not None and t - other.offset.at_s < 1:
                    clock.on_other_offset(other.offset.offset_ns, t)
    return clocks, believed


def now(t):
    return NOW_S + t


WRONG = {
    'since boot': lambda t: 7777 + t,
    'wrapped': lambda t: NOW_S + t - 4295 * (t >= 6),
    'tai': lambda t: NOW_S + t + 37,
    'another host, behind': lambda t: NOW_S + t - 5,
    'another host, ahead': lambda t: NOW_S + t + 1.5,
    'still': lambda t: NOW_S - 100,
    'nearly still': lambda t: NOW_S + t / 50,
    'half as fast': lambda t: NOW_S + t / 2,
    'set in between': lambda t: t if t < 10 else NOW_S + t + 3600,
}


@pytest.mark.parametrize('wrong', WRONG)
@pytest.mark.parametrize('which', [0, 1])
def test_a_wrong_clock_is_noticed_within_seconds_and_the_right_one_stays(wrong, which):
    inputs = [now, now]
    inputs[which] = WRONG[wrong]
    clocks, believed = run(*inputs)
    begins = {'wrapped': 6, 'nearly still': 1, 'half as fast': 3}.get(wrong, 0)
    assert not any(took for t, took in believed[which] if t > begins + 5)
    problem = clocks[which].problem
    assert clocks[which].takes_arrival
    assert f'{clocks[which].name}.stamps' in problem or 'stand still' in problem
    assert all(took for _, took in believed[1 - which]) and not clocks[1 - which].problem


@pytest.mark.parametrize('wrong', ['still', 'nearly still'])
def test_a_clock_that_stands_is_noticed_without_another_input(wrong):
    (clock, _), _ = run(WRONG[wrong], lambda t: None)
    assert clock.takes_arrival and 'stand still' in clock.problem
    assert 'Let the driver stamp' in clock.problem and 'to header' not in clock.problem


def paused(t, begin=10.0, end=17.0):
    """Of a player that is paused: nothing comes meanwhile, and then it goes on where it was."""
    return None if begin <= t < end else NOW_S - 5000 + t - (end - begin) * (t >= end)


def delayed(t, begin=10.0, end=17.0):
    """Of a network that stalls: what was stamped meanwhile comes behind it, ten times as fast."""
    if begin <= t < end:
        return None
    return NOW_S + (t if t < begin else min(t, begin + 10 * (t - end)))


@pytest.mark.parametrize('length_s', [1.0, 2.0, 2.5, 7.0, 60.0])
@pytest.mark.parametrize('stamps', [paused, delayed])
@pytest.mark.parametrize('simulated', [False, True])
def test_a_pause_is_no_clock_that_stands(stamps, length_s, simulated):
    def with_pause(t):
        return stamps(t, 10.0, 10.0 + length_s)

    clocks, believed = run(with_pause, with_pause, seconds=90.0, simulated=simulated)
    for clock, took in zip(clocks, believed):
        assert all(is_taken for _, is_taken in took) and not clock.problem


def loops(t, length=8.0):
    return 5000 + t % length


@pytest.mark.parametrize(
    'image, audio',
    [
        (lambda t: 5000 + t, lambda t: 5000 + t),
        (loops, loops),
        (loops, lambda t: loops(max(0.0, t - 0.9))),  # the audio follows
        (lambda t: loops(t) if t % 8 < 4 else None, loops),  # images of half of it
        (lambda t: 5000 + 5 * t, lambda t: 5000 + 5 * t),  # played faster
        (lambda t: 5000 + t / 10, lambda t: 5000 + t / 10),
        (lambda t: 5000 + t, lambda t: None),
        (lambda t: 7777 + t if t < 15 else None, lambda t: NOW_S + t if t > 20 else None),
    ],
)
def test_a_recording_is_dated_by_its_stamps_however_old_it_is(image, audio):
    clocks, believed = run(image, audio)
    assert all(took for _, took in believed[0] + believed[1])
    assert not any(clock.takes_arrival or clock.problem for clock in clocks)


@pytest.mark.parametrize('apart_s', [0.3, 0.6, 1.0])
def test_a_source_of_which_the_rest_of_a_piece_came_in_a_pause_has_no_clock_that_stands(apart_s):
    """As a relay sends it of a microphone that stops: one piece more, and then its rest."""
    clock, pause_s = InputClock('audio'), 2.1
    pieces = [(k * 0.032, k * 0.032) for k in range(100)]  # (stamp, when it comes)
    end_s = pieces[-1][1]
    pieces += [(end_s + 0.016, end_s + apart_s), (end_s + 0.032, end_s + pause_s)]
    pieces += [(end_s + pause_s + k * 0.032,) * 2 for k in range(100)]
    for stamp_s, at_s in pieces:
        assert clock.is_believed(*(int((NOW_S + s) * NS) for s in (stamp_s, at_s)), at_s), at_s
    assert not clock.problem


def test_messages_that_come_late_do_not_look_like_another_clock(rng):
    stalls = rng.random(1000) < 0.2

    def late(tick):
        return 3.0 if stalls[tick] else 0.3 * (tick % 7 == 0)

    clocks, believed = run(now, now, late=late)
    assert all(took for _, took in believed[0] + believed[1])


def test_stamps_are_believed_again_once_the_clocks_agree():
    clocks, believed = run(lambda t: NOW_S + t - 5 * (t < 20), now, seconds=60.0)
    assert not any(took for t, took in believed[0] if 5 < t < 20)
    assert all(took for t, took in believed[0] if t > 35) and not clocks[0].problem


@pytest.mark.parametrize('modes, simulated', [(('header', 'auto'), False), (('auto',) * 2, True)])
def test_where_headers_rule_a_wrong_clock_is_told_and_stays(modes, simulated):
    clocks, believed = run(WRONG['tai'], now, modes=modes, simulated=simulated)
    assert all(took for _, took in believed[0] + believed[1])
    assert 'set image.stamps to arrival' in clocks[0].problem and not clocks[1].problem


def test_arrival_is_taken_where_it_is_asked_for_and_the_other_clock_measured_by_it():
    clocks, believed = run(WRONG['tai'], WRONG['tai'], modes=('arrival', 'auto'))
    assert not any(took for _, took in believed[0])
    assert clocks[1].takes_arrival and not clocks[0].problem


def test_two_wrong_clocks_are_both_dated_by_arrival():
    clocks, _ = run(WRONG['since boot'], lambda t: NOW_S - 86_400 + t)
    assert clocks[0].takes_arrival and clocks[1].takes_arrival


def test_simulated_time_without_clock_is_not_told_a_second_time():
    clock = InputClock('audio')
    for t in range(5):
        assert clock.is_believed(int(NOW_S) * NS, 0, float(t), simulated=True)
    assert not clock.problem  # each node tells it of itself, inputs or not
