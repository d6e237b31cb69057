# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Mutate headers of a tiny model and load what passes: a program, run under limits by a test.

`python mutated_headers.py MODEL WORK FIRST END` writes one line before and one after each
mutation, so that the one a crash or a hang belongs to is known.
"""

import json
import random
import resource
import struct
import sys
from pathlib import Path

from minicpmo_ros.process import prepare

prepare()

import numpy as np  # noqa: E402

from minicpmo_ros.encoders.siglip.encoder import VisionEncoder  # noqa: E402
from minicpmo_ros.encoders.whisper.encoder import AudioEncoder  # noqa: E402
from minicpmo_ros.encoders.whisper.stream import MEL_FRAMES  # noqa: E402
from minicpmo_ros.errors import ModelFileError  # noqa: E402
from minicpmo_ros.families import FAMILIES  # noqa: E402
from minicpmo_ros.ggml.gguf_file import StringArray, read_header  # noqa: E402
from minicpmo_ros.ggml.library import set_log  # noqa: E402
from minicpmo_ros.ggml.runtime import Backend  # noqa: E402
from minicpmo_ros.llm.context import Context, ContextOptions  # noqa: E402
from minicpmo_ros.llm.model import LanguageModel  # noqa: E402
from minicpmo_ros.llm.prompt import CompiledPrompt  # noqa: E402
from minicpmo_ros.modelset.directory import ModelDirectory  # noqa: E402
from minicpmo_ros.modelset.manifest import read_manifest  # noqa: E402

SPARE_BYTES = 192 << 20  # of address space beyond what loading the sound files takes
SECONDS = 5  # of CPU time for one mutation: it takes some milliseconds
HOSTILE = (0, 1, 2, 3, 5, 255, 513, 1 << 15, 1 << 20, 1 << 31, (1 << 31) - 1, (1 << 32) - 1,
           1 << 32, 1 << 40, 1 << 61, 1 << 63, (1 << 63) - 1, (1 << 64) - 1)  # fmt: skip
WORDS = (b'<0x-1>', b'<0xFF>', b'<0xZZ>', b'\xff\xfe\xfd', b'\0\0\0\0', b'', b'{{ x',
         b'llama', b'qwen3', b'clip', b'gpt2', b'<|im_end|>', b'../../..', b'%s%n%s')  # fmt: skip


# Well-formed values to put in the place of one of another type, each with its type.
OTHERS = (
    struct.pack('<IIQ2I', 9, 4, 2, 4, 4),  # two whole numbers
    struct.pack('<IIQQ', 9, 8, 1, 1) + b'x',  # a text in a list
    struct.pack('<If', 6, 16.0),
    struct.pack('<If', 6, float('inf')),
    struct.pack('<IQ', 8, 2) + b'16',
    struct.pack('<I?', 7, True),
    struct.pack('<Iq', 11, -1),
)


class Fields:
    """Where the fields of a GGUF header lie: (kind, start, end)."""

    def __init__(self, path):
        self.content = path.read_bytes()
        self.header = header = read_header(path)
        self.end = header.data_offset
        self.places = [('count', 8, 16), ('count', 16, 24)]
        for key, (start, end) in header.spans.items():
            self._entry(key, header.metadata[key], start, end)
        self.position = max(end for _, end in header.spans.values())
        self.tensors = [self._tensor() for _ in header.tensors]

    def _entry(self, key, value, start, end):
        kind = start + 8 + len(key.encode())
        self.places += [('length', start, start + 8), ('name', start + 8, kind),
                        ('type', kind, kind + 4)]  # fmt: skip
        if isinstance(value, (StringArray, np.ndarray)):
            self.places += [('type', kind + 4, kind + 8), ('count', kind + 8, kind + 16)]
            first = kind + 16
            if isinstance(value, StringArray):
                offsets = value.starts + first
                self.places += [('text', int(a) + 8, int(b)) for a, b in
                                zip(offsets[-80:], offsets[-79:]) if b > a + 8]  # fmt: skip
            elif len(value) < 4:
                self.places += [('value', first, end)] * 4
            else:
                size = value.dtype.itemsize
                self.places += [('value', end - size * i - size, end - size * i)
                                for i in range(24)]  # fmt: skip
        elif isinstance(value, str):
            self.places += [('length', kind + 4, kind + 12), ('text', kind + 12, end)]
        else:
            self.places += [('value', kind + 4, end)] * 6

    def retyped(self, key, value):
        """Give the file with another value, of whatever type, for a key: all else is in order."""
        start, end = self.header.spans[key]
        entry = self.content[start : start + 8 + len(key.encode())] + value
        head = self.content[:start] + entry + self.content[end : self.position]
        padding = bytes(-len(head) % self.header.alignment)
        return head + padding + self.content[self.end :]

    def _tensor(self):
        start = self.position
        (length,) = struct.unpack_from('<Q', self.content, start)
        dims = start + 8 + length
        (n,) = struct.unpack_from('<I', self.content, dims)
        kind = dims + 4 + 8 * n
        self.places += [('name', start + 8, dims), ('type', dims, dims + 4)]
        self.places += [('value', kind - 8 * i - 8, kind - 8 * i) for i in range(n)]
        self.places += [('type', kind, kind + 4), ('value', kind + 4, kind + 12)]
        self.position = kind + 12
        return start, self.position


def mutate(fields, chance):
    """Return the changed file, and whether magic, version and size are what they were."""
    content, kind = bytearray(fields.content), chance.random()
    if kind < 0.22:
        _resize(content, fields, chance)
    elif kind < 0.28:
        key = chance.choice(list(fields.header.spans))
        content = fields.retyped(key, chance.choice(OTHERS))
    else:
        for _ in range(chance.choice((1, 1, 1, 2, 4))):
            _overwrite(content, fields, chance)
    kept = len(content) == len(fields.content) and content[:8] == fields.content[:8]
    return bytes(content), kept


def _resize(content, fields, chance):
    place = chance.randrange(fields.end)
    action = chance.randrange(5)
    if action == 0:
        del content[place:]
    elif action == 1:
        del content[place : place + chance.randrange(1, 40)]
    elif action == 2:
        content[place:place] = chance.randbytes(chance.randrange(1, 40))
    elif action == 3:
        content[chance.randrange(8)] ^= 1 << chance.randrange(8)
    else:
        del content[chance.randrange(fields.end, len(content)) :]


def _overwrite(content, fields, chance):
    kind, start, end = chance.choice(fields.places)
    n = end - start
    if chance.random() < 0.15:  # anywhere
        place = chance.randrange(8, fields.end)
        content[place] ^= 1 << chance.randrange(8)
    elif kind in ('text', 'name') and chance.random() < 0.8:
        other = chance.choice([p for p in fields.places if p[0] == kind])
        word = chance.choice((*WORDS, fields.content[other[1] : other[2]]))
        content[start:end] = word[:n].ljust(n, chance.choice((b' ', b'x', b'\0', b'>')))
    elif chance.random() < 0.3:
        content[start + chance.randrange(n)] ^= 1 << chance.randrange(8)
    elif kind == 'type':
        content[start:end] = struct.pack('<I', chance.randrange(48))
    elif n in (4, 8) and chance.random() < 0.3:
        code, size = ('f', 4) if n == 4 else ('d', 8)
        value = chance.choice((float('nan'), float('inf'), -1.0, 0.0, 1e-30, 1e30))
        content[start : start + size] = struct.pack('<' + code, value)
    else:
        value = chance.choice((*HOSTILE, chance.getrandbits(8), chance.getrandbits(64)))
        content[start:end] = (value % (1 << 8 * n)).to_bytes(n, 'little')


class Loader:
    """What the nodes do with a model directory, in small."""

    def __init__(self, directory):
        self.directory, self.manifest = (
            directory,
            read_manifest(directory),
        )  # which no test changes
        self.backend = Backend('cpu')

    def open(self):
        """Check the files as they are now."""
        return ModelDirectory.of(self.directory, self.manifest)

    def load(self, roles=('llm', 'vision', 'audio')):
        """Check the files and load some of them."""
        model = self.open()
        for role in roles:
            getattr(self, role)(model)

    def llm(self, model):
        """Load, read the prompt, decode once."""
        llm = LanguageModel.load(model.llm_path)
        try:
            context = Context(llm, ContextOptions(n_ctx=256, n_batch=32, threads=1))
            layout = FAMILIES[model.family].layouts['en']
            prompt = CompiledPrompt(layout, llm.vocabulary, llm.token_rows, system_text='hi')
            context.read(prompt.prefix[:32], 0, want_logits=True)
            context.close()
        finally:
            llm.close()

    def vision(self, model):
        """Load and see one picture."""
        encoder = VisionEncoder.load(model.vision_path, self.backend, max_patches=16)
        encoder.encode([np.zeros((2 * encoder.patch_size, 2 * encoder.patch_size, 3), np.uint8)])

    def audio(self, model):
        """Load and hear one second."""
        encoder = AudioEncoder.load(model.audio_path, self.backend)
        mel = np.zeros((MEL_FRAMES, encoder.facts.mel_bins), np.float32)
        encoder.stream(max_seconds=1).step(mel)


def status_kib(name):
    """Return a line of /proc/self/status that is counted in KiB."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(name + ':'):
            return int(line.split()[1])
    raise KeyError(name)


