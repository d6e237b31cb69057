# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Executable `live`: both encoders and the llm (with --voice also `voice`) in one process.

One process holds one model runtime and one device context, which a small board has room for;
the arbiter they share lets a question go before the next slice of an encoder.
"""

import sys
from functools import partial

from minicpmo_ros.live.arbiter import DeviceArbiter
from minicpmo_ros.ros.audio_node import StreamingEncoder
from minicpmo_ros.ros.framework.main import run
from minicpmo_ros.ros.image_node import VisionNode
from minicpmo_ros.ros.llm_node import LlmNode
from minicpmo_ros.ros.memory import MemoryBudget

VOICE = '--voice'
INPUTS = {
    'audio_embedding': 'streaming_encoder/embedding',
    'image_embedding': 'vision_encoder/embedding',
    'read_audio': 'streaming_encoder/read_audio',
    'look': 'vision_encoder/look',
}


def make_nodes(has_voice: bool = False):
    """Yield the three nodes, the llm's inputs connected to the encoders' outputs, and `voice`."""
    arbiter, budget = DeviceArbiter(), MemoryBudget()
    yield StreamingEncoder(arbiter, budget)
    yield VisionNode(arbiter, budget)
    yield LlmNode(arbiter, budget, remappings=INPUTS)
    if has_voice:
        from minicpmo_ros.ros.voice.node import VoiceNode  # nothing of it is loaded without

        yield VoiceNode()


def main(args=None) -> int:
    """Run the nodes; with the argument --voice also node `voice`."""
    has_voice = VOICE in (sys.argv if args is None else args)
    return run(partial(make_nodes, has_voice), args, own=(VOICE,))


if __name__ == '__main__':
    raise SystemExit(main())
