# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""llama.cpp's own picture encoder (libmtmd): a reference for what ours computes, and how fast."""

import contextlib
import ctypes

import numpy as np
from llama_cpp import llama_cpp, mtmd_cpp

IMAGE_CHUNK = 1
FLASH_OFF, FLASH_AUTO = 0, -1


@llama_cpp.llama_log_callback
def _silent(level, text, _):
    pass  # it would list every tensor


@contextlib.contextmanager
def loaded_mtmd(llm_path, vision_path, flash: int = FLASH_OFF, threads: int = 1):
    """Give an mtmd context of a vision file; the text model's width must be the vision file's."""
    mtmd_cpp.mtmd_log_set(_silent, None)
    parameters = llama_cpp.llama_model_default_params()
    model = llama_cpp.llama_model_load_from_file(str(llm_path).encode(), parameters)
    parameters = mtmd_cpp.mtmd_context_params_default()
    parameters.use_gpu, parameters.n_threads, parameters.warmup = False, threads, False
    parameters.print_timings = False
    parameters.flash_attn_type = flash
    context = mtmd_cpp.mtmd_init_from_file(str(vision_path).encode(), model, parameters)
    assert context, 'libmtmd does not take the vision file'
    yield context
    mtmd_cpp.mtmd_free(context)
    llama_cpp.llama_model_free(model)


@contextlib.contextmanager
def overview(context, picture: np.ndarray):
    """Give the first picture that libmtmd makes of (H, W, 3) uint8, ready to be encoded."""
    height, picture_width = picture.shape[:2]
    pixels = (ctypes.c_uint8 * picture.size).from_buffer_copy(np.ascontiguousarray(picture))
    bitmap = mtmd_cpp.mtmd_bitmap_init(picture_width, height, pixels)
    chunks = mtmd_cpp.mtmd_input_chunks_init()
    marker = mtmd_cpp.mtmd_get_marker(context)
    text = mtmd_cpp.mtmd_input_text(
        text=marker, text_len=len(marker), add_special=False, parse_special=True
    )
    bitmaps = (mtmd_cpp.mtmd_bitmap_p_ctypes * 1)(bitmap)
    assert mtmd_cpp.mtmd_tokenize(context, chunks, ctypes.byref(text), bitmaps, 1) == 0
    all_chunks = [
        mtmd_cpp.mtmd_input_chunks_get(chunks, i)
        for i in range(mtmd_cpp.mtmd_input_chunks_size(chunks))
    ]
    yield next(
        chunk for chunk in all_chunks if mtmd_cpp.mtmd_input_chunk_get_type(chunk) == IMAGE_CHUNK
    )
    mtmd_cpp.mtmd_input_chunks_free(chunks)
    mtmd_cpp.mtmd_bitmap_free(bitmap)


def encode(context, chunk, width: int) -> np.ndarray:
    """Encode what `overview` gives: (queries, width) float32."""
    assert mtmd_cpp.mtmd_encode_chunk(context, chunk) == 0
    shape = (mtmd_cpp.mtmd_input_chunk_get_n_tokens(chunk), width)
    return np.ctypeslib.as_array(mtmd_cpp.mtmd_get_output_embd(context), shape).copy()


def encode_overview(context, picture: np.ndarray, width: int) -> np.ndarray:
    """Encode the first picture libmtmd makes of (H, W, 3) uint8: (queries, width) float32."""
    with overview(context, picture) as chunk:
        return encode(context, chunk, width)
