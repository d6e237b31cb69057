# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Write a video as a bag: one picture a second, all its sound, stamps exact."""

from pathlib import Path

SUMMARY = 'write a video as a bag'


def add_arguments(parser) -> None:
    """Declare the options."""
    parser.add_argument('video', type=Path, help='MP4, Matroska, WebM or another that PyAV reads')
    parser.add_argument('--out', type=Path, required=True, metavar='BAG.mcap', help='to write')


def run(arguments) -> None:
    """Write it."""
    from minicpmo_ros.evaluation.videos import write_video

    write_video(arguments.video, arguments.out)
    print(arguments.out)
