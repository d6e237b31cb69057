# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Put hostile values for every key llama.cpp knows into a tiny LLM and load it: run by a test.

`python hostile_keys.py MODEL WORK` writes one line before and one after each file, so that the
one a crash belongs to is known. The keys are those in the table of the library itself: a newer
llama.cpp that knows more of them is tried with them, too.
"""

import json
import re
import struct
import sys
from pathlib import Path

import llama_cpp
from mutated_headers import Fields, Loader

from minicpmo_ros.errors import InputError, ModelFileError
from minicpmo_ros.ggml.library import set_log
from minicpmo_ros.llm import keys as llm_keys

U32, I32, F32, BOOL, STRING, ARRAY, U64 = 4, 5, 6, 7, 8, 9, 10


def text(value):
    return struct.pack('<Q', len(value)) + value


# Type and value, as a file has them.
VALUES = {
    'zero': struct.pack('<II', U32, 0),
    'one': struct.pack('<II', U32, 1),
    'two': struct.pack('<II', U32, 2),
    'three': struct.pack('<II', U32, 3),
    'largest': struct.pack('<II', U32, 0xFFFFFFFF),
    'in 64 bits': struct.pack('<IQ', U64, 2),
    'negative': struct.pack('<Ii', I32, -1),
    'no number': struct.pack('<If', F32, float('nan')),
    'zero as float': struct.pack('<If', F32, 0.0),
    'endless': struct.pack('<If', F32, float('inf')),
    'two as float': struct.pack('<If', F32, 2.0),
    'false': struct.pack('<I?', BOOL, False),
    'empty text': struct.pack('<I', STRING) + text(b''),
    'yarn': struct.pack('<I', STRING) + text(b'yarn'),
    'longrope': struct.pack('<I', STRING) + text(b'longrope'),
    'a word': struct.pack('<I', STRING) + text(b'nonsense'),
    'a text with a zero': struct.pack('<I', STRING) + text(b'linear\0'),
    'phi': struct.pack('<I', STRING) + text(b'Phi-3'),
    'one number in a list': struct.pack('<IIQI', ARRAY, U32, 1, 1),
    'one negative in a list': struct.pack('<IIQi', ARRAY, I32, 1, -5),
    'one text in a list': struct.pack('<IIQ', ARRAY, STRING, 1) + text(b'x'),
    'no numbers in a list': struct.pack('<IIQ', ARRAY, I32, 0),
}


def library_keys():
    """Return what follows '%s.' in the library's table of keys."""
    library = Path(llama_cpp.__file__).parent / 'lib/libllama.so'
    found = re.findall(rb'%s\.([a-z0-9_.]+)\0', library.read_bytes())
    return sorted({name.decode() for name in found})


def with_entries(fields, entries):
    """Give the file with these entries instead of, or after, its own; None: without."""
    kept = [
        fields.content[start:end]
        for key, (start, end) in fields.header.spans.items()
        if key not in entries
    ]
    added = [text(key.encode()) + value for key, value in entries.items() if value]
    metadata_end = max(end for _, end in fields.header.spans.values())
    count = struct.pack('<Q', len(kept) + len(added))
    head = b''.join([fields.content[:16], count, *kept, *added])
    head += fields.content[metadata_end : fields.position]  # of the tensors
    return head + bytes(-len(head) % fields.header.alignment) + fields.content[fields.end :]


def files(fields):
    """Give (name, entries) of each file to try."""
    architecture = fields.header.metadata['general.architecture']
    read = [f'{architecture}.{name}' for name in llm_keys.OF_ARCHITECTURE]
    read += [*llm_keys.GENERAL, 'tokenizer.ggml.bos_token_id', 'general.alignment']
    for key in read:
        for name, value in VALUES.items():
            yield f'{key}: {name}', {key: value}
    for key in fields.header.spans:
        yield f'without {key}', {key: None}
    unread = [f'{architecture}.{name}' for name in library_keys()]
    unread = [key for key in unread if key not in read]
    for name, value in VALUES.items():
        yield f'unread: {name}', dict.fromkeys(unread, value)
    for alignment in (8, 16, 64, 4096):
        yield f'alignment {alignment}', {'general.alignment': struct.pack('<II', U32, alignment)}


def main():
    """Try one file after another."""
    source, work = Path(sys.argv[1]), Path(sys.argv[2])
    for name in ('manifest.yaml', 'vision.gguf', 'audio.gguf'):
        (work / name).symlink_to(source / name)
    set_log(lambda level, words: None)
    loader, fields = Loader(work), Fields(source / 'llm.gguf')
    for name, entries in files(fields):
        (work / 'llm.gguf').write_bytes(with_entries(fields, entries))
        print(json.dumps({'begun': name}), flush=True)
        told = {'name': name, 'refused at': '', 'reason': '', 'warnings': []}
        try:
            model = loader.open()
            told['warnings'] = model.warnings
        except ModelFileError as error:
            told['refused at'], told['reason'] = 'opening', str(error)
            print(json.dumps(told), flush=True)
            continue
        try:
            loader.llm(model)
        except InputError:
            pass  # a context longer than this model's: what was asked of it is wrong, not the file
        except ModelFileError as error:
            told['refused at'], told['reason'] = 'loading', str(error)
        print(json.dumps(told), flush=True)


if __name__ == '__main__':
    main()
