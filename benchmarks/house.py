# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Count what a reader of the package has to find a way through.

    make build && source environment/env.sh && python -m benchmarks.house

Prints a Markdown table; CONTRIBUTING.md has the figures that are not to grow. Most figures are
read from the sources. For the walks, nano hears three seconds of audio, answers one question and
sees images in the parts that need no ROS (decoder, pipeline, engine, session): the files of the
package whose functions are called for one second and for the question, and the dataclasses of the
package that are handed over or returned.
"""

import ast
import collections
import math
import random
import sys
import threading
from pathlib import Path
from statistics import median
from types import SimpleNamespace

PACKAGE = Path(__file__).resolve().parent.parent / 'minicpmo_ros'
TESTS = PACKAGE.parent / 'test'
SMALL_LINES = 40
REPLACE = ('getattr', 'setattr', 'delattr', 'patch', 'patch.object')
ANSWER_S = 120  # for one answer of nano, on any machine


def read_modules() -> dict:
    """Return {module below the package: (path, number of lines, syntax tree)}."""
    modules = {}
    for path in sorted(PACKAGE.rglob('*.py')):
        name = '.'.join(path.relative_to(PACKAGE).with_suffix('').parts)
        text = path.read_text()
        modules[name.removesuffix('__init__').rstrip('.')] = (
            path,
            len(text.splitlines()),
            ast.parse(text),
        )
    return modules


def function_lengths(modules: dict) -> list:
    """Return the number of lines of every function and method, in order of length."""
    return sorted(
        node.end_lineno - node.lineno + 1
        for _, _, tree in modules.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


def small_modules(modules: dict) -> list:
    """Return (module, its only importer) of modules that could be a part of the importer."""
    importers = collections.defaultdict(set)
    for importer, (_, _, tree) in modules.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                for name in (node.module, *(f'{node.module}.{a.name}' for a in node.names)):
                    importers[name.removeprefix('minicpmo_ros.')].add(importer)
    return [
        (name, *importers[name])
        for name, (path, n_lines, _) in modules.items()
        if path.name != '__init__.py' and n_lines < SMALL_LINES and len(importers[name]) == 1
    ]


def shared_class_names(modules: dict) -> dict:
    """Return {class: modules} of public classes that several modules define."""
    return _shared(
        (node.name, name)
        for name, (_, _, tree) in modules.items()
        for node in tree.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith('_')
    )


def repeated_constants(modules: dict) -> dict:
    """Return {(constant, value): modules} of constants that several modules define alike.

    Texts that describe a verb of `minicpmo` are its own, however they read.
    """
    return _shared(
        ((target.id.lstrip('_'), ast.unparse(node.value)), name)
        for name, (_, _, tree) in modules.items()
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id.strip('_').isupper()
    )


def _shared(pairs) -> dict:
    found = collections.defaultdict(list)
    for key, module in pairs:
        found[key].append(module)
    return {key: found[key] for key in sorted(found) if len(found[key]) > 1}


def private_names(folder: Path) -> list:
    """Return 'file:line name' of every private name of another object in the files of a folder."""
    return [
        f'{path.name}:{node.lineno} {name}'
        for path in sorted(folder.rglob('*.py'))
        for node in ast.walk(ast.parse(path.read_text()))
        for name in _names_of_others(node)
        if name.startswith('_') and not name.startswith('__')
    ]


def _names_of_others(node) -> list:
    """Return the names that a node takes from an object or a module, or replaces there."""
    if isinstance(node, ast.Attribute):
        is_own = isinstance(node.value, ast.Name) and node.value.id in ('self', 'cls')
        return [] if is_own else [node.attr]
    if isinstance(node, ast.ImportFrom):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(REPLACE):
        texts = [one.value for one in node.args if isinstance(one, ast.Constant)]
        return [part for text in texts if isinstance(text, str) for part in text.split('.')]
    return []


class Walk:
    """The files whose functions are called between `begin` and `end`, in all threads."""

    def __init__(self):
        """Attach to this thread and to all that begin from now on."""
        self._on, self.files, self.types = False, set(), set()
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)

    def begin(self) -> None:
        """Forget what was counted, and count."""
        self.files, self.types, self._on = set(), set(), True

    def end(self) -> tuple:
        """Return (files, types) by name."""
        self._on = False
        return sorted(self.files), sorted(self.types)

    def _profile(self, frame, event, value) -> None:
        if not self._on or not frame.f_code.co_filename.startswith(f'{PACKAGE}/'):
            return
        self.files.add(str(Path(frame.f_code.co_filename).relative_to(PACKAGE)))
        if event == 'call':
            names = frame.f_code.co_varnames[: frame.f_code.co_argcount]
            given = [frame.f_locals.get(name) for name in names if name not in ('self', 'cls')]
        else:
            given = [value]
        for one in given:
            items = one if isinstance(one, list | tuple) else (one,)
            self.types.update(type(item).__name__ for item in items if _is_own(item))


def _is_own(value) -> bool:
    kind = type(value)
    return kind.__module__.startswith('minicpmo_ros') and hasattr(kind, '__dataclass_fields__')


def walks(model_path) -> dict:
    """Return {what: (files, types)} for a second of audio, a question and a second of images."""
    from minicpmo_ros.evaluation.runner import Core, CoreOptions
    from minicpmo_ros.live.engine import Engine
    from minicpmo_ros.live.question import EvidenceOptions, Question
    from minicpmo_ros.live.status import EngineOptions
    from minicpmo_ros.media.audio.format import AudioFormat
    from minicpmo_ros.media.audio.stream import AudioDecoder
    from minicpmo_ros.media.image.raw import decode_image
    from minicpmo_ros.modelset.directory import ModelDirectory
    from minicpmo_ros.streams.audio import AudioPipeline
    from minicpmo_ros.streams.image import ImagePipeline
    from minicpmo_ros.units import NS

    rate_hz, found = 16_000, {}
    core = Core(ModelDirectory.open(model_path), CoreOptions(device='cpu', threads=1))
    read, answered, walk = threading.Semaphore(0), threading.Event(), Walk()
    counted = [0]

    def on_change(status) -> None:
        for _ in range(counted[0], status.units_read):
            read.release()
        counted[0] = status.units_read

    engine = Engine(
        lambda *_: core.session,
        EngineOptions(evidence=EvidenceOptions('none')),
        on_change=on_change,
    )
    engine.wait_for('audio')
    engine.start()
    decoder, pipeline = AudioDecoder(AudioFormat(rate_hz, 1)), AudioPipeline(core.audio)
    tone = b''.join(
        int(8000 * math.sin(i / 9)).to_bytes(2, 'little', signed=True)
        for i in range(rate_hz // 10)
    )
    for chunk in range(40):
        if chunk == 21:  # the second from 2 s to 3 s: the decoder and the pipeline are running
            walk.begin()
        for second in pipeline.push(*decoder.push(100 * NS + chunk * NS // 10, tone)):
            engine.put_audio(second.second, second.rows)
            if not read.acquire(timeout=ANSWER_S):
                raise RuntimeError(f'the second {second.second} was not read')
        if chunk == 30:
            found['one second of audio'] = walk.end()
    walk.begin()
    engine.ask(Question('What do you hear?'), on_done=lambda _: answered.set())
    if not answered.wait(ANSWER_S):
        raise RuntimeError('the question was not answered')
    found['one question'] = walk.end()
    images = ImagePipeline(core.vision)
    engine.wait_for('image')
    for second in range(200, 204):
        message = _raw_image(second)
        if second == 202:
            walk.begin()
        images.offer(second * NS, lambda message=message: decode_image(message))
        for seen in images.close(second - 1):
            engine.put_image(seen.second, seen.rows, (seen.tiles_wide, seen.tiles_high))
            if not read.acquire(timeout=ANSWER_S):
                raise RuntimeError(f'the second {seen.second} was not read')
        if second == 202:
            found['one second of images'] = walk.end()
    sys.setprofile(None)
    threading.setprofile(None)
    engine.close()
    return found


def _raw_image(seed: int) -> SimpleNamespace:
    """Return what sensor_msgs/Image holds: noise, 320 x 240."""
    pixels = random.Random(seed).randbytes(320 * 240 * 3)
    return SimpleNamespace(
        encoding='rgb8', height=240, width=320, step=960, data=pixels, is_bigendian=0
    )


def source_figures(modules: dict) -> dict:
    """Return {figure: (number, what is behind it)} of what the sources alone tell."""
    lengths = function_lengths(modules)
    longest = max(modules, key=lambda name: modules[name][1])
    n_packages = sum(path.name == '__init__.py' for path, _, _ in modules.values())
    figures = {
        'modules': (len(modules) - n_packages, f'and {n_packages} packages'),
        'lines of the longest file': (modules[longest][1], longest),
        'lines of a function, median': (median(lengths), ''),
        'lines of a function, 90 %': (lengths[len(lengths) * 9 // 10], ''),
        'lines of a function, most': (lengths[-1], ''),
    }
    for what, found in (
        (f'modules below {SMALL_LINES} lines with one importer', small_modules(modules)),
        ('names of several public classes', shared_class_names(modules)),
        ('constants defined more than once', [name for name, _ in repeated_constants(modules)]),
        ('private names in tests', private_names(TESTS)),
    ):
        named = [name[0] if isinstance(name, tuple) else name for name in found]
        figures[what] = (len(found), ', '.join(named))
    return figures


def main() -> None:
    """Print the table, and what is behind its figures."""
    figures = source_figures(read_modules())
    rows = [(name, f'{number:g}', what) for name, (number, what) in figures.items()]
    for what, (files, types) in walks(PACKAGE.parent / 'models' / 'nano').items():
        rows.append((f'files of {what}', len(files), ', '.join(files)))
        rows.append((f'types of {what}', len(types), ', '.join(types)))
    print('| figure | now | which |\n|-|-|-|')
    for row in rows:
        print('| ' + ' | '.join(map(str, row)) + ' |')


if __name__ == '__main__':
    from minicpmo_ros.process import prepare

    prepare()
    main()
