# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Whether there is room for a model, before it is loaded: said with numbers, and what to lower.

Without this, a system that promises more memory than it has would end the process in the middle
of loading, or page the weights in and out for ever.
"""

from minicpmo_ros.errors import ModelFileError
from minicpmo_ros.ggml.header import Header
from minicpmo_ros.ggml.runtime import gpu_name
from minicpmo_ros.live.memory_guard import MemoryBounds
from minicpmo_ros.models.llm_memory import STEP, kv_mib_per_position, llm_memory
from minicpmo_ros.nodes.memory import available_mib, pss_mib, shares_memory_with_gpu

LEAST_CONTEXT = 1024  # below that a window is not worth having


def bounds_of(options) -> MemoryBounds:
    """Give the bounds that the parameters of node `llm` set."""
    return MemoryBounds(options.memory_limit_mib, options.memory_reserve_mib)


def require_room_for_llm(header: Header, options) -> None:
    """Raise ModelFileError where the language model does not fit into this machine's memory."""
    if not _is_in_our_memory(options.device, options.gpu_layers):
        return  # llama.cpp refuses what a GPU of its own memory has no room for
    bounds, rooms = bounds_of(options), [available_mib() - options.memory_reserve_mib]
    if bounds.limit_mib:
        rooms.append(bounds.limit_mib - pss_mib())
    refuse_llm(header, options, max(0.0, min(rooms)))


def refuse_llm(header: Header, options, room_mib: float) -> None:
    """Raise ModelFileError where the model and its context do not fit into `room_mib`."""
    held_twice = options.repack and options.use_mmap
    need = llm_memory(header, options.n_ctx, options.n_ubatch, options.kv_type, held_twice)
    if need.total_mib <= room_mib:
        return
    for_context_mib = room_mib - need.weights_mib - need.compute_mib
    positions = for_context_mib / kv_mib_per_position(header, options.kv_type)
    if positions >= LEAST_CONTEXT:
        remedy = f'Lower n_ctx to {int(positions) // STEP * STEP}'
        remedy += ', or set kv_type to q8_0' if options.kv_type != 'q8_0' else ''
    elif held_twice:
        remedy = 'Set repack to false: with use_mmap it holds the weights twice'
    else:
        remedy = 'Take a smaller file (minicpmo quantize), or lower n_ctx and n_ubatch'
    raise ModelFileError(
        header.path,
        f'it needs {need.total_mib:.0f} MiB: weights {need.weights_mib:.0f}, {options.n_ctx} '
        f'positions of keys and values {need.kv_mib:.0f}, computing {need.compute_mib:.0f}; '
        f'there is room for {room_mib:.0f}',
        f'{remedy}, or end other programs, or change memory_limit_mib or memory_reserve_mib',
    )


def require_room_for_encoder(header: Header, device: str) -> None:
    """Raise ModelFileError where the weights of an encoder do not fit."""
    need_mib, room_mib = header.size_bytes / 2**20, available_mib()
    if need_mib > room_mib and _is_in_our_memory(device, -1):
        raise ModelFileError(
            header.path,
            f'its weights need {need_mib:.0f} MiB; there is room for {room_mib:.0f}',
            'Take a smaller file (minicpmo quantize), or end other programs',
        )


def _is_in_our_memory(device: str, gpu_layers: int) -> bool:
    on_gpu = device != 'cpu' and gpu_layers != 0 and gpu_name()
    return not on_gpu or shares_memory_with_gpu()
