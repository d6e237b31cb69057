# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What weights are multiplied with, read from a graph while it is computed.

Intermediate results share memory, so a product's input is there only until the nodes behind it
run: it is read when the product is just done.
"""

import ctypes
from collections.abc import Callable

import numpy as np

from minicpmo_ros.ggml.library import GgmlType, lib
from minicpmo_ros.ggml.signatures import TensorStruct

WEIGHT = '.weight'  # every matrix of a model file ends in this


def weight_of(node: int) -> str:
    """Return the name of the weight that a node multiplies with, '' for all other nodes."""
    if lib.op_desc(node) != b'MUL_MAT':
        return ''
    weight = TensorStruct.from_address(TensorStruct.from_address(node).src[0])
    name = weight.name.decode('utf-8', 'replace')
    return name if name.endswith(WEIGHT) else ''


def input_rows(node: int) -> np.ndarray:
    """Return the other side of a product that was just computed: (n, k) float32, a copy."""
    handle = TensorStruct.from_address(node).src[1]
    tensor = TensorStruct.from_address(handle)
    if tensor.type != GgmlType.F32:
        raise ValueError(f'a product with {GgmlType(tensor.type).name}, F32 is expected')
    data = np.empty(lib.nbytes(handle), np.uint8)
    lib.backend_tensor_get(handle, data.ctypes.data, 0, data.nbytes)
    shape, strides = tuple(tensor.ne)[::-1], tuple(tensor.nb)[::-1]
    rows = np.lib.stride_tricks.as_strided(data.view(np.float32), shape, strides)
    return np.array(rows).reshape(-1, shape[-1])


_EVALUATED = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_bool, ctypes.c_void_p)


class Watch:
    """llama.cpp's eval callback: hands every product with weights to on_product(name, rows).

    What on_product raises ends the computation and is kept in `error`.
    """

    def __init__(self, on_product: Callable[[str, np.ndarray], None]):
        self._on_product, self.error = on_product, None
        self.callback = _EVALUATED(self._evaluated)  # C holds its address: kept as long as this

    def _evaluated(self, node: int, is_question: bool, _) -> bool:
        """Asked: whether the node is wanted; told: that it is done, and whether to go on."""
        try:
            name = weight_of(node)
            if name and not is_question:
                self._on_product(name, input_rows(node))
            return bool(name)
        except Exception as error:  # must not cross C
            self.error = error
            return False
