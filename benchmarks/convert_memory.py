# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The memory and time `minicpmo convert` takes for a checkpoint of the true size.

    source environment/env.sh && python benchmarks/convert_memory.py --family minicpm-o-2.6

Writes a bf16 checkpoint of the published tensors, in two files, with a vocabulary and merges of
the published number; its weights are zeros that take no disk. Converts it to f16 in a process of
its own, whose anonymous memory (RssAnon) is read every 5 ms. --layers: how many of the language
model's; memory depends on the largest tensor and on the vocabulary, not on their number, but the
disk the result takes does (2.6: 3.6 GiB and 0.43 for every layer). It is deleted afterwards.
Writes build/convert_memory.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from minicpmo_ros.process import prepare

prepare()

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'test'))

from hf_checkpoint import write_tokenizer, write_weights  # noqa: E402

from minicpmo_ros.convert.checkpoint import COMPUTED, source_of  # noqa: E402
from minicpmo_ros.families import DEFAULT, FAMILIES  # noqa: E402
from minicpmo_ros.modelset import gguf_layouts as layouts  # noqa: E402

N_MERGES = 151387  # of Qwen's merges.txt
INTERVAL_S = 0.005


def write_checkpoint(directory: Path, shape) -> None:
    """Write a whole checkpoint of zeros."""
    plans = [*layouts.llm_tensors(shape), *layouts.vision_tensors(shape)]
    tensors = {}
    for plan in [*plans, *layouts.audio_tensors(shape)]:
        if plan.name != COMPUTED:
            source = source_of(plan.name)
            tensors[source.name] = (plan.shape[0] * source.parts, *plan.shape[1:])
    write_weights(directory, tensors, shards=2)
    write_tokenizer(directory, shape.family, count=shape.vocabulary)
    merges = '\n'.join(f'Ġw{i} w{i}' for i in range(N_MERGES))
    (directory / 'merges.txt').write_text('#version: 0.2\n' + merges + '\n')
    config = {
        'version': FAMILIES[shape.family].version,
        'num_attention_heads': shape.llm_heads,
        'max_position_embeddings': shape.context_length,
        'rms_norm_eps': 1e-6,
        'rope_theta': shape.rope_base,
        'vision_config': {'num_attention_heads': shape.vision_heads},
        'audio_config': {'encoder_attention_heads': shape.audio_heads},
        'audio_pool_step': shape.audio_pool,
    }
    (directory / 'config.json').write_text(json.dumps(config))


def watch(process: subprocess.Popen) -> tuple:
    """Return (largest RssAnon in KiB, CPU seconds) of a process, once it has ended."""
    largest, status = 0, None
    while True:
        try:
            text = Path(f'/proc/{process.pid}/status').read_text()
        except OSError:
            text = ''
        for line in text.splitlines():
            if line.startswith('RssAnon:'):
                largest = max(largest, int(line.split()[1]))
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return largest, usage.ru_utime + usage.ru_stime
        time.sleep(INTERVAL_S)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--family', choices=FAMILIES, default=DEFAULT.name)
    parser.add_argument('--layers', type=int, default=2)
    arguments = parser.parse_args()
    shape = replace(FAMILIES[arguments.family].published, llm_layers=arguments.layers)
    (ROOT / 'build').mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / 'build') as directory:
        source, target = Path(directory) / 'hf', Path(directory) / 'out'
        source.mkdir()
        write_checkpoint(source, shape)
        command = [sys.executable, '-m', 'minicpmo_ros.cli.main', 'convert', source, target]
        started = time.monotonic()
        process = subprocess.Popen(list(map(str, command)))
        anonymous_kib, cpu_s = watch(process)
        wall_s = time.monotonic() - started
        if process.returncode:
            raise SystemExit(process.returncode)
        written_mib = sum(path.stat().st_size for path in target.iterdir()) / 2**20
    row = {
        'family': shape.family,
        'layers': shape.llm_layers,
        'written_mib': round(written_mib),
        'rss_anon_mib': round(anonymous_kib / 1024),
        'cpu_s': round(cpu_s, 1),
        'wall_s': round(wall_s, 1),
        'load': round(os.getloadavg()[0], 1),
    }
    print('| ' + ' | '.join(row) + ' |\n|' + '---|' * len(row))
    print('| ' + ' | '.join(map(str, row.values())) + ' |')
    (ROOT / 'build' / 'convert_memory.json').write_text(json.dumps(row, indent=1))


if __name__ == '__main__':
    main()
