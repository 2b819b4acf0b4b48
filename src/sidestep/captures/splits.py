"""Which scene trains, validates and tests."""

import hashlib
from typing import Literal

Split = Literal["train", "val", "test"]


def model_split(model: str) -> Split:
    """The split of a furniture model, by a hash of its name: 10% test, 10% validation, the rest trains.

    The name alone decides, so scenes that are added later move nothing, and every scene of one model (another room,
    another camera path) falls on the same side.
    """
    u = int.from_bytes(hashlib.sha256(model.encode()).digest()[:8], "big") / 2**64
    return "test" if u < 0.1 else "val" if u < 0.2 else "train"
