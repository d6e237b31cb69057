# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The verb parameters, which prints docs/parameters.md from the code that declares them."""

INTRODUCTION = """# Parameters

`minicpmo parameters > docs/parameters.md` makes this page from the code that declares the
parameters.

A value is refused with an explanation if it has the wrong type, is out of range, is not a number
or is not among the choices. At start, the process then ends with exit code 1; later, only the
change is refused. Write a float with its point (`1.0`, not `1`). Unknown names are reported in the
log. In a YAML file, use keys such as `/**/llm:`, which match the node in every namespace.

The column **when** says when a change takes effect:

- *configure*: the parameter is read when the node is configured, because memory, files and threads
  depend on it. While the node is configured, a change is refused with that reason
  (`ros2 lifecycle set /llm deactivate`, `cleanup`, then set it, `configure` and `activate`).
- *any time*: a change applies to the next item of work.
- *start*: the parameter is read once.

## Quality of service

The quality of service of every topic is set by read-only parameters, given at start:

    qos_overrides.<topic>.<subscription|publisher>.<history|depth|reliability|durability>

with the topic's full name, such as `qos_overrides./image.subscription.reliability:=reliable`.
If two ends of a topic do not fit each other, the log and `/diagnostics` name the other node,
the policy, both values and the parameter to change.
"""


def add_parameters_arguments(parser) -> None:
    """Declare the options of `parameters`."""


def run_parameters(arguments) -> int:
    """Print every parameter and launch argument as Markdown tables, from their declarations.

    docs/parameters.md is what this prints:

        minicpmo parameters > docs/parameters.md
    """
    print(page(), end='')
    return 0


def page() -> str:
    """Return the page; needs rclpy, as the nodes do."""
    from minicpmo_ros.ros.launch import process_specs as launching

    launches = {'live': launching.ARGUMENTS, 'replay': launching.REPLAY_ARGUMENTS}
    return (
        INTRODUCTION
        + ''.join(_table(*table) for table in _tables())
        + ''.join(_launch_table(name, rows) for name, rows in launches.items())
    )


def _tables() -> list:
    """Return (title, rows, when a change holds, if it is the same for all rows) of each table."""
    from minicpmo_ros.ros.audio_node import StreamingEncoder
    from minicpmo_ros.ros.framework.lifecycle import COMMON_PARAMETERS
    from minicpmo_ros.ros.framework.parameters import START
    from minicpmo_ros.ros.image_node import VisionNode
    from minicpmo_ros.ros.llm_node import LlmNode
    from minicpmo_ros.ros.playback import player as media_player
    from minicpmo_ros.ros.playback import recorder
    from minicpmo_ros.ros.playback.capture import MediaCapture
    from minicpmo_ros.ros.relay import RelayNode
    from minicpmo_ros.ros.replay import graph as replay
    from minicpmo_ros.ros.voice.node import VoiceNode
    from minicpmo_ros.ros.voice.speaker import SpeakerNode
    from minicpmo_ros.ros.web import node as web

    common = '`llm`, both encoders, `voice`, `speaker`, `media_capture` and `relay`'
    tables = [(common, COMMON_PARAMETERS, None)]
    for name, node in (
        ('llm', LlmNode),
        ('streaming_encoder', StreamingEncoder),
        ('vision_encoder', VisionNode),
        ('voice', VoiceNode),
        ('speaker', SpeakerNode),
        ('media_capture', MediaCapture),
        ('relay', RelayNode),
    ):
        tables.append((f'`{name}`', node.PARAMETERS, None))
    for name, module in (
        ('media_player', media_player),
        ('recorder', recorder),
        ('replay', replay),
        ('web', web),
    ):
        tables.append((f'`{name}`', module.PARAMETERS, START))
    return tables


def _table(title: str, rows, when: str) -> str:
    lines = [
        f'\n## {title}\n',
        '| parameter | default | allowed | what | when |',
        '|---|---|---|---|---|',
        *(_row(row, when) for row in rows),
    ]
    return '\n'.join(lines) + '\n'


def _launch_table(name: str, rows) -> str:
    lines = [
        f'\n## `ros2 launch minicpmo_ros {name}.launch.py`\n',
        '| argument | default | what |',
        '|---|---|---|',
        *(f'| `{argument}:=` | {default and f"`{default}`"} | {what} |'
          for argument, default, what in rows),
    ]  # fmt: skip
    return '\n'.join(lines) + '\n'


def _row(row, when: str) -> str:
    unit = f' [{row.unit}]' if row.unit else ''
    cells = (
        f'`{row.name}`',
        f'`{row.default!r}`',
        _allowed(row),
        row.description + unit,
        when or row.when,
    )
    return '| ' + ' | '.join(cell.replace('|', '\\|') for cell in cells) + ' |'


def _allowed(row) -> str:
    if row.choices:
        return ', '.join(f'`{choice}`' for choice in row.choices)
    if row.minimum is not None:
        return f'{row.minimum} to {row.maximum}'
    kinds = {bool: '`True`, `False`', str: 'any text', list: 'texts'}
    return kinds.get(type(row.default), 'any number')
