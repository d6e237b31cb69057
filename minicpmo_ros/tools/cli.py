# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""`minicpmo VERB ...`: model directories from the command line.

Each verb is a module of this package with SUMMARY, add_arguments(parser) and run(arguments); it
imports what is slow to load in run(). Errors are one line on stderr and exit status 2.
"""

import argparse
import importlib
import sys

from minicpmo_ros.errors import Error
from minicpmo_ros.process import prepare

VERBS = (
    'adopt',
    'bag',
    'bench',
    'check',
    'convert',
    'doctor',
    'importance',
    'look',
    'parameters',
    'plan',
    'quantize',
    'replay',
    'report',
    'score',
    'search',
    'streamingbench',
    'synthetic',
)


def main(arguments=None) -> int:
    """Run one verb; return the exit status."""
    prepare()
    parsed = make_parser().parse_args(arguments)
    try:
        return parsed.run(parsed) or 0
    except (Error, OSError) as error:
        print(f'minicpmo {parsed.verb}: {" ".join(str(error).split())}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def make_parser() -> argparse.ArgumentParser:
    """Build the parser of all verbs."""
    parser = argparse.ArgumentParser(
        prog='minicpmo',
        description='Tools for model directories '
        'of minicpmo_ros: llm.gguf, vision.gguf, audio.gguf and '
        'manifest.yaml.',
    )
    verbs = parser.add_subparsers(dest='verb', metavar='VERB', required=True)
    for name in VERBS:
        module = importlib.import_module(f'minicpmo_ros.tools.{name}')
        verb = verbs.add_parser(
            name,
            help=module.SUMMARY,
            description=module.__doc__,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        module.add_arguments(verb)
        verb.set_defaults(run=module.run)
    return parser


if __name__ == '__main__':
    raise SystemExit(main())
