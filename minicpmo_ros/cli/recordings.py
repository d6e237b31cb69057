# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The verbs that make and show bags: bag, look and streamingbench."""

import sys
from pathlib import Path

from minicpmo_ros.cli.options import add_topic_arguments, shipped_questions, sources_of
from minicpmo_ros.config import VISION
from minicpmo_ros.documents import make_folder, require_other, require_place
from minicpmo_ros.errors import InputError
from minicpmo_ros.units import NS

SUFFIXES = ('.png', '.jpg', '.jpeg')
HOURS_S = 6 * 3600  # of a bag, where no --seconds are given
BLOCK_S = 300  # of a bag that is in memory at once, for --mcap
THRESHOLDS = (2.0, 4.0, 8.0, 16.0, 32.0)  # of vision.unchanged_threshold


def add_bag_arguments(parser) -> None:
    """Declare the options of `bag`."""
    parser.add_argument(
        'video', type=Path, help='MP4, Matroska, WebM or another format that PyAV reads'
    )
    parser.add_argument(
        '--out', type=Path, required=True, metavar='BAG.mcap', help='the bag to write'
    )


def run_bag(arguments) -> None:
    """Convert a video into a bag: one image a second and all its audio, with exact stamps."""
    from minicpmo_ros.evaluation.bags.writing import write_video

    if arguments.out.suffix.lower() != '.mcap':
        raise InputError(f'--out is {arguments.out}; a name that ends in .mcap is expected.')
    require_place(arguments.out)
    require_other(arguments.out, arguments.video)
    if short := write_video(arguments.video, arguments.out):
        print(short, file=sys.stderr)
    print(arguments.out)


def add_look_arguments(parser) -> None:
    """Declare the options of `look`."""
    parser.add_argument('bag', type=Path, help='an MCAP or db3 file, or a folder of them')
    parser.add_argument(
        '--out', type=Path, metavar='PICTURE', help='the PNG or JPEG file to write'
    )
    parser.add_argument(
        '--mcap',
        type=Path,
        metavar='FILE.mcap',
        help='the file to write for Foxglove: images, audio, and the answers that are in the bag '
        'or in --answers, with the seconds that they rest on',
    )
    parser.add_argument(
        '--answers',
        type=Path,
        metavar='FOLDER',
        help='for --mcap: a run of `replay`, whose answers about this bag are taken instead of '
        "the bag's own",
    )
    parser.add_argument(
        '--questions',
        type=Path,
        metavar='FILE',
        help='that the run of --answers was asked; default: the questions that ship',
    )
    _add_change_arguments(parser)
    parser.add_argument(
        '--start', type=int, default=0, help='where to begin, in seconds from the start of the bag'
    )
    parser.add_argument(
        '--seconds',
        type=int,
        help=f'how many seconds; default: to the end, {HOURS_S // 3600} h at most',
    )
    add_topic_arguments(parser)


def _add_change_arguments(parser) -> None:
    """Declare what is printed of images that do not change."""
    parser.add_argument(
        '--changes',
        action='store_true',
        help='print in how many seconds which vision.unchanged_threshold would reuse the last '
        'embedding',
    )
    parser.add_argument(
        '--crop',
        metavar='"X0 Y0 X1 Y1"',
        help='for --changes: compare this part of the images alone, as vision.crop has it',
    )


def run_look(arguments) -> None:
    """Draw a bag: the image of every second, and the waveform of its audio below it.

    With --mcap write a file for Foxglove. With --changes print how often an unchanged image is
    reused. At least one of the three is needed.
    """
    _check_look(arguments)
    if arguments.mcap:
        _write_mcap(arguments)
    if arguments.out or arguments.changes:
        _draw(arguments)


