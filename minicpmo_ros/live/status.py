# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What an engine is given and what it reports: bounds, units that wait, status."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from minicpmo_ros.config import LLM, MEMORY
from minicpmo_ros.errors import BusyError, InputError, ModelFileError, sentence
from minicpmo_ros.live.question import Evidence, EvidenceOptions
from minicpmo_ros.live.restoring import Restoring
from minicpmo_ros.live.session_options import UnitReport
from minicpmo_ros.sessions.keeper import SessionKeeper, StoredSession
from minicpmo_ros.streams.pairing import MOST_CAMERAS, Unit, UnitAssembler, UnitInbox
from minicpmo_ros.streams.time import Instant
from minicpmo_ros.voice.hearing import OpenSecond

NO_AUDIO = (
    'memory is only: notes are read and no audio, but the question is about audio: it is empty, '
    'or has heard_until. Give a question without it, or another memory.'
)
MOST_NEWEST = 4  # seconds whose embeddings are at hand for a snapshot
RESTORING_BACKLOG = 16  # live units that may wait while others are restored, at least
# Of the two halves of a second: twice what a robot sends, and what a network holds back at most.
HALVES_PER_S, HALVES_AT_ONCE = 4, 64


@dataclass(frozen=True)
class EngineOptions:
    """Bounds of the queues, and what a question requires of the window."""

    unit_deadline_s: float = LLM.unit_deadline_s  # wait for the other half of a second
    max_backlog: int = LLM.max_backlog  # units waiting to be read
    max_waiting: int = LLM.max_waiting  # questions waiting, beside those being answered
    max_parallel: int = LLM.max_parallel  # questions being answered
    evidence: EvidenceOptions = field(default_factory=EvidenceOptions)
    restored_max_age_s: float = MEMORY.black_box_max_age_s  # of seconds that are read again

    @property
    def max_pending(self) -> int:
        """How many seconds may be open: all that come until the deadline, and at least a burst."""
        return max(8, math.ceil(self.unit_deadline_s) + 2)


@dataclass(frozen=True)
class EngineStatus:
    """A snapshot; the counts are since the engine was made."""

    state: str = 'unloaded'  # unloaded, loading, ready, failed
    progress: float = 0.0  # of loading, 0 to 1
    reason: str = ''  # why it failed
    remedy: str = ''
    may_pass: bool = False  # loading may succeed later
    window_start_s: int = 0  # 0 with units 0
    window_end_s: int = 0
    image_end_s: int | None = None  # end of the newest second with an image; None: no image
    audio_end_s: int | None = None  # end of the newest second with audio; None: no audio
    camera_ends_s: dict = field(default_factory=dict)  # as Evidence
    evidence: Evidence = field(default_factory=Evidence)  # what an answer would rest on now
    max_staleness_s: float = LLM.max_staleness_s  # older than this, an input is stale
    units: int = 0  # in the window
    seconds: tuple = ()  # which ones, oldest first
    still: int = 0  # of them, whose image was left out
    restored: int = 0  # of them, read again from the black box or a saved session
    restoring: str = ''  # what was, or why not
    positions: int = 0  # of the context in use by the window
    context_size: int = 0
    smallest_context: int = 0  # that `Engine.resize` can make of it
    resizes: int = 0  # times that was tried
    waiting: int = 0  # questions, beside those being answered
    answering: bool = False
    questions_dropped: int = 0  # whose timeout passed, or that nobody waits for any more
    answer_live_s: float = 0.0  # of the newest answer's time, went to the live seconds
    units_read: int = 0
    units_dropped: int = 0
    units_refused: int = 0  # embeddings that did not fit the model, or were not finite
    units_too_large: int = 0  # for an empty window
    late: int = 0  # halves of units, not empty, that came after their unit was closed
    jumps: int = 0  # times a stream went back
    evicted: int = 0  # units that left the window
    rebuilds: int = 0  # times llama.cpp failed and the window was lost
    lost_window: str = ''  # why it was the last time
    prefill_ms: float = 0.0  # of the newest unit
    newest: tuple = ()  # the newest Units that were read, as they came, MOST_NEWEST at most
    busy_s: float = 0.0  # since the piece of work at hand was begun; 0: none is

    @property
    def stale(self) -> str:
        """Which inputs are missing or too old, in words; or ''."""
        return self.evidence.staleness(self.max_staleness_s)

    def after(self, session, is_answering: bool, counted: tuple, **facts) -> 'EngineStatus':
        """Return it brought up to date with the Session; the `counted` fields grow by one."""
        if session is None:
            return replace(self, **facts)
        seconds = session.window.seconds
        return replace(
            self,
            units=len(seconds),
            seconds=tuple(seconds),
            still=sum(span.is_still for span in session.window.spans),
            positions=session.window.end,
            evicted=session.evicted,
            context_size=session.context.n_ctx,
            smallest_context=session.smallest_context,
            window_start_s=seconds[0] if seconds else 0,
            window_end_s=seconds[-1] + 1 if seconds else 0,
            image_end_s=session.window.image_end_s,
            audio_end_s=session.window.audio_end_s,
            camera_ends_s=session.window.camera_ends_s,
            answering=is_answering,
            **{name: getattr(self, name) + 1 for name in counted},
            **facts,
        )

    def after_reading(self, unit: Unit, report: UnitReport) -> dict:
        """Return {field: value} of what has changed since a unit was read."""
        facts = {'prefill_ms': report.prefill_ms}
        if not unit.is_restored:
            newest = (*self.newest, unit)[-MOST_NEWEST:]
            facts.update(units_read=self.units_read + 1, newest=newest)
        return facts

    def require_ready(self, is_closing: bool) -> None:
        """Raise BusyError if nothing can be asked or loaded."""
        if is_closing or self.state != 'ready':
            raise BusyError(self.why_not_ready())

    def why_not_ready(self) -> str:
        """Return why no question can be answered, a sentence for who asks."""
        if self.state == 'loading':
            return f'The model is loading, {self.progress:.0%} is done. Ask again in a moment.'
        if self.state == 'failed':
            return f'There is no model: {self.reason} {self.remedy}'
        return 'No model is loaded. Start or configure the node first.'


