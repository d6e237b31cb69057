# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Says utterances one after another, sentence by sentence, and knows exactly what it has said.

One thread turns sentences into sound, at most AHEAD sentences before they are played; another
plays them in blocks at the pace of the sound (synthesis.Sound), so that `stop` silences it within
one block. `pause` stops the sound too, and `resume` goes on with the sentence that was cut.
"""

import logging
import threading
import time
from dataclasses import dataclass, field
from functools import partial

from minicpmo_ros.errors import EngineError, Error
from minicpmo_ros.speech.sentences import is_speakable, spoken_form
from minicpmo_ros.speech.synthesis import Sound

log = logging.getLogger(__name__)

AHEAD = 2
MOST_UTTERANCES = 16
COMPLETE, STOPPED, FAILED = 'complete', 'stopped', 'failed'


@dataclass(eq=False)
class Utterance:
    """One text to say; its sentences may still be coming."""

    name: str
    on_done: object = None  # called with the Utterance, in any thread
    sentences: list = field(default_factory=list)
    is_whole: bool = False  # no sentence follows
    sounds: dict = field(default_factory=dict)  # number of a sentence: Sound; None: it has none
    next_sentence: int = 0  # the one that is played, or is to be
    outcome: str = ''  # COMPLETE, STOPPED or FAILED
    cut: str = ''  # what was said of the sentence that was cut
    problem: str = ''  # why a sentence was left out

    @property
    def spoken(self) -> str:
        """What has been said: whole sentences, and the whole words of the one that was cut.

        What has nothing to say, such as " :)", is said with the sentence before it.
        """
        said = ''
        for number, text in enumerate(self.sentences[: self.next_sentence]):
            has_sound = self.sounds.get(number) is not None
            said += text * (has_sound or bool(said) and not is_speakable(spoken_form(text)))
        return (said + self.cut).strip()


@dataclass(frozen=True)
class SpeakerState:
    """What a Speaker tells whenever it changes."""

    is_speaking: bool
    name: str  # of the utterance
    sentence: str  # that is being said, or was last
    spoken: str  # of this utterance until now


class Speaker:
    """See the module.

    `synthesiser.speak(text)` returns a Sound, or what plays like one, or None if it was stopped.
    `output.play(samples, rate_hz)` plays a block of int16 samples; `output.silence()` drops what
    waits there. `on_change(SpeakerState)`, before the first block and after the last one, and
    `on_problem(text)` are called in the threads here.
    """

    def __init__(self, synthesiser, output, on_change, on_problem):
        self._synthesiser, self._output = synthesiser, output
        self._on_change, self._on_problem = on_change, on_problem
        self._changed = threading.Condition()
        self._queue = []  # of Utterances
        self._epoch = 0  # grows with every stop and pause
        self._is_paused = self._is_closed = False
        self.is_speaking = False
        self.sentences = self.stops = 0
        self._threads = [
            threading.Thread(target=work, name=work.__name__, daemon=True)
            for work in (self._synthesise, self._play)
        ]
        for thread in self._threads:
            thread.start()

    def begin(self, name: str, on_done=None) -> Utterance | None:
        """Return a new Utterance at the end of the queue; None: the queue is full."""
        utterance = Utterance(name, on_done)
        with self._changed:
            if len(self._queue) >= MOST_UTTERANCES or self._is_closed:
                return None
            self._queue.append(utterance)
        return utterance

    def add(self, utterance: Utterance, sentences, is_whole: bool = False) -> None:
        """Add sentences to an utterance; is_whole: no more follow."""
        with self._changed:
            utterance.sentences += sentences
            utterance.is_whole = utterance.is_whole or is_whole
            self._changed.notify_all()

    def stop(self, only: Utterance | None = None) -> None:
        """Silence it, and drop everything that waits to be said; or one utterance only.

        The first utterance ends in the player's thread, those that wait end here.
        """
        with self._changed:
            dropped = [each for each in self._queue if only in (None, each)]
            is_first = bool(dropped) and dropped[0] is self._queue[0]
            for utterance in dropped:
                utterance.outcome = STOPPED
            waiting = dropped[is_first:]
            self._queue = [each for each in self._queue if each not in waiting]
            self._halt(is_first, is_paused=self._is_paused and only is not None)
        if is_first:
            self._synthesiser.stop()
        for utterance in waiting:
            if utterance.on_done is not None:
                utterance.on_done(utterance)

    def pause(self) -> bool:
        """Silence it until `resume` or `stop`; return whether there is anything to say."""
        with self._changed:
            self._halt(is_cut=True, is_paused=bool(self._queue))
            return bool(self._queue)

    def resume(self) -> None:
        """Go on with the sentence that was cut by `pause`, from its beginning."""
        with self._changed:
            self._is_paused = False
            self._changed.notify_all()

    def wake(self) -> None:
        """Look again whether a sound that is played elsewhere is over."""
        with self._changed:
            self._changed.notify_all()

    def close(self, timeout_s: float = 1.0) -> None:
        """Stop for good; wait for the threads."""
        with self._changed:
            self._is_closed = True
        self.stop()
        for thread in self._threads:
            thread.join(timeout_s)

    def _halt(self, is_cut: bool, is_paused: bool) -> None:
        self._epoch += is_cut
        self.stops += is_cut and self.is_speaking
        self._is_paused = is_paused
        self._changed.notify_all()

    # The synthesiser's thread.
    def _synthesise(self) -> None:
        while task := self._wait(self._next_text):
            utterance, number = task
            text, sound = spoken_form(utterance.sentences[number]), None
            if is_speakable(text):
                try:
                    sound = self._synthesiser.speak(text)
                except Error as error:
                    utterance.problem = str(error)
                    self._on_problem(str(error))
                except Exception as error:  # of a library: the next sentence may work
                    utterance.problem = repr(error)
                    self._on_problem(f'a sentence cannot be said: {error!r}')
            with self._changed:
                utterance.sounds[number] = sound
                self._changed.notify_all()

    def _next_text(self):
        ahead = 0
        for utterance in self._queue:
            if utterance.outcome:
                continue
            for number in range(utterance.next_sentence, len(utterance.sentences)):
                if number not in utterance.sounds:
                    return utterance, number
                ahead += 1
                if ahead >= AHEAD:
                    return None
        return None

    # The player's thread.
    def _play(self) -> None:
        while utterance := self._wait(self._next_utterance):
            try:
                if not utterance.outcome:
                    self._say_next(utterance)
                if utterance.outcome:
                    self._end(utterance)
            except Exception as error:  # the next utterances are said, whatever it was
                log.exception('an utterance ends')
                utterance.outcome, utterance.problem = FAILED, repr(error)

    def _next_utterance(self):
        """Return the Utterance to go on with, or to end; None: there is nothing to do."""
        if not self._queue:
            return None
        first = self._queue[0]
        is_over = first.is_whole and first.next_sentence >= len(first.sentences)
        is_ready = first.next_sentence in first.sounds and not self._is_paused
        return first if first.outcome or is_over or is_ready else None

    def _say_next(self, utterance: Utterance) -> None:
        number = utterance.next_sentence
        if number >= len(utterance.sentences):
            left_out = utterance.problem and not utterance.spoken
            utterance.outcome = FAILED if left_out else COMPLETE
            return
        sound = utterance.sounds[number]
        if sound is None:
            said = utterance.spoken
            self._advance(utterance)
            if utterance.spoken != said:
                self._tell(utterance, utterance.sentences[number], self._goes_on(utterance))
            return
        utterance.cut = ''
        share = self._play_sound(utterance, utterance.sentences[number], sound)
        if share >= 1:
            self._advance(utterance)
            self.sentences += 1
        else:
            utterance.cut = _words_of(utterance.sentences[number], share)
        self._tell(utterance, utterance.sentences[number], self._goes_on(utterance))

    def _advance(self, utterance: Utterance) -> None:
        with self._changed:
            utterance.next_sentence += 1
            self._changed.notify_all()  # one more may be turned into sound

    def _goes_on(self, utterance: Utterance) -> bool:
        """Return whether the next sentence's sound is there already."""
        return not utterance.outcome and self._next_utterance() is utterance and (
            utterance.next_sentence < len(utterance.sentences)
        )  # fmt: skip

    def _play_sound(self, utterance: Utterance, text: str, sound: Sound) -> float:
        """Play a sentence at its pace; return which share of it was played."""
        with self._changed:
            epoch = self._epoch
            if self._is_paused or utterance.outcome:
                return 0.0
        self._tell(utterance, text, True)
        try:
            played = sound.play(self._output, partial(self._is_halted, epoch))
        except Exception as error:  # the loudspeaker, or who says it, is gone
            if not isinstance(error, EngineError):
                log.exception('a sentence is left out')
            utterance.problem = str(error) or repr(error)
            utterance.sounds[utterance.next_sentence] = None
            self._on_problem(utterance.problem)
            return 0.0
        if self._is_cut(epoch):
            self._output.silence()
            return min(played, 0.999)
        return 1.0

    def _is_cut(self, epoch: int) -> bool:
        with self._changed:
            return self._epoch != epoch

    def _is_halted(self, epoch: int, due_s: float, is_over=lambda: False) -> bool:
        """Wait until a time, or `is_over()`; return whether the sound was to stop before."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._epoch != epoch or is_over(), max(0.0, due_s - time.monotonic())
            )
            return self._epoch != epoch

    def _end(self, utterance: Utterance) -> None:
        with self._changed:
            self._queue = [waiting for waiting in self._queue if waiting is not utterance]
        try:
            if self.is_speaking:
                self._tell(utterance, '', False)
        finally:
            if utterance.on_done is not None:
                utterance.on_done(utterance)

    def _tell(self, utterance: Utterance, sentence: str, is_speaking: bool) -> None:
        self.is_speaking = is_speaking
        self._on_change(SpeakerState(is_speaking, utterance.name, sentence, utterance.spoken))

    def _wait(self, find):
        """Return what `find()` gives as soon as it is something; None once it is closed."""
        with self._changed:
            while not (found := find()):
                if self._is_closed:
                    return None
                self._changed.wait()
            return found


def _words_of(sentence: str, share: float) -> str:
    """Return the whole words in the first share of a sentence, reckoned by their letters."""
    end = int(share * len(sentence))
    return sentence[: sentence.rfind(' ', 0, end + 1) + 1] if end < len(sentence) else sentence
