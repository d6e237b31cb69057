# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Node `streaming_encoder`: the topic `audio` in, one AudioEmbedding a second out."""

import time
from collections import deque
from dataclasses import dataclass, field, replace
from functools import partial

from minicpmo_ros.encoders.whisper import AudioEncoder
from minicpmo_ros.errors import InputError
from minicpmo_ros.ggml.runtime import Backend
from minicpmo_ros.live.counted import CountedTime
from minicpmo_ros.live.hearing import HeardSecond, Hearing
from minicpmo_ros.live.pacing import NS, Arrival, Instant, StreamClock
from minicpmo_ros.live.status import Status
from minicpmo_ros.media.log_mel import SAMPLE_RATE_HZ
from minicpmo_ros.media.sound import AudioFormat, SoundStream
from minicpmo_ros.msg import AudioEmbedding
from minicpmo_ros.nodes.audio_input import PARAMETERS as INPUT_PARAMETERS
from minicpmo_ros.nodes.audio_input import AudioInput
from minicpmo_ros.nodes.encoder_node import EncoderNode
from minicpmo_ros.nodes.loading import MODEL_PARAMETERS, thread_count
from minicpmo_ros.nodes.messages import put_rows, to_time
from minicpmo_ros.nodes.parameters import Parameter
from minicpmo_ros.nodes.spinning import run

# What may wait for the encoder, in seconds of sound. Bytes count as sound of this rate at least
# (48 kHz, 8 channels, 32 bit), so that a format that lies does not fill the memory.
INBOX_S = 20.0
MOST_BYTES_PER_S = 1_600_000
SHORTEST_CHUNK_S = 0.005  # an empty message takes memory too
LONGEST_EMPTY_S = 10  # a longer gap in the stamps is a jump, its seconds are not published
SAMPLES_PER_MS = SAMPLE_RATE_HZ // 1000
MOST_MISSING = 100  # seconds that are remembered to be without sound, for their time to come
# A hundredth of what comes in diagnostics.RECENT_S: clocks that drift are much better than that.
NOTABLE_MS = 100


def cost_s(audio_format: AudioFormat, size: int) -> float:
    """Say as how many seconds a chunk of `size` bytes counts while it waits."""
    return max(audio_format.duration_s(size), size / MOST_BYTES_PER_S, SHORTEST_CHUNK_S)


@dataclass
class Ear:
    """What the worker works with."""

    hearing: Hearing
    space: str
    clock: StreamClock = field(default_factory=StreamClock)
    next_second: int | None = None  # the first that was not published yet
    sound: SoundStream | None = None
    counted: CountedTime = field(default_factory=CountedTime)  # where it gives no stamps
    is_flushed: bool = True
    jumps: int = 0  # of simulated time, when the last chunk came
    missing: dict = field(default_factory=dict)  # second: Status, why some of its sound is not


