# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The verbs memory and remember: what a file of notes holds, and notes of bags."""

import json
import math
import sys
from dataclasses import asdict
from datetime import datetime
from functools import partial
from pathlib import Path

from minicpmo_ros.cli.options import (
    HELP,
    add_device_argument,
    add_topic_arguments,
    model_path,
    sources_of,
)
from minicpmo_ros.config import LLM, MEMORY
from minicpmo_ros.documents import make_place, require_other, write_text
from minicpmo_ros.errors import InputError

MOST_LISTED = 10**9  # notes
ACTIONS = ('list', 'find', 'export', 'forget')


def add_memory_arguments(parser) -> None:
    """Declare the options of `memory`."""
    parser.add_argument('file', type=Path, help='file of notes (memory.path of node llm)')
    parser.add_argument('action', choices=ACTIONS, nargs='?', default='list', help='see above')
    parser.add_argument('words', nargs='*', help='of find: a question, or words of the notes')
    parser.add_argument('--from', dest='begin', metavar='TIME', help='2026-03-04T09:15 or seconds')
    parser.add_argument('--to', dest='end', metavar='TIME', help='as --from')
    parser.add_argument('--limit', type=int, default=20, help='of list and find: how many')
    parser.add_argument('--out', type=Path, help='of export: file; default: the terminal')


def run_memory(arguments) -> None:
    """List, find, export or forget notes.

    list: the newest notes. find WORDS: those that a question would be answered with, the best
    first. export: all notes as JSON, one a line. forget: delete the notes between --from and --to,
    so that no byte of them is left in the file; the node that writes it must have ended (of a
    running one, call ~/forget).
    """
    from minicpmo_ros.notes.note import Filter
    from minicpmo_ros.notes.store import NoteStore

    wanted = Filter(_moment(arguments.begin), _moment(arguments.end))
    if bool(arguments.words) != (arguments.action == 'find'):
        raise InputError('Words are for find, and find needs them: memory FILE find keys.')
    if arguments.out is not None:
        if arguments.action != 'export':
            raise InputError('--out is for export: memory FILE export --out FILE.')
        require_other(arguments.out, arguments.file)
        make_place(arguments.out, b'{')
    if not 1 <= arguments.limit <= MOST_LISTED:
        raise InputError(f'--limit is {arguments.limit}; 1 to {MOST_LISTED} are expected.')
    is_forgetting = arguments.action == 'forget'
    if is_forgetting:
        _require_notes(arguments.file)
    with NoteStore(arguments.file, is_read_only=not is_forgetting) as store:
        if is_forgetting:
            if arguments.begin is None or arguments.end is None:
                raise InputError('Say what to forget: --from TIME --to TIME.')
            print(f'{store.forget(wanted)} notes are deleted, {len(store)} are left.')
        elif arguments.action == 'export':
            _export(store, wanted, arguments.out)
        else:
            shown = _shown(store, arguments, wanted)
            _print(shown)
            size = f'{store.size_bytes / 2**20:.1f} MiB: {arguments.file}'
            print(f'{len(shown)} of {len(store)} notes, {size}', file=sys.stderr)


def _shown(store, arguments, wanted) -> list:
    """Return the notes of list; of find, what a question would be answered with, best first."""
    if arguments.action == 'list':
        return store.list(wanted, arguments.limit)
    from minicpmo_ros.notes.recall import recall

    is_given = (arguments.begin, arguments.end) != (None, None)
    now_s, words = datetime.now().timestamp(), ' '.join(arguments.words)
    found = recall(store, words, now_s, None, None, arguments.limit, wanted if is_given else None)
    return [one.note for one in found]