def main():
    """Go through the mutations FIRST .. END - 1."""
    source, work = Path(sys.argv[1]), Path(sys.argv[2])
    roles = ('llm', 'vision', 'audio')
    for name in ('manifest.yaml', *(f'{role}.gguf' for role in roles)):
        (work / name).symlink_to(source / name)
    said = []
    set_log(lambda level, text: said.append(text))
    loader = Loader(work)
    loader.load()
    fields = {role: Fields(source / f'{role}.gguf') for role in roles}
    limit = status_kib('VmPeak') * 1024 + SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for seed in range(int(sys.argv[3]), int(sys.argv[4])):
        chance = random.Random(seed)
        role = chance.choice(('llm', 'llm', 'vision', 'audio'))
        content, kept = mutate(fields[role], chance)
        path = work / f'{role}.gguf'
        path.unlink()
        path.write_bytes(content)
        said.clear()
        print(json.dumps({'begun': seed, 'role': role}), flush=True)
        spent = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        resource.setrlimit(resource.RLIMIT_CPU, (int(spent) + SECONDS, resource.RLIM_INFINITY))
        result = {'seed': seed, 'role': role, 'kept': kept, 'refusal': '', 'unexpected': ''}
        result['unchanged'] = content == fields[role].content
        try:
            loader.load((role,))
        except ModelFileError as error:
            result['refusal'], result['path'] = str(error), error.path
        except Exception as error:
            result['unexpected'] = f'{type(error).__name__}: {error}'
        result['log'] = said[-3:] if result['refusal'] or result['unexpected'] else []
        result['peak_kib'] = status_kib('VmPeak')
        print(json.dumps(result), flush=True)
        path.unlink()
        path.symlink_to(source / path.name)


if __name__ == '__main__':
    main()
