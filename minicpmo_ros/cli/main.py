# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""`minicpmo VERB ...`: model directories and a running robot from the command line.

A module of this package holds the verbs that belong together. For each verb it defines
add_VERB_arguments(parser) and run_VERB(arguments), whose docstring is the help text and which
imports what is slow to load. The verbs about a running robot are in the room `verbs`, because
`ros2 minicpmo` has them too. Errors are one line on stderr and exit status 2; where a signal ends
a verb, the exit status is 128 and its number, as shells have it.
"""

import argparse
import importlib
import os
import signal
import sys

from minicpmo_ros.errors import Error, TerminatedError, in_words
from minicpmo_ros.process import prepare
from minicpmo_ros.verbs.arguments import VERBS as ROBOT_VERBS
from minicpmo_ros.verbs.arguments import add_arguments, runner

VERBS = {  # verb: (module of this package, what the verb does)
    'adopt': ('model_files', 'write the manifest of published model files'),
    'alerts': ('alerts', 'fit standing questions to labelled bags'),
    'bag': ('recordings', 'convert a video into a bag'),
    'bench': ('measuring', 'measure time and memory of model directories'),
    'check': ('model_files', 'check the files of a model directory'),
    'convert': ('model_files', 'convert a Hugging Face checkpoint'),
    'doctor': ('doctor', 'check this machine, a model and the graph, and say what to do'),
    'fetch': ('fetch', 'fetch published model files from Hugging Face, and adopt them'),
    'importance': ('quantization', 'measure which columns of the weights matter'),
    'interfaces': ('interfaces', 'print the tables of all messages (docs/interfaces.md)'),
    'look': ('recordings', 'draw a bag second by second, or write it for Foxglove with answers'),
    'memory': ('notes', 'list, find, export or forget notes of what was seen and heard'),
    'merge': ('replay', 'join the shards of a replay to one run'),
    'parameters': ('parameters', 'print the tables of all parameters (docs/parameters.md)'),
    'plan': (
        'plan',
        'predict the memory of a model, and suggest what to lower if it does not fit',
    ),
    'quantize': ('quantization', 'write model files in other precisions'),
    'remember': ('notes', 'write notes of bags, so that they can be searched'),
    'replay': ('replay', 'ask a model questions about bags; an interrupted run resumes'),
    'report': ('measuring', 'score and compare runs: an HTML page, Markdown, CSV'),
    'score': ('measuring', 'ask a model about clips and count the right answers'),
    'search': ('quantization', 'find the smallest types that keep the answers'),
    'streamingbench': ('recordings', "make questions and bags from StreamingBench's files"),
    'synthetic': ('model_files', 'write a model of random weights'),
}


def main(arguments=None) -> int:
    """Run one verb; return the exit status."""
    prepare()
    given = sys.argv[1:] if arguments is None else list(arguments)
    parsed = make_parser(given[0] if given else None).parse_args(given)
    parsed.given = given
    if arguments is None:  # names of files may have bytes that are no text
        sys.stdout.reconfigure(errors='backslashreplace')
    try:
        return parsed.run(parsed) or 0
    except BrokenPipeError:  # who read what was printed has seen enough, such as `head`
        sys.stdout = open(os.devnull, 'w')
        return 128 + signal.SIGPIPE
    except (Error, OSError) as error:
        print(f'minicpmo {parsed.verb}: {_told(error)}', file=sys.stderr)
        return 128 + signal.SIGTERM if isinstance(error, TerminatedError) else 2
    except UnicodeEncodeError as error:
        part = error.object[max(0, error.start - 20) : error.end + 20]
        print(f'minicpmo {parsed.verb}: {part!r} is no text in UTF-8.', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _told(error: Exception) -> str:
    """Return one line about an error, of the system's with the file and what to do."""
    from minicpmo_ros.documents import FULL

    if isinstance(error, Error):
        return ' '.join(str(error).split())
    where = f'{error.filename}: ' if error.filename is not None else ''
    remedy = ' Free some room, or write elsewhere.' if error.errno in FULL else ''
    return f'{where}{in_words(error)}.{remedy}'


def make_parser(verb: str | None = None) -> argparse.ArgumentParser:
    """Build the parser of all verbs; only `verb`, if it is one, then has its arguments."""
    parser = argparse.ArgumentParser(
        prog='minicpmo',
        description='Tools for model directories '
        'of minicpmo_ros: llm.gguf, vision.gguf, audio.gguf and '
        'manifest.yaml.',
    )
    verbs = parser.add_subparsers(dest='verb', metavar='VERB', required=True)
    known = {**{name: summary for name, (_, summary) in VERBS.items()}, **ROBOT_VERBS}
    for name, summary in known.items():
        if verb in known and verb != name:
            verbs.add_parser(name, help=summary)  # for the usage
        elif name in VERBS:
            _add_verb(verbs, name)
        else:
            robots = verbs.add_parser(
                name,
                help=summary,
                description=f'{summary.capitalize()}.',
                formatter_class=HelpFormatter,
            )
            add_arguments(name, robots)
            robots.set_defaults(run=runner(name))
    return parser


class HelpFormatter(argparse.HelpFormatter):
    """Tells the default of an option as it is typed, where there is one that is not told."""

    def _get_help_string(self, action) -> str:
        default, is_given = action.default, action.option_strings or action.nargs in ('?', '*')
        is_none = default is False or default in (None, '', (), [], argparse.SUPPRESS)
        if not is_given or is_none or 'default: ' in action.help:
            return action.help
        if isinstance(default, (tuple, list)):
            return f'{action.help} (default: {",".join(map(str, default))})'
        return f'{action.help} (default: %(default)s)'


def _add_verb(verbs, name: str) -> None:
    """Add the parser of a verb of this package, whose module is imported here."""
    module_name, summary = VERBS[name]
    module = importlib.import_module(f'minicpmo_ros.cli.{module_name}')
    run = getattr(module, f'run_{name}')
    verb = verbs.add_parser(
        name,
        help=summary,
        description=run.__doc__,
        formatter_class=HelpFormatter,
    )
    getattr(module, f'add_{name}_arguments')(verb)
    verb.set_defaults(run=run)


if __name__ == '__main__':
    raise SystemExit(main())
