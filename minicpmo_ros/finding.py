# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What `minicpmo doctor` finds: one fact about this machine, and what to do where it is wrong."""

from dataclasses import dataclass

OK, WARN, FAIL = 'ok', 'warn', 'FAIL'  # as it should be; works, with a loss; does not work


@dataclass(frozen=True)
class Finding:
    """One line of the report; both texts are sentences without a full stop."""

    check: str
    level: str
    fact: str
    remedy: str = ''  # empty with OK

    def line(self) -> str:
        """Give it as one line."""
        remedy = f'. {self.remedy}' if self.remedy else ''
        return f'{self.level:5}{self.check:10} ' + ' '.join(f'{self.fact}{remedy}'.split())


def judged(check: str, fact: str, *rules: tuple) -> Finding:
    """Give the finding of the first rule (holds, level, remedy) that holds; else OK."""
    for holds, level, remedy in rules:
        if holds:
            return Finding(check, level, fact, remedy)
    return Finding(check, OK, fact)
