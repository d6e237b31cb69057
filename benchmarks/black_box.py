# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What the black box gives back after kill -9: the window, and nano's answers.

    python -m benchmarks.black_box
    python -m benchmarks.black_box --kills 5

window_back             least share of the window's seconds that are back, over all kills
same_answers_after_kill share of answers that are those of a session that was never killed
first_live_lost         live seconds that were not read after a respawn, over all kills

A child reads the seconds of held-out clips into a window, as an engine of node `llm` does, and is
killed at a random moment; the next child goes on some seconds later. Beside them, one session here
reads the same seconds and is never killed. After each respawn, both are asked the same questions
behind the first live second. Adds its figures to build/memory.json.
"""

import argparse
import json
import subprocess
import sys
import threading
from pathlib import Path
from tempfile import TemporaryDirectory

from minicpmo_ros.process import prepare

prepare()

import numpy as np  # noqa: E402

from benchmarks.streams import open_core, question_file, read_seconds, units_of  # noqa: E402
from benchmarks.tiles import add_to, table  # noqa: E402
from minicpmo_ros.families import find_layout  # noqa: E402
from minicpmo_ros.live.engine import Engine  # noqa: E402
from minicpmo_ros.live.question import Question  # noqa: E402
from minicpmo_ros.live.session import Session  # noqa: E402
from minicpmo_ros.live.session_options import SessionOptions  # noqa: E402
from minicpmo_ros.llm.context import ContextOptions  # noqa: E402
from minicpmo_ros.modelset.directory import ModelDirectory  # noqa: E402
from minicpmo_ros.sessions.keeper import SessionKeeper  # noqa: E402
from minicpmo_ros.streams.pairing import Unit  # noqa: E402

NANO, OUT = Path('models/nano'), Path('build/memory.json')
WINDOW_S, BOX_S, MOST_GAP_S = 12, 30, 10  # nano was trained on windows of 1 to 16 s
LONGEST_S = 40  # that a child lives before it is killed, in seconds of the stream
WAIT_S = 600
QUESTIONS = (
    'what shape is shown now?',
    'what color is the shape now?',
    'how many shapes are shown now?',
    'what do you hear now?',
    'what shape was shown one second ago?',
    'what shape was shown two seconds ago?',
    'what shape was shown three seconds ago?',
    'what did you hear one second ago?',
    'what did you hear two seconds ago?',
    'how many beeps do you hear?',
    'what color comes before red?',
    'what shape comes before the circle?',
)


def child(folder: Path, first: int, n_ctx: int) -> int:
    """Read seconds from `first` on until killed; tell what is read, a line of JSON each."""
    data, model = np.load(folder / 'units.npz'), ModelDirectory.open(NANO)
    images, sounds = data['images'], data['sounds']
    is_read = threading.Condition()

    def load(on_progress, abort) -> Session:
        options = ContextOptions(n_ctx=n_ctx, threads=1, offload_kv=False)
        layout = find_layout(model.family, 'en')
        return Session.load(model.llm_path, layout, None, options, SessionOptions(max_tokens=16))

    def tell(status):
        with is_read:
            is_read.notify_all()

    keeper = SessionKeeper(folder / 'box.session', BOX_S, lambda: (model.space, model.width))
    engine = Engine(load, on_change=tell, black_box=keeper)
    engine.start()

    def wait(condition):
        with is_read:
            is_read.wait_for(condition, WAIT_S)

    wait(lambda: engine.status().state == 'ready')
    for second in range(first, first + 10**6):
        n = engine.status().units_read
        engine.put_image(second, images[second % len(images)], (0, 0))
        engine.put_audio(second, sounds[second % len(sounds)])
        wait(lambda n=n: engine.status().units_read > n)
        status = engine.status()
        told = {'seconds': status.seconds, 'restored': status.restored}
        if second == first:
            told |= {'told': status.restoring, 'answers': [answer(engine, q) for q in QUESTIONS]}
        print(json.dumps(told), flush=True)
    return 1


def answer(engine: Engine, text: str) -> str:
    """Ask an engine and return the text of the answer."""
    done, found = threading.Event(), []

    def take(given):
        found.append(given)
        done.set()

    engine.ask(Question(text, temperature=0.0), on_done=take)
    done.wait(WAIT_S)
    return found[0].text


class Life:
    """One child, from its first live second to its kill."""

    def __init__(self, folder: Path, first: int, n_ctx: int):
        self.process = subprocess.Popen(
            [sys.executable, '-m', 'benchmarks.black_box', '--child', str(folder), str(first),
             str(n_ctx)],
            stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        self.first = self.read()

    def read(self) -> dict:
        """Return what the child tells next."""
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f'the child ended by itself: {self.process.wait()}')
        return json.loads(line)

    def kill(self) -> list:
        """Kill it; return the seconds that were in its window last, as far as it told."""
        self.process.kill()
        rest = self.process.stdout.read().splitlines()
        self.process.wait()
        whole = [line for line in rest if line.endswith('}')]
        return json.loads(whole[-1])['seconds'] if whole else []


def measure(kills: int, seed: int) -> dict:
    """Kill, respawn and compare; return the figures."""
    rng, model = np.random.default_rng(seed), ModelDirectory.open(NANO)
    core = open_core(model, WINDOW_S)
    units = list(units_of(core, read_seconds(question_file(), 24)))
    session, n_ctx = core.session, core.session.context.n_ctx
    rows, backs, same, lost = [], [], 0, 0
    with TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(
            folder / 'units.npz',
            images=np.stack([unit.image_rows for unit in units]),
            sounds=np.stack([unit.audio_rows for unit in units]),
        )
        first, before = 1000, []
        for number in range(kills + 1):
            life = Life(folder, first, n_ctx)
            now = life.first['seconds']
            lost += first not in now
            mirror(session, units, [first])
            if number:
                back = len(set(before) & set(now)) / len(set(before) - evicted(before, session))
                agree = sum(
                    given == core.ask(text).text
                    for text, given in zip(QUESTIONS, life.first['answers'])
                )
                backs.append(min(1.0, back))
                same += agree
                rows.append((number, first - before[-1] - 1, len(before), f'{back:.2f}', agree))
            for _ in range(int(rng.integers(0, LONGEST_S))):
                now = life.read()['seconds']
            threading.Event().wait(float(rng.uniform(0, 0.1)))  # somewhere within a second
            before = life.kill() or now
            mirror(session, units, range(first + 1, before[-1] + 1))
            first = before[-1] + 2 + int(rng.integers(0, MOST_GAP_S))
    core.close()
    print(table(('kill', 'gap, s', 'window, s', 'back', f'same of {len(QUESTIONS)}'), rows))
    return {
        'window_back': round(min(backs), 3),
        'same_answers_after_kill': round(same / (kills * len(QUESTIONS)), 4),
        'first_live_lost': lost,
        'kills': kills,
    }


def evicted(before: list, session) -> set:
    """Return which seconds have left the window of the session that was never killed."""
    return set(before) - set(session.window.seconds)


def mirror(session, units: list, seconds) -> None:
    """Read seconds as the children do."""
    for second in seconds:
        found = units[second % len(units)]
        session.append(Unit(second, found.image_rows, (0, 0), found.audio_rows))


def main() -> int:
    """Measure, print and write; or be the child."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--kills', type=int, default=20)
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--child', nargs=3, metavar=('FOLDER', 'FIRST', 'N_CTX'))
    given = parser.parse_args()
    if given.child:
        folder, first, n_ctx = given.child
        return child(Path(folder), int(first), int(n_ctx))
    figures = measure(given.kills, given.seed)
    add_to(OUT, figures)
    print(json.dumps(figures))
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
