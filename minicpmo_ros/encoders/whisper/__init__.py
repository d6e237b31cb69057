# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The streaming Whisper encoder: a second of audio to embeddings of the language model."""
