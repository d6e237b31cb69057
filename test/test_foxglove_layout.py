# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""config/foxglove_layout.json names only topics, fields and services that this package has."""

import json
import re
from pathlib import Path

import pytest
from builtin_interfaces.msg import Time
from sensor_msgs.msg import CompressedImage

from minicpmo_ros.evaluation.report import foxglove
from minicpmo_ros.msg import Alert, AlertStates, Answer, AudioEmbedding, ImageEmbedding, Status
from minicpmo_ros.srv import Ask

ROOT = Path(__file__).parents[1]
LAYOUT = json.loads((ROOT / 'config' / 'foxglove_layout.json').read_text())
DOCUMENTED = (ROOT / 'docs' / 'topics.md').read_text()
TOPICS = {
    '/image/compressed': CompressedImage,
    '/llm/status': Status,
    '/llm/answer': Answer,
    '/llm/alerts': Alert,
    '/llm/alerts/state': AlertStates,
    '/vision_encoder/seen': ImageEmbedding,
    '/streaming_encoder/heard': AudioEmbedding,
    '/web/view': CompressedImage,
}
OF_ROS = ('/rosout',)
PANELS = ('Image', 'Plot', 'StateTransitions', 'ServiceCall', 'RawMessages', 'Log')
NUMBERS_OF_JSON = {'number': 'double', 'integer': 'int', 'boolean': 'boolean'}
NUMBERS = ('float', 'double', 'int', 'uint', 'boolean')


def panels(content):
    """Give the panels of a layout."""
    if content['type'] == 'panel':
        yield content
    for item in content.get('items', ()):
        yield from panels(item['content'])


def of_kind(kind):
    found = [panel['config'] for panel in panels(LAYOUT['content']) if panel['panelType'] == kind]
    assert found, kind
    return found


def check_path(path):
    """Fail unless a path such as /llm/status.units leads to a field; give the field's type."""
    topic, *fields = re.sub(r'\[:\]', '', path).split('.')
    if topic in foxglove.SCHEMAS and topic not in TOPICS:  # of a file that `look` has written
        (field,) = fields
        return NUMBERS_OF_JSON[foxglove.SCHEMAS[topic][1]['properties'][field]['type']]
    kind = TOPICS[topic]
    for field in fields[:-1]:
        inner = kind.get_fields_and_field_types()[field]
        assert 'AlertState' in inner
        from minicpmo_ros.msg import AlertState as kind
    return kind.get_fields_and_field_types()[fields[-1]] if fields else None


def test_every_panel_is_of_a_kind_that_comes_with_foxglove():
    kinds = {panel['panelType'] for panel in panels(LAYOUT['content'])}
    assert kinds == set(PANELS)


@pytest.mark.parametrize('kind', ['Plot', 'StateTransitions'])
def test_every_line_is_a_number_of_a_message(kind):
    paths = [path['value'] for config in of_kind(kind) for path in config['paths']]
    for path in paths:
        assert check_path(path).startswith(NUMBERS), path
    with pytest.raises(KeyError):
        check_path('/llm/status.no_such_field')


def test_every_topic_exists_and_is_documented():
    shown = [config['topicPath'] for config in of_kind('RawMessages')]
    shown += [config['imageMode']['imageTopic'] for config in of_kind('Image')]
    shown += [config['topicToRender'] for config in of_kind('Log')]
    assert set(shown) <= {*TOPICS, *OF_ROS}
    for topic in TOPICS:
        name = re.sub(r'^/(llm|vision_encoder|streaming_encoder|web)/', '~/', topic).lstrip('/')
        assert f'`{name}`' in DOCUMENTED, topic


def test_the_request_of_the_service_has_the_fields_of_ask():
    (config,) = of_kind('ServiceCall')
    assert config['serviceName'] == '/llm/ask' and '`~/ask` (service)' in DOCUMENTED
    given = json.loads(config['requestPayload'])
    assert set(given) <= set(Ask.Request.get_fields_and_field_types())  # the rest: its defaults
    heard_until = Time(**given.pop('heard_until'))
    Ask.Request(heard_until=heard_until, **given)  # of the right types


def test_what_look_writes_is_shown_where_the_live_topics_are():
    """Of a file of `minicpmo look --mcap`, by the same layout; and its topics are documented."""
    shown = {config['imageMode']['imageTopic']: config['imageMode'] for config in of_kind('Image')}
    image = shown[foxglove.IMAGES]
    assert image['annotations'] == {foxglove.ANNOTATIONS: {'visible': True}}
    assert set(shown) == {foxglove.IMAGES, '/web/view'}
    assert foxglove.SCHEMAS[foxglove.ANNOTATIONS][0] == 'foxglove.ImageAnnotations'
    assert foxglove.ANSWERS in [config['topicPath'] for config in of_kind('RawMessages')]
    assert foxglove.LOG in [config['topicToRender'] for config in of_kind('Log')]
    page = (ROOT / 'docs' / 'web.md').read_text()
    assert all(f'`{topic}`' in page for topic in (*foxglove.SCHEMAS, foxglove.IMAGES))