def add_remember_arguments(parser) -> None:
    """Declare the options of `remember`."""
    parser.add_argument('bags', type=Path, nargs='+', metavar='BAG', help='MCAP, db3, or folders')
    parser.add_argument('--out', type=Path, required=True, metavar='FILE', help='file of notes')
    parser.add_argument('--model', default='nano', help=HELP)
    parser.add_argument('--every', type=int, default=MEMORY.every_s, help='seconds of a note')
    parser.add_argument(
        '--ask', default=MEMORY.questions, metavar='TEXT', help='as memory.questions of node llm'
    )
    parser.add_argument('--no-images', action='store_true', help='keep no small images')
    add_device_argument(parser)
    parser.add_argument('--n-ctx', type=int, default=LLM.n_ctx, help='context in positions')
    add_topic_arguments(parser)


def run_remember(arguments) -> None:
    """Write notes of bags into a file, so that a day can be searched without a robot.

    Ask them with `minicpmo memory FILE find ...`, or give the file to node llm (memory.path).
    """
    from minicpmo_ros.evaluation.bags.bags import Bag
    from minicpmo_ros.evaluation.notes import remember_bag
    from minicpmo_ros.evaluation.runner import Core, CoreOptions
    from minicpmo_ros.modelset.directory import ModelDirectory
    from minicpmo_ros.notes.periodic import read_questions
    from minicpmo_ros.notes.store import NoteStore

    if arguments.every < 1:
        raise InputError(f'--every is {arguments.every}; 1 second or more is expected.')
    if arguments.out.is_file() and arguments.out.stat().st_size:
        _require_notes(arguments.out)
    for bag in arguments.bags:
        Bag(bag)  # there is one, told before a model is loaded
    questions = read_questions(arguments.ask)
    rest = sources_of(arguments), not arguments.no_images, partial(print, file=sys.stderr)
    model = ModelDirectory.open(model_path(arguments.model))
    options = CoreOptions(
        arguments.device,
        n_ctx=arguments.n_ctx,
        max_tokens=MEMORY.max_tokens,
        rpc_servers=arguments.rpc_servers,
    )
    core = Core(model, options, strict=False)
    try:
        with NoteStore(arguments.out) as store:
            for number, bag in enumerate(arguments.bags, 1):
                n = remember_bag(core, bag, store, questions, arguments.every, *rest)
                why = '' if n else f' more; there is one for every {arguments.every} s (--every)'
                print(f'{number} of {len(arguments.bags)}: {bag}, {n} notes{why}', file=sys.stderr)
            print(f'{len(store)} notes: {arguments.out}')
    finally:
        core.close()


def _require_notes(path: Path) -> None:
    """Raise StoreError for what is no file of notes: a writer would put it aside as damaged."""
    from minicpmo_ros.notes.store import NoteStore

    with NoteStore(path, is_read_only=True):
        pass


def _moment(text: str | None) -> float | None:
    """Return a time in seconds since the epoch; raises InputError."""
    if text is None:
        return None
    try:
        moment = float(text)
        if math.isfinite(moment):
            return moment
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError as error:
        raise InputError(
            f'{text!r} is no time. Give 2026-03-04T09:15 or seconds since the epoch.'
        ) from error


def _print(notes: list) -> None:
    from minicpmo_ros.notes.times import BROKEN, date_of

    for note in notes:
        begin, end = date_of(note.begin_s), date_of(note.end_s)
        when = f'{BROKEN}, {note.begin_s:.0f} s'
        if begin is not None and end is not None:
            when = f'{begin:%Y-%m-%d %H:%M:%S} to {end:%H:%M:%S}'
        where = f'  ({note.pose.x:.1f}, {note.pose.y:.1f}) {note.pose.frame}' if note.pose else ''
        print(f'{when}  {note.kind:8}  {note.text}{where}')


def _export(store, wanted, out: Path | None) -> None:
    """Write the notes as lines of JSON, oldest first."""
    lines = []
    for note in store.list(wanted, len(store)):
        fields = asdict(note)
        del fields['image']
        lines.append(json.dumps(fields, ensure_ascii=False))
    text = ''.join(f'{line}\n' for line in lines)
    if out is None:
        print(text, end='')
    else:
        write_text(out, text)
        print(f'{len(lines)} notes: {out}', file=sys.stderr)
