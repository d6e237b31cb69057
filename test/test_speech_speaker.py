# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Sentences become sound in order, the sound stops at once, and what was said is known."""

import shutil
import threading
import time

import numpy as np
import pytest

from minicpmo_ros.errors import EngineError, InputError
from minicpmo_ros.speech import synthesis
from minicpmo_ros.speech.sentences import SentenceCutter
from minicpmo_ros.speech.speaker import (
    COMPLETE,
    FAILED,
    MOST_UTTERANCES,
    STOPPED,
    Speaker,
)
from minicpmo_ros.speech.synthesis import ESPEAK, LEAD_S, Synthesiser, make_synthesiser

needs_espeak = pytest.mark.skipif(shutil.which(ESPEAK) is None, reason='no espeak-ng here')
TIMEOUT_S = 60.0
# Programs that take a text and give raw 16-bit sound at 1 kHz: 20 ms of 7s for each letter.
PARROT = ['sh', '-c', 'read t; for i in $(seq ${#t}); do printf "%020d%020d" 7 7; done']
RATE_HZ = 1000


class Output:
    """A loudspeaker that notes what is played and when it is silenced."""

    def __init__(self):
        self.blocks, self.silenced = [], []

    def play(self, samples, rate_hz):
        self.blocks.append(len(samples) / rate_hz)  # seconds

    def silence(self):
        self.silenced.append(time.monotonic())

    @property
    def played_s(self):
        return sum(list(self.blocks))


class Stage:
    """A Speaker, its output, and what it tells; waits for events."""

    def __init__(self, command, deadline_s=TIMEOUT_S, output=None):
        self.output, self.states, self.problems = output or Output(), [], []
        self.changed, self.ended = threading.Condition(), []
        self.speaker = Speaker(
            Synthesiser(command, deadline_s, RATE_HZ),
            self.output,
            lambda state: self._note(self.states, state),
            lambda text: self._note(self.problems, text),
        )

    def _note(self, notes, item):
        with self.changed:
            notes.append(item)
            self.changed.notify_all()

    def wait(self, condition):
        with self.changed:
            assert self.changed.wait_for(condition, TIMEOUT_S)

    def wait_played(self, duration_s):
        end_s = time.monotonic() + TIMEOUT_S
        while self.output.played_s < duration_s:
            assert time.monotonic() < end_s
            time.sleep(0.005)

    def say(self, *sentences, name='one'):
        utterance = self.speaker.begin(name, lambda done: self._note(self.ended, done))
        self.speaker.add(utterance, list(sentences), is_whole=True)
        return utterance

    def wait_speaking(self, sentence=''):
        self.wait(lambda: self.states and self.states[-1].is_speaking
                  and self.states[-1].sentence.startswith(sentence))  # fmt: skip


@pytest.fixture
def stage():
    stage = Stage(PARROT)
    yield stage
    stage.speaker.close(TIMEOUT_S)


def test_what_was_said_is_what_was_to_be_said_and_told_as_it_goes(stage):
    utterance = stage.say('One, two.', ' Three!', ' ', ' Four.')
    stage.wait(lambda: stage.ended)
    assert utterance.outcome == COMPLETE and not utterance.problem
    assert utterance.spoken == 'One, two. Three!  Four.'
    assert stage.output.played_s == pytest.approx(0.02 * (9 + 6 + 5), abs=0.01)
    assert not stage.states[-1].is_speaking
    said = [state.sentence for state in stage.states if state.is_speaking]
    assert list(dict.fromkeys(said)) == ['One, two.', ' Three!', ' Four.']
    assert stage.speaker.sentences == 3


@pytest.mark.parametrize('is_late', [False, True], ids=['at once', 'after the sound'])
def test_what_cannot_be_spoken_is_said_with_the_sentence_before_it(stage, is_late):
    utterance = stage.speaker.begin('one')
    stage.speaker.add(utterance, ['It is red.'])
    if is_late:
        stage.wait(lambda: stage.states and stage.states[-1].spoken == 'It is red.')
    stage.speaker.add(utterance, [' :)'], is_whole=True)
    stage.wait(lambda: stage.states[-1:] and stage.states[-1].spoken == 'It is red. :)'
               and not stage.states[-1].is_speaking)  # fmt: skip


