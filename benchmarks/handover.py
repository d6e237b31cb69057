# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Whether words are heard as well where the audio encoder is handed over as elsewhere.

    make build && source environment/env.sh && python -m benchmarks.handover

Spoken seconds of the held-out clips are strung together, in another order for each stream, to
streams of 63 s and of 10 min 10 s. nano hears them; the word it has heard is the one whose code is
nearest to the rows of the second. For each place in a stream: how many words were right, and how
many of the very same recordings are elsewhere in the streams, so that a hard word does not count
against the place it fell on. Policies: an overlap of 5 s without regard to pauses, pauses first
(the default), and an encoder that begins anew every 30 s.
Writes build/handover.json.
"""

import argparse
import json
import os
import re
import time
from collections import defaultdict
from pathlib import Path

from minicpmo_ros.process import prepare

prepare()

import numpy as np  # noqa: E402

from minicpmo_ros.encoders.whisper.encoder import AudioEncoder  # noqa: E402
from minicpmo_ros.evaluation.bags.clip_reading import read_clip  # noqa: E402
from minicpmo_ros.evaluation.questions import QuestionSet  # noqa: E402
from minicpmo_ros.ggml.runtime import Backend  # noqa: E402
from minicpmo_ros.modelset.directory import ModelDirectory  # noqa: E402
from minicpmo_ros.streams.audio import AudioPipeline, Handover  # noqa: E402
from training import codes  # noqa: E402

RATE = 16000
NEVER = 31  # no second of an encoder has this number: pauses are not looked for
POLICIES = {
    'overlap 5 s': Handover(pause_from_s=NEVER),
    'pauses, else 5 s': Handover(),
    'begins anew': Handover(overlap_s=0, pause_from_s=NEVER),
}
SHORT_S, LONG_S = 63, 610
PLACES = {'29 to 31 s': (29, 31), '58 to 62 s': (58, 62), '10 min': (590, 610)}
BEFORE, AFTER, ELSEWHERE = '2 s before a handover', '2 s after a handover', 'elsewhere'
AGE_S = 6
SLOTS = [i for i, slot in enumerate(codes.SOUND_SLOTS) if slot == 'word']


def spoken_seconds(questions_path) -> list:
    """Give (word, samples (16000,)) of every second of a question set in which a word is said."""
    questions, spoken = QuestionSet.read(questions_path), []
    for name, lines in questions.clips.items():
        sound = np.concatenate([part for _, part in read_clip(questions.path_of(name)).audio])
        for second, line in enumerate(lines):
            said = re.search('says "(.*)"', line)
            if said:
                spoken.append((said[1], sound[second * RATE : (second + 1) * RATE]))
    return spoken


def words_heard(heard: list) -> list:
    """Give the word whose code is nearest to the rows of each second."""
    rows = np.stack([h.rows for h in heard]).astype(np.float32)  # (n, 25, 256)
    likeness = rows[:, SLOTS].mean(1) @ codes.pool_codes('word', codes.SOUND).T  # (n, words)
    return [codes.POOLS['word'][i] for i in likeness.argmax(1)]


def hear_words(encoder, samples: list, handover: Handover | None = None) -> tuple:
    """Let an encoder hear seconds (16000,) as one stream; give the AudioSeconds and words."""
    audio_pipeline = AudioPipeline(encoder, handover=handover)
    heard = [h for i, part in enumerate(samples) for h in audio_pipeline.push(i * 10**9, part)]
    heard += audio_pipeline.flush()
    return heard, words_heard(heard)


def measure(encoder, spoken: list, policy: Handover, lengths_s: list, rng) -> dict:
    """Give place -> (words, right, right of the same recordings elsewhere), and the cost."""
    results, cpu_s, count = [], 0.0, 0  # results: (recording, place, is right)
    for length_s in lengths_s:
        order = np.concatenate([rng.permutation(len(spoken)) for _ in range(2)])[:length_s]
        started_s = time.process_time()
        heard, words = hear_words(encoder, [spoken[i][1] for i in order], policy)
        cpu_s += time.process_time() - started_s
        count += length_s
        remembered_s = [h.remembered_s for h in heard]
        edges = 1 + np.flatnonzero(np.diff(remembered_s) <= 0)  # another stream from here on
        for second, (i, word) in enumerate(zip(order, words)):
            right = word == spoken[i][0]
            at = places(second, remembered_s[second], edges)
            results += [(i, place, right) for place in at]
    elsewhere = defaultdict(list)
    for i, place, right in results:
        if place == ELSEWHERE:
            elsewhere[i].append(right)
    figures = {'cpu_ms': 1e3 * cpu_s / count}
    ages = sorted({place for _, place, _ in results if 'remembering' in place}, key=_first)
    for wanted in (ELSEWHERE, *PLACES, BEFORE, AFTER, *ages):
        mine = [
            (right, np.mean(elsewhere[i]))
            for i, place, right in results
            if place == wanted and elsewhere[i]
        ]
        if mine:
            right, same = np.array(mine, np.float64).T
            error = 2 * (right - same).std() / len(mine) ** 0.5
            figures[wanted] = {
                'words': len(mine),
                'right': 100 * right.mean(),
                'elsewhere': 100 * same.mean(),
                'two_errors': 100 * error,
            }
    return figures


def places(second: int, remembered_s: int, edges) -> list:
    """Name the places that a second of a stream belongs to."""
    named = [name for name, (first, last) in PLACES.items() if first <= second <= last]
    gaps = second - edges
    for name, near in ((BEFORE, (-2 <= gaps) & (gaps < 0)), (AFTER, (0 <= gaps) & (gaps < 2))):
        if near.any():
            named.append(name)
    age = remembered_s // AGE_S * AGE_S
    return [*(named or [ELSEWHERE]), f'remembering {age} to {age + AGE_S - 1} s']


def _first(place: str) -> int:
    return int(place.split()[1])


def main() -> None:
    """Measure, print, write."""
    held_out = Path('build/heldout/questions.json')
    parser = argparse.ArgumentParser()
    parser.add_argument('--model', default='models/nano')
    parser.add_argument(
        '--questions',
        default=str(held_out if held_out.exists() else 'demo/clips/questions.json'),
    )
    parser.add_argument('--short', type=int, default=200, help=f'streams of {SHORT_S} s')
    parser.add_argument('--long', type=int, default=24, help=f'streams of {LONG_S} s')
    parser.add_argument('--policy', action='append', choices=POLICIES, help='default: all')
    options = parser.parse_args()
    backend = Backend('cpu', threads=1)
    encoder = AudioEncoder.load(ModelDirectory.open(options.model).audio_path, backend)
    spoken = spoken_seconds(options.questions)
    lengths_s = [SHORT_S] * options.short + [LONG_S] * options.long
    report = {'recordings': len(spoken), 'load': os.getloadavg()[0], 'policies': {}}
    print(f'{len(spoken)} recordings, {sum(lengths_s)} s a policy\n')
    print('| policy | place | words | right % | same words elsewhere % | difference | CPU ms/s |')
    print('|---|---|---:|---:|---:|---:|---:|')
    for name in options.policy or POLICIES:
        rng = np.random.default_rng(4)  # the same streams for all
        figures = measure(encoder, spoken, POLICIES[name], lengths_s, rng)
        report['policies'][name] = figures
        cpu_ms = figures['cpu_ms']
        for place, row in figures.items():
            if place == 'cpu_ms':
                continue
            print(
                f'| {name} | {place} | {row["words"]} | {row["right"]:.1f} '
                f'| {row["elsewhere"]:.1f} | {row["right"] - row["elsewhere"]:+.1f} '
                f'± {row["two_errors"]:.1f} | {cpu_ms:.1f} |',
                flush=True,
            )
    out = Path('build/handover.json')
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + '\n')


if __name__ == '__main__':
    main()
