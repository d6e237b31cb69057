# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Make questions and bags for `replay` of StreamingBench's annotations and videos.

Videos become bags once; what is there already is kept. Malformed questions and missing videos are
listed in defects.txt.
"""

import sys
from pathlib import Path

from minicpmo_ros.errors import InputError

SUMMARY = "make questions and bags of StreamingBench's files"


def add_arguments(parser) -> None:
    """Declare the options."""
    parser.add_argument('annotations', type=Path, help='such as questions_omni.json')
    parser.add_argument(
        '--videos', type=Path, required=True, metavar='FOLDER', help='searched by name'
    )
    parser.add_argument('--out', type=Path, required=True, metavar='FOLDER', help='to write')
    parser.add_argument(
        '--context', type=int, default=60, metavar='S', help='seconds before a question; -1: all'
    )


def run(arguments) -> None:
    """Write bags, questions.json and defects.txt."""
    from minicpmo_ros.evaluation.streamingbench import question_set, read_annotations
    from minicpmo_ros.evaluation.videos import write_video

    annotated, defects = read_annotations(arguments.annotations)
    arguments.out.mkdir(parents=True, exist_ok=True)
    found = {path.name: path for path in sorted(arguments.videos.rglob('*')) if path.is_file()}
    bags = {one.bag: Path(one.video).name for one in annotated}
    for number, (bag, video) in enumerate(bags.items(), 1):
        if (arguments.out / bag).exists():
            continue
        try:
            if video not in found:
                raise InputError(f'{video}: not in {arguments.videos}.')
            write_video(found[video], arguments.out / bag)
        except InputError as error:
            defects.append(f'{error} Its questions are left out.')
            continue
        print(f'{number} of {len(bags)}: {bag}', file=sys.stderr)
    there = tuple(one for one in annotated if (arguments.out / one.bag).exists())
    (arguments.out / 'defects.txt').write_text(''.join(f'{line}\n' for line in defects))
    if not there:
        raise InputError(f'None of the {len(bags)} videos is in {arguments.videos}.')
    name = f'StreamingBench {arguments.annotations.stem}, context {arguments.context} s'
    questions = question_set(there, arguments.out, arguments.context, name)
    questions.write(arguments.out / 'questions.json')
    tasks = ', '.join(
        f'{sum(one.task == task for one in there)} {task}'
        for task in dict.fromkeys(one.task for one in there)
    )
    print(f'{len(there)} questions ({tasks}); {len(defects)} defects, see defects.txt')
