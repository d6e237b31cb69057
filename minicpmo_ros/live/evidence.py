# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What answers rest on: the newest second of each input, and whether it is missing or old.

The inputs are the senses, and of several cameras the image of each. The age of an input is how far
its newest second lies behind the newest second of the window, plus the time since that arrived.
Stamps are compared with stamps and waiting with waiting, so no clock need agree with any other.
"""

from dataclasses import dataclass, field

from minicpmo_ros.config import LLM, SENSES

REQUIRED = ('none', 'some', 'fresh')  # what a question may require of the window


@dataclass(frozen=True)
class EvidenceOptions:
    """What a question requires of the window before it is answered.

    none   Nothing: the model answers from its words alone.
    some   At least one second of images or audio.
    fresh  As `some`, and no input that has come is missing or older than max_staleness_s.
    """

    required: str = LLM.required_evidence
    max_staleness_s: float = LLM.max_staleness_s  # older than this, an input is told as stale


@dataclass(frozen=True)
class Evidence:
    """What is known of the inputs at one moment."""

    image_end_s: int | None = None  # end of the newest second in the window that has an image
    audio_end_s: int | None = None  # the same for audio
    window_end_s: int = 0  # end of the newest second in the window
    since_newest_s: float = 0.0  # since that second arrived
    since_arrival_s: dict = field(default_factory=dict)  # by sense that ever came: since its last
    # Of several cameras, by name: the same as image_end_s, and since the last image came live.
    camera_ends_s: dict = field(default_factory=dict)
    since_camera_s: dict = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is in the window."""
        return self.image_end_s is None and self.audio_end_s is None

    def staleness(self, max_staleness_s: float) -> str:
        """Return which inputs are missing or older than allowed, or ''.

        What neither came nor is in the window is not expected: a robot without a microphone is
        not stale.
        """
        told = [self._problem(*known, max_staleness_s) for known in self._inputs()]
        return ' '.join(filter(None, told))

    def why_refused(self, options: EvidenceOptions, asks_what_was_said: bool) -> str:
        """Return why a question about this evidence is not answered, or ''."""
        if asks_what_was_said and self.audio_end_s is None:
            return (
                'An empty question asks the model to answer what was said, but there is no audio '
                'in the window. Give a question, or check the microphone and audio_topic.'
            )
        if options.required == 'none':
            return ''
        if self.is_empty:
            return (
                'Nothing has been seen or heard: the window is empty. Check that the camera or '
                'the microphone publishes and that its topic is the one of the parameters; '
                'required_evidence: none answers all the same.'
            )
        stale = self.staleness(options.max_staleness_s)
        if options.required == 'fresh' and stale:
            return (
                f'{stale} required_evidence is fresh: such questions are refused. Raise '
                f'max_staleness_s ({options.max_staleness_s:g} s), or set required_evidence: some.'
            )
        return ''

    def _inputs(self):
        """Yield (name, end of its newest second, time since it last came) of each input."""
        if self.image_end_s is None or not self.camera_ends_s:
            yield 'image', self.image_end_s, self.since_arrival_s.get('image')
        else:
            for name, end_s in self.camera_ends_s.items():
                yield f'image of camera {name}', end_s, self.since_camera_s.get(name)
        yield 'audio', self.audio_end_s, self.since_arrival_s.get('audio')

    def _problem(self, name: str, end_s: int | None, since_s: float | None, max_s: float) -> str:
        if end_s is not None:
            age_s = self.window_end_s - end_s + self.since_newest_s
            return f'The newest {name} is {age_s:.0f} s old.' if age_s > max_s else ''
        if since_s is None:
            return ''  # it never came
        if since_s > max_s:
            return f'No {name} has come for {since_s:.0f} s, and none is left in the window.'
        if self.is_empty or name not in SENSES:
            return ''  # the first second is on its way
        return (
            f'There is no {name} in the window, although {name} comes: it comes too late, or '
            'its stamps are of another clock than those of the other sense.'
        )
