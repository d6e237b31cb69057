# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""How likely given texts are, read off the logits behind their beginnings.

Probabilities are shares of the softmax over the whole vocabulary, before penalties, temperature
and what is allowed. ChoiceScores compares whole texts of which one is the answer, WordGroups what
an answer begins with.
"""

import heapq
import math
from collections import defaultdict

import numpy as np

from minicpmo_ros.errors import InputError
from minicpmo_ros.llm.sampling import log_sum_exp
from minicpmo_ros.llm.vocabulary import Vocabulary

NEGLIGIBLE = 1e-6  # share of all choices together that are not read to their end
AT_ONCE = 16  # logits that scoring asks for in one decode at most
END = -1  # in a path: the text ends here


def allowed_mass(logits: np.ndarray, grammar) -> float:
    """Return the share of what a Grammar or Choices allow in the softmax of (vocabulary,) logits.

    NaN for a grammar that is too ambiguous to tell.
    """
    allowed = logits.copy()
    try:
        grammar.mask(allowed)
    except InputError:
        return math.nan
    return math.exp(log_sum_exp(allowed) - log_sum_exp(logits))


class ChoiceScores:
    """The probability of each of some choices, given that one of them is the answer.

    A choice is as likely as its tokens are one after the other, spelled as `paths` say; one that
    another goes on from counts with its end. Logits are needed behind every beginning of a path:
    `take` them as they come, then read what `next_read` says until it says nothing. Choices that
    can at most have a negligible share are not read to their end.
    """

    def __init__(self, paths: list, end_ids):
        beginnings = {path[:n] for path in paths for n in range(len(path))}
        self._paths = [(*path, END) if path in beginnings else tuple(path) for path in paths]
        self._end_ids = sorted(end_ids)
        self._scores = np.zeros(len(paths))  # logarithms, of the tokens that are known
        self._best_known = -math.inf  # score of a choice of which all tokens are known
        self.skip(())

    def skip(self, beginning: tuple) -> None:
        """Take a beginning that all paths share as given."""
        # {beginning: choices whose next token is to be scored behind it}; of one score each
        self._open = {beginning: list(range(len(self._paths)))}
        self._likeliest, self._n_opened = [(0.0, 0, beginning)], 1  # heap of the open, and taken

    def take(self, beginning: tuple, logits: np.ndarray) -> None:
        """Take the logits (vocabulary,) behind a beginning; if no path has it, nothing is done."""
        choices = self._open.pop(beginning, None)
        if choices is None:
            return
        n, total = len(beginning) + 1, log_sum_exp(logits)
        for choice in choices:
            path = self._paths[choice]
            ids = self._end_ids if path[n - 1] == END else [path[n - 1]]
            self._scores[choice] += log_sum_exp(logits[ids]) - total
            if n < len(path):
                self._put(path[:n], choice)
            else:
                self._best_known = max(self._best_known, self._scores[choice])

    def _put(self, beginning: tuple, choice: int) -> None:
        if beginning not in self._open:
            self._open[beginning] = []
            entry = -self._scores[choice], self._n_opened, beginning
            heapq.heappush(self._likeliest, entry)
            self._n_opened += 1
        self._open[beginning].append(choice)

    def next_read(self) -> tuple | None:
        """Return (tokens to read from the beginning on, logits to take of the last of them).

        None if nothing that matters is left to be read.
        """
        while self._likeliest and self._likeliest[0][2] not in self._open:
            heapq.heappop(self._likeliest)
        margin = math.log(NEGLIGIBLE / len(self._paths))
        if not self._likeliest or -self._likeliest[0][0] < self._best_known + margin:
            return None
        beginning = self._likeliest[0][2]
        path = self._paths[self._open[beginning][0]]
        last = min(len(path), len(beginning) + AT_ONCE) - 1
        return path[:last], last - len(beginning) + 1

    def probabilities(self) -> tuple:
        """Return the probability of each choice; together they are 1."""
        return tuple(np.exp(self._scores - log_sum_exp(self._scores)).tolist())


class WordGroups:
    """Groups of words of one meaning each, and how likely an answer begins with one of a group.

    A word counts small, capitalised and in capitals, with and without a space before it; other
    spellings than the given one only if they are one token. The logits of each of `paths` behind
    the question are needed: () alone, unless words of two groups begin with the same token.
    Raises InputError for words of two groups that are spelled alike.
    """

    def __init__(self, vocabulary: Vocabulary, groups):
        self._nodes = defaultdict(lambda: defaultdict(set))  # {beginning: {token or END: groups}}
        for group, words in enumerate(groups):
            for word in words:
                for path in _spellings(vocabulary, word.strip()):
                    for n, token in enumerate((*path, END)):
                        self._nodes[path[:n]][token].add(group)
        if alike := [path for path, after in self._nodes.items() if len(after[END]) > 1]:
            text = b''.join(map(vocabulary.piece, alike[0])).decode('utf-8', 'replace').strip()
            raise InputError(
                f'{text.lower()!r} is among the words of two meanings. Leave one of them out.'
            )
        self._n_groups, self.paths = len(groups), [()]
        for path in self.paths:  # grows
            shared = (token for token, which in self._nodes[path].items() if len(which) > 1)
            self.paths += [(*path, token) for token in shared]

    def read(self, logits: list) -> tuple:
        """Return (log-probability of each group (groups,), their share together, 0 to 1).

        logits: (vocabulary,) behind the question and each of `paths`.
        """
        found, reached = [[-math.inf] for _ in range(self._n_groups)], {(): 0.0}
        for path, row in zip(self.paths, logits, strict=True):
            row = np.asarray(row, np.float64)
            row = row - log_sum_exp(row) + reached[path]  # (vocabulary,)
            rest = np.ones(len(row), bool)
            for token, groups in self._nodes[path].items():
                if token == END:
                    continue
                rest[token] = False
                reached[(*path, token)] = row[token]
                if len(groups) == 1:
                    found[next(iter(groups))].append(row[token])
            for group in self._nodes[path][END]:
                found[group].append(log_sum_exp(row[rest]))
        scores = np.array([log_sum_exp(np.array(parts)) for parts in found])
        return scores, min(1.0, math.exp(log_sum_exp(scores)))


def _spellings(vocabulary: Vocabulary, word: str) -> set:
    """Return the tokens of the spellings of a word that count."""
    if not word:
        raise InputError('A word is empty. Give every word a text.')
    paths = set()
    for form in {word, word.lower(), word.upper(), word.capitalize()}:
        for spelled in (form, ' ' + form):
            ids = tuple(vocabulary.encode(spelled))
            if len(ids) == 1 or spelled == word:
                paths.add(ids)
    return paths
