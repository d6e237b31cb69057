# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Node `streaming_encoder`: the topic `audio` in, one AudioEmbedding a second out."""

import time
from dataclasses import dataclass, field

from minicpmo_ros.encoders.whisper import AudioEncoder
from minicpmo_ros.errors import InputError
from minicpmo_ros.ggml.runtime import Backend
from minicpmo_ros.live.hearing import HeardSecond, Hearing
from minicpmo_ros.live.pacing import NS, StreamClock
from minicpmo_ros.live.status import Status
from minicpmo_ros.media.pcm import RAW_CODINGS, to_float_mono
from minicpmo_ros.media.resample import Resampler
from minicpmo_ros.msg import AudioEmbedding
from minicpmo_ros.nodes.audio_input import PARAMETERS as INPUT_PARAMETERS
from minicpmo_ros.nodes.audio_input import AudioFormat, AudioInput
from minicpmo_ros.nodes.encoder_node import EncoderNode
from minicpmo_ros.nodes.loading import MODEL_PARAMETERS, thread_count
from minicpmo_ros.nodes.messages import put_rows, to_time
from minicpmo_ros.nodes.parameters import Parameter
from minicpmo_ros.nodes.spinning import run

SAMPLE_RATE_HZ = 16_000
# Two seconds of the shortest chunks; longer ones are bounded by what a message may hold.
INBOX_CHUNKS = 200
LONGEST_EMPTY_S = 10  # a longer gap in the stamps is a jump, its seconds are not published


@dataclass
class Ear:
    """What the worker works with."""

    hearing: Hearing
    space: str
    clock: StreamClock = field(default_factory=StreamClock)
    next_second: int | None = None  # the first that was not published yet
    format: AudioFormat | None = None
    resampler: Resampler | None = None
    position_ns: int | None = None  # of the next sample, where the source gives no stamps
    is_flushed: bool = True


class StreamingEncoder(EncoderNode):
    """See the module."""

    INBOX_CAPACITY = INBOX_CHUNKS
    PARAMETERS = (
        *MODEL_PARAMETERS,
        *INPUT_PARAMETERS,
        Parameter('isolated', False, 'Encode each second by itself at its edges, as the '
                  'published front end does; less exact than the stream'),
    )  # fmt: skip

    def __init__(self, arbiter=None):
        super().__init__('streaming_encoder', AudioEmbedding, arbiter)

    def load(self, options, model, between) -> Ear:
        """Load the encoder."""
        backend = Backend(options.device, threads=thread_count(options.threads))
        encoder = AudioEncoder.load(model.audio_path, backend)
        hearing = Hearing(encoder, isolated=options.isolated, between=between)
        return Ear(hearing, model.space)

    def open_input(self, options):
        """Subscribe to `audio`."""
        return AudioInput(self, options, self._on_chunk)

    def _on_chunk(self, stamp_ns, data, audio_format: AudioFormat) -> None:
        self.inbox.put((stamp_ns, self.get_clock().now().nanoseconds, data, audio_format))

    # The worker.
    def encode(self, ear: Ear, item) -> None:
        """Take one chunk; publish the seconds that are complete with it."""
        stamp_ns, arrival_ns, data, audio_format = item
        started_s = time.perf_counter()
        samples = to_float_mono(data, audio_format.sample_format, audio_format.channels)
        if audio_format != ear.format:
            self._take_format(ear, audio_format)
        if stamp_ns is None:
            stamp_ns = self._count(ear, arrival_ns, len(samples))
        end_ns = stamp_ns + len(samples) * NS // audio_format.sample_rate_hz
        if not len(samples):
            return  # an empty chunk says nothing, its stamp neither
        if ear.is_flushed and ear.next_second is not None:
            self._resume(ear, end_ns // NS)
        stamp_ns -= ear.resampler.lag_ns
        samples = ear.resampler.push(samples)  # (m,) at 16 kHz
        resample_ms = (time.perf_counter() - started_s) * 1e3
        self._publish_heard(ear, ear.hearing.push(stamp_ns, samples), resample_ms)
        ear.clock.arrive(end_ns, time.monotonic())
        ear.is_flushed = False

    def tick(self, ear: Ear, now_s: float) -> None:
        """Flush what a source that fell silent has left; publish the seconds without sound."""
        if ear.clock.is_silent(now_s) and not ear.is_flushed:
            rest = ear.hearing.push(None, ear.resampler.flush())
            self._publish_heard(ear, rest + ear.hearing.flush())
            ear.resampler = Resampler(ear.format.sample_rate_hz, SAMPLE_RATE_HZ)
            ear.position_ns = None
            ear.is_flushed = True
        if ear.is_flushed and ear.next_second is not None:
            over = ear.clock.last_over(now_s) + 1
            if over - ear.next_second > LONGEST_EMPTY_S:
                ear.next_second = over
            for second in range(ear.next_second, over):
                self._publish(ear, HeardSecond(second, status=Status.EMPTY))

    def _resume(self, ear: Ear, second: int) -> None:
        """Go back with a source that was paused and goes on where it was."""
        if second < ear.next_second - 1:
            ear.next_second = None

    def _take_format(self, ear: Ear, audio_format: AudioFormat) -> None:
        if audio_format.coding_format not in RAW_CODINGS:
            raise InputError(
                f'the sound is coded as {audio_format.coding_format!r}; taken is raw PCM '
                "(coding_format 'wave')"
            )
        ear.resampler = Resampler(audio_format.sample_rate_hz, SAMPLE_RATE_HZ)
        ear.format = audio_format

    def _count(self, ear: Ear, arrival_ns: int, count: int) -> int:
        """Give the stamp of a chunk without one: the count of samples since the first arrived."""
        length_ns = count * NS // ear.format.sample_rate_hz
        if ear.position_ns is None:
            ear.position_ns = arrival_ns - length_ns
        stamp_ns = ear.position_ns
        ear.position_ns += length_ns
        return stamp_ns

    def _publish_heard(self, ear: Ear, seconds: list, resample_ms: float = 0.0) -> None:
        for heard in seconds:
            # What was published as without sound while the source was silent stays so; an earlier
            # second would clear the window, and the encoder's own restarts are no reason for that.
            if heard.begins_stream or ear.next_second is None or heard.second >= ear.next_second:
                self._publish(ear, heard, resample_ms)
                resample_ms = 0.0
            if heard.reason:
                self.tell('sound', heard.reason)

    def _publish(self, ear: Ear, heard: HeardSecond, resample_ms: float = 0.0) -> None:
        ear.next_second = heard.second + 1
        message = AudioEmbedding(model=ear.space, second=heard.second, status=int(heard.status))
        message.header.stamp = to_time(heard.second * NS)
        message.restarted = heard.restarted
        message.level_dbfs = heard.level_dbfs
        message.preprocess_ms = heard.preprocess_ms + resample_ms
        message.encode_ms = heard.encode_ms
        if heard.rows is not None:
            put_rows(message, heard.rows)
        self.publish(message)


def main(args=None) -> int:
    """Run the node."""
    return run(lambda: [StreamingEncoder()], args)


if __name__ == '__main__':
    raise SystemExit(main())
