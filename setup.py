# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The package's executables and metadata, for CMakeLists.txt; the version lives in package.xml."""

import pathlib
import xml.etree.ElementTree as ElementTree

from setuptools import setup

package = ElementTree.parse(pathlib.Path(__file__).resolve().parent / 'package.xml').getroot()
setup(
    version=package.findtext('version'),
    description=package.findtext('description'),
    license=package.findtext('license'),
    maintainer=package.findtext('maintainer'),
    maintainer_email=package.find('maintainer').get('email'),
)
