# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Puts a trained nano where the package ships it: python -m training.ship build/nano/f16 models

models/nano is the f16 set. models/nano_q4 has the language model and the audio encoder in 4 bits
and shares the vision file, which 4 bits would hardly make smaller: its table of positions stays.
"""

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.modelset.manifest import FileEntry, read_manifest, write_manifest
from minicpmo_ros.quantize.quantizer import quantize_directory

LARGEST_BYTES = 12_000_000  # of both sets together: the repository carries them


def ship(source: Path, models: Path) -> int:
    """Write both sets; give their size in bytes."""
    full, small = models / 'nano', models / 'nano_q4'
    for directory in (full, small):
        shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(source, full)
    quantize_directory(full, small, {'llm': 'q4_0', 'audio': 'q4_0'})
    manifest = read_manifest(small)
    (small / 'vision.gguf').unlink()
    shared = FileEntry('../nano/vision.gguf', 'f16')
    write_manifest(small, replace(manifest, files={**manifest.files, 'vision': shared}))
    for directory in (full, small):
        ModelDirectory.open(directory).verify_hashes()
    return sum(path.stat().st_size for path in models.glob('nano*/*'))


def main() -> None:
    """Ship what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('source', type=Path)
    parser.add_argument('models', type=Path)
    options = parser.parse_args()
    size = ship(options.source, options.models)
    print(f'{size / 1e6:.2f} MB in {options.models}')
    if size > LARGEST_BYTES:
        raise SystemExit(f'more than {LARGEST_BYTES / 1e6:.0f} MB: too much to carry')


if __name__ == '__main__':
    main()
