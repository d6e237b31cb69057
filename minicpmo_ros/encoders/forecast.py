# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What the encoders will take of a device's memory, from their headers alone.

Weights, caches and graphs are described as `whisper` and `siglip` make them, and measured by
ggml's own allocators: nothing is loaded.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from minicpmo_ros.encoders import siglip, siglip_layout, whisper, whisper_layout
from minicpmo_ros.encoders.siglip_graph import VisionGraph
from minicpmo_ros.encoders.siglip_graph import max_nodes as vision_nodes
from minicpmo_ros.encoders.whisper_graph import ALL_SECONDS, StepGraph, cache_shapes
from minicpmo_ros.ggml.forecast import DescribedTensors, buffer_bytes
from minicpmo_ros.ggml.header import Header
from minicpmo_ros.ggml.runtime import Backend
from minicpmo_ros.ggml.weights import Weights
from minicpmo_ros.media import geometry


@dataclass(frozen=True)
class EncoderMemory:
    """Bytes that one encoder takes of its device."""

    weights: int
    cache: int  # keys and values of the sound heard
    compute: int  # intermediate results
    work: int  # of the CPU, beside them


def audio_memory(
    header: Header, backend: Backend, streams: Sequence = (None,), kv_type: str = 'f16'
) -> EncoderMemory:
    """Forecast AudioEncoder.load() and its streams, of so many seconds each; None: all."""
    facts = whisper_layout.read_facts(header)
    attention, fixed = whisper.graph_form(backend)
    weights = Weights.describe(header, backend, whisper_layout.wanted(header, facts))
    cache = compute = work = 0
    for given in streams:
        seconds = facts.max_seconds if given is None else min(given, facts.max_seconds)
        shapes = cache_shapes(facts, attention, whisper.KV_TYPES[kv_type], fixed, seconds)
        caches = DescribedTensors(backend, shapes)
        graph = StepGraph(facts, weights, caches, attention)
        largest = [ALL_SECONDS if fixed else seconds - 1]  # the last has most keys to see
        buffer, rows = buffer_bytes(backend, graph, largest, graph.max_nodes)
        compute, work = compute + buffer, max(work, rows)  # a backend has one for all
        cache += caches.size_bytes
    return EncoderMemory(weights.size_bytes, cache, compute, work)


def vision_memory(
    header: Header, backend: Backend, max_tiles: int = 1, attention: str = 'flash'
) -> EncoderMemory:
    """Forecast VisionEncoder.load()."""
    facts = siglip_layout.read_facts(header)
    extra = {'queries': (facts.queries, facts.output_width)}
    wanted = siglip.wanted(facts, header)
    weights = Weights.describe(header, backend, wanted, extra, repack=True)
    graph = VisionGraph(weights, facts, attention)
    grid = siglip.largest_grid(max_tiles, geometry.max_patches(side=facts.image_size))
    compute, work = buffer_bytes(backend, graph.describe, [grid], vision_nodes(facts))
    return EncoderMemory(weights.size_bytes, 0, compute, work)
