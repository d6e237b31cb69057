# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Node `streaming_encoder`: subscribes to `audio`, publishes one AudioEmbedding a second."""

import time
from collections import deque
from dataclasses import dataclass, field, replace
from functools import partial

from minicpmo_ros.config import AUDIO
from minicpmo_ros.encoders.whisper.encoder import AudioEncoder
from minicpmo_ros.errors import InputError
from minicpmo_ros.families import FAMILIES
from minicpmo_ros.ggml.runtime import Backend
from minicpmo_ros.media.audio.format import AudioFormat, parse_channel
from minicpmo_ros.media.audio.log_mel import SAMPLE_RATE_HZ
from minicpmo_ros.media.audio.stream import AudioDecoder
from minicpmo_ros.msg import AudioEmbedding
from minicpmo_ros.ros.audio_input import INBOX_S, AudioInput, cost_s
from minicpmo_ros.ros.audio_input import PARAMETERS as INPUT_PARAMETERS
from minicpmo_ros.ros.encoder_node import EncoderNode
from minicpmo_ros.ros.framework.loading import MODEL_PARAMETERS, thread_count
from minicpmo_ros.ros.framework.main import run
from minicpmo_ros.ros.framework.parameters import Parameter
from minicpmo_ros.ros.messages import put_rows, to_time
from minicpmo_ros.ros.stamps import stamps_parameter
from minicpmo_ros.ros.voice.read_audio import ReadAudioServer
from minicpmo_ros.ros.voice.self_speech import INPUTS as OWN_INPUTS
from minicpmo_ros.ros.voice.self_speech import PARAMETERS as LISTEN_PARAMETERS
from minicpmo_ros.ros.voice.self_speech import SelfSpeechInput
from minicpmo_ros.streams import AudioSecond, Status
from minicpmo_ros.streams.audio import AudioPipeline
from minicpmo_ros.streams.time import LIMITS, Arrival, Instant, SampleClock, StreamClock
from minicpmo_ros.units import NS

SAMPLES_PER_MS = SAMPLE_RATE_HZ // 1000
MOST_MISSING = 100  # seconds without audio that are remembered until they are published
# A hundredth of what comes in diagnostics.RECENT_S: clocks that drift are much better than that.
NOTABLE_MS = 100
ISOLATED = ' and '.join(each.version for each in FAMILIES.values() if each.isolated_audio)


def check_isolated(isolated: bool, family: str) -> None:
    """Raise InputError if `isolated` does not suit the front end of a family."""
    if isolated and not FAMILIES[family].isolated_audio:
        able = ' and '.join(each.name for each in FAMILIES.values() if each.isolated_audio)
        raise InputError(
            f'isolated is true, but only the front end of {able} prepares each second by '
            f'itself, that of {family} does not. Set isolated to false'
        )


@dataclass
class AudioState:
    """The worker's state."""

    pipeline: AudioPipeline
    space: str
    channel: int | None = None  # the one that is used; None: the mean of all
    clock: StreamClock = field(default_factory=StreamClock)
    next_second: int | None = None  # the first one that was not published yet
    newest_published: int | None = None  # the newest that was published
    decoder: AudioDecoder | None = None
    sample_clock: SampleClock = field(
        default_factory=SampleClock
    )  # if the source provides no stamps
    is_flushed: bool = True
    jumps: int = 0  # of simulated time, at the last chunk
    missing: dict = field(
        default_factory=dict
    )  # second: the Status that says why audio is missing


