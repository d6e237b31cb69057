# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Draw a bag for looking at: every second's picture, and the waveform of its sound below."""

import sys
from pathlib import Path

from minicpmo_ros.errors import InputError
from minicpmo_ros.tools.asking import add_topic_arguments

SUMMARY = 'draw a bag as a contact sheet with its waveform'
SUFFIXES = ('.png', '.jpg', '.jpeg')


def add_arguments(parser) -> None:
    """Declare the options."""
    parser.add_argument('bag', type=Path, help='an MCAP or db3 file, or a folder of them')
    parser.add_argument('--out', type=Path, required=True, metavar='PICTURE', help='PNG or JPEG')
    parser.add_argument('--start', type=int, default=0, help='seconds from the begin of the bag')
    parser.add_argument('--seconds', type=int, help='how many; default: to the end')
    add_topic_arguments(parser)


def run(arguments) -> None:
    """Draw, and say what of the bag was lost."""
    from minicpmo_ros.evaluation.clips import Sources, read_clip
    from minicpmo_ros.evaluation.sheet import contact_sheet

    if arguments.out.suffix.lower() not in SUFFIXES:
        raise InputError(
            f'--out is {arguments.out}; a name that ends in one of {", ".join(SUFFIXES)} is '
            'expected.'
        )
    sources = Sources(arguments.image_topic, arguments.audio_topic)
    clip = read_clip(arguments.bag, sources=sources)
    for loss in clip.losses:
        print(loss, file=sys.stderr)
    start_s = clip.first_s + arguments.start
    end_s = None if arguments.seconds is None else start_s + arguments.seconds
    contact_sheet(clip, start_s, end_s).save(arguments.out)
    print(f'{len(clip.pictures)} pictures, {len(clip.sound)} chunks of sound: {arguments.out}')
