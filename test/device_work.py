# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""All that a part of a model computes, once on a device and once as that on this CPU.

    python test/device_work.py MODEL_DIR ADDRESS [PLANT]

prints whether both give the same numbers, for a plant that may end the process; computes until the
server ends ('for ever'); or asks it something once it has ended ('afterwards').
"""

import itertools
import sys
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from unittest.mock import patch

from minicpmo_ros.process import prepare

prepare()

import numpy as np  # noqa: E402

from minicpmo_ros.encoders.siglip.encoder import VisionEncoder  # noqa: E402
from minicpmo_ros.encoders.whisper.encoder import AudioEncoder  # noqa: E402
from minicpmo_ros.families.minicpm_o_2_6 import ENGLISH  # noqa: E402
from minicpmo_ros.ggml.library import lib  # noqa: E402
from minicpmo_ros.ggml.runtime import (  # noqa: E402
    AsGpu,
    Backend,
    DescribedTensors,
    Tensor,
    Tensors,
)
from minicpmo_ros.ggml.types import GgmlType  # noqa: E402
from minicpmo_ros.live.question import Question  # noqa: E402
from minicpmo_ros.live.session import Session  # noqa: E402
from minicpmo_ros.live.session_options import SessionOptions  # noqa: E402
from minicpmo_ros.llm.context import ContextOptions  # noqa: E402
from minicpmo_ros.llm.model import ModelOptions  # noqa: E402
from minicpmo_ros.streams.pairing import Unit  # noqa: E402

WIDTH, UNITS = 256, 9  # a window of 768 positions holds six
SMALL, LARGE = 768, 1280
CHOSEN = 20  # of the tensors that are written


def encode(backend: Backend, model_dir: Path) -> list:
    """Hear three seconds and see two images; return the embeddings."""
    rng = np.random.default_rng(1)
    stream = AudioEncoder.load(model_dir / 'audio.gguf', backend).stream()
    mel = rng.standard_normal((3, 103, 80)).astype(np.float32)
    rows = [stream.step(second) for second in mel]
    side = 448
    tiles = [rng.integers(0, 256, (side, side, 3)).astype(np.uint8) for _ in range(2)]
    vision = VisionEncoder.load(model_dir / 'vision.gguf', backend, 2)
    return [*rows, vision.encode(tiles[:1]), vision.encode(tiles)]


def open_session(model_dir: Path, device: str, address: str, n_ctx: int = SMALL) -> Session:
    """Load a session there, in the form that a GPU has."""
    context = ContextOptions(n_ctx=n_ctx, threads=1, attention='fused', offload_kv=device != 'cpu')
    options = SessionOptions(max_tokens=6, max_question_tokens=40)
    model = ModelOptions(device=device, rpc_servers=address)
    return Session.load(model_dir / 'llm.gguf', ENGLISH, model, context, options)


def unit(second: int) -> Unit:
    """Return a second whose rows depend on its number."""
    rng = np.random.default_rng(second)
    image, audio = (rng.standard_normal((n, WIDTH)).astype(np.float16) for n in (64, 25))
    return Unit(second, image, (0, 0), audio)


def answer(session: Session) -> list:
    """Ask; return the logits of every token."""
    answering, logits = session.ask(Question('what do you see')), []
    while answering.answer is None:
        (found,) = session.read([answering.next_read()])
        logits.append(found.copy())
        answering.take(found)
    return logits


def converse(session: Session) -> list:
    """Fill a window until seconds leave it, ask, move it to other sizes, empty it.

    Moving saves keys and values and loads them again. Returns all logits.
    """
    found = []
    for second in range(UNITS):
        session.append(unit(second))
        if second in (1, UNITS - 1):
            found += answer(session)
    assert len(session.window.seconds) < UNITS
    for n_ctx in (LARGE, SMALL):
        session.resize(n_ctx)
        session.append(unit(UNITS + n_ctx))
        found += answer(session)
    session.reset()
    session.append(unit(0))
    return found + answer(session)


def read_beside(session: Session, backend: Backend) -> list:
    """Read row by row, which llama.cpp does with one graph; others free memory meanwhile."""
    found, rng = [], np.random.default_rng(3)
    for _ in range(4):
        passing = Tensors(backend, {'w': ((8, 64), GgmlType.F32)})
        row = rng.standard_normal((1, WIDTH)).astype(np.float32)
        found.append(session.context.read(row, 0, want_logits=True))
        del passing
    return found


def on_device(model_dir: Path, address: str) -> list:
    """Return all results of a server's device."""
    with closing(Backend('gpu', rpc_servers=address)) as backend:
        encoded = encode(backend, model_dir)
        with closing(open_session(model_dir, 'gpu', address)) as session:
            return encoded + read_beside(session, backend) + converse(session)


def on_cpu(model_dir: Path) -> list:
    """Return them of this process, computed in the form that a GPU has."""
    with closing(AsGpu()) as backend:
        encoded = encode(backend, model_dir)
        with closing(open_session(model_dir, 'cpu', '')) as session:
            return encoded + read_beside(session, backend) + converse(session)


def are_same(one: list, other: list) -> bool:
    """Return whether all numbers are equal: one library computes, on whatever side."""
    return len(one) == len(other) and all(map(np.array_equal, one, other))


@contextmanager
def planted(what: str):
    """Plant a fault in one tensor, or none (''); shared memory would hide some of them."""
    place, write, count = Tensors.place, Tensor.write, itertools.count()

    def on_host(self, context, handles, buffer_type):
        if len(handles) > 8:  # weights
            buffer_type = cpu.buffer_type
        place(self, context, handles, buffer_type)

    def not_copied(self, array):
        if next(count) != CHOSEN:
            write(self, array)

    def shifted(self, array):
        if next(count) != CHOSEN:
            return write(self, array)
        array = np.ascontiguousarray(array)
        n_bytes = array.nbytes - array.itemsize
        lib.backend_tensor_set(self.handle, array.ctypes.data, array.itemsize, n_bytes)

    with closing(Backend('cpu')) as cpu:
        fakes = {
            'tensor left on the host': (Tensors, 'place', on_host),
            'missing copy': (Tensor, 'write', not_copied),
            'wrong offset': (Tensor, 'write', shifted),
        }
        with patch.object(*fakes[what]) if what else nullcontext():
            yield


def main() -> None:
    """See the module."""
    model_dir, address, what = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    if what in ('for ever', 'afterwards'):
        with closing(Backend('gpu', rpc_servers=address)) as backend:
            while True:
                encode(backend, model_dir)
                print('computed', flush=True)
                if what == 'afterwards':
                    sys.stdin.readline()
                    # Whose size in its memory only the server knows.
                    DescribedTensors(backend, {'w': ((64, 96), GgmlType.Q8_0)})
    expected = on_cpu(model_dir)
    with planted(what):
        print('same' if are_same(on_device(model_dir, address), expected) else 'different')


if __name__ == '__main__':
    main()