class StreamingEncoder(EncoderNode):
    """See the module."""

    INPUTS = ('audio',)
    INPUTS_BESIDE = ('audio_info', *OWN_INPUTS)
    INBOX_CAPACITY = INBOX_S
    INPUT_NAME = MODEL_ROLE = 'audio'
    PARAMETERS = (
        *MODEL_PARAMETERS,
        *INPUT_PARAMETERS,
        stamps_parameter('audio'),
        *LISTEN_PARAMETERS,
        Parameter('isolated', AUDIO.isolated,
                  f'Only for {ISOLATED}: encode each second without its neighbours, as the '
                  'published front end does; less exact than the stream'),
    )  # fmt: skip

    def __init__(self, arbiter=None, budget=None):
        super().__init__('streaming_encoder', AudioEmbedding, arbiter, budget)
        self._reads = ReadAudioServer(self)
        self._dropped = deque(maxlen=1000)  # (stamp_ns or None, seconds) that were dropped
        self._own = None  # while the node is active, a SelfSpeechInput
        self._self_speech_ms = 0
        self._channels_problem = ''  # a sentence
        self.filled_samples = self.left_out_samples = 0  # at 16 kHz

    def on_setup(self, options) -> None:
        """Check the audio parameters, then the files; load in the worker."""
        parse_channel(options.audio_channel)
        super().on_setup(options)

    def load(self, options, model, pause) -> AudioState:
        """Load the encoder."""
        check_isolated(options.isolated, model.family)
        backend = Backend(options.device, thread_count(options.threads), options.rpc_servers)
        encoder = self._budget.load(
            'audio', model, partial(AudioEncoder.load, model.audio_path, backend)
        )
        pipeline = AudioPipeline(
            encoder, options.isolated, device=pause.device, is_too_late=pause.is_too_late
        )
        return AudioState(pipeline, model.space, channel=parse_channel(options.audio_channel))

    def open_input(self, options):
        """Subscribe to `audio`, and to what the robot says itself."""
        self._own = SelfSpeechInput(self, options, has_gate=True)
        return AudioInput(self, options, self.on_chunk)

    def on_stop(self) -> None:
        """Unsubscribe; refuse who waits for audio."""
        super().on_stop()
        self._reads.close()
        if self._own is not None:
            self._own.close()

    def on_chunk(self, stamp_ns, data, audio_format: AudioFormat) -> None:
        """Take a chunk of audio; it waits for the worker."""
        if not len(data):
            return  # neither an empty chunk nor its stamp means anything
        duration_ns = int(audio_format.duration_s(len(data)) * NS)
        stamp_ns = self.stamps.stamp_ns(stamp_ns, duration_ns)
        arrived_ns = self.get_clock().now().nanoseconds
        arrival = self.arrival(stamp_ns, (arrived_ns, data, audio_format))
        for dropped in self.worker.inbox.put(arrival, cost=cost_s(audio_format, len(data))):
            _, data, audio_format = dropped.content
            self._dropped.append((dropped.stamp_ns, audio_format.duration_s(len(data))))

    def diagnose(self, report) -> None:
        """Report also how much audio is missing or redundant by the stamps."""
        super().diagnose(report)
        report.count(
            'milliseconds of audio missing',
            self.filled_samples // SAMPLES_PER_MS,
            'the stamps cover more time than the audio received, and silence fills the rest. A '
            'microphone that pauses does that; else messages are lost on the way (set the '
            'reliability of both ends to reliable, lower the load), or the stated sample rate is '
            'wrong',
            NOTABLE_MS,
        )
        report.count(
            'milliseconds of audio left out',
            self.left_out_samples // SAMPLES_PER_MS,
            'their stamps repeat time that was received already. Do two publishers share the '
            'topic, or is the stated sample rate wrong?',
            NOTABLE_MS,
        )

        report.tell('milliseconds of own speech left out', self._self_speech_ms)
        if self._own is not None:
            self._own.diagnose(report)
        if self._channels_problem:
            report.warn(self._channels_problem)
        if self.input is not None and self.input.waiting:
            report.warn(self.input.waiting)

    # The worker.
    def encode(self, state: AudioState, arrival: Arrival) -> None:
        """Take one chunk; publish the seconds that it completes."""
        arrived_ns, data, audio_format = arrival.content
        started_s = time.perf_counter()
        self._note_dropped(state)
        duration_ns = int(audio_format.duration_s(len(data)) * NS)
        stamp_ns = arrival.stamp_ns
        if stamp_ns is None:
            # Without stamps, time is the count of samples since the first of them arrived.
            if arrival.at.jumps != state.jumps:
                self.restart(state, (arrived_ns - duration_ns) // NS)
            if state.decoder is not None and state.decoder.format != audio_format:
                state.sample_clock.restart()  # the last chunks may have had this format, too
            stamp_ns = state.sample_clock.begin_ns(arrived_ns, duration_ns)
        state.jumps = arrival.at.jumps
        try:
            self._take_format(state, audio_format, stamp_ns)
            begin_ns, samples = state.decoder.push(stamp_ns, data)  # (n,) at 16 kHz
            if self._own is not None:
                samples, _ = self._own.hear(begin_ns, samples)
        except InputError:
            self._lose(state, arrival, stamp_ns, duration_ns)
            raise
        if state.decoder.problem:
            self.tell('audio', state.decoder.problem)
        if state.decoder.doubt != self._channels_problem:
            self._channels_problem = state.decoder.doubt
            if self._channels_problem:
                self.tell('channels', self._channels_problem)
        end_ns = begin_ns + len(samples) * NS // SAMPLE_RATE_HZ + state.decoder.lag_ns
        if state.is_flushed and state.next_second is not None:
            self._resume(state, begin_ns // NS)
        preparing_ms = (time.perf_counter() - started_s) * 1e3
        self._publish_seconds(state, state.pipeline.push(begin_ns, samples), preparing_ms)
        state.clock.arrive(end_ns, arrival.at, end_ns - stamp_ns)
        state.sample_clock.end_ns, state.is_flushed = end_ns, False

    def restart(self, state: AudioState, second: int) -> None:
        """Publish what is left of the time before; continue with this second."""
        self._flush(state)
        state.next_second = second

    def tick(self, state: AudioState, now: Instant) -> None:
        """Flush a source that fell silent; publish the seconds without audio."""
        self._reads.work(state)
        self._note_dropped(state)
        if self.holds_back_input:
            return
        if not state.is_flushed and state.clock.is_silent(now):
            self._close_what_is_over(state, now)
        if state.is_flushed and state.next_second is not None:
            newest = state.clock.last_over(now)
            # Before the first audio, no second is over.
            over = state.next_second if newest is None else newest + 1
            if not -1 <= over - state.next_second <= LIMITS.longest_empty_s:
                state.next_second = over  # time jumped while there was no audio
            self._publish_empty_until(state, over)

    def _close_what_is_over(self, state: AudioState, now: Instant) -> None:
        """Publish complete seconds without waiting for more; keep an open second for a while.

        A driver that was held up sends its backlog, which belongs into the open second.
        """
        end_ns = state.sample_clock.end_ns or 0
        open_second = (end_ns - 1) // NS
        if state.clock.time_ns(now) >= (open_second + 1 + LIMITS.stall_s) * NS:
            self._flush(state)
        else:
            self._publish_seconds(state, state.pipeline.flush(close=False))

    def _flush(self, state: AudioState) -> None:
        if not state.is_flushed:
            rest = state.pipeline.push(None, state.decoder.flush())
            self._publish_seconds(state, rest + state.pipeline.flush())
            state.sample_clock.restart()
            state.is_flushed = True

    def _resume(self, state: AudioState, second: int) -> None:
        """Go back with a source that continues where it was paused."""
        if second < state.next_second:
            state.next_second = None

    def _take_format(self, state: AudioState, audio_format: AudioFormat, stamp_ns: int) -> None:
        """Start a new decoder if the format has changed.

        Until the new format is known, its first chunks may be decoded, too long, in the old one.
        """
        if state.decoder is not None and state.decoder.format == audio_format:
            return
        decoder = AudioDecoder(audio_format, state.channel)
        if state.decoder is not None and not state.is_flushed:
            self._publish_seconds(state, state.pipeline.push(None, state.decoder.flush()))
            state.pipeline.cut(stamp_ns)
        state.decoder = decoder

    def _note_dropped(self, state: AudioState) -> None:
        """Count the chunks dropped because they came faster than they can be encoded."""
        if not self._dropped:
            return
        while self._dropped:
            stamp_ns, duration_s = self._dropped.popleft()
            stamp_ns = state.sample_clock.end_ns if stamp_ns is None else stamp_ns
            if stamp_ns is not None:
                self._miss(state, stamp_ns, int(duration_s * NS), Status.OVERLOADED)
        inbox = self.worker.inbox
        self.tell(
            'dropped',
            f'{inbox.dropped} chunks of audio, {inbox.dropped_cost:.1f} s, were dropped '
            f'since the node was configured: more than {INBOX_S:.0f} s waited for the encoder. '
            'Lower what else the machine does, or give this node more threads',
        )

    def _lose(self, state: AudioState, arrival: Arrival, begin_ns: int, duration_ns: int) -> None:
        """Advance time by a chunk that cannot be used; its seconds are published as LOST."""
        self._miss(state, begin_ns, duration_ns, Status.LOST)
        if state.is_flushed:
            if state.next_second is None:
                state.next_second = begin_ns // NS
            state.clock.arrive(begin_ns + duration_ns, arrival.at, duration_ns)

    def _miss(self, state: AudioState, begin_ns: int, duration_ns: int, status: Status) -> None:
        """Remember that the audio of a time is missing, and why."""
        end_ns = begin_ns + min(duration_ns, LIMITS.longest_empty_s * NS)
        for second in range(begin_ns // NS, max(begin_ns, end_ns - 1) // NS + 1):
            state.missing[second] = status
        while len(state.missing) > MOST_MISSING:
            del state.missing[next(iter(state.missing))]
        if state.sample_clock.end_ns is not None:
            state.sample_clock.end_ns = begin_ns + duration_ns

    def _publish_seconds(
        self, state: AudioState, seconds: list, preparing_ms: float = 0.0
    ) -> None:
        for encoded in seconds:
            self.filled_samples += encoded.gap_samples + max(0, encoded.drift_samples)
            self.left_out_samples += encoded.overlap_samples + max(0, -encoded.drift_samples)
            # A second published as empty while the source was silent stays empty: publishing it
            # again would clear the window, and the encoder's own restarts are no reason for that.
            if (
                encoded.begins_stream
                or state.next_second is None
                or encoded.second >= state.next_second
            ):
                self._publish_empty_until(state, encoded.second)
                if encoded.gap_samples == SAMPLE_RATE_HZ and encoded.second in state.missing:
                    encoded = replace(encoded, status=state.missing[encoded.second], rows=None)
                self._publish(state, encoded, preparing_ms)
                preparing_ms = 0.0
            if encoded.reason:
                self.tell('audio', encoded.reason)

    def _publish_empty_until(self, state: AudioState, end: int) -> None:
        """Publish the seconds before `end` as empty, or with their reason."""
        if state.next_second is not None and end - state.next_second <= LIMITS.longest_empty_s:
            for second in range(state.next_second, end):
                status = state.missing.get(second, Status.EMPTY)
                self._publish(state, AudioSecond(second, status=status))

    def _publish(self, state: AudioState, encoded: AudioSecond, preparing_ms: float = 0.0) -> None:
        state.next_second = encoded.second + 1
        if encoded.second == state.newest_published:
            return  # a stream restarts within the second published last
        state.newest_published = encoded.second
        state.missing.pop(encoded.second, None)
        message = AudioEmbedding(
            model=state.space, second=encoded.second, status=int(encoded.status)
        )
        message.header.stamp = to_time(encoded.second * NS)
        message.restarted = encoded.restarted
        if self._own is not None:
            begin_ns = encoded.second * NS
            message.self_speech_ms = self._own.muted_ms(begin_ns, begin_ns + NS)
        self._self_speech_ms += message.self_speech_ms
        message.level_dbfs = encoded.level_dbfs
        message.preprocess_ms = encoded.preprocess_ms + preparing_ms
        message.encode_ms = encoded.encode_ms
        if encoded.rows is not None:
            put_rows(message, encoded.rows)
        self.publish(message)


def main(args=None) -> int:
    """Run the node."""
    return run(lambda: [StreamingEncoder()], args)


if __name__ == '__main__':
    raise SystemExit(main())
