# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""How Sphinx makes the site of the pages that build.py has laid out."""

project = 'minicpmo_ros'
author = 'the minicpmo_ros authors'
extensions = ['myst_parser']
nitpicky = True  # a reference that leads nowhere is a warning, and build.py ends with it
myst_heading_anchors = 4  # the anchors of the pages are those of a Git host
html_theme = 'furo'
html_title = project
html_favicon = '../../minicpmo_ros/web/static/icon.svg'  # that of the page in the browser
html_static_path = ['site.css']
html_css_files = ['site.css']
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
