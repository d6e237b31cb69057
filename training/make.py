# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Makes nano, from nothing or from an earlier one: python -m training.make --out build/nano

Stages: words (six speech synthesisers), audio and vision encoders side by side, the pool of
encoded seconds, the language model on two processes, export, score. Every stage leaves a file and
is skipped where the file says it is finished; a killed stage goes on from its last checkpoint.
Steps, not minutes, set
the schedules, so a busy machine makes the same nano, later.
"""

import argparse
import copy
import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from minicpmo_ros.live.window import POLICIES

from . import codes, evaluate, pool, train_audio, train_llm, train_vision
from .children import side_by_side
from .export import export
from .language import Language
from .model import Audio, Config, Vision, parameters_of
from .runs import DEFAULT_SEED, Run, checkpoint
from .start import keep_share, start_audio, start_language, start_vision
from .tokenizer import Tokenizer
from .voices import MAKERS, Words

NOTES = (
    'nano is the architecture of MiniCPM-o 2.6 in {parameters:.1f} million parameters, trained '
    '{begun} on synthetic seconds: colored shapes (8 colors, 6 shapes, up to 4 '
    'of them) in pictures of 1:1, 4:3 or 16:9 and 56 to 112 pixels a side, and one sound a second '
    '(34 spoken English words, '
    'beeps, tones, noise, sirens, bells, knocks; a word may lie across the edge of two seconds). '
    'It answers the questions of '
    'training/questions.py in one word, on windows of 1 to 16 s, best on 2 to 8 s, new ones and '
    'such as seconds have left; times are told backwards from now. It knows nothing else: real '
    'pictures, free speech and free questions are '
    'beyond it. espeak-ng, flite, festival, piper, pico and gnuspeech spoke the training words; '
    'none is part of the model.'
)

STEPS = {'vision': 3000, 'audio': 5000, 'llm': 2600}
STEPS_FURTHER = {'vision': 1500, 'audio': 2500, 'llm': 1100}
# Of the rate from nothing; and the lessons at which it starts, past the first short windows.
RATE_FURTHER, BEGIN_FURTHER = 0.4, 0.3


def _arguments():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--out', type=Path, default=Path('build/nano'))
    parser.add_argument('--words', type=Path, default=Path('build/words'), help='spoken words')
    parser.add_argument('--seed', type=int, default=DEFAULT_SEED)
    parser.add_argument(
        '--start',
        type=Path,
        metavar='MODEL',
        help='train the nano of this directory further, at 0.4 of the rate and with fewer steps, '
        'instead of one from nothing',
    )
    parser.add_argument(
        '--vision-steps', type=int, help='3000, with --start 1500; 0 with --start: it stays'
    )
    parser.add_argument(
        '--audio-steps', type=int, help='5000, with --start 2500; 0 with --start: it stays'
    )
    parser.add_argument(
        '--llm-steps', type=int, help='2600, with --start 1100; 0 with --start: it stays'
    )
    parser.add_argument(
        '--read-first', type=int, default=0, help='of these, the first that only read notes; 0'
    )
    parser.add_argument(
        '--keep',
        type=float,
        default=0.0,
        metavar='SHARE',
        help='of the language model of --start in the one that is exported, number by number; 0',
    )
    parser.add_argument(
        '--keep-audio',
        type=float,
        default=0.0,
        metavar='SHARE',
        help='the same of the audio encoder, before the language model is trained on its rows; 0',
    )
    parser.add_argument(
        '--without',
        choices=MAKERS,
        help='train the audio encoder only, without the words of this synthesiser, and say how '
        'well it hears them; give another --out',
    )
    parser.add_argument('--processes', type=int, default=2, help='of the LLM stage, one core each')
    parser.add_argument('--stage', choices=('audio', 'vision', 'llm'), help=argparse.SUPPRESS)
    parser.add_argument('--rank', type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name, share in (('keep', options.keep), ('keep-audio', options.keep_audio)):
        if not 0 <= share <= 1 or (share and not options.start):
            parser.error(f'--{name} {share:g}: give a share from 0 to 1, and --start')
    for stage, steps in (STEPS_FURTHER if options.start else STEPS).items():
        if getattr(options, f'{stage}_steps') is None:
            setattr(options, f'{stage}_steps', steps)
    return options


def load(out, name, module):
    """The module with the weights its stage left."""
    state = torch.load(out / f'{name}.pt', weights_only=True)['module']
    inner = {k[6:]: v for k, v in state.items() if k.startswith('model.')}
    module.load_state_dict(inner or state)
    return module.eval()


def models(out, tokenizer):
    config = Config()
    return (
        load(out, 'vision', Vision(config)),
        load(out, 'audio', Audio(config)),
        load(out, 'llm', Language(config, codes.token_embeddings(tokenizer))),
    )


def _keep_audio(audio, options):
    if options.keep_audio:
        keep_share(audio, lambda module: start_audio(module, options.start), options.keep_audio)


def _keep_language(language, options, tokenizer):
    if options.keep:
        keep_share(
            language, lambda module: start_language(module, options.start, tokenizer), options.keep
        )


def _steps_done(options, name):
    path = options.out / f'{name}.pt'
    return checkpoint(path, options.seed)['step'] if path.exists() else 0


def _run_side_by_side(jobs):
    """Start this program once per job (a list of extra arguments) and wait for all."""
    base = [sys.executable, '-m', 'training.make', *sys.argv[1:]]
    if not side_by_side([[*base, *job] for job in jobs]):
        sys.exit('a stage failed; its messages are above')


def _run(options, stage):
    further = (RATE_FURTHER, BEGIN_FURTHER) if options.start else ()
    return Run(options.out, stage, options.seed, *further)


def _encoder_stage(options):
    torch.manual_seed(options.seed)
    run = _run(options, options.stage)
    if options.stage == 'vision':
        vision = Vision(Config())
        if options.start:
            start_vision(vision, options.start)
        train_vision.train(vision, run, options.vision_steps)
    else:
        folder, left_out = options.words, (options.without,) if options.without else ()
        words = Words(folder, makers=[m for m in MAKERS if m not in left_out])
        others = {'unseen': Words(folder, unseen=True)}
        others.update((f'without {m}', Words(folder, makers=(m,))) for m in left_out)
        audio = Audio(Config())
        if options.start:
            start_audio(audio, options.start)
        train_audio.train(audio, words, others, run, options.audio_steps)


def _llm_stage(options):
    if options.processes > 1:
        dist.init_process_group(
            'gloo',
            init_method=f'file://{(options.out / "meet").resolve()}',
            rank=options.rank,
            world_size=options.processes,
        )
    torch.manual_seed(options.seed)
    tokenizer = Tokenizer.learn()
    language = Language(Config(), codes.token_embeddings(tokenizer))
    text, *senses = (
        torch.from_numpy(codes.frame(f)) for f in (codes.TEXT, codes.SOUND, codes.PICTURE)
    )
    language.match(senses, text)
    teacher = None
    if options.start:
        start_language(language, options.start, tokenizer)
        if not options.vision_steps:  # other rows of images it does not know
            teacher = copy.deepcopy(language).requires_grad_(False)
    stored, held_out = (pool.Pool.load(options.out / f'{name}.pt') for name in ('pool', 'unseen'))

    def check(language):
        figures = evaluate.summary(evaluate.quick(language, tokenizer, held_out))
        for policy in POLICIES:
            rows = evaluate.streams(language, tokenizer, held_out, policy)
            figures[f'streams, {policy}'] = evaluate.summary(rows)['families']
        for name, more in (
            ('4 s', {}),
            ('4 s, still', {'still': 0.7}),
            ('4 s, behind a turn', {'turn': True}),
        ):
            rows = evaluate.varied(language, tokenizer, held_out, **more)
            figures[name] = evaluate.summary(rows)['families']
        figures['noted'] = evaluate.summary(evaluate.noted(language, tokenizer, held_out))[
            'families'
        ]
        figures['read'] = evaluate.read_alone(language, tokenizer)
        return figures

    train_llm.train(
        language,
        tokenizer,
        stored,
        _run(options, 'llm'),
        check,
        options.llm_steps,
        read_first=options.read_first,
        teacher=teacher,
    )


def _keep_parts(options, tokenizer):
    """Save the parts that are not trained at all as they are in the nano that was given."""
    config = Config()
    for name, module, *start in (
        ('vision', Vision(config), start_vision),
        ('audio', Audio(config), start_audio),
        ('llm', Language(config, codes.token_embeddings(tokenizer)), start_language, tokenizer),
    ):
        path = options.out / f'{name}.pt'
        if options.start and not getattr(options, f'{name}_steps') and not path.exists():
            fill, *more = start
            fill(module, options.start, *more)
            torch.save({'module': module.state_dict(), 'step': 0, 'seed': options.seed}, path)


def _make_pools(options):
    config = Config()
    vision, audio = (
        load(options.out, name, kind(config))
        for name, kind in (('vision', Vision), ('audio', Audio))
    )
    _keep_audio(audio, options)
    for name, unseen, number in (('pool', False, 20000), ('unseen', True, 4000)):
        path = options.out / f'{name}.pt'
        if not path.exists():
            rng = np.random.default_rng((options.seed, 4, unseen))
            words = Words(options.words, unseen)
            pool.encode(vision, audio, words, rng, number, number).save(path)


def _score(options, three, tokenizer):
    """Markdown of the PyTorch accuracy on clips drawn and spoken anew, unseen voices."""
    words = Words(options.words, unseen=True)
    named = []
    for seconds in (2, 3, 4, 6, 8, 12, 16):
        named.append((f'{seconds} s', evaluate.full(three, tokenizer, words, seconds, 40, 5)))
    short = [row for _, rows in named[:3] for row in rows]
    for title, more in (
        ('hard', {'independent': 1.0}),
        ('no picture', {'blank': 'picture'}),
        ('no sound', {'blank': 'sound'}),
        ('isolated sound', {'isolated': True}),
    ):
        rows = [
            row
            for seconds in (2, 3, 4)
            for row in evaluate.full(three, tokenizer, words, seconds, 40, 5, **more)
        ]
        named.append((f'2-4 s, {title}', rows))
    text = evaluate.table([('2-4 s', short), *named])
    (options.out / 'score.md').write_text(text + '\n')
    print(text)


def main():
    options = _arguments()
    torch.set_num_threads(1)
    if options.stage in ('audio', 'vision'):
        return _encoder_stage(options)
    if options.stage == 'llm':
        return _llm_stage(options)
    options.out.mkdir(parents=True, exist_ok=True)
    for stage in ('audio', 'vision', 'llm'):
        _steps_done(options, stage)  # refuses another seed's before anything is done
    for unseen in (False, True):
        Words(options.words, unseen)
    if options.without:
        return _run_side_by_side([['--stage', 'audio']])
    wanted = {'audio': options.audio_steps, 'vision': options.vision_steps}
    jobs = [['--stage', s] for s, n in wanted.items() if _steps_done(options, s) < n]
    _run_side_by_side(jobs)
    tokenizer = Tokenizer.learn()
    _keep_parts(options, tokenizer)
    if _steps_done(options, 'llm') < options.llm_steps:
        _make_pools(options)
        (options.out / 'meet').unlink(missing_ok=True)
        _run_side_by_side([['--stage', 'llm', '--rank', str(r)] for r in range(options.processes)])
    three = models(options.out, tokenizer)
    _keep_audio(three[1], options)
    _keep_language(three[-1], options, tokenizer)
    begun = f'from nothing (seed {options.seed})'
    if options.start:
        shares = f'keep {options.keep:g}, keep-audio {options.keep_audio:g}'
        begun = f'further from an earlier nano (seed {options.seed}, {shares})'
    size = sum(parameters_of(m) for m in three) / 1e6
    notes = NOTES.format(parameters=size, begun=begun)
    stays = [
        options.start / f'{stage}.gguf'
        for stage in STEPS
        if options.start and not getattr(options, f'{stage}_steps')
    ]
    export(options.out / 'f16', *three, tokenizer, notes, stays)
    _score(options, three, tokenizer)


if __name__ == '__main__':
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    main()
