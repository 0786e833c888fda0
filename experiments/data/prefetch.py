"""Batches that are made while the device works on those before them."""

import collections
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
_END: Any = object()


def prefetched(items: Iterable[T], ahead: int = 2) -> Iterator[T]:
    """The same items in the same order, `ahead` of them made by a thread before they are asked for.

    What making them raises, is raised where the item would come. The thread ends with this iterator.

    >>> list(prefetched(range(5)))
    [0, 1, 2, 3, 4]
    """
    source = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
        waiting = collections.deque(thread.submit(next, source, _END) for _ in range(ahead))
        while (item := waiting.popleft().result()) is not _END:
            waiting.append(thread.submit(next, source, _END))
            yield item
