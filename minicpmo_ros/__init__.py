# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Live eyes and ears with a language model behind them, for ROS 2 robots."""

from pkgutil import extend_path

# A checkout on sys.path shadows the installed package: this lets its sources and the
# generated msg, srv and action modules of the installation be one package.
__path__ = extend_path(__path__, __name__)
