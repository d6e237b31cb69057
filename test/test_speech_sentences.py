# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Text that comes in pieces is cut into sentences: whole, once, in order, as soon as possible."""

import random

import pytest

from minicpmo_ros.speech.sentences import LONGEST, SentenceCutter, spoken_form

PARTS = (
    'Yes', 'no', 'Dr. Wu', 'e.g. a cup', '3.14', 'At 5. ', 'J. Smith', 'the red box', '"Stop!"',
    '(maybe)', '.', '! ', '? ', '... ', ', ', '; ', ': ', ' ', '\n', '\t', '。', '！', '？', '，',
    '我看见', '红色的盒子', '👩‍🚒', 'é', 'ñandú', '🇩🇪', 'a' * 90, ' word' * 9, '«oui»', '…',
    '\u00a0', '”', 'Ελλάδα', 'שלום',
)  # fmt: skip


def cut(pieces, first_words=8):
    """Return the sentences of a text in pieces."""
    cutter = SentenceCutter(first_words)
    return [s for piece in pieces for s in cutter.push(piece)] + cutter.flush()


def pieces_of(text: str, random_) -> list:
    """Return a text in random pieces."""
    ends = sorted(random_.choices(range(len(text) + 1), k=random_.randint(0, 12)))
    return [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)])]


def test_ten_thousand_texts_in_any_pieces_come_out_whole_once_and_in_order():
    random_ = random.Random(20)
    for _ in range(10_000):
        text = ''.join(random_.choices(PARTS, k=random_.randint(0, 20)))
        sentences = cut(pieces_of(text, random_))
        assert ''.join(sentences) == text
        assert all(0 < len(sentence) <= LONGEST for sentence in sentences)
        assert sentences == cut([text])  # however it was cut
        for sentence in sentences:
            sentence.encode()  # no half of a character
            assert not sentence.startswith('\u200d')


@pytest.mark.parametrize(
    'text, sentences',
    (
        ('I see a box. It is red.', ['I see a box.', ' It is red.']),
        ('Dr. Wu is here. So is J. Smith.', ['Dr. Wu is here.', ' So is J. Smith.']),
        ('It weighs 3.5 kg at 7. Really!', ['It weighs 3.5 kg at 7. Really!']),
        ('He said "Stop!" Then he left.', ['He said "Stop!"', ' Then he left.']),
        ('Use e.g. a cup. Or not', ['Use e.g. a cup.', ' Or not']),
        ('我看见一个盒子。它是红色的！', ['我看见一个盒子。', '它是红色的！']),
        ('one\ntwo', ['one\n', 'two']),
        (
            'At 5 p.m. he was in the U.S. office. Yes',
            ['At 5 p.m. he was in the U.S. office.', ' Yes'],
        ),
        ('कप लाल है। और? हाँ', ['कप लाल है।', ' और?', ' हाँ']),
        ('كيف حالك؟ أنا بخير. نعم', ['كيف حالك؟', ' أنا بخير.', ' نعم']),
        ('یہ گھر ہے۔ ہاں', ['یہ گھر ہے۔', ' ہاں']),
    ),
)
def test_a_sentence_ends_where_a_reader_would_pause(text, sentences):
    assert cut([text], first_words=0) == sentences


def test_the_first_piece_may_end_at_a_comma_or_behind_eight_words_and_later_ones_do_not():
    assert cut(['On the table, there is a cup. On it, a spoon, and tea.']) == [
        'On the table,', ' there is a cup.', ' On it, a spoon, and tea.',
    ]  # fmt: skip
    assert cut(['Yes, a b c d e f g h i. J'])[0] == 'Yes, a b c d e f g '
    assert cut(['1 2 3 4 5 6 7 8 9 10 11']) == ['1 2 3 4 5 6 7 8 ', '9 10 11']


@pytest.mark.parametrize('one', ('👍🏽', 'e\u0301', 'कि', '🇩🇪', '👩‍🚒', '❤\ufe0f'))
def test_what_is_seen_as_one_character_is_not_cut(one):
    for before in ('', 'a', 'ab', 'abc'):
        sentences = cut([before + 300 * one])
        assert len(sentences) > 1
        for sentence in sentences[1:]:
            assert sentence.startswith(one) and not len(sentence) % len(one)


@pytest.mark.parametrize(
    'text, said',
    (
        ('It is **very** red, *really* __so__ ~~not~~.', 'It is very red, really so not.'),
        ('## What I see\n* a `cup`\n* two', ' What I see\n a cup\n two'),
        ('```python\n', '\n'),
        ('See [the page](https://a.b/c_d) and [[this]].', 'See the page and this.'),
        ('a * b, 2**3, a*b, snake_case, #1, ~/answer, -5', None),
        ('3 * 4 = 12 [sic] (yes) _', None),
    ),
)
def test_marks_of_markdown_are_not_said_and_other_marks_stay(text, said):
    assert spoken_form(text) == (text if said is None else said)


def test_the_first_sentence_is_there_before_the_second_is_whole():
    cutter = SentenceCutter()
    assert cutter.push('There is a cup.') == []  # it may be "cup.png"
    assert cutter.push(' And') == ['There is a cup.']
    assert cutter.push(' a spoon') == []
    assert cutter.flush() == [' And a spoon']


def test_text_without_an_end_does_not_wait_for_ever():
    cutter = SentenceCutter(first_words=0)
    assert len(cutter.push('word ' * 200)) == 1000 // LONGEST
    assert [len(s) for s in SentenceCutter(0).push('x' * 500)] == [LONGEST, LONGEST]