def test_of_an_answer_whose_words_could_not_be_said_nothing_is_said(tmp_path):
    stage = Stage([str(tmp_path / 'no such program')])
    utterance = stage.say('It is red.', ' :)')
    stage.wait(lambda: stage.ended)
    assert (utterance.outcome, utterance.spoken) == (FAILED, '')
    stage.speaker.close(TIMEOUT_S)


def test_the_first_sentence_is_heard_before_the_last_word_is_there(stage):
    utterance = stage.speaker.begin('one')
    cutter = SentenceCutter()
    stage.speaker.add(utterance, cutter.push('Here it is. And then'))
    stage.wait(lambda: utterance.spoken == 'Here it is.')
    assert stage.output.played_s > 0


def test_a_stop_silences_within_a_block_and_says_which_words_were_heard(stage):
    sentence = 'one two three four five six seven eight nine ten ' * 4
    utterance = stage.say(sentence)
    waiting = stage.say('Never.', name='two')
    stage.wait_speaking()
    stage.wait_played(0.5)
    stage.speaker.stop()
    n_blocks = len(stage.output.blocks)
    stage.wait(lambda: len(stage.ended) == 2)
    assert utterance.outcome == waiting.outcome == STOPPED
    assert stage.output.silenced and not stage.speaker.is_speaking
    assert len(stage.output.blocks) <= n_blocks + 1
    assert sentence.startswith(utterance.spoken) and utterance.spoken != sentence.strip()
    letters = stage.output.played_s / 0.02
    assert letters - LEAD_S / 0.02 - 10 < len(utterance.spoken) <= letters + 5
    assert waiting.spoken == ''


def test_a_false_alarm_goes_on_with_the_sentence_that_was_cut(stage):
    utterance = stage.say('First.', ' Second is a longer one, that is cut.', ' Third.')
    stage.wait_speaking(' Second')
    stage.wait_played(stage.output.played_s + 0.4)
    assert stage.speaker.pause()
    stage.wait(lambda: not stage.states[-1].is_speaking)
    assert utterance.spoken.startswith('First. Second') and 'Third' not in utterance.spoken
    n_blocks, n_states = len(stage.output.blocks), len(stage.states)
    stage.speaker.resume()
    stage.wait(lambda: stage.ended)
    assert len(stage.output.blocks) > n_blocks
    assert stage.states[n_states].sentence.startswith(' Second')  # from its beginning
    assert utterance.spoken == 'First. Second is a longer one, that is cut. Third.'


def test_one_text_can_be_dropped_and_the_others_are_said(stage):
    first, second, third = (stage.say(f'Text {n}.', name=n) for n in '123')
    stage.speaker.stop(second)
    stage.wait(lambda: len(stage.ended) == 3)
    assert [each.outcome for each in (first, second, third)] == [COMPLETE, STOPPED, COMPLETE]
    assert second.spoken == '' and third.spoken == 'Text 3.'


def test_a_text_that_is_dropped_while_it_waits_ends_at_once_and_makes_room(stage):
    stage.say('This text goes on. ' * 1000, name='long')
    waiting = [stage.say(f'Text {n}.', name=str(n)) for n in range(MOST_UTTERANCES - 1)]
    assert stage.speaker.begin('more') is None
    for utterance in waiting:
        stage.speaker.stop(utterance)
    assert stage.ended == waiting and stage.speaker.begin('more') is not None


def test_more_texts_than_may_wait_are_refused(stage):
    kept = [stage.speaker.begin(str(n)) for n in range(MOST_UTTERANCES)]
    assert None not in kept and stage.speaker.begin('more') is None


