# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The library is the one we were made for, is there once, and speaks through our log."""

import subprocess
import sys
from pathlib import Path

import llama_cpp.llama_cpp as llama
import numpy as np
import pytest

from minicpmo_ros.errors import EngineError
from minicpmo_ros.ggml import library, signatures, types
from minicpmo_ros.ggml.library import GgmlType, dequantize, lib, quantize

ROOT = Path(__file__).resolve().parent.parent


def test_type_sizes_are_those_of_the_library():
    for kind in GgmlType:
        traits = signatures.TypeTraits.from_address(lib.get_type_traits(kind))
        assert (traits.block_size, traits.type_size) == (
            kind.block_size,
            kind.block_bytes,
        ), kind


def test_the_pinned_version_is_the_one_the_environment_installs():
    pins = [
        line
        for path in (ROOT / 'environment').glob('*.txt')
        for line in path.read_text().splitlines()
        if line.startswith('llama-cpp-python')
    ]
    assert pins and set(pins) == {library.PINNED}
    assert library.PINNED.endswith('==' + library.llama_cpp_version)


def test_another_ggml_is_refused(monkeypatch):
    monkeypatch.setattr(lib, 'version', lambda: b'0.99.0')
    with pytest.raises(EngineError, match=r'0\.99\.0 .* Install llama-cpp-python=='):
        library.check_version()


def test_only_one_copy_of_ggml_is_mapped():
    """Two copies have two sets of globals: buffers of one are unknown to the other."""
    maps = Path('/proc/self/maps').read_text().splitlines()
    inodes = {line.split()[4] for line in maps if 'libggml-base' in line}
    assert len(inodes) == 1


@pytest.mark.parametrize(
    'kind, error',
    [
        (GgmlType.F32, 0),
        (GgmlType.F16, 3e-4),
        (GgmlType.BF16, 3e-3),
        (GgmlType.Q8_0, 7e-3),
        (GgmlType.Q6_K, 3e-2),
        (GgmlType.Q4_K, 0.1),
        (GgmlType.Q4_0, 0.12),
    ],
)
def test_quantised_rows_come_back_nearly(rng, kind, error):
    rows = rng.standard_normal((3, 512)).astype(np.float32)
    encoded = quantize(rows, kind)
    assert encoded.shape == (3, types.row_bytes(kind, 512))
    back = dequantize(encoded, kind)
    assert np.linalg.norm(back - rows) <= error * np.linalg.norm(rows)


@pytest.mark.parametrize(
    'rows, kind',
    [
        (np.ones((2, 48)), GgmlType.Q8_0),  # no whole blocks
        (np.ones(64), GgmlType.Q8_0),
        (np.full((1, 32), np.nan), GgmlType.Q8_0),
        (np.ones((1, 256)), GgmlType.IQ2_XXS),  # needs importance weights: ggml would abort
        (np.ones((1, 32)), GgmlType.Q8_1),
    ],
)
def test_rows_that_ggml_cannot_take_are_refused(rows, kind):
    with pytest.raises(ValueError):
        quantize(rows, kind)


@pytest.fixture
def heard():
    lines = []
    library.set_log(lambda level, text: lines.append((level, text)))
    yield lines
    library.set_log(None)


def test_log_lines_arrive_whole_with_their_level(heard):
    for level, piece in (
        (2, b'first\n'),
        (3, b'sec'),
        (5, b'ond'),
        (5, b'\n'),
        (4, b'\xff third\n\n'),
    ):
        library.llama_log.callback(level, piece, None)
    assert heard == [('info', 'first'), ('warning', 'second'), ('error', '\ufffd third')]


@pytest.mark.parametrize(
    ('status', 'code', 'level'), [(1, 2, 'debug'), (-1, -3, 'error'), (11, 22, 'error')]
)
def test_a_decode_that_was_ended_is_no_error_in_the_log_and_one_that_failed_is(
    heard, status, code, level
):
    for text in (
        f'graph_compute: ggml_backend_sched_graph_compute_async failed with error {status}',
        f'process_ubatch: failed to compute graph, compute status: {status}',
        f'llama_decode: failed to decode, ret = {code}',
    ):
        library.llama_log.callback(4, f'{text}\n'.encode(), None)
    assert [found for found, _ in heard] == 3 * [level]


def test_what_ggml_says_reaches_the_sink(heard):
    assert not llama.llama_model_load_from_file(b'/nowhere', llama.llama_model_default_params())
    told = [text for level, text in heard if level == 'error' and '/nowhere' in text]
    assert any(text.startswith('gguf_') for text in told)  # a function of ggml, not of llama.cpp


def test_an_abort_says_why():
    code = (
        'from minicpmo_ros.process import prepare\nprepare()\n'
        'from minicpmo_ros.ggml.library import lib\n'
        'lib.quantize_chunk(16, 0, 0, 0, 1, 256, None)\n'
    )  # a type that needs weights
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == -6
    assert 'ggml ends this process: ' in done.stderr and 'GGML_ASSERT' in done.stderr
