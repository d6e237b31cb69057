# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""PyTorch's answers to a file of questions: what the package computes must say the same.

    python -m training.answer build/nano --questions build/heldout/questions.json \\
        --out build/pytorch.json

`minicpmo score --answers build/pytorch.json` scores them beside those of the GGUF files. Pictures
and sound go the official way: each picture resized whole, each clip's sound as one stream.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.answers import INPUTS, AnswerSet
from minicpmo_ros.evaluation.bags.clip import SAMPLE_RATE_HZ
from minicpmo_ros.evaluation.bags.clip_reading import read_clip
from minicpmo_ros.evaluation.questions import QuestionSet, by_window
from minicpmo_ros.units import NS

from .evaluate import answer
from .make import models
from .questions import Question
from .scenes import best_size
from .tokenizer import Tokenizer

GREY = 128  # of a blanked picture


def encode(vision, audio, clip, seconds, shown):
    """-> pictures (1, seconds, 16, d) and sounds (1, seconds, 25, d), rounded to float16 as on
    the way from the encoders to the language model.
    """
    by_second = {shot.stamp_ns // NS: shot.rgb() for shot in clip.images}
    frames = []
    for second in seconds:
        picture = Image.fromarray(by_second[second])
        frames.append(np.asarray(picture.resize(best_size(*picture.size), Image.BICUBIC)))
    frames = np.stack(frames)  # (seconds, H, W, 3)
    pcm = np.concatenate([samples for _, samples in clip.audio])[None]  # (1, 16000 seconds)
    if pcm.shape[1] != SAMPLE_RATE_HZ * len(seconds):
        raise InputError(f'{pcm.shape[1]} samples are not {len(seconds)} s of sound.')
    frames = np.full_like(frames, GREY) if shown == 'no_picture' else frames
    pcm = np.zeros_like(pcm) if shown == 'no_sound' else pcm
    pictures, sounds = vision(torch.from_numpy(frames))[None], audio(torch.from_numpy(pcm))
    return pictures.half().float(), sounds.half().float()


@torch.no_grad()
def answer_all(three, tokenizer, questions: QuestionSet, shown: str) -> dict:
    """{id: text} for all questions; their windows are whole clips and their answers one word."""
    vision, audio, language = three
    texts = {}
    for name, about in questions.by_clip().items():
        clip = read_clip(questions.path_of(name))
        for (start_s, end_s), asked in by_window(about, clip.first_s).items():
            if any(question.choices for question in asked):
                raise InputError(f'{name}: only open questions are answered here.')
            seconds = range(start_s, end_s)
            pictures, sounds = encode(vision, audio, clip, seconds, shown)
            wordings = [Question(q.family, q.kind, q.text, q.answers[0], q.chance) for q in asked]
            (said,) = answer(language, tokenizer, pictures, sounds, [wordings])  # (1, n)
            texts.update((q.id, tokenizer.decode([int(t)])) for q, t in zip(asked, said))
    return {question.id: texts[question.id] for question in questions.questions}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('folder', type=Path, help='what training.make wrote')
    parser.add_argument('--questions', type=Path, required=True, metavar='FILE')
    parser.add_argument('--out', type=Path, required=True, metavar='ANSWERS.json')
    parser.add_argument('--input', choices=INPUTS, default='all')
    options = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = Tokenizer.learn()
    three = models(options.folder, tokenizer)
    texts = answer_all(three, tokenizer, QuestionSet.read(options.questions), options.input)
    AnswerSet(texts, 'pytorch', 'f32', 'offline', options.input).write(options.out)


if __name__ == '__main__':
    main()
