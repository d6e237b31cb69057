# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""C prototypes of the ggml functions in use, as data: `name result arguments`.

Letters: p pointer, i int, l int64, z size_t, f float, b bool, s char pointer, c the
init struct by value, w the compute plan by value, B uint8, - nothing. They follow ggml.h,
ggml-alloc.h, ggml-cpu.h and ggml-backend.h of ggml 0.25.
"""

import ctypes


class InitParams(ctypes.Structure):
    """struct ggml_init_params."""

    _fields_ = [
        ('mem_size', ctypes.c_size_t),
        ('mem_buffer', ctypes.c_void_p),
        ('no_alloc', ctypes.c_bool),
    ]


class TensorStruct(ctypes.Structure):
    """struct ggml_tensor."""

    _fields_ = [
        ('type', ctypes.c_int),
        ('buffer', ctypes.c_void_p),
        ('ne', ctypes.c_int64 * 4),
        ('nb', ctypes.c_size_t * 4),
        ('op', ctypes.c_int),
        ('op_params', ctypes.c_int32 * 16),
        ('flags', ctypes.c_int32),
        ('src', ctypes.c_void_p * 10),
        ('view_src', ctypes.c_void_p),
        ('view_offs', ctypes.c_size_t),
        ('data', ctypes.c_void_p),
        ('name', ctypes.c_char * 64),
        ('extra', ctypes.c_void_p),
        ('padding', ctypes.c_char * 8),
    ]


class TypeTraits(ctypes.Structure):
    """struct ggml_type_traits."""

    _fields_ = [
        ('type_name', ctypes.c_char_p),
        ('block_size', ctypes.c_int64),
        ('block_size_interleave', ctypes.c_int64),
        ('type_size', ctypes.c_size_t),
        ('is_quantized', ctypes.c_bool),
        ('to_float', ctypes.c_void_p),
        ('from_float', ctypes.c_void_p),
    ]


class ComputePlan(ctypes.Structure):
    """struct ggml_cplan; what follows the size is of no interest here."""

    _fields_ = [('work_size', ctypes.c_size_t), ('rest', ctypes.c_char * 120)]


LETTERS = {
    'p': ctypes.c_void_p,
    'i': ctypes.c_int,
    'l': ctypes.c_int64,
    'z': ctypes.c_size_t,
    'f': ctypes.c_float,
    'b': ctypes.c_bool,
    's': ctypes.c_char_p,
    'c': InitParams,
    'w': ComputePlan,
    'B': ctypes.c_uint8,
    '-': None,
}

# Microseconds each and called by the hundred: they keep the GIL.
QUICK = """
version s
init p c
free - p
tensor_overhead z
graph_overhead_custom z zb
new_tensor_1d p pil
new_tensor_2d p pill
new_tensor_3d p pilll
new_tensor_4d p pillll
set_name p ps
set_input - p
set_output - p
nbytes z p
get_type_traits p i
is_contiguous b p
op_desc s p
add p ppp
mul p ppp
scale p ppf
norm p ppf
gelu p pp
gelu_erf p pp
relu p pp
mul_mat p ppp
get_rows p ppp
set_rows p pppp
cpy p ppp
cast p ppi
cont p pp
concat p pppi
pad p ppiiii
repeat_4d p ppllll
permute p ppiiii
reshape_2d p ppll
reshape_3d p pplll
reshape_4d p ppllll
view_4d p ppllllzzzz
soft_max_ext p pppff
flash_attn_ext p pppppfff
prec_set_acc b pi
new_graph_custom p pzb
build_forward_expand - pp
graph_n_nodes i p
graph_node p pi
graph_add_node - pp
graph_plan w pip
backend_get_device p p
backend_name s p
backend_buft_name s p
backend_buffer_get_size z p
backend_buffer_set_usage - pi
backend_dev_by_type p i
backend_dev_description s p
backend_dev_backend_reg p p
backend_dev_supports_op b pp
backend_reg_get_proc_address p ps
backend_reg_by_name p s
backend_reg_dev_count z p
backend_reg_dev_get p pz
gallocr_new p p
gallocr_get_buffer_size z pi
"""

# These compute, allocate, copy, log, or ask another process: other Python threads go on meanwhile.
# ggml logs from threads of its own, which need the GIL.
BLOCKING = """
quantize_chunk z ipplllp
log_set - pp
set_abort_callback p p
backend_dev_init p ps
backend_free - p
backend_get_default_buffer_type p p
backend_alloc_ctx_tensors_from_buft p pp
backend_alloc_ctx_tensors_from_buft_size z pp
backend_buffer_clear - pB
backend_buffer_free - p
backend_tensor_set - ppzz
backend_tensor_get - ppzz
backend_graph_compute i pp
gallocr_reserve b pp
gallocr_reserve_n_size - ppppp
gallocr_alloc_graph b pp
gallocr_free - p
"""


def bind(library, table: str) -> dict:
    """Typed functions of one table, by name without `ggml_`."""
    functions = {}
    for line in table.split('\n')[1:-1]:
        name, result, *arguments = line.split()
        function = getattr(library, 'ggml_' + name)
        function.restype = LETTERS[result]
        function.argtypes = [LETTERS[letter] for letter in ''.join(arguments)]
        functions[name] = function
    return functions
