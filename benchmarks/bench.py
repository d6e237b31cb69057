# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The published tables, from one command: nano in its precisions, 0.5B, and the true size.

    make bench                                    # TRUE_SIZE=--true-size adds MiniCPM-o 2.6
    python -m benchmarks.bench --model DIR        # any model directory

What `minicpmo bench` measures, and beside it the ratios against others' programs: the loop of
llama-cpp-python, libmtmd, and PyTorch (--torch: the python of an environment that has it). Models
of random weights are written to build/ where they are not there. The true size takes 5 GB of disk,
is measured alone with few repetitions, and is removed afterwards. How often nano is right in each
precision is asked too.
Writes build/bench.json.
"""

import argparse
import shutil
import sys
from functools import partial
from pathlib import Path

from minicpmo_ros.process import prepare

prepare()

from benchmarks import baselines  # noqa: E402
from minicpmo_ros.cli import measuring  # noqa: E402
from minicpmo_ros.cli.options import model_path  # noqa: E402
from minicpmo_ros.evaluation.answers import markdown  # noqa: E402
from minicpmo_ros.evaluation.answers import report as score  # noqa: E402
from minicpmo_ros.evaluation.questions import QuestionSet  # noqa: E402
from minicpmo_ros.evaluation.runner import Core, CoreOptions, Variant, answer_all  # noqa: E402
from minicpmo_ros.modelset.directory import ModelDirectory  # noqa: E402
from minicpmo_ros.quantize.quantizer import quantize_directory  # noqa: E402
from minicpmo_ros.synthetic.model import write_model  # noqa: E402

BUILD = Path('build/bench')
OUT = Path('build/bench.json')
TORCH = Path('build/nano-venv/bin/python')
NANO = Path('models/nano')
PRECISIONS = ('f32', 'f16', 'q8_0', 'q4_0')  # of nano; f32 is what the others are held against
SHOWN = PRECISIONS[1:]
QUESTIONS = Path('demo/clips/questions.json')


def baselines_of(torch: Path, model: ModelDirectory, options) -> dict:
    """Give what measures the ratios against others."""
    return {
        'decode_over_llama': partial(baselines.decode, model, options),
        'vision_over_mtmd': partial(baselines.vision, model, options),
        'audio_over_torch_30s': partial(baselines.audio, model, options, torch, 30),
    }


def nanos() -> dict:
    """Give nano's directories by precision, written where they are not there."""
    found = {}
    for precision in PRECISIONS:
        found[precision] = BUILD / f'nano-{precision}'
        types = dict.fromkeys(('llm', 'vision', 'audio'), precision)
        if not found[precision].exists():
            quantize_directory(NANO, found[precision], types)
    return found


def synthetic(shape: str, *precisions: str) -> Path:
    """Give the directory of a model of random weights."""
    directory = BUILD / shape
    if not (directory / 'manifest.yaml').exists():
        write_model(directory, shape, 1, *precisions, hashes=False)
    return directory


def accuracy(directories: dict) -> dict:
    """Ask nano about the clips that ship, in every precision; give the score's report."""
    questions, answers = QuestionSet.read(QUESTIONS), []
    for directory in directories.values():
        core = Core(ModelDirectory.open(directory), CoreOptions('cpu', 1))
        answers += answer_all(core, questions, [Variant()])
        core.close()
    return score(questions, answers)


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--model', type=model_path, action='append', dest='directories')
    parser.add_argument('--shape', choices=('nano', '0.5b'), action='append', help='default: both')
    parser.add_argument('--true-size', action='store_true')
    parser.add_argument('--torch', type=Path, default=TORCH, metavar='PYTHON')
    parser.add_argument('--no-accuracy', action='store_true')
    parser.add_argument('--json', type=Path, default=OUT, metavar='OUT')
    measuring.add_measuring(parser)
    given = parser.parse_args()
    command = ' '.join(['python -m benchmarks.bench', *sys.argv[1:]])
    shapes = given.shape or ([] if given.directories or given.true_size else ['nano', '0.5b'])
    by_precision = nanos() if 'nano' in shapes else {}
    given.directories = given.directories or []
    given.directories += [by_precision[name] for name in SHOWN if by_precision]
    if '0.5b' in shapes:
        given.directories.append(synthetic('0.5b', 'q4_0', 'f16', 'f16'))
    if given.true_size:
        given.directories.append(synthetic('2.6', 'q4_K', 'q4_0', 'q4_0'))
        given.pairs, given.units = min(given.pairs, 1), 1
    report = measuring.measure_all(given, partial(baselines_of, given.torch), command)
    if by_precision and not given.no_accuracy:
        report.data['accuracy'] = accuracy(by_precision)
        measuring.write(report, given.json)
        print('\n' + markdown(report.data['accuracy']), end='')
    if given.true_size:
        shutil.rmtree(BUILD / '2.6')
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
