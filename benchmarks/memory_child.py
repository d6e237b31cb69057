# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What benchmarks/memory.py has done by processes that end: FUNCTION ARGUMENTS, in words."""

import json
import os
import sys
from pathlib import Path

from minicpmo_ros.process import prepare

prepare()

import numpy as np  # noqa: E402

NS, RATE_HZ = 10**9, 16000


def write(directory, shape, llm, vision, audio, kind) -> None:
    """Write a synthetic model, if it is not there; 'hollow' ones have headers only.

    A file that a case before has of the same precision is linked.
    """
    from minicpmo_ros.modelset import manifest
    from minicpmo_ros.modelset.gguf_layouts import SHAPES
    from minicpmo_ros.synthetic import model as synthetic

    directory, files, seed = Path(directory), {}, None if kind == 'hollow' else 1
    precisions = {'llm': llm, 'vision': vision, 'audio': audio}
    directory.mkdir(parents=True, exist_ok=True)
    for role, precision in precisions.items():
        kept = directory.parent / f'{shape}-{role}-{precision}.gguf'
        if not kept.exists():
            padded = {'pad_ffn': True} if role == 'vision' else {}
            make, part = getattr(synthetic, f'write_{role}'), kept.with_suffix('.part')
            make(part, SHAPES[shape], seed, precision, **padded)
            part.rename(kept)
        path = directory / f'{role}.gguf'
        if not path.exists():
            os.link(kept, path)
        files[role] = manifest.FileEntry(path.name, precision)
    record = manifest.Manifest(SHAPES[shape].family, f'random-{shape}', files)
    manifest.write_manifest(directory, record, hashes=False)


def forecast(directory, parameters) -> None:
    """Print the plan of a directory with node parameters."""
    from minicpmo_ros.memory.plan import PlanOptions, forecast
    from minicpmo_ros.modelset.directory import ModelDirectory

    names = {'vision.max_tiles': 'max_tiles'}
    given = {names.get(k, k): v for k, v in json.loads(parameters).items()}
    devices = {key: 'cpu' for key in ('device', 'vision_device', 'audio_device')}
    plan = forecast(ModelDirectory.open(directory), PlanOptions(**given, **devices))
    parts = {f'{each.part} {each.what}': round(each.host / 2**20, 1) for each in plan.amounts}
    print(json.dumps({'host_mib': round(plan.host_mib, 1), 'parts': parts}))


def command(directory, namespace, parameters) -> None:
    """Print the command line of `live` on a directory, one thread, simulated time."""
    from ament_index_python.packages import get_package_prefix

    from minicpmo_ros.ros.launch.process_specs import reliable_input_overrides

    path = Path(get_package_prefix('minicpmo_ros')) / 'lib' / 'minicpmo_ros' / 'live'
    given = {'model_dir': str(Path(directory).resolve()), 'device': 'cpu', 'threads': 1}
    given |= {'use_sim_time': True, 'unit_deadline': 60.0} | json.loads(parameters)
    given |= reliable_input_overrides(namespace)
    rules = [f'{name}:={json.dumps(value).strip(chr(34))}' for name, value in given.items()]
    remaps = ['-r', f'__ns:={namespace}', '-r', f'/clock:={namespace}/clock']
    print(json.dumps([str(path), '--ros-args', *remaps, *(p for r in rules for p in ('-p', r))]))


class _Elsewhere:
    """A process that somebody else has started."""

    def __init__(self, pid: int):
        self._pid = pid

    def poll(self):
        """Give None while it runs."""
        try:
            state = Path(f'/proc/{self._pid}/stat').read_text().rpartition(')')[2].split()[0]
        except OSError:
            return 1
        return 1 if state == 'Z' else None


def use(pid, namespace, n_ubatch) -> None:
    """Play two seconds of noise to `live`, and ask it something that fills such a batch."""
    from minicpmo_ros.ros.framework.main import run_program
    from minicpmo_ros.ros.replay import lockstep as examining

    examining.TIMEOUT_S = 1800.0  # a second of the true size takes half a minute on an idle core

    def work() -> None:
        examiner = examining.LockstepPlayer(namespace)
        examiner.processes = [_Elsewhere(int(pid))]
        try:
            examiner.wait_ready()
            examiner.play(_noise(2), 0, 2, 'all')
            question = 'what is there? ' * (int(n_ubatch) // 4)  # four tokens each
            examiner.client.ask(question, max_tokens=3, timeout_s=examining.TIMEOUT_S)
        finally:
            examiner.close()

    if code := run_program('memory', work):
        raise SystemExit(code)


def _noise(seconds: int):
    """Give a clip of square pictures, of which as many tiles are cut as may be, and loud noise."""
    from minicpmo_ros.evaluation.bags.clip import Clip, ClipImage, png

    rng = np.random.default_rng(0)
    pictures, sound = [], []
    for second in range(seconds):
        coarse = rng.integers(0, 255, (48, 48, 3), np.uint8)
        picture = png(np.kron(coarse, np.ones((20, 20, 1), np.uint8)))  # (960, 960, 3)
        pictures.append(ClipImage.of_compressed(second * NS + NS // 2, 'png', picture))
        samples = rng.uniform(-0.3, 0.3, RATE_HZ).astype(np.float32)  # (16000,)
        sound.append((second * NS, samples))
    return Clip(tuple(pictures), tuple(sound))


if __name__ == '__main__':
    os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    globals()[sys.argv[1]](*sys.argv[2:])
