# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Executable `live`: the two encoders and the llm in one process, over the same topics.

One process holds one model runtime and one device context, which a small board has room for;
the arbiter they share lets a question go before the next slice of an encoder.
"""

from minicpmo_ros.live.arbiter import DeviceArbiter
from minicpmo_ros.nodes.llm import LlmNode
from minicpmo_ros.nodes.memory_room import Room
from minicpmo_ros.nodes.spinning import run
from minicpmo_ros.nodes.streaming_encoder import StreamingEncoder
from minicpmo_ros.nodes.vision_encoder import VisionNode

INPUTS = {
    'audio_embedding': 'streaming_encoder/embedding',
    'image_embedding': 'vision_encoder/embedding',
}


def make_nodes():
    """Give the three nodes, the llm's inputs connected to the encoders' outputs."""
    arbiter, room = DeviceArbiter(), Room()
    yield StreamingEncoder(arbiter, room)
    yield VisionNode(arbiter, room)
    yield LlmNode(arbiter, room, remappings=INPUTS)


def main(args=None) -> int:
    """Run the nodes."""
    return run(make_nodes, args)


if __name__ == '__main__':
    raise SystemExit(main())
