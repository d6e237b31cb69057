# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What a running process takes is what was planned for it; benchmarks/memory.py has the sizes."""

from benchmarks import memory


def test_the_process_takes_what_was_planned(ros_domain, tiny_model_dir):
    case = memory.Case('tiny', 'f16', parameters={'n_ctx': 8192, 'kv_type': 'q8_0'})
    planned = memory.forecast(case, tiny_model_dir)['host_mib']
    taken = memory.measure(case, tiny_model_dir)
    # This process has the same libraries open, so that PSS counts only half of them.
    assert taken['pss'] <= 1.01 * planned
    assert planned - taken['rss'] <= 48


def test_what_the_benchmark_calls_kept_is_the_promise():
    for planned, measured, kept in (
        (248, 200, True),
        (249, 200, False),
        (198, 200, True),
        (197, 200, False),
        (5150, 5000, True),
        (5151, 5000, False),
    ):
        assert memory.keeps_promise(planned, measured) == kept
