# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Spoken questions: which are found, what is taken for one, and how soon they are answered.

    make voice                                       # python -m benchmarks.voice
    python -m benchmarks.voice --commands heldout/questions.json --only commands

turns_found            of 60 utterances of espeak-ng and flite, by signal to noise ratio in dB: 15
                       in each of pink, fan, servo and music. One counts if a turn is of it and no
                       other
false_turns            turns told in five minutes of each noise without speech
end_to_first_token_ms  from the end of the speech to the first token of the answer, the most over
                       four phases of the second; end_silence_ms of it is waited for on purpose
phase_spread_ms        between the slowest and the quickest phase
told_by_phase_ms       of it, until `voice` tells that the turn has ended; by phase
right_by_phase         of those answers, to a spoken "color" before an image of one colour
cpu_share, rss_mib     of node `voice` as a process of its own, meanwhile
replay_same_turns      whether a recording gives the same turns at rates 0.5, 1 and 2
commands               share of right answers to empty questions about fresh clips of the held-out
                       generator that end with a spoken question word, or to those of --commands
commands_across        the same where the word begins in the second before the last
commands_by_phase      the same of a word that begins so many seconds behind the start of a second,
                       heard as far as node `voice` has it heard
follow_up_loss         percentage points that questions lose where another one with its answer is
                       remembered before them; `_error`: its standard error, `_by_family`. Fresh
                       clips; commands are spoken behind the turn
words_heldout_voices   share of right answers to what word was said, about other fresh clips, whose
                       voices of espeak-ng nano has never heard

Figures that need a training or earlier weights are in benchmarks/voice_measured.json, with the
command, the day and what they were measured of: words_heldout_synth, words_left_out and
text_families_loss. They are copied, and told as such.