def _check_look(arguments) -> None:
    from minicpmo_ros.evaluation.bags.clip import LONGEST_WINDOW_S

    if arguments.out is None and not arguments.changes and arguments.mcap is None:
        raise InputError('look needs --out, --mcap or --changes, or several of them.')
    for name, path, suffixes in (
        ('out', arguments.out, SUFFIXES),
        ('mcap', arguments.mcap, ('.mcap',)),
    ):
        if path and path.suffix.lower() not in suffixes:
            expected = f'one of {", ".join(suffixes)}' if len(suffixes) > 1 else suffixes[0]
            raise InputError(f'--{name} is {path}; a name that ends in {expected} is expected.')
    seconds = 1 if arguments.seconds is None else arguments.seconds
    if arguments.start < 0 or not 1 <= seconds <= LONGEST_WINDOW_S:
        raise InputError(f'--start is 0 or more, --seconds from 1 to {LONGEST_WINDOW_S}.')
    for path in filter(None, (arguments.out, arguments.mcap)):
        require_place(path)
        require_other(path, arguments.bag)
    if not arguments.mcap and (arguments.answers or arguments.questions):
        raise InputError('--answers and --questions are for --mcap FILE.')
    if not arguments.changes and arguments.crop:
        raise InputError('--crop is for --changes.')


def _write_mcap(arguments) -> None:
    """Write what Foxglove shows of a bag and of the answers about it."""
    from minicpmo_ros.evaluation.bags.clip_reading import read_windows
    from minicpmo_ros.evaluation.questions import QuestionSet
    from minicpmo_ros.evaluation.report import foxglove

    length_s, bag = arguments.seconds or HOURS_S, arguments.bag
    begin_s, end_s = arguments.start, arguments.start + length_s
    with read_windows(bag, [((begin_s, end_s), True)], sources_of(arguments), True) as kept:
        first_s, losses = kept.first_s, kept.clip([]).losses
        if arguments.answers:
            asked = arguments.questions or shipped_questions()
            questions = QuestionSet.read(asked, needs_clips=False)
            answers = foxglove.answers_of_run(arguments.answers, questions, bag, first_s)
        else:
            answers, lost = foxglove.answers_in_bag(bag)
            losses += lost
        begin_ns, end_ns = ((first_s + edge_s) * NS for edge_s in (begin_s, end_s))
        answers = tuple(one for one in answers if begin_ns <= one.given_ns <= end_ns)

        def blocks():
            for at_s in range(begin_s, end_s, BLOCK_S):
                edges = at_s, min(at_s + BLOCK_S, end_s)
                yield *(first_s + edge_s for edge_s in edges), kept.clip([(edges, True)])

        written = foxglove.write_foxglove(arguments.mcap, blocks(), answers, first_s)
        _tell_more(kept, begin_s, arguments.seconds, length_s)
    for loss in losses:
        print(loss, file=sys.stderr)
    print(
        f'{written.seconds} seconds, {written.images} with an image, {written.answers} answers: '
        f'{arguments.mcap}'
    )


def _tell_more(kept, start_s: int, asked_s: int | None, length_s: int) -> None:
    """Say that a bag goes on behind what was read of it, where nobody has asked for so much."""
    end_s = start_s + length_s
    if asked_s is None and kept.end_s > kept.first_s + end_s:
        print(
            f'The bag goes on behind second {end_s}, where this ends. For more give --start '
            'and --seconds.',
            file=sys.stderr,
        )


def _draw(arguments) -> None:
    """Write the picture of a bag, print its table of changes, or both."""
    from minicpmo_ros.evaluation.bags.clip_reading import read_windows
    from minicpmo_ros.evaluation.report.plots import MOST_CELLS, contact_sheet

    length_s = arguments.seconds
    if length_s is None:
        length_s = MOST_CELLS + 1 if arguments.out else HOURS_S
    window = ((arguments.start, arguments.start + length_s), True)
    with read_windows(arguments.bag, [window], sources_of(arguments), by_index=True) as kept:
        clip = kept.clip([window])
        if arguments.changes:
            _tell_more(kept, arguments.start, arguments.seconds, length_s)
    for loss in clip.losses:
        print(loss, file=sys.stderr)
    if arguments.changes:
        _print_changes(clip, arguments.crop or VISION.crop)
    if not arguments.out:
        return
    start_s = clip.first_s + arguments.start
    end_s = None if arguments.seconds is None else start_s + arguments.seconds
    contact_sheet(clip, start_s, end_s).save(arguments.out)
    what = f'{len(clip.images)} seconds with an image, {len(clip.audio)} chunks of audio'
    print(f'{what}: {arguments.out}')


