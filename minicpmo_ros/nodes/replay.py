# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Node `replay`: asks the graph beside it all questions about bags, and ends.

For replay.launch.py, which starts `live` with the parameters of a preset: what decides about
answers is asked of the running nodes and stands in the run's folder. Progress is logged.
"""

from functools import partial
from pathlib import Path

from rcl_interfaces.srv import GetParameters
from rclpy.parameter import parameter_value_to_python

from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation import replay
from minicpmo_ros.evaluation.clips import Sources
from minicpmo_ros.evaluation.questions import QuestionSet
from minicpmo_ros.evaluation.results import Results, Run
from minicpmo_ros.evaluation.runner import CoreOptions, Variant
from minicpmo_ros.models.directory import ModelDirectory
from minicpmo_ros.nodes.examiner import Examiner
from minicpmo_ros.nodes.graph_replay import RECORDED, GraphAnswerer
from minicpmo_ros.nodes.loading import model_path
from minicpmo_ros.nodes.parameters import Parameter, ParameterTable
from minicpmo_ros.nodes.spinning import run_program

PARAMETERS = (
    Parameter('questions', '', 'Questions, JSON or YAML'),
    Parameter('bag', '', 'Where the bags are: a folder, or a single bag to ask about; empty: '
              'beside the questions'),
    Parameter('image_topic', '', 'Of a bag with several cameras; compressed pictures on this name '
              'with /compressed'),
    Parameter('audio_topic', '', 'Of a bag with several microphones'),
    Parameter('out', 'replay', 'Folder of the run; a run that is there is gone on with'),
    Parameter('limit', 0, 'Ask only the first so many; 0: all', '', 0, 2**31 - 1),
    Parameter('input', 'all', 'Senses given', choices=('all', 'no_picture', 'no_sound')),
    Parameter('max_tokens', 16, 'Of an answer', 'tokens', 1, 100_000),
    Parameter('record', '', 'Write into bags in the folder: answers, or all: what was played '
              'beside them', choices=RECORDED),
)  # fmt: skip
# Of CoreOptions, by node and parameter.
OPTIONS = {
    'device': ('llm', 'device'),
    'prompt': ('llm', 'prompt'),
    'n_ctx': ('llm', 'n_ctx'),
    'n_ubatch': ('llm', 'n_ubatch'),
    'kv_type': ('llm', 'kv_type'),
    'window_policy': ('llm', 'window_policy'),
    'max_question_tokens': ('llm', 'max_question_tokens'),
    'max_tiles': ('vision_encoder', 'vision.max_tiles'),
    'unchanged_threshold': ('vision_encoder', 'vision.unchanged_threshold'),
}


def answer(examiner: Examiner) -> None:
    """Do the whole run."""
    given = ParameterTable(examiner, PARAMETERS).values()
    if not given.questions:
        raise InputError('parameter questions is empty; give a file: questions:=FILE')
    questions = QuestionSet.read(given.questions, given.bag or None)
    questions = questions.first(given.limit) if given.limit else questions
    examiner.wait_ready()
    told = {name: value_of(examiner, *where) for name, where in OPTIONS.items()}
    options = CoreOptions(**told, max_tokens=given.max_tokens)
    model = ModelDirectory.open(model_path(value_of(examiner, 'llm', 'model_dir')))
    sources = Sources(given.image_topic, given.audio_topic)
    plan = replay.Plan(model, questions, options, Variant(given.input), sources)
    results = Results(given.out, plan.facts('graph'))
    log = examiner.get_logger()
    log.info(f'{len(results.done)} of {len(questions.questions)} questions were answered before')
    folder = Path(given.out) / 'bags'
    try:
        replay.run(
            plan,
            results,
            partial(GraphAnswerer, folder=folder, record=given.record, examiner=examiner),
            on_progress=lambda progress: log.info(str(progress), throttle_duration_sec=10.0),
        )
    finally:
        results.close()
    for sentence in Run.read(given.out).summary():
        log.warning(sentence)
    log.info(f'all {len(results.done)} questions have been asked: {given.out}')


def value_of(examiner: Examiner, node: str, name: str):
    """Give the value of another node's parameter."""
    client = examiner.create_client(GetParameters, f'{node}/get_parameters')
    try:
        examiner.wait_until(client.service_is_ready, f'finding {node}')
        future = client.call_async(GetParameters.Request(names=[name]))
        examiner.wait_until(future.done, f'asking {node} for {name}')
        return parameter_value_to_python(future.result().values[0])
    finally:
        examiner.destroy_client(client)


def main() -> int:
    """Run it; give the exit code."""

    def work() -> None:
        examiner = Examiner()
        try:
            answer(examiner)
        finally:
            examiner.close()

    return run_program('replay', work)


if __name__ == '__main__':
    raise SystemExit(main())
