# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Audio in: PCM and MP3 of any format to 16 kHz samples, and their log-mel spectrum."""