def _print_changes(clip, crop: str) -> None:
    """Print a table of what each threshold would reuse of a clip's seconds with an image."""
    from minicpmo_ros.media.image.tiling import Crop, plan_tiles, thumbnail, thumbnail_noise
    from minicpmo_ros.streams.image import ReuseCount

    def needed(width: int, height: int) -> tuple:  # as the encoder without tiles
        plan = plan_tiles(width, height)
        return plan.source_width, plan.source_height

    seen, n_seconds = Crop.parse(crop), 0
    counts = [ReuseCount(threshold) for threshold in THRESHOLDS]
    for second, image in {image.stamp_ns // NS: image for image in clip.images}.items():
        try:
            decoded = image.rgb.as_needed(needed)
        except InputError as error:
            print(f'second {second}: {error}', file=sys.stderr)
            continue
        n_seconds += 1
        pixels = seen.cut(decoded.pixels)
        small, noise = thumbnail(pixels), thumbnail_noise(pixels)
        for count in counts:
            count.add(second, (decoded.width, decoded.height), small, noise)
    if not n_seconds:
        raise InputError('No second has an image. Check --start, --seconds and --image-topic.')
    print('| vision.unchanged_threshold | seconds reused | share % | longest run, s |')
    print('|---:|---:|---:|---:|')
    for count in counts:
        share = 100 * count.reused / max(1, n_seconds)
        default = ' (default)' * (count.threshold == VISION.unchanged_threshold)
        told = f'{count.threshold:g}{default} | {count.reused} | {share:.1f} | {count.longest_s}'
        print(f'| {told} |')
    print(f'{n_seconds} seconds with an image; the first of them is always encoded.')


def add_streamingbench_arguments(parser) -> None:
    """Declare the options of `streamingbench`."""
    parser.add_argument(
        'annotations', type=Path, help='file of annotations, such as questions_omni.json'
    )
    parser.add_argument(
        '--videos',
        type=Path,
        required=True,
        metavar='FOLDER',
        help='folder in which the videos are searched by name',
    )
    parser.add_argument(
        '--out', type=Path, required=True, metavar='FOLDER', help='folder to write'
    )
    parser.add_argument(
        '--context',
        type=int,
        default=60,
        metavar='S',
        help='seconds of video before a question; -1: all',
    )


def run_streamingbench(arguments) -> None:
    """Make questions and bags for `replay` from StreamingBench's annotations and videos.

    Converts each video into a bag once and keeps existing bags. Lists malformed questions and
    missing videos in defects.txt. Of the proactive task only bags are made: `replay` reads its
    file as it is published.
    """
    from minicpmo_ros.evaluation.streamingbench import (
        is_proactive,
        question_set,
        read_annotations,
        read_proactive,
    )

    proactive = is_proactive(arguments.annotations)
    annotated, defects = (read_proactive if proactive else read_annotations)(arguments.annotations)
    make_folder(arguments.out)
    there = _make_bags(arguments, annotated, defects)
    (arguments.out / 'defects.txt').write_text(''.join(f'{line}\n' for line in defects))
    if not there:
        raise InputError(f'None of the videos is in {arguments.videos}.')
    if proactive:
        print(
            f'{len(there)} questions, {len(defects)} defects, see defects.txt; now: '
            f'minicpmo replay MODEL {arguments.annotations} --bag {arguments.out} --out RUN'
        )
        return
    name = f'StreamingBench {arguments.annotations.stem}, context {arguments.context} s'
    questions = question_set(there, arguments.out, arguments.context, name)
    questions.write(arguments.out / 'questions.json')
    tasks = ', '.join(
        f'{sum(one.task == task for one in there)} {task}'
        for task in dict.fromkeys(one.task for one in there)
    )
    print(f'{len(there)} questions ({tasks}); {len(defects)} defects, see defects.txt')


def _make_bags(arguments, annotated: tuple, defects: list) -> tuple:
    """Make the bags that are not there; return the questions that have one, list the others."""
    from minicpmo_ros.evaluation.bags.writing import write_video

    there = sorted(arguments.videos.resolve().rglob('*'))
    files = [path for path in there if path.is_file()]
    bags = {one.bag: one for one in annotated}
    for number, (bag, one) in enumerate(bags.items(), 1):
        if (arguments.out / bag).exists():
            continue
        try:
            short = write_video(one.find(files), arguments.out / bag)
            defects += [short] * bool(short)
        except InputError as error:
            defects.append(f'{error} Its questions are left out.')
            continue
        print(f'{number} of {len(bags)}: {bag}', file=sys.stderr)
    return tuple(one for one in annotated if (arguments.out / one.bag).exists())