Nodes run nano through topics, audio comes in real time. Writes build/voice.json, beside what else
is there.
"""

import argparse
import json
import os
import time
import wave
from dataclasses import replace
from pathlib import Path

from minicpmo_ros.process import prepare

prepare()

import numpy as np  # noqa: E402

from benchmarks.voice_follow_up import lost_points, right_behind_turns  # noqa: E402
from benchmarks.voice_phases import right_by_phase  # noqa: E402
from benchmarks.voice_sounds import NOISES, SPEECH_RMS, conversation, noise, say  # noqa: E402
from minicpmo_ros.evaluation.questions import QuestionSet  # noqa: E402
from minicpmo_ros.evaluation.runner import Core, CoreOptions, Variant, answer_all  # noqa: E402
from minicpmo_ros.media.audio.log_mel import SAMPLE_RATE_HZ  # noqa: E402
from minicpmo_ros.modelset.directory import ModelDirectory  # noqa: E402
from minicpmo_ros.units import MIB, NS  # noqa: E402
from minicpmo_ros.voice.detector import load_detector  # noqa: E402
from minicpmo_ros.voice.turns import TurnFinder, TurnKind, TurnOptions  # noqa: E402
from training.heldout.clips import make_clip, make_set  # noqa: E402
from training.questions import TEXT_FAMILIES  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
NANO, OUT = ROOT / 'models' / 'nano', ROOT / 'build' / 'voice.json'
BACKGROUNDS, SNR_DB, UTTERANCES = ('pink', 'fan', 'servo', 'music'), (20, 10, 5, 0), 15
FALSE_S = 300  # of each noise
NOISE_RMS = 0.05  # -26 dBFS
SAID = 'color'  # nano answers it without text, by the image
PHASES_S, CHUNK, LEAD_S = (0.0, 0.25, 0.5, 0.75), 640, 2
NAMESPACE = '/voice_benchmark'
RATES = (1.0, 0.5, 2.0)
PHASE_CLIPS = 32
FRESH_CLIPS, FRESH_SEED = {'command': 100, 'source': 200, 'text': 150}, 5
MEASURED = ROOT / 'benchmarks' / 'voice_measured.json'


def ended(detector, samples: np.ndarray) -> list:
    """Return the turns of samples (n,) that ended."""
    detector.reset()
    finder = TurnFinder(detector, TurnOptions())
    return [event for event in finder.push(0, samples) if event.kind is TurnKind.ENDED]


def turns_found(detector, rng) -> dict:
    """Return {SNR in dB: utterances that are a turn of their own}."""
    found = dict.fromkeys(SNR_DB, 0)
    for kind in BACKGROUNDS:
        speech, spans = conversation(rng, UTTERANCES)
        background = noise(rng, kind, len(speech) / SAMPLE_RATE_HZ + 1)[: len(speech)]
        for snr_db in SNR_DB:
            loud = SPEECH_RMS * 10 ** (-snr_db / 20)
            turns = [
                [n for n, span in enumerate(spans) if overlaps(turn, span)]
                for turn in ended(detector, speech + loud * background)
            ]
            found[snr_db] += sum([n] in turns for n in range(len(spans)))
    return found


def overlaps(turn, span: tuple) -> bool:
    """Return whether a turn and an utterance (begin, end) in samples share a time."""
    begin, end = (at * NS / SAMPLE_RATE_HZ for at in span)
    return turn.start_ns < end and turn.end_ns > begin


def false_turns(detector, rng) -> dict:
    """Return {noise: turns in five minutes of it}."""
    return {kind: len(ended(detector, NOISE_RMS * noise(rng, kind, FALSE_S))) for kind in NOISES}


def commands(path: Path | None) -> dict:
    """Return the share of right answers to empty questions, of a file or about fresh clips."""
    path = path or fresh('command')
    spoken = [each for each in QuestionSet.read(path).questions if not each.text.strip()]
    if not spoken:
        raise SystemExit(f'{path} has no question with an empty text')
    across = fresh('command', across=True)
    rng, core = np.random.default_rng(FRESH_SEED), open_nano()
    clips = [make_clip(3, True, rng) for _ in range(PHASE_CLIPS)]
    try:
        by_phase = right_by_phase(core, load_detector(), clips, rng)
    finally:
        core.close()
    return {
        'commands': right_share(path, spoken),
        'commands_asked': len(spoken),
        'commands_across': right_share(across, list(QuestionSet.read(across).questions)),
        'commands_by_phase': by_phase,
    }


def words() -> dict:
    """Return the share of words that nano tells of voices that it has never heard."""
    path = fresh('source')
    asked = [each for each in QuestionSet.read(path).questions if each.kind == 'word_at']
    return {'words_heldout_voices': right_share(path, asked), 'words_asked': len(asked)}


def follow_ups() -> dict:
    """Return what a remembered turn costs the questions behind it."""
    right, core = {}, open_nano()
    try:
        for path in (fresh('text', families=TEXT_FAMILIES), fresh('command')):
            right |= right_behind_turns(core, QuestionSet.read(path))
    finally:
        core.close()
    lost, error = lost_points(np.concatenate(list(right.values())))
    return {
        'follow_up_loss': lost,
        'follow_up_loss_error': error,
        'follow_up_loss_by_family': {name: lost_points(each)[0] for name, each in right.items()},
        'follow_ups_asked': sum(map(len, right.values())),
    }


def fresh(name: str, across: bool = False, families: tuple = ()) -> Path:
    """Return a file of questions about fresh clips of the held-out generator.

    Their family is `name`, if no other ones are given.
    """
    folder = OUT.parent / 'voice_clips' / (name + '_across' * across)
    make_set(folder, FRESH_CLIPS[name], FRESH_SEED, families or (name,), print, across)
    return folder / 'questions.json'


def right_share(path: Path, asked: list) -> float:
    """Return which share of some questions of a file nano answers right, by the core."""
    core = open_nano()
    try:
        questions = replace(QuestionSet.read(path), questions=tuple(asked))
        (answers,) = answer_all(core, questions, [Variant()])
    finally:
        core.close()
    return sum(answers.answers[each.id].strip() in each.answers for each in asked) / len(asked)


def open_nano() -> Core:
    """Return nano, loaded."""
    return Core(ModelDirectory.open(NANO), CoreOptions(device='cpu'))


def measured_earlier() -> dict:
    """Return the figures that were measured earlier, and all that is known of them."""
    measured = json.loads(MEASURED.read_text())
    values = {name: each['value'] for name, each in measured.items()}
    return values | {'measured_earlier': {name: each['how'] for name, each in measured.items()}}


class Stage:
    """A node that plays a microphone in real time, and hears what is answered."""

    def __init__(self):
        from rclpy.node import Node
        from rclpy.qos import QoSProfile
        from sensor_msgs.msg import CompressedImage
        from std_srvs.srv import Trigger

        from minicpmo_ros.client.client import Client
        from minicpmo_ros.msg import Answer, AnswerDelta, Speech
        from minicpmo_ros.ros.audio_input import audio_types
        from minicpmo_ros.ros.framework.lifecycle import LATCHED

        self.node = Node('voice_benchmark', namespace=NAMESPACE)
        self.client = Client(self.node)
        self.deltas, self.answers, self.turns = [], [], []
        deep = QoSProfile(depth=100)
        self._audio_type, info_type = audio_types()
        self._reset = self.node.create_client(Trigger, 'llm/reset')
        self.audio = self.node.create_publisher(self._audio_type, 'audio', deep)
        self._image_type = CompressedImage
        self.images = self.node.create_publisher(CompressedImage, 'image/compressed', deep)
        self._info = self.node.create_publisher(info_type, 'audio_info', LATCHED)
        self._info.publish(
            info_type(
                channels=1, sample_rate=SAMPLE_RATE_HZ, sample_format='S16LE', coding_format='wave'
            )
        )
        subscribe = self.node.create_subscription
        subscribe(AnswerDelta, 'llm/answer_delta', lambda _: self._note(self.deltas), deep)
        subscribe(Answer, 'llm/answer', self.answers.append, deep)
        subscribe(Speech, 'voice/speech', self._on_turn, deep)

    def _on_turn(self, turn) -> None:
        self.turns.append(turn)
        self.told_s = time.monotonic()

    def _note(self, times: list) -> None:
        times.append(time.monotonic())

    def wait(self, condition, what: str, timeout_s: float = 60.0) -> None:
        """Spin until `condition()`."""
        self.client.wait_until(condition, timeout_s, what)

    def reset(self) -> None:
        """Empty the window: what was said before is no part of the next answer."""
        self.wait(self._reset.service_is_ready, 'the reset')
        done = self._reset.call_async(self._reset.srv_type.Request())
        self.wait(done.done, 'the reset')

    def speak(self, samples: np.ndarray, begin_ns: int, jpeg: bytes = b'') -> float:
        """Publish samples as they would be recorded, and an image in each second, if given.

        Return the steady time of their begin.
        """
        from minicpmo_ros.ros.messages import to_time

        begun_s = time.monotonic()
        for i in range(0, len(samples), CHUNK):
            due_s = begun_s + (i + CHUNK) / SAMPLE_RATE_HZ
            self.wait(lambda due_s=due_s: time.monotonic() >= due_s, 'the next chunk')
            message = self._audio_type()
            message.header.stamp = stamp = to_time(begin_ns + i * NS // SAMPLE_RATE_HZ)
            if jpeg and i % SAMPLE_RATE_HZ == 0:
                image = self._image_type(format='jpeg')
                image.header.stamp = stamp
                image.data.frombytes(jpeg)
                self.images.publish(image)
            pcm = (samples[i : i + CHUNK] * 32767).astype('<i2')
            message.audio.data.frombytes(pcm.tobytes())
            self.audio.publish(message)
        return begun_s


def latencies(stage: Stage) -> dict:
    """Return the time from the end of the speech to the first token, by phase, and the answers."""
    spoken, found, told, texts = say(SAID, 'en-us'), [], [], []
    shown = make_clip(1, False, np.random.default_rng(FRESH_SEED))
    for i, phase_s in enumerate(PHASES_S):
        begin = int((LEAD_S + phase_s) * SAMPLE_RATE_HZ)
        samples = np.zeros(begin + len(spoken) + 2 * SAMPLE_RATE_HZ, np.float32)
        samples[begin : begin + len(spoken)] = spoken
        stage.reset()
        stage.deltas.clear()
        n_answers = len(stage.answers)
        begun_s = stage.speak(samples, (1_000_000 + 100 * i) * NS, shown.frames[0])
        stage.wait(lambda n=n_answers: len(stage.answers) > n, 'an answer')
        ended_s = begun_s + (begin + len(spoken)) / SAMPLE_RATE_HZ
        found.append(1e3 * (stage.deltas[0] - ended_s))
        told.append(1e3 * (stage.told_s - ended_s))
        texts.append(stage.answers[-1].text)
    return {
        'end_to_first_token_ms': max(found),
        'phase_spread_ms': max(found) - min(found),
        'by_phase_ms': dict(zip(map(str, PHASES_S), found)),
        'told_by_phase_ms': dict(zip(map(str, PHASES_S), told)),
        'end_silence_ms': 1e3 * TurnOptions().end_silence_s,
        'answers_by_phase': ', '.join(texts),
        'right_by_phase': texts.count(shown.facts.pictures[0].color),
    }


def cost_of(pid: int) -> tuple:
    """Return (CPU seconds, resident bytes) of a process."""
    fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    ticks = int(fields[11]) + int(fields[12])
    return ticks / os.sysconf('SC_CLK_TCK'), int(fields[21]) * os.sysconf('SC_PAGE_SIZE')


def live(rng) -> dict:
    """Return latencies and costs of the nodes, and whether a recording's turns stay the same."""
    import rclpy

    from minicpmo_ros.ros.replay.demo import executable

    rclpy.init()
    stage = Stage()
    with (
        executable('live', '-p', 'model_dir:=nano', namespace=NAMESPACE),
        executable('voice', namespace=NAMESPACE) as voice,
    ):
        stage.client.wait_until_ready(60.0)
        stage.wait(lambda: stage.audio.get_subscription_count() == 2, 'both nodes')
        stage.wait(stage.images.get_subscription_count, 'the vision encoder')
        stage.speak(0.01 * noise(rng, 'pink', 3), 999_000 * NS)  # all that is loaded late is there
        begun_s, (cpu_s, _) = time.monotonic(), cost_of(voice.pid)
        result = latencies(stage)
        spent_s, resident = cost_of(voice.pid)
        result['cpu_share'] = (spent_s - cpu_s) / (time.monotonic() - begun_s)
        result['rss_mib'] = resident / MIB
    result['replay_same_turns'] = replays(stage, rng)
    rclpy.shutdown()
    return result


