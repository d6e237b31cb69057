# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The package's executables and metadata, for CMakeLists.txt; the version lives in package.xml."""

import configparser
import pathlib
import sys
import xml.etree.ElementTree as ElementTree

from setuptools import setup
from setuptools.command.install_scripts import install_scripts

FOLDER = pathlib.Path(__file__).resolve().parent
LONGEST_LINE = 127  # that the kernel reads of a script's first


def program(name: str) -> str:
    """Return what follows the first line of an executable, by setup.cfg."""
    settings = configparser.ConfigParser()
    settings.read(FOLDER / 'setup.cfg')
    lines = settings['options.entry_points']['console_scripts'].split('\n')
    targets = dict(line.replace(' ', '').split('=') for line in lines if line)
    module, _, function = targets[name].partition(':')
    # Ctrl-C may come while it imports. Processes that it starts anew import it for what it
    # defines, and must not run it again.
    return f"""import sys

try:
    from {module} import {function}

    if __name__ == '__main__':
        sys.exit({function}())
except KeyboardInterrupt:
    sys.exit(130)
"""


class InstallScripts(install_scripts):
    """Executables that start wherever their Python lies, and soon.

    They import what they run, and do not look for it in the metadata of what is installed: that
    takes 30 ms of CPU time. The kernel takes neither a folder with a space in its name in a
    script's first line, nor a very long one; there a shell finds the Python. To Python what the
    shell reads is a text.
    """

    def write_script(self, script_name, contents, mode='t', *blockers):
        """Write one, with a first line that works."""
        first, _, _ = contents.partition('\n')
        rest = program(script_name)
        path = sys.executable
        if first.startswith('#!') and (' ' in path or len(first) > LONGEST_LINE):
            quoted = path.replace('\\', '\\\\').replace('"', '\\"')
            quoted = quoted.replace('$', '\\$').replace('`', '\\`')
            first = f"#!/bin/sh\n'''exec' \"{quoted}\" \"$0\" \"$@\"\n' '''"
        super().write_script(script_name, f'{first}\n{rest}', mode, *blockers)


package = ElementTree.parse(FOLDER / 'package.xml').getroot()
setup(
    version=package.findtext('version'),
    description=package.findtext('description'),
    license=package.findtext('license'),
    maintainer=package.findtext('maintainer'),
    maintainer_email=package.find('maintainer').get('email'),
    cmdclass={'install_scripts': InstallScripts},
)
