# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What benchmarks/scale.py measures at full size holds at a small one."""

from benchmarks import scale
from minicpmo_ros.cli import main as cli
from minicpmo_ros.evaluation.results import ANSWERS

SHARDS, KILLS = 3, 2


def test_shards_that_are_killed_and_resumed_join_to_the_bytes_of_one_run(tmp_path):
    questions = scale.write_fleet(tmp_path, copies=1, each=2)
    arguments = [str(scale.ROOT / 'models' / 'nano'), str(questions), *scale.OPTIONS]
    assert cli.main(['replay', *arguments, '--out', str(tmp_path / 'whole')]) == 0
    killed = scale.KilledShards(arguments, tmp_path / 'run', SHARDS, KILLS)
    killed.run(processes=2)
    assert killed.kills >= SHARDS  # most of them were at work
    assert cli.main(['merge', str(tmp_path / 'run')]) == 0
    whole = (tmp_path / 'whole' / ANSWERS).read_bytes()
    assert (tmp_path / 'run' / ANSWERS).read_bytes() == whole


def test_joining_many_shards_needs_few_open_files_and_gives_what_one_run_writes(tmp_path):
    found = scale.measure_merge(tmp_path, shards=300, each=7)  # asserts that the bytes are equal
    assert found['merged'] == '300 x 7' and found['merge_mib'] > 0