def replays(stage: Stage, rng) -> bool:
    """Return whether a recording gives the same turns at each of RATES, and any."""
    from minicpmo_ros.ros.replay.demo import executable

    samples, _ = conversation(rng, 3)
    samples = (
        samples + 0.01 * noise(rng, 'pink', len(samples) / SAMPLE_RATE_HZ + 1)[: len(samples)]
    )
    path = OUT.parent / 'voice.wav'
    with wave.open(str(path), 'wb') as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE_HZ)
        file.writeframes((samples * 32767).clip(-32768, 32767).astype('<i2').tobytes())
    found = []
    for rate in RATES:
        stage.turns.clear()
        play = ('-p', f'file:={path}', '-p', f'rate:={rate}', '-p', 'exit_at_end:=true',
                '-p', 'wait_for_nodes:=voice', '-p', 'publish_clock:=true')  # fmt: skip
        reliable = f'qos_overrides.{NAMESPACE}/audio.subscription.reliability:=reliable'
        quiet = ('-p', 'ask:=false', '-p', 'use_sim_time:=true', '-p', reliable)
        with (
            executable('voice', *quiet, namespace=NAMESPACE),
            executable('media_player', *play, namespace=NAMESPACE) as player,
        ):
            stage.wait(lambda: player.poll() is not None, 'the end of the recording', 120.0)
            stage.wait(lambda: sum(t.kind for t in stage.turns) >= 3, 'the turns', 30.0)
        # Ends have the beginnings, too, and of the first of these a late listener may not know.
        ends = [turn for turn in stage.turns if turn.kind == turn.ENDED]
        found.append([
            (end.turn, since(end.start, ends[0].start), since(end.end, ends[0].start))
            for end in ends
        ])  # fmt: skip
    return found[0] == found[1] == found[2]


