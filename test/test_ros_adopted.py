# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Files as their publishers name them: after `adopt`, live sees, hears and answers with them."""

import pytest
from ros_source import Source
from test_modelset_adopt import OF_360, OMNI_4_5, OPENBMB_2_6, PRECISIONS, publish
from test_ros_live import play, start_live

from minicpmo_ros.cli import main as cli
from minicpmo_ros.synthetic.model import write_model


@pytest.mark.parametrize(
    'shape, names', [('tiny', OPENBMB_2_6), ('tiny', OF_360), ('tiny-4.5', OMNI_4_5)]
)
def test_adopted_files_go_to_work(graph, tmp_path, shape, names):
    made = write_model(tmp_path / 'made', shape, 1, *PRECISIONS.values(), hashes=False)
    directory = publish(made, tmp_path / 'published', names)
    assert cli.main(['adopt', str(directory)]) == 0
    process = start_live(graph, directory)
    source = Source(graph)
    source.wait_heard()
    play(graph, source, 2)
    reply = graph.ask('Left or right?', choices=['left', 'right'])
    assert reply.success and reply.answer.text in ('left', 'right')
    assert reply.answer.units >= 2
    assert process.end() == 0
    assert 'Traceback' not in process.log