class Flood:
    """Counts the halves of seconds that come faster than time passes."""

    def __init__(self):
        self.count = 0
        self._allowed, self._paid_s = HALVES_AT_ONCE, 0.0

    def note_half(self, now: Instant) -> None:
        """Note that half a second has come, and whether that is faster than time passes."""
        paid_s, self._paid_s = self._paid_s, now.steady_s
        earned = HALVES_PER_S * max(0.0, now.steady_s - paid_s)
        self._allowed = min(HALVES_AT_ONCE, self._allowed + earned)
        if self._allowed < 1:
            self.count += 1
        else:
            self._allowed -= 1


class LiveInputs:
    """The units on their way to the window, and when the senses came.

    The caller holds the lock of the engine.
    """

    def __init__(self, options: EngineOptions, black_box: SessionKeeper | None = None):
        self._options, self.flood = options.evidence, Flood()
        self._black_box = black_box  # None: there is none
        self._assembler = UnitAssembler(options.unit_deadline_s, options.max_pending)
        self._inbox = UnitInbox(self._assembler, options.max_backlog)
        self.units = self._inbox.units  # closed, oldest first
        self.due_s = None  # time until a unit is closed if nothing comes; None: none is open
        self._newest = {}  # Instant of the newest content, by sense
        self._newest_of_cameras = {}  # of the newest image, by the name of a camera
        self._newest_image = None  # (second, rows, tiles)
        self._told_audio = None  # the second of the newest audio, empty or not
        self._unit_arrived = None  # Instant when the newest unit that was read arrived
        self._max_backlog, most = options.max_backlog, max(options.max_backlog, RESTORING_BACKLOG)
        self.restoring = Restoring(most, options.restored_max_age_s)

    def put_image(self, second: int, rows, tiles: tuple, now: Instant) -> None:
        """Add the image embeddings of a second; see Engine.put_image."""
        self.flood.note_half(now)
        if rows is not None:
            self._newest_image = second, rows, tiles
            self._note_arrival(now, 'image', tiles[2:])
        self._assembler.add_image(second, rows, tiles, now)

    def put_audio(self, second: int, rows, now: Instant, level_dbfs: float) -> None:
        """Add the audio embeddings of a second; see Engine.put_audio."""
        self.flood.note_half(now)
        if rows is not None:
            self._note_arrival(now, 'audio')
        self._told_audio = second
        self._assembler.add_audio(second, rows, now, level_dbfs)

    def set_wait_for(self, senses: str) -> None:
        """Set which senses a second waits for, a key of pairing.WAIT_FOR."""
        self._assembler.wait_policy.wait_for = senses

    def collect(self, now: Instant) -> int | None:
        """Close the units that are due; return the second of the newest closed unit."""
        if self.is_restoring:
            self._inbox.max_units = max(self._max_backlog, RESTORING_BACKLOG)
        elif len(self.units) < self._max_backlog:
            self._inbox.max_units = self._max_backlog
        self._inbox.collect(now)
        self.due_s = self._assembler.time_until_due_s(now)
        return self._assembler.closed_second

    def clear(self) -> None:
        """Drop all units, closed and open."""
        self._inbox.clear()
        self.restoring.clear()
        self.due_s = self._newest_image = self._told_audio = None

    def forget(self) -> str:
        """As `clear`, and empty the black box; return why it is not empty, or ''."""
        self.clear()
        return self._black_box.clear() if self._black_box is not None else ''

    def read_again(self, newest: tuple, lock) -> None:
        """Let the black box be read again: the window was lost. Waits, so not under the lock."""
        stored = self._black_box.stored() if self._black_box is not None else None
        with lock:
            self.restoring.resume(stored, newest[-1] if newest else None)

    def offer_black_box(self) -> None:
        """Let what the black box has be read, before live units come; it may wait for a disk."""
        if self._black_box is not None:
            self.restoring.offer(self._black_box.stored(), self._black_box.clear)

    @property
    def has_unit(self) -> bool:
        """Whether there is a unit to be read, live or restored."""
        return bool(self.units) or self.is_restoring

    @property
    def is_restoring(self) -> bool:
        """Whether seconds are being read again."""
        return not self.restoring.is_idle and self.restoring.is_at_work

    def peek(self) -> Unit | None:
        """Return the unit to be read next: a restored one, else the oldest live one, or None."""
        restored = None if self.restoring.is_idle else self.restoring.peek(self.units)
        return restored or (self.units[0] if self.units else None)

    def take(self, unit: Unit) -> Unit:
        """Return the unit that `peek` gave, as it is to be read; a live one waits no longer."""
        if not unit.is_restored:
            unit = self.units.popleft()
        return unit if self.restoring.is_idle else self.restoring.take(unit)

    def load(self, session: StoredSession, on_done: Callable) -> None:
        """Let a saved session be read before live units; see Restoring.load."""
        closed, units = self._assembler.closed_second, self.units
        next_live = units[0].second if units else None if closed is None else closed + 1
        self.restoring.load(session, next_live, on_done)
        if self._black_box is not None:
            self._black_box.clear()

    def has_heard(self, pending, status: EngineStatus) -> bool:
        """Return whether a question does not wait for its audio any more."""
        hearing = pending.hearing
        if hearing is None or hearing.is_overdue or hearing.found is None:
            return hearing is None or hearing.is_overdue
        if hearing.found.second is None:
            return hearing.has_window(status.audio_end_s)
        before, told = hearing.found.previous, self._told_audio
        if before < 0 or told is None:
            return True
        is_open = self._assembler.is_open_until(before)
        return told >= before and not is_open and all(u.second > before for u in self.units)

    def judge(self, pending, status: EngineStatus, now: Instant) -> tuple:
        """Set tail and cameras of a question; return (what is stale, why it is refused)."""
        if pending.question.is_past:
            return '', NO_AUDIO * pending.question.is_about_audio
        options, evidence, refused = self._options, self.evidence(status, now), ''
        pending.camera_ends_s = evidence.camera_ends_s
        if (hearing := pending.hearing) is not None:
            refused = hearing.why_refused(status.audio_end_s)
            pending.tail = hearing.tail(status.audio_end_s, self._fresh_image(hearing.found))
        if pending.tail is not None:
            end_s = pending.tail.audio_end_s
            evidence = replace(evidence, audio_end_s=end_s, window_end_s=end_s)
        if pending.question.image is not None and options.required == 'some':
            options = replace(options, required='none')  # it sees that, whatever the window holds
        is_empty = not pending.question.text.strip()
        refused = refused or evidence.why_refused(options, is_empty)
        return evidence.staleness(options.max_staleness_s), refused

    def _fresh_image(self, found: OpenSecond | None) -> tuple | None:
        image = self._newest_image
        if image is None or found is None or found.second is None:
            return None
        return image if 0 <= found.second - image[0] <= self._options.max_staleness_s else None

    def note_read(self, unit: Unit, report: UnitReport, window) -> None:
        """Note that a unit was read.

        `window`: the seconds in it since, for the black box; (): a reset has come meanwhile.
        """
        self._unit_arrived = unit.arrived
        if unit.is_restored and unit.arrived is not None:
            self._note_restored(unit)
        if not window:
            return
        is_idle = self.restoring.is_idle
        if self._black_box is not None and (is_idle or not self.restoring.is_recorded(unit)):
            self._black_box.put(unit, tuple(window))
        if not is_idle:
            self.restoring.note_read(unit, report.prefill_ms / 1e3, window)

    def evidence(self, status: EngineStatus, now: Instant) -> Evidence:
        """Return what is known of the senses now; `status` says what the window holds."""
        newest, ends_s = self._unit_arrived, status.camera_ends_s
        return Evidence(
            status.image_end_s,
            status.audio_end_s,
            status.window_end_s,
            max(0.0, now.waited_s(newest)) if newest is not None else 0.0,
            {sense: now.waited_s(arrived) for sense, arrived in self._newest.items()},
            {name: ends_s.get(name) for name in sorted({*ends_s, *self._newest_of_cameras})},
            {name: now.waited_s(arrived) for name, arrived in self._newest_of_cameras.items()},
        )

    def reported(self, status: EngineStatus, now: Instant) -> EngineStatus:
        """Return a status with what is known of the senses now, and what was lost on the way."""
        evidence = self.evidence(status, now)
        return replace(
            status,
            evidence=evidence,
            max_staleness_s=self._options.max_staleness_s,
            camera_ends_s=evidence.camera_ends_s,
            restored=0 if self.restoring.is_idle else self.restoring.count(status.seconds),
            restoring=self.restoring.told,
            units_dropped=self._inbox.dropped,
            late=self._assembler.late,
            jumps=self._assembler.jumps,
        )

    def _note_arrival(self, at: Instant, sense: str, cameras: tuple = ()) -> None:
        """Note that something came, unless it has come later, too."""
        newest = self._newest_of_cameras
        named = [(self._newest, sense), *((newest, name) for name in cameras)]
        for arrivals, name in named:
            if name not in arrivals or arrivals[name].steady_s < at.steady_s:
                arrivals[name] = at
        while len(newest) > MOST_CAMERAS:
            del newest[min(newest, key=lambda name: newest[name].steady_s)]

    def _note_restored(self, unit: Unit) -> None:
        """Expect what came in the life before this one."""
        if unit.image_rows is not None:
            self._note_arrival(unit.arrived, 'image', unit.cameras)
        if unit.audio_rows is not None:
            self._note_arrival(unit.arrived, 'audio')


def why_failed(error: Exception) -> dict:
    """Return reason, remedy and whether it may pass, by name, for what ended an engine.

    The two are sentences.
    """
    if isinstance(error, ModelFileError):
        reason, remedy = f'{error.path}: {error.problem}', error.remedy
    elif isinstance(error, MemoryError):
        reason = 'the memory ran out'
        remedy = 'Lower n_ctx, take smaller files, or end other programs.'
    elif isinstance(error, InputError):
        reason, remedy = str(error), 'Correct the parameters and configure again.'
    elif getattr(error, 'may_pass', False):
        reason, remedy = str(error), 'It is tried again.'
    else:
        reason, remedy = str(error) or repr(error), 'See the log; restart the node.'
    return {
        'reason': sentence(reason),
        'remedy': sentence(remedy),
        'may_pass': getattr(error, 'may_pass', False),
    }
