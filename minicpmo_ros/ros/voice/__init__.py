# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Node `voice`, and the service by which llm and streaming_encoder read an open second."""