class StreamingEncoder(EncoderNode):
    """See the module."""

    INPUTS = ('audio',)
    INBOX_CAPACITY = INBOX_S
    MODEL_ROLE = 'audio'
    PARAMETERS = (
        *MODEL_PARAMETERS,
        *INPUT_PARAMETERS,
        Parameter('isolated', False, 'Encode each second by itself at its edges, as the '
                  'published front end does; less exact than the stream'),
    )  # fmt: skip

    def __init__(self, arbiter=None, room=None):
        super().__init__('streaming_encoder', AudioEmbedding, arbiter, room)
        self._dropped = deque(maxlen=1000)  # (stamp_ns or None, seconds) that went unheard
        self._filled_samples = self._left_out_samples = 0  # at 16 kHz

    def load(self, options, model, between) -> Ear:
        """Load the encoder."""
        backend = Backend(options.device, threads=thread_count(options.threads))
        encoder = self._room.load(
            'audio', model, partial(AudioEncoder.load, model.audio_path, backend)
        )
        hearing = Hearing(encoder, isolated=options.isolated, between=between)
        return Ear(hearing, model.space)

    def open_input(self, options):
        """Subscribe to `audio`."""
        return AudioInput(self, options, self._on_chunk)

    def _on_chunk(self, stamp_ns, data, audio_format: AudioFormat) -> None:
        if not len(data):
            return  # an empty chunk says nothing, its stamp neither
        arrived_ns = self.get_clock().now().nanoseconds
        arrival = self.arrival(stamp_ns, (arrived_ns, data, audio_format))
        for dropped in self.inbox.put(arrival, cost=cost_s(audio_format, len(data))):
            _, data, audio_format = dropped.content
            self._dropped.append((dropped.stamp_ns, audio_format.duration_s(len(data))))

    def diagnose(self, report) -> None:
        """Write also how much sound the stamps say is missing, or is too much."""
        super().diagnose(report)
        report.count(
            'milliseconds of sound missing',
            self._filled_samples // SAMPLES_PER_MS,
            'by the stamps more time has passed than sound has come, and silence is in its place. '
            'A microphone that pauses does that; else messages are lost on the way (set the '
            'reliability of both ends to reliable, lower the load), or the sample rate is told '
            'wrongly',
            NOTABLE_MS,
        )
        report.count(
            'milliseconds of sound left out',
            self._left_out_samples // SAMPLES_PER_MS,
            'by the stamps their time was heard already. Do two publishers share the topic, or is '
            'the sample rate told wrongly?',
            NOTABLE_MS,
        )

    # The worker.
    def encode(self, ear: Ear, arrival: Arrival) -> None:
        """Take one chunk; publish the seconds that are complete with it."""
        arrived_ns, data, audio_format = arrival.content
        started_s = time.perf_counter()
        self._note_dropped(ear)
        duration_ns = int(audio_format.duration_s(len(data)) * NS)
        stamp_ns = arrival.stamp_ns
        if stamp_ns is None:
            # Without stamps, time is the count of samples since the first of them arrived.
            if arrival.at.jumps != ear.jumps:
                self.restart(ear, (arrived_ns - duration_ns) // NS)
            stamp_ns = ear.counted.begin_ns(arrived_ns, duration_ns)
        ear.jumps = arrival.at.jumps
        try:
            self._take_format(ear, audio_format)
            begin_ns, samples = ear.sound.push(stamp_ns, data)  # (n,) at 16 kHz
        except InputError:
            self._miss(ear, stamp_ns, duration_ns, Status.LOST)
            raise
        if ear.sound.problem:
            self.tell('sound', ear.sound.problem)
        end_ns = begin_ns + len(samples) * NS // SAMPLE_RATE_HZ + ear.sound.lag_ns
        if ear.is_flushed and ear.next_second is not None:
            self._resume(ear, begin_ns // NS)
        preparing_ms = (time.perf_counter() - started_s) * 1e3
        self._publish_heard(ear, ear.hearing.push(begin_ns, samples), preparing_ms)
        ear.clock.arrive(end_ns, arrival.at, end_ns - stamp_ns)
        ear.counted.end_ns, ear.is_flushed = end_ns, False

    def restart(self, ear: Ear, second: int) -> None:
        """Give what is left of the time before; go on with this second."""
        self._flush(ear)
        ear.next_second = second

    def tick(self, ear: Ear, now: Instant) -> None:
        """Flush what a source that fell silent has left; publish the seconds without sound."""
        self._note_dropped(ear)
        if self.is_doubting:
            return
        if ear.clock.is_silent(now):
            self._flush(ear)
        if ear.is_flushed and ear.next_second is not None:
            over = ear.clock.last_over(now) + 1
            if not -1 <= over - ear.next_second <= LONGEST_EMPTY_S:
                ear.next_second = over  # time jumped while nothing was heard
            self._publish_without(ear, over)

    def _flush(self, ear: Ear) -> None:
        if not ear.is_flushed:
            rest = ear.hearing.push(None, ear.sound.flush())
            self._publish_heard(ear, rest + ear.hearing.flush())
            ear.counted.restart()
            ear.is_flushed = True

    def _resume(self, ear: Ear, second: int) -> None:
        """Go back with a source that was paused and goes on where it was."""
        if second < ear.next_second:
            ear.next_second = None

    def _take_format(self, ear: Ear, audio_format: AudioFormat) -> None:
        """Begin a new stream where the format is another one."""
        if ear.sound is not None and ear.sound.format == audio_format:
            return
        sound = SoundStream(audio_format)
        if ear.sound is not None and not ear.is_flushed:
            self._publish_heard(ear, ear.hearing.push(None, ear.sound.flush()))
        ear.sound = sound

    def _note_dropped(self, ear: Ear) -> None:
        """Count what went unheard, because it came faster than it can be encoded."""
        if not self._dropped:
            return
        while self._dropped:
            stamp_ns, duration_s = self._dropped.popleft()
            stamp_ns = ear.counted.end_ns if stamp_ns is None else stamp_ns
            if stamp_ns is not None:
                self._miss(ear, stamp_ns, int(duration_s * NS), Status.OVERLOADED)
        self.tell(
            'dropped',
            f'{self.inbox.dropped} chunks of sound, {self.inbox.dropped_cost:.1f} s, went unheard '
            f'since the node was configured: more than {INBOX_S:.0f} s waited for the encoder. '
            'Lower what else the machine does, or give this node more threads',
        )

    def _miss(self, ear: Ear, begin_ns: int, duration_ns: int, status: Status) -> None:
        """Remember that sound of a time cannot be heard, and why."""
        end_ns = begin_ns + min(duration_ns, LONGEST_EMPTY_S * NS)
        for second in range(begin_ns // NS, max(begin_ns, end_ns - 1) // NS + 1):
            ear.missing[second] = status
        while len(ear.missing) > MOST_MISSING:
            del ear.missing[next(iter(ear.missing))]
        if ear.counted.end_ns is not None:
            ear.counted.end_ns = begin_ns + duration_ns

    def _publish_heard(self, ear: Ear, seconds: list, preparing_ms: float = 0.0) -> None:
        for heard in seconds:
            self._filled_samples += heard.gap_samples + max(0, heard.drift_samples)
            self._left_out_samples += heard.overlap_samples + max(0, -heard.drift_samples)
            # What was published as without sound while the source was silent stays so; an earlier
            # second would clear the window, and the encoder's own restarts are no reason for that.
            if heard.begins_stream or ear.next_second is None or heard.second >= ear.next_second:
                self._publish_without(ear, heard.second)
                if heard.gap_samples == SAMPLE_RATE_HZ and heard.second in ear.missing:
                    heard = replace(heard, status=ear.missing[heard.second], rows=None)
                self._publish(ear, heard, preparing_ms)
                preparing_ms = 0.0
            if heard.reason:
                self.tell('sound', heard.reason)

    def _publish_without(self, ear: Ear, end: int) -> None:
        """Publish the seconds before `end` that nothing was heard of."""
        if ear.next_second is not None and end - ear.next_second <= LONGEST_EMPTY_S:
            for second in range(ear.next_second, end):
                status = ear.missing.get(second, Status.EMPTY)
                self._publish(ear, HeardSecond(second, status=status))

    def _publish(self, ear: Ear, heard: HeardSecond, preparing_ms: float = 0.0) -> None:
        ear.next_second = heard.second + 1
        ear.missing.pop(heard.second, None)
        message = AudioEmbedding(model=ear.space, second=heard.second, status=int(heard.status))
        message.header.stamp = to_time(heard.second * NS)
        message.restarted = heard.restarted
        message.level_dbfs = heard.level_dbfs
        message.preprocess_ms = heard.preprocess_ms + preparing_ms
        message.encode_ms = heard.encode_ms
        if heard.rows is not None:
            put_rows(message, heard.rows)
        self.publish(message)


def main(args=None) -> int:
    """Run the node."""
    return run(lambda: [StreamingEncoder()], args)


if __name__ == '__main__':
    raise SystemExit(main())
