# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What is seen and heard while it answers, against what is seen and heard while it does not.

    make build && source environment/env.sh && python -m benchmarks.beside_answer

The graph of `make live` (`live` with nano, a clip played in a loop at the pace of real time). For
so many seconds nobody asks; then for as long long answers follow each other without a pause. Told
are the seconds of each sense that were encoded, and those that were read. Aimed at is a ratio of
at least 9 of 10. Writes build/beside_answer.json.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from tempfile import NamedTemporaryFile

from minicpmo_ros.process import prepare

prepare()

import rclpy  # noqa: E402
import yaml  # noqa: E402

from minicpmo_ros.ros.framework.main import stay_on_this_machine  # noqa: E402
from minicpmo_ros.ros.replay.demo import Watcher, executable  # noqa: E402

ROOT = Path(__file__).parents[1]
CLIP = ROOT / 'demo' / 'clips' / '010.mcap'
OUT = Path('build/beside_answer.json')
NEEDED = ('read/s', 'images/s', 'audio/s')
MAX_TOKENS, LEAST = 1900, 0.9
PARAMETERS = {'/**': {'model_dir': 'nano'}, '/**/llm': {'max_tokens': MAX_TOKENS}}
GRAMMAR = 'root ::= [a-z ]{1500,2000}'
LONGEST_S = 120


def counts(watcher: Watcher) -> dict:
    """Return what has been counted until now."""
    status = watcher.client.status
    return {
        'read': status.units_read,
        'late': status.late,
        'images': sum(message.status == 0 for message in watcher.seen),
        'audio': sum(message.status == 0 for message in watcher.heard),
    }


def measure(watcher: Watcher, seconds: float, asks: bool) -> dict:
    """Watch for so long; return what was counted, by the second."""
    before, begun_s, tokens, live_ms = counts(watcher), time.monotonic(), 0, 0.0
    while (passed_s := time.monotonic() - begun_s) < seconds:
        if not asks:
            end_s = begun_s + seconds
            watcher.wait_until(lambda e=end_s: time.monotonic() >= e, LONGEST_S, 'time')
            continue
        stream = watcher.client.stream(
            'what is shown?', grammar=GRAMMAR, max_tokens=MAX_TOKENS, timeout_s=LONGEST_S
        )
        watcher.wait_until(lambda s=stream: s.is_over, LONGEST_S, 'an answer')
        tokens += stream.answer.answer_tokens
        live_ms += stream.answer.live_ms
    after = counts(watcher)
    found = {f'{name}/s': (after[name] - before[name]) / passed_s for name in before}
    return {**found, 'tokens/s': tokens / passed_s, 'live ms/s': live_ms / passed_s}


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--seconds', type=float, default=12.0, help='of each part')
    seconds = parser.parse_args().seconds
    stay_on_this_machine()
    rclpy.init()
    watcher = Watcher()
    player = ('-p', f'file:={CLIP}', '-p', 'wait_for_subscribers:=true', '-p', 'loop:=true')
    try:
        with NamedTemporaryFile('w', suffix='.yaml') as file:
            by_node = {node: {'ros__parameters': given} for node, given in PARAMETERS.items()}
            yaml.safe_dump(by_node, file)
            file.flush()
            live = executable('live', '--params-file', file.name)
            with live as first, executable('media_player', *player) as second:
                watcher.processes = [first, second]
                watcher.wait_until_ready()
                watcher.wait_until(lambda: watcher.client.status.units_read >= 5, 60, 'seconds')
                rows = {
                    'nobody asks': measure(watcher, seconds, False),
                    'answering': measure(watcher, seconds, True),
                }
    finally:
        watcher.client.destroy()
        watcher.destroy_node()
        rclpy.try_shutdown()
    ratios = {k: v / rows['nobody asks'][k] for k, v in rows['answering'].items() if k in NEEDED}
    names = list(rows['answering'])
    print(f'| | {" | ".join(names)} |\n|---|{"---:|" * len(names)}')
    for name, row in rows.items():
        print(f'| {name} | {" | ".join(f"{row[column]:.2f}" for column in names)} |')
    print(f'load {os.getloadavg()[0]:.0f}; ratios:', {k: round(v, 2) for k, v in ratios.items()})
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({'rows': rows, 'ratios': ratios}, indent=1))
    return int(min(ratios.values()) < LEAST)


if __name__ == '__main__':
    sys.exit(main())
