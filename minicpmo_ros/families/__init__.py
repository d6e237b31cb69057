# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The versions of MiniCPM-o that the package knows: a file for each, and here a line for each."""

from minicpmo_ros.errors import InputError
from minicpmo_ros.families import minicpm_o_2_6, minicpm_o_4_5
from minicpmo_ros.families.base import Family, PromptLayout

FAMILIES = {
    family.name: family
    for family in (
        minicpm_o_2_6.FAMILY,
        minicpm_o_4_5.FAMILY,
    )
}
DEFAULT = minicpm_o_2_6.FAMILY  # what a synthetic model is of, unless it says otherwise
LANGUAGES = tuple(dict.fromkeys(name for each in FAMILIES.values() for name in each.layouts))


def find_layout(family: str, language: str) -> PromptLayout:
    """Return how a family lays out its turns in a language; InputError where it has no such."""
    layout = FAMILIES[family].layouts.get(language)
    if layout is None:
        known = [f'{each.name}/{name}' for each in FAMILIES.values() for name in each.layouts]
        raise InputError(
            f'there is no prompt {language!r} for {family}; known are {", ".join(known)}'
        )
    return layout


def recognise(architecture: str, tokens) -> Family:
    """Return the family of a published language model.

    tokens: gives, when called, all texts of its vocabulary; that is asked only where several
    families share the architecture: theirs is the vocabulary that lacks the fewest of their
    special tokens and, of two that lack none, holds more of them.
    """
    found = [each for each in FAMILIES.values() if each.architecture == architecture]
    if len(found) == 1:
        return found[0]
    texts = set(tokens())

    def fits(family: Family) -> tuple:
        special = set(family.special_tokens)
        return -len(special - texts), len(special)

    return max(found, key=fits)
