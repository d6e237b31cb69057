# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""`ros2 minicpmo VERB`: extensions of ros2cli, which only a ROS 2 distribution has.

setup.cfg names them as entry points. Without ros2cli, `minicpmo VERB` does the same.
"""

from ros2cli.command import CommandExtension, add_subparsers_on_demand
from ros2cli.verb import VerbExtension

from minicpmo_ros.verbs.arguments import add_arguments, runner

GROUP = 'minicpmo_ros.verb'


class MinicpmoCommand(CommandExtension):
    """Ask and watch a robot that sees and hears."""

    def add_arguments(self, parser, cli_name):
        """Add the verbs, each imported when it is used."""
        self._parser = parser
        add_subparsers_on_demand(parser, cli_name, '_verb', GROUP, required=False)

    def main(self, *, parser, args):
        """Do the verb; without one, print the help."""
        if getattr(args, '_verb', None) is None:
            self._parser.print_help()
            return 0
        return args._verb.main(args=args)


class _Verb(VerbExtension):
    """A verb of `verbs/robot.py`."""

    verb: str

    def add_arguments(self, parser, cli_name):
        """Declare its options."""
        add_arguments(self.verb, parser)

    def main(self, *, args):
        """Do it."""
        return runner(self.verb)(args)


class AskVerb(_Verb):
    """Ask the running model a question."""

    verb = 'ask'


class WatchVerb(_Verb):
    """Print answers, standing questions and turns of speech as they come."""

    verb = 'watch'


class StatusVerb(_Verb):
    """Print what the running model is doing."""

    verb = 'status'


class TopVerb(_Verb):
    """Show a live table of seconds, work and memory."""

    verb = 'top'
