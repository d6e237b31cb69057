# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What a run has shown: HTML pages, Markdown, CSV and the JSON of other tools."""
