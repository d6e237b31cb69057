# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What each executable does in the graph, with everything switched on, the policy allows."""

import re
from fnmatch import fnmatch
from pathlib import Path

import overlays
import pytest
from audio_common_msgs.msg import AudioDataStamped, AudioInfo
from rclpy.node import NodeNameNonExistentError
from sensor_msgs.msg import CompressedImage
from test_sros2_policy import executables, of_node

from minicpmo_ros.ros.framework.lifecycle import LATCHED

CLIP = Path(__file__).parents[1] / 'demo' / 'clips' / '004.mcap'
PUBLISH, SUBSCRIBE = ('topics', 'publish'), ('topics', 'subscribe')
REPLY, REQUEST = ('services', 'reply'), ('services', 'request')
EXECUTE, CALL = ('actions', 'execute'), ('actions', 'call')
ASKED = {PUBLISH: 'publisher', SUBSCRIBE: 'subscriber', REPLY: 'service', REQUEST: 'client'}
PART = re.compile(r'(.*)/_action/(feedback|status|send_goal|cancel_goal|get_result)')
# Of an action: who offers it publishes and replies, who calls it subscribes and requests.
ACTION = {PUBLISH: EXECUTE, REPLY: EXECUTE, SUBSCRIBE: CALL, REQUEST: CALL}
NEEDS_A_RUN = {'demo', 'replay'}  # they end by themselves, and start other executables
MODEL = ('-p', 'model_dir:={model}')
NOTES = ('-p', 'memory.enabled:=true', '-p', 'memory.path:={tmp}/notes.db')
BARGE_IN = ('-p', 'listen:=barge_in')
EARS = {(SUBSCRIBE, 'audio'), (SUBSCRIBE, 'speaker/state'), (SUBSCRIBE, 'speaker/audio'),
        (SUBSCRIBE, 'speaker/audio_info')}  # fmt: skip
LLM = {(EXECUTE, 'llm/ask'), (SUBSCRIBE, 'speaker/state'), (SUBSCRIBE, 'pose'),
       (REPLY, 'llm/recall'), (REPLY, 'llm/save'), (SUBSCRIBE, '/tf')}  # fmt: skip
VOICE = {*EARS, (CALL, 'llm/ask'), (SUBSCRIBE, 'llm/status'), (REQUEST, 'speaker/stop')}
IMAGES = (SUBSCRIBE, 'image/compressed')
# (executable, its arguments, packages that it finds, {node: what it does when all is there}).
CASES = [
    ('live', (*MODEL, *NOTES, *BARGE_IN, '--', '--voice'), ('tf2_msgs', 'tf2_msgs'),
     {'llm': LLM, 'vision_encoder': {IMAGES, (REPLY, 'vision_encoder/look')},
      'streaming_encoder': EARS, 'voice': VOICE}),
    ('llm', (*MODEL, *NOTES), ('tf2_msgs', 'tf2_msgs'), {'llm': LLM}),
    ('vision_encoder', MODEL, None, {'vision_encoder': {IMAGES}}),
    ('streaming_encoder', (*MODEL, *BARGE_IN), None, {'streaming_encoder': EARS}),
    ('voice', BARGE_IN, None, {'voice': VOICE}),
    ('speaker', ('-p', 'say:=audio_common'), ('mgonzs13', 'audio_common_msgs'),
     {'speaker': {(CALL, 'say'), (EXECUTE, 'speaker/say')}}),
    ('speaker', ('-p', 'say:=sound_play'), ('sound_play', 'sound_play'),
     {'speaker': {(CALL, 'sound_play'), (PUBLISH, 'robotsound')}}),
    ('media_capture', ('-p', 'source:=/dev/no_camera', '-p', 'microphone:=none_such'), None,
     {'media_capture': {(PUBLISH, 'image/compressed'), (PUBLISH, 'audio')}}),
    ('media_capture', ('-p', 'source:=/dev/no_camera', '-p', 'image_format:=raw'), None,
     {'media_capture': {(PUBLISH, 'image')}}),
    ('media_player', ('-p', 'file:={clip}', '-p', 'loop:=true'), None,
     {'media_player': {(PUBLISH, 'image/compressed'), (PUBLISH, 'audio')}}),
    ('recorder', ('-p', 'keep_s:=5.0', '-p', 'inputs:=true'), None,
     {'recorder': {IMAGES, (SUBSCRIBE, 'audio'), (REPLY, 'recorder/save_bag')}}),
    ('relay', (), None, {'relay': {IMAGES, (SUBSCRIBE, 'audio'), (PUBLISH, 'relay/audio')}}),
    ('web', ('-p', 'senses:=true', '-p', 'port:=0', '-p', 'token:=secret'), None,
     {'web': {(CALL, 'llm/ask'), (REQUEST, 'llm/set_parameters'), (SUBSCRIBE, 'llm/alerts'),
              (SUBSCRIBE, 'llm/answer'), (SUBSCRIBE, 'voice/speech'), (PUBLISH, 'audio'),
              (PUBLISH, 'image/compressed')}}),
]  # fmt: skip


def done_by(graph, node: str) -> set:
    """Return {(kind of access, name)} of what a node does in the graph now."""
    found, inside = set(), f'{graph.namespace}/'
    for access, kind in ASKED.items():
        ask = getattr(graph, f'get_{kind}_names_and_types_by_node')
        try:
            names = [name for name, _ in ask(node, graph.namespace)]
        except NodeNameNonExistentError:
            continue
        for name in names:
            name = name.removeprefix(inside)
            part = PART.fullmatch(name)
            found.add((ACTION[access], part[1]) if part else (access, name))
    return found


@pytest.mark.parametrize(
    ('executable', 'arguments', 'package', 'nodes'),
    CASES,
    ids=[f'{executable}-{n}' for n, (executable, *_) in enumerate(CASES)],
)
def test_all_that_an_executable_does_is_allowed(
    graph, tiny_model_dir, tmp_path, executable, arguments, package, nodes
):
    places = {'model': tiny_model_dir, 'tmp': tmp_path, 'clip': CLIP}
    sources = [graph.create_publisher(kind, name, qos) for kind, name, qos in (
        (CompressedImage, 'image/compressed', 10), (AudioDataStamped, 'audio', 10),
        (AudioInfo, 'audio_info', LATCHED), (AudioDataStamped, 'speaker/audio', 10),
        (AudioInfo, 'speaker/audio_info', LATCHED))]  # fmt: skip
    env = overlays.environment(*package) if package else None
    graph.start(executable, *(text.format(**places) for text in arguments), env=env)
    for node, wanted in nodes.items():
        graph.spin_until(
            lambda node=node, wanted=wanted: wanted <= done_by(graph, node),
            f'{node} to do {sorted(wanted)}',
        )
    assert sources  # until here
    for node in nodes:
        rules = of_node(executable, node)
        forbidden = {
            (access, name)
            for access, name in done_by(graph, node)
            if not any(fnmatch(name, known) for known in rules.get(access, ()))
        }
        assert forbidden == set(), f'the policy does not let {node} of {executable} do this'


def test_every_executable_is_looked_at():
    assert {executable for executable, *_ in CASES} == executables() - NEEDS_A_RUN