def test_a_synthesiser_that_hangs_is_killed_told_and_the_next_text_is_said():
    # `read t` takes the text; one with "hang" in it starts a program that never ends.
    stage = Stage(
        ['sh', '-c', 'read t; case $t in *hang*) sleep 1000;; esac; printf %040d 7'], 3.0
    )
    try:
        hung = stage.say('I hang.')
        stage.wait(lambda: stage.ended)
        assert hung.outcome == FAILED and hung.spoken == ''
        assert 'was killed' in stage.problems[0] and 'synthesis_timeout_s' in stage.problems[0]
        good = stage.say('I do not.')
        stage.wait(lambda: len(stage.ended) == 2)
        assert good.outcome == COMPLETE and good.spoken == 'I do not.'
    finally:
        stage.speaker.close(TIMEOUT_S)


def test_a_loudspeaker_that_is_gone_is_told_and_nothing_counts_as_said():
    class Gone(Output):
        def play(self, samples, rate_hz):
            raise EngineError('the loudspeaker does not play')

    stage = Stage(PARROT, output=Gone())
    try:
        utterance = stage.say('Hello.')
        stage.wait(lambda: stage.ended)
        assert utterance.outcome == FAILED and utterance.spoken == ''
        assert stage.problems == ['the loudspeaker does not play']
    finally:
        stage.speaker.close(TIMEOUT_S)


@pytest.mark.parametrize(
    'command, told',
    ((['sh', '-c', 'echo no such voice >&2; exit 3'], 'exit code 3.*no such voice'),
     (['true'], 'gave no sound'), (['/nowhere/x'], 'cannot be started'),
     (['echo', 'text'], 'no WAV file')),
)  # fmt: skip
def test_a_program_that_fails_is_told_with_what_it_said(command, told):
    with pytest.raises(EngineError, match=told):
        Synthesiser(command, TIMEOUT_S).speak('text')


def test_a_stop_ends_the_program_at_hand_and_no_error_is_told():
    synthesiser, results = Synthesiser(['sleep', '1000'], 1000.0), []
    thread = threading.Thread(target=lambda: results.append(synthesiser.speak('text')))
    thread.start()
    while thread.is_alive():  # until the program has been started and ended
        synthesiser.stop()
        thread.join(0.02)
    assert results == [None]


def test_what_is_not_installed_is_told_with_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(synthesis.shutil, 'which', lambda name: None)
    with pytest.raises(InputError, match='apt install espeak-ng'):
        make_synthesiser(ESPEAK, '', 1.0, 1.0, 1.0)
    monkeypatch.setattr(synthesis, 'find_spec', lambda name: None)
    with pytest.raises(InputError, match='pip install piper-tts'):
        make_synthesiser('piper', '', 1.0, 1.0, 1.0)
    monkeypatch.setattr(synthesis, 'find_spec', lambda name: True)
    with pytest.raises(InputError, match=r'\.onnx file'):
        make_synthesiser('piper', str(tmp_path / 'missing.onnx'), 1.0, 1.0, 1.0)
    assert make_synthesiser('none', '', 1.0, 1.0, 1.0) is None


@needs_espeak
def test_espeak_speaks_louder_and_faster_as_it_is_told_and_refuses_unknown_voices():
    text = 'The red box is on the table, and -v is no option.'
    usual = make_synthesiser(ESPEAK, '', 1.0, 1.0, TIMEOUT_S).speak(text)
    assert usual.rate_hz == 22050 and 2.0 < usual.duration_s < 6.0
    quick = make_synthesiser(ESPEAK, 'en-gb', 2.0, 0.3, TIMEOUT_S).speak(text)
    assert quick.duration_s < 0.7 * usual.duration_s
    assert np.abs(quick.samples).max() < 0.6 * np.abs(usual.samples).max()
    with pytest.raises(InputError, match='espeak-ng --voices'):
        make_synthesiser(ESPEAK, 'klingon-x', 1.0, 1.0, 1.0)
