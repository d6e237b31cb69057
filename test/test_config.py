# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Every setting has one default, in one place: what has it, too, takes it from there."""

import ast
import inspect
from dataclasses import MISSING, fields
from pathlib import Path

import minicpmo_ros
from minicpmo_ros import config
from minicpmo_ros.evaluation.runner import CoreOptions
from minicpmo_ros.live.question import EvidenceOptions
from minicpmo_ros.live.session_options import SessionOptions
from minicpmo_ros.live.status import EngineOptions
from minicpmo_ros.llm.context import ContextOptions
from minicpmo_ros.llm.model import ModelOptions
from minicpmo_ros.llm.sampling import SamplingOptions
from minicpmo_ros.memory.plan import PlanOptions
from minicpmo_ros.ros.audio_node import StreamingEncoder
from minicpmo_ros.ros.image_node import VisionNode
from minicpmo_ros.ros.llm_options import PARAMETERS

OPTIONS = (ContextOptions, ModelOptions, SamplingOptions, SessionOptions, EngineOptions,
           EvidenceOptions, PlanOptions, CoreOptions)  # fmt: skip
ROWS = {
    row.name.removeprefix('vision.').removeprefix('alerts.'): row.default
    for row in (*PARAMETERS, *VisionNode.PARAMETERS, *StreamingEncoder.PARAMETERS)
}
# The field of a parameter, where it has another name.
ALIASES = {'n_batch': 'n_ubatch', 'unit_deadline_s': 'unit_deadline',
           'required': 'required_evidence', 'still': 'window.still'}  # fmt: skip
# What differs on purpose: a run is the same on every machine; `speech` of a session is what the
# manifest has made of auto.
MEANT = {
    ('threads', ContextOptions): config.EVALUATION.threads,
    ('threads', CoreOptions): config.EVALUATION.threads,
    ('max_tokens', CoreOptions): config.EVALUATION.max_tokens,
    ('speech', SessionOptions): False,
}
RECORDS = (config.COMPUTING, config.LLM, config.VISION, config.AUDIO)


def shared_fields():
    """Give (parameter, class, field) of every option that is a parameter, too."""
    for kind in OPTIONS:
        for field in fields(kind):
            name = ALIASES.get(field.name, field.name)
            if name in ROWS and field.default is not MISSING:
                yield name, kind, field


def test_options_that_are_parameters_have_the_parameters_defaults():
    disagree = {
        (name, kind): field.default
        for name, kind, field in shared_fields()
        if field.default != ROWS[name] or type(field.default) is not type(ROWS[name])
    }
    assert disagree == MEANT
    assert len(list(shared_fields())) >= 40


def test_no_option_that_is_a_parameter_has_a_default_of_its_own():
    """They are written once: the others name the record of config."""
    own = []
    for kind in OPTIONS:
        tree = ast.parse(inspect.getsource(kind))
        shared = {field.name for _, of, field in shared_fields() if of is kind}
        for node in ast.walk(tree):
            if isinstance(node, ast.AnnAssign) and node.target.id in shared:
                if isinstance(node.value, (ast.Constant, ast.UnaryOp)):
                    own.append((kind.__name__, node.target.id))
    assert own == [('SessionOptions', 'speech')]


def test_every_setting_of_the_records_is_the_default_of_a_parameter():
    for record in RECORDS:
        for field in fields(record):
            if field.name != 'overlap_s':  # no node has it as a parameter
                assert ROWS[ALIASES.get(field.name, field.name)] == field.default, field.name


def test_the_records_import_nothing():
    path = Path(minicpmo_ros.__file__).parent / 'config.py'
    tree = ast.parse(path.read_text())
    modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert modules == ['dataclasses']
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import)]