def since(stamp, first) -> int:
    """Return milliseconds from one Time to another."""
    return round((stamp.sec - first.sec) * 1e3 + (stamp.nanosec - first.nanosec) / 1e6)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--commands', type=Path, help='question file with empty questions')
    parser.add_argument('--only', choices=('turns', 'live', 'commands', 'follow-ups', 'words'))
    given = parser.parse_args()
    rng, found = np.random.default_rng(7), {}
    if given.only in (None, 'turns'):
        detector = load_detector()
        found['turns_found'] = turns_found(detector, rng)
        found['false_turns'] = false_turns(detector, rng)
    if given.only in (None, 'live'):
        OUT.parent.mkdir(exist_ok=True)
        found |= live(rng)
    if given.only in (None, 'commands'):
        found |= commands(given.commands)
    if given.only in (None, 'follow-ups'):
        found |= follow_ups()
    if given.only in (None, 'words'):
        found |= words() | measured_earlier()
    print('| figure | value |\n|---|---:|')
    for name, value in found.items():
        rows = value.items() if isinstance(value, dict) else [('', value)]
        for key, figure in rows:
            shown = f'{figure:.3g}' if isinstance(figure, float) else figure
            print(f'| {name} {key} | {shown} |')
    data = json.loads(OUT.read_text()) if OUT.exists() else {}
    OUT.write_text(json.dumps(data | found, indent=1))


if __name__ == '__main__':
    main()
