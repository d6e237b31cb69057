# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Following a text byte by byte: may it still become a sentence of the rules, is it one already?

Earley's algorithm (1970) with the empty rules of Aycock and Horspool (2002), and four things
more. A rule that is called as the last of another takes over what goes on behind it, so that no
repetition leaves a trace. States are interned: two texts behind which the same can follow lead to
the same State object. A rule that begins with itself is merged with an earlier call behind which
the same can follow, so that `s ::= s s | "a"` has a handful of states and not one for each letter.
And a call behind which nothing can follow that cannot follow another one is left out, such as all
but two of the `if`s that one `else` may belong to.

A grammar without nesting thus becomes a finite automaton that is built where it is needed. What is
ambiguous in other ways costs more with each reading of the text. All work is counted, so that a
bound holds on every machine alike. Classes of characters become graphs of bytes, whose like ends
are one object (CharacterClasses).
"""

from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass

from minicpmo_ros.errors import InputError
from minicpmo_ros.llm.grammar.gbnf import Rules, is_rule, rules_with_a_text

MAX_WORK = 100_000  # items processed for one token: a few tenths of a second
MAX_COMPARED = 64  # rests of one place; more are those of a text with as many readings
MAX_DEPTH = 4  # of calls within each other that are compared
CONTINUATION = 0x80
LENGTHS = (  # first and last code point, mark of the first byte, bits behind it; no surrogates
    (0, 0x7F, 0, 0),
    (0x80, 0x7FF, 0xC0, 6),
    (0x800, 0xD7FF, 0xE0, 12),
    (0xE000, 0xFFFF, 0xE0, 12),
    (0x10000, 0x10FFFF, 0xF0, 18),
)


@dataclass(eq=False, slots=True)
class ByteNode:
    """What the next byte of a character may be: (first, last, node behind), in order.

    None stands behind the last byte of a character.
    """

    segments: tuple


class CharacterClasses:
    """Makes the nodes of classes; what can go on alike is one object."""

    def __init__(self):
        self._nodes = {}  # by ranges, by ranges and bits, and by segments

    def node(self, ranges: tuple) -> ByteNode:
        """Return the node of ((first, last), ...), ranges of code points in any order."""
        if ranges not in self._nodes:
            segments, merged = [], _merged(ranges)
            for low, high, mark, bits in LENGTHS:
                segments += self._segments(_clipped(merged, low, high), mark, bits)
            self._nodes[ranges] = self._interned(segments)
        return self._nodes[ranges]

    def _segments(self, ranges: list, mark: int, bits: int) -> list:
        """Return the segments of the byte that says what is above `bits` bits of code points."""
        segments = []
        while ranges:
            first = last = ranges[0][0] >> bits
            begin, end = first << bits, (first + 1 << bits) - 1
            part = _clipped(ranges, begin, end)
            if part == [(begin, end)]:  # all that it can be, as perhaps of further bytes
                last = (ranges[0][1] + 1 >> bits) - 1
            behind = self._behind(tuple((a - begin, b - begin) for a, b in part), bits)
            segments.append((mark + first, mark + last, behind))
            ranges = _clipped(ranges, last + 1 << bits, ranges[-1][1])
        return segments

    def _behind(self, ranges: tuple, bits: int) -> ByteNode | None:
        if not bits:
            return None
        key = ranges, bits
        if key not in self._nodes:
            self._nodes[key] = self._interned(self._segments(ranges, CONTINUATION, bits - 6))
        return self._nodes[key]

    def _interned(self, segments: list) -> ByteNode:
        merged = []
        for first, last, behind in segments:
            if merged and merged[-1][1] + 1 == first and merged[-1][2] is behind:
                first = merged.pop()[0]
            merged.append((first, last, behind))
        segments = tuple(merged)
        if segments not in self._nodes:
            self._nodes[segments] = ByteNode(segments)
        return self._nodes[segments]


def _merged(ranges: tuple) -> list:
    merged = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            first, last = merged[-1][0], max(last, merged.pop()[1])
        merged.append((first, last))
    return merged


def _clipped(ranges: list, low: int, high: int) -> list:
    """Return what of ranges lies within low and high."""
    return [(max(a, low), min(b, high)) for a, b in ranges if a <= high and b >= low]


@dataclass(eq=False, slots=True)
class _Rest:
    """What goes on when a rule has ended: items. An item is a place in a rule and its _Rest."""

    items: tuple
    cycle: dict | None = None  # the _Rests by rule that it is one of, if they contain each other


@dataclass(eq=False, slots=True)
class _Call:
    """A _Rest under construction, of a rule that begins where the text is now."""

    rule: int
    items: list


@dataclass(eq=False, slots=True)
class State:
    """All that can be under way behind a text; equal ones are one object. Never changed."""

    terminals: tuple  # (bytes that may come, place, rest): see utf8.CharacterClasses
    is_sentence: bool = False

    @property
    def can_go_on(self) -> bool:
        """Whether the text can be longer."""
        return bool(self.terminals)


_END = _Rest(())  # behind the root


class Sentences:
    """The sentences of some rules."""

    def __init__(self, rules: Rules):
        classes, alternatives = CharacterClasses(), rules.alternatives
        finite = rules_with_a_text(alternatives, False)
        if rules.root in finite:  # leave out what never ends; else somebody wants it so
            alternatives = [
                [symbols for symbols in choices if finite.issuperset(filter(is_rule, symbols))]
                for choices in alternatives
            ]
        self._places, self._symbols, self._behind = {}, [], []
        self._begins = [
            tuple({self._place(symbols, classes): None for symbols in choices})
            for choices in alternatives
        ]
        self._empty = rules_with_a_text(alternatives, True)
        self.forget()
        self.limit_work(MAX_WORK)
        self.start = self._state(frozenset((place, _END) for place in self._begins[rules.root]))

    def limit_work(self, n_items: int) -> None:
        """Let the next calls process so many items together; then they raise InputError."""
        self._allowed = self._work_left = n_items

    def spend(self, work: int) -> None:
        """Count work; raise InputError where it was too much."""
        self._work_left -= work
        if self._work_left < 0:
            raise InputError(
                'The grammar is too ambiguous: the text so far fits it in so many ways that the '
                f'next token takes more than {self._allowed} steps. Let each text be reached in '
                'one way.'
            )

    def forget(self) -> None:
        """Give up what is kept of earlier states, for the memory it takes."""
        self._states, self._rests, self._cycles, self._within = {}, {}, {}, {}

    def row(self, state: State) -> list:
        """Return (first byte, last byte, State behind them) of all bytes that can come next."""
        cuts = {
            cut for node, *_ in state.terminals for a, b, _ in node.segments for cut in (a, b + 1)
        }
        cuts = sorted(cuts)
        taken = [[] for _ in cuts]
        for node, place, rest in state.terminals:
            for first, last, after in node.segments:
                begin, end = bisect_left(cuts, first), bisect_left(cuts, last + 1)
                self.spend(end - begin)
                for i in range(begin, end):
                    taken[i].append((after, place, rest))
        return [
            (cuts[i], cuts[i + 1] - 1, self._behind_byte(items))
            for i, items in enumerate(taken)
            if items
        ]

    def _behind_byte(self, items: list) -> State:
        """Return the state of a character that is whole, or of a part of one."""
        if items[0][0] is None:  # then it is for all of them, as a first byte tells the length
            return self._state(frozenset((self._behind[place], rest) for _, place, rest in items))
        key = frozenset(items)
        if key not in self._states:
            self._states[key] = State(tuple(key))
        return self._states[key]

    def _place(self, symbols: tuple, classes: CharacterClasses) -> int:
        """Return the place before symbols. Rules that end alike share the places of that end."""
        behind = -1
        for symbol in (None, *reversed(symbols)):
            key = symbol, behind
            if key not in self._places:
                self._places[key] = len(self._symbols)
                is_class = isinstance(symbol, tuple)
                self._symbols.append(classes.node(symbol) if is_class else symbol)
                self._behind.append(behind)
            behind = self._places[key]
        return behind

    def _state(self, items: frozenset) -> State:
        """Return the state of items and of all that follows from them without a character."""
        if items not in self._states:
            calls, terminals, is_sentence = {}, [], False
            todo, seen = list(items), set()
            while todo:
                item = todo.pop()
                if item in seen:
                    continue
                seen.add(item)
                self.spend(1)
                place, rest = item
                symbol = self._symbols[place]
                if symbol is None:
                    is_sentence |= rest is _END
                    if isinstance(rest, _Rest):  # else it was empty; its callers went on already
                        self.spend(len(rest.items))
                        todo += rest.items
                elif isinstance(symbol, int):
                    todo += self._call(symbol, self._behind[place], rest, calls)
                else:
                    terminals.append((symbol, place, rest))
            settled = self._settled(terminals)
            terminals = self._widest(
                ((node, place), settled.get(rest, rest)) for node, place, rest in terminals
            )
            terminals = tuple((*begin, rest) for begin, rest in terminals)
            self._states[items] = State(terminals, is_sentence)
        return self._states[items]

    def _widest(self, items) -> list:
        """Leave out (place, rest) where nothing can follow that cannot follow another of them."""
        by_place, widest = defaultdict(dict), []
        for place, rest in items:
            by_place[place][rest] = None
        for place, rests in by_place.items():
            left = list(rests)
            if 1 < len(left) <= MAX_COMPARED:
                for rest in rests:
                    if any(rest is not o and self._is_within(rest, o) for o in left):
                        left.remove(rest)
            widest += [(place, rest) for rest in left]
        return widest

    def _is_within(self, rest: _Rest, other: _Rest, assumed: tuple = ()) -> bool:
        """Return True if all that follows rest follows other; False also where it is not seen."""
        pair = rest, other
        if rest is other or pair in assumed:  # a proof by coinduction may use what it proves
            return True
        is_known = isinstance(rest, _Rest) and isinstance(other, _Rest)
        if not is_known or _END in pair or len(assumed) >= MAX_DEPTH:
            return False
        if pair not in self._within:
            self.spend(len(rest.items))
            is_within = all(
                any(
                    place == other_place and self._is_within(inner, other_inner, (*assumed, pair))
                    for other_place, other_inner in other.items
                )
                for place, inner in rest.items
            )
            if assumed:  # it may rest on a pair that turns out not to be so
                return is_within
            self._within[pair] = is_within
        return self._within[pair]

    def _call(self, rule: int, behind: int, rest, calls: dict) -> list:
        """Return the items that begin with a call of a rule and those that pass it if empty."""
        if self._symbols[behind] is None:  # the last of its rule: it goes on as the caller does
            return [(place, rest) for place in self._begins[rule]]
        begun = []
        if rule not in calls:
            calls[rule] = _Call(rule, [])
            begun = [(place, calls[rule]) for place in self._begins[rule]]
        calls[rule].items.append((behind, rest))
        return [*begun, (behind, rest)] if rule in self._empty else begun

    def _settled(self, terminals: list) -> dict:
        """Return the _Rest of every _Call that a terminal leads to; equal ones are one object."""
        todo, users, waiting = [rest for *_, rest in terminals], defaultdict(list), {}
        while todo:
            call = todo.pop()
            if not isinstance(call, _Call) or call in waiting:
                continue
            inner = {rest for _, rest in call.items if isinstance(rest, _Call)}
            self.spend(len(call.items))
            waiting[call] = len(inner)
            for other in inner:
                users[other].append(call)
            todo += inner
        settled, ready = {}, [call for call, n in waiting.items() if not n]
        while ready:
            call = ready.pop()
            key = frozenset(
                self._widest((place, settled.get(rest, rest)) for place, rest in call.items)
            )
            if key not in self._rests:
                self._rests[key] = _Rest(tuple(key))
            settled[call] = self._rests[key]
            for user in users[call]:
                waiting[user] -= 1
                if not waiting[user]:
                    ready.append(user)
        return settled | self._settled_cycle([c for c in waiting if c not in settled], settled)

    def _settled_cycle(self, calls: list, settled: dict) -> dict:
        """Return the _Rests of rules that begin with each other: told apart by all of them."""

        def named(rest):  # in one state a rule has one _Call
            return rest.rule if isinstance(rest := settled.get(rest, rest), _Call) else rest

        by_rule = {
            call.rule: frozenset(self._widest((place, named(rest)) for place, rest in call.items))
            for call in calls
        }
        key = frozenset(by_rule.items())
        if key not in self._cycles:
            self._cycles[key] = self._same_cycle(by_rule) or _new_cycle(by_rule)
        return {call: self._cycles[key][call.rule] for call in calls}

    def _same_cycle(self, by_rule: dict) -> dict | None:
        """Return an earlier cycle that goes on in the same way, among those that this one holds.

        If each of the new _Rests would have an earlier one's items, were it that earlier one, then
        the same can follow behind both, however often the rules call themselves.
        """
        tried = []
        for _, rest in (item for items in by_rule.values() for item in items):
            earlier = rest.cycle if isinstance(rest, _Rest) else None
            if earlier is None or earlier in tried or earlier.keys() != by_rule.keys():
                continue
            tried.append(earlier)
            self.spend(sum(map(len, by_rule.values())))
            if all(
                {(place, earlier.get(rest, rest)) for place, rest in items}
                == set(earlier[rule].items)
                for rule, items in by_rule.items()
            ):
                return earlier
        return None


def _new_cycle(by_rule: dict) -> dict:
    made = {rule: _Rest(()) for rule in by_rule}
    for rule, items in by_rule.items():
        made[rule].items = tuple((place, made.get(rest, rest)) for place, rest in items)
        made[rule].cycle = made
    return made
