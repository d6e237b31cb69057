# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The package's executables and metadata, for CMakeLists.txt; the version lives in package.xml."""

import pathlib
import sys
import xml.etree.ElementTree as ElementTree

from setuptools import setup
from setuptools.command.install_scripts import install_scripts

LONGEST_LINE = 127  # that the kernel reads of a script's first


class InstallScripts(install_scripts):
    """Executables that start wherever their Python lies.

    The kernel takes neither a folder with a space in its name in a script's first line, nor a very
    long one; there a shell finds the Python. To Python what the shell reads is a text.
    """

    def write_script(self, script_name, contents, mode='t', *blockers):
        """Write one, with a first line that works."""
        first, _, rest = contents.partition('\n')
        path = sys.executable
        if first.startswith('#!') and (' ' in path or len(first) > LONGEST_LINE):
            quoted = path.replace('\\', '\\\\').replace('"', '\\"')
            quoted = quoted.replace('$', '\\$').replace('`', '\\`')
            contents = f"#!/bin/sh\n'''exec' \"{quoted}\" \"$0\" \"$@\"\n' '''\n{rest}"
        super().write_script(script_name, contents, mode, *blockers)


package = ElementTree.parse(pathlib.Path(__file__).resolve().parent / 'package.xml').getroot()
setup(
    version=package.findtext('version'),
    description=package.findtext('description'),
    license=package.findtext('license'),
    maintainer=package.findtext('maintainer'),
    maintainer_email=package.find('maintainer').get('email'),
    cmdclass={'install_scripts': InstallScripts},
)
