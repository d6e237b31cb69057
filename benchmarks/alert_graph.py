# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Standing questions on the live graph: the real nodes watch a stream of clips in simulated time.

    python -m benchmarks.alert_truth --graph

The clips are joined to one without a gap, whose images and audio are published second by second,
each when the second before has been read. What the llm tells on ~/alerts and ~/alerts/state is
compared with what the core says of the same clip.
"""

import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from minicpmo_ros.alerts.monitor import Condition, Event, Kind
from minicpmo_ros.alerts.rules import write_rules
from minicpmo_ros.evaluation.bags.clip import Clip
from minicpmo_ros.evaluation.bags.clip_reading import read_clip
from minicpmo_ros.evaluation.runner import CoreOptions
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.msg import Alert, AlertState, AlertStates
from minicpmo_ros.ros.alerts import EVENT_QOS
from minicpmo_ros.ros.framework.lifecycle import LATCHED
from minicpmo_ros.ros.replay.graph import graph_of_its_own
from minicpmo_ros.units import NS

EVENTS_WITHIN_S = 30.0  # of the last second, where some are missing
UNLIMITED = {'alerts.budget_ms': 0.0}  # as the core has it


def joined(folder: Path, told: dict, seconds: int, start_s: int, rng=None) -> tuple:
    """Return so many seconds of the clips of a folder as one Clip, and what each second shows.

    told: {name: what each second of it shows}. The clips come in order, with rng at random; again
    and again.
    """
    names, read, order = list(told), {}, _order(len(told), rng)
    images, audio, shown = [], [], []
    while len(shown) < seconds:
        name = names[next(order)]
        clip = read[name] = read.get(name) or read_clip(folder / name)
        shift_ns = (start_s + len(shown) - clip.first_s) * NS
        images += [replace(one, stamp_ns=one.stamp_ns + shift_ns) for one in clip.images]
        audio += [(stamp_ns + shift_ns, samples) for stamp_ns, samples in clip.audio]
        shown += told[name]
    whole = Clip(tuple(images), tuple(audio))
    return whole.between(start_s, start_s + seconds), shown[:seconds]


def _order(n: int, rng) -> Iterator[int]:
    while True:
        yield from range(n) if rng is None else rng.permutation(n)


class Heard:
    """What the llm of a graph tells of its standing questions; stamps are those of the clip."""

    def __init__(self, examiner):
        self.events, self.states = [], {}  # AlertStates' by rule and number of seconds
        self._examiner = examiner
        examiner.create_subscription(Alert, 'llm/alerts', self._on_event, EVENT_QOS)
        examiner.create_subscription(AlertStates, 'llm/alerts/state', self._on_states, LATCHED)

    def _on_event(self, message: Alert) -> None:
        end_s, begin_s = (
            stamp.sec + stamp.nanosec / NS - self._examiner.shift_s
            for stamp in (message.header.stamp, message.begin)
        )
        told = message.probability, message.mass, begin_s, message.at_start
        kind = Kind(message.kind)
        self.events.append(Event(message.rule, kind, end_s, *told, message.text, message.reason))

    def _on_states(self, message: AlertStates) -> None:
        for one in message.alerts:
            key = one.rule, one.evaluated + one.reused
            self.states.setdefault(key, []).append(one)


def watch_graph(
    model: ModelDirectory, options: CoreOptions, rules: tuple, clip: Clip, core: list
) -> Heard:
    """Let the nodes watch a clip of which the core has said what is in its WatchedSeconds."""
    seconds, n_events = len(core) // len(rules), sum(len(second.events) for second in core)
    with TemporaryDirectory() as folder:
        path = Path(folder) / 'rules.yaml'
        write_rules(path, rules)
        with graph_of_its_own(model, options, {'alerts.file': str(path), **UNLIMITED}) as examiner:
            heard, begin_s = Heard(examiner), clip.first_s
            examiner.wait_until(lambda: heard.states, 'the rules')
            examiner.play(clip, begin_s, begin_s + seconds, 'all')
            ended = [(rule.id, seconds) for rule in rules]
            examiner.wait_until(lambda: heard.states.keys() >= set(ended), 'the last second')
            until_s = time.monotonic() + EVENTS_WITHIN_S
            examiner.wait_until(
                lambda: len(heard.events) >= n_events or time.monotonic() > until_s, 'the events'
            )
    return heard


def compare(core: list, heard: Heard) -> dict:
    """Return how far the graph agrees with the WatchedSeconds of the core."""
    keys, told, equal, most = _keys(core), 0, 0, 0.0
    for key, second in zip(keys, core):
        for state in heard.states.get(key, ()):
            told += 1
            equal += state.state == getattr(AlertState, Condition(second.state).name)
            most = max(most, abs(state.probability - second.probability))
    ours, theirs = (
        sorted(_facts(event) for event in events)
        for events in ([e for second in core for e in second.events], heard.events)
    )
    return {
        'states_equal': equal / told,
        'seconds_told': len(heard.states.keys() & set(keys)) / len(core),
        'probability_differs': most,
        'events': len(ours),
        'events_equal': float(ours == theirs),
    }


def watched(core: list, heard: Heard) -> list:
    """Return the WatchedSeconds of the core with the events of the graph instead of its own."""
    told = {}
    for event in heard.events:
        told.setdefault((event.rule, math.ceil(event.at_s) - 1), []).append(event)
    return [
        replace(second, events=tuple(told.get((second.rule, second.second), ())))
        for second in core
    ]


def _keys(core: list) -> list:
    """Return (rule, how many seconds of it there are until then) of WatchedSeconds."""
    numbers = Counter()
    return [(one.rule, numbers.update([one.rule]) or numbers[one.rule]) for one in core]


def _facts(event: Event) -> tuple:
    begin_s = event.begin_s if event.kind in (Kind.BEGIN, Kind.END) else 0.0
    return event.rule, event.at_s, int(event.kind), begin_s, event.at_start, event.text
