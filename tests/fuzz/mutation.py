"""Changes to bytes, for where there is no fuzzer that knows better."""

import random
from collections.abc import Iterable
from typing import NamedTuple

KINDS = ("flip", "set", "insert", "replace", "delete", "repeat", "cut", "splice")


class Edit(NamedTuple):
    """One change.

    Attributes:
        kind: one of KINDS.
        at: where, as a part of the length.
        size: of how many bytes it is.
        word: what is put there.
    """

    kind: str
    at: float
    size: int
    word: bytes


def edited(data: bytes, edits: Iterable[Edit]) -> bytes:
    for kind, at, size, word in edits:
        place = min(int(at * (len(data) + 1)), len(data))
        before, after, rest = data[:place], data[place:], data[place + size :]
        if kind == "flip" and after:
            data = before + bytes((after[0] ^ 1 << size % 8,)) + after[1:]
        elif kind == "set" and after:
            data = before + bytes((size % 256,)) + after[1:]
        elif kind == "insert":
            data = before + word + after
        elif kind == "replace":
            data = before + word + data[place + len(word) :]
        elif kind == "splice":  # a word in place of what is between two marks of a text
            end = min(
                (mark for mark in (after.find(sign, 1) for sign in (b",", b"}", b" ", b"\n")) if mark > 0), default=0
            )
            data = before + word + after[end:]
        elif kind == "delete":
            data = before + rest
        elif kind == "repeat":
            data = before + after[:size] * 3 + after
        elif kind == "cut":
            data = before
    return data[: 2**20]


def drawn(rng: random.Random, words: tuple[bytes, ...]) -> list[Edit]:
    """A few changes at random."""
    return [
        Edit(
            rng.choice(KINDS[:-2] if rng.random() < 0.9 else KINDS),
            rng.random(),
            1 << rng.randrange(8),
            rng.choice((*words, rng.randbytes(rng.choice((1, 2, 4, 8))))),
        )
        for _ in range(rng.choice((1, 1, 1, 2, 3, 5)))
    ]
