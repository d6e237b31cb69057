# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Files played as a camera and a microphone, and topics recorded."""
