"""Many views in batches that fit into memory."""

import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from sidestep.errors import SidestepError

T = TypeVar("T")

logger = logging.getLogger(__name__)


def in_batches(make: Callable[[slice], T], count: int, batch_size: int) -> Iterator[T]:
    """What `make` makes of 0 .. count - 1, in slices of at most `batch_size`, in order.

    A slice that memory is too small for, the device's or the machine's, is halved and tried again, and so are those
    after it.

    Args:
        make: may be called with the start of a slice a second time, so it must not change anything outside itself.

    Raises:
        SidestepError: if memory is too small for one alone.
    """
    start = 0
    while start < count:
        chosen = slice(start, min(start + batch_size, count))
        try:
            made = make(chosen)
        except RuntimeError as error:
            if not (isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)):
                raise
            size = chosen.stop - start
            if size == 1:
                raise SidestepError(
                    "there is not enough memory for one view alone; end other programs, or use another device"
                ) from error
        else:
            yield made
            start = chosen.stop
            continue
        # Here and not above: the error's traceback holds the tensors that must go first.
        batch_size = size // 2
        logger.warning("memory is too small for %d views at once; going on with %d", size, batch_size)
        clear_device_cache(garbage_collection=True)
