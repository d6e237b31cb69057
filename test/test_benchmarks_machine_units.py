# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The arithmetic that is counted is that of the weights in the files, and of attention."""

from math import prod

import pytest

from benchmarks.machine_units import audio_flop, llm_weights, prefill_flop, vision_flop
from minicpmo_ros.modelset import gguf_layouts as layouts
from minicpmo_ros.modelset.gguf_layouts import SHAPES

SHAPE = SHAPES['2.6']


def weights_of(plans: list, *names: str) -> int:
    """Return how many weights the matrices with one of these in their names have."""
    matrices = [plan for plan in plans if len(plan.shape) > 1]
    return sum(prod(plan.shape) for plan in matrices if any(name in plan.name for name in names))


def test_each_row_is_multiplied_with_the_weights_of_all_layers():
    assert llm_weights(SHAPE) == weights_of(layouts.llm_tensors(SHAPE), 'blk.')
    one, two = prefill_flop(SHAPE, 1), prefill_flop(SHAPE, 2)
    attention = 4 * SHAPE.llm_layers * SHAPE.width
    assert one == 2 * llm_weights(SHAPE) + attention
    assert two - one == one + attention  # the second row sees two


def test_each_patch_passes_the_layers_and_each_query_the_end_of_the_resampler():
    plans, patches = layouts.vision_tensors(SHAPE), 1024
    of_patches = ('v.blk.', 'patch_embd', 'resampler.kv.', 'attn.k.', 'attn.v.')
    products = patches * weights_of(plans, *of_patches)
    products += SHAPE.queries * weights_of(plans, 'attn.out.', 'resampler.proj')
    attention = 2 * patches**2 * SHAPE.vision_width * SHAPE.vision_layers
    attention += 2 * SHAPE.queries * patches * SHAPE.width
    assert vision_flop(SHAPE) == 2 * (products + attention)


@pytest.mark.parametrize('second', [1, 15])
def test_each_position_of_a_second_passes_the_layers_and_sees_those_before(second):
    plans, n = layouts.audio_tensors(SHAPE), 50
    products = n * weights_of(plans, 'blocks.', 'conv2.weight', 'projector')
    products += 100 * weights_of(plans, 'conv1.weight')
    attention = 2 * n * n * second * SHAPE.audio_width * SHAPE.audio_layers
    assert audio_flop(SHAPE, second) == 2 * (products + attention)
