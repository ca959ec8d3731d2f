"""Items computed ahead by a background thread."""

import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class _End:
    """Last message of the thread: the items ended, or their iterator raised."""

    error: BaseException | None


class Prefetcher(Generic[T], Iterator[T]):
    """Iterates over `items` with up to `depth` of them ready, computed by a thread that starts at once.

    An exception of `items` is raised here, after the items before it. `close()`, the garbage collector and the end of the
    interpreter stop the thread, which at most finishes the item it works on.
    """

    def __init__(self, items: Iterator[T], depth: int) -> None:
        assert depth > 0
        self._ready: SimpleQueue[T | _End] = SimpleQueue()
        self._permits: SimpleQueue[None] = SimpleQueue()
        for _ in range(depth):
            self._permits.put(None)
        stop = threading.Event()
        # The thread holds no reference to self: an iterator that is dropped without close() is collected, and stops it.
        arguments = (items, self._permits, self._ready, stop)
        thread = threading.Thread(target=_fill, args=arguments, name="prefetch", daemon=True)
        self._stop = weakref.finalize(self, _stop, thread, self._permits, stop)
        self._ended = False
        thread.start()

    def __next__(self) -> T:
        if self._ended:
            raise StopIteration
        message = self._ready.get()
        if isinstance(message, _End):
            self._ended = True
            raise message.error or StopIteration
        self._permits.put(None)
        return message

    def close(self) -> None:
        """Stop the thread and wait for it. Nothing more comes out."""
        self._ended = True
        self._stop()


def _fill(
    items: Iterator[T], permits: "SimpleQueue[None]", ready: "SimpleQueue[T | _End]", stop: threading.Event
) -> None:
    error = None
    try:
        permits.get()
        while not stop.is_set():
            ready.put(next(items))
            permits.get()
    except StopIteration:
        pass
    except BaseException as raised:
        error = raised
    ready.put(_End(error))


def _stop(thread: threading.Thread, permits: "SimpleQueue[None]", stop: threading.Event) -> None:
    """May run inside the garbage collector, so in any thread at any place: SimpleQueue.put is safe there."""
    stop.set()
    permits.put(None)
    if thread is not threading.current_thread():
        thread.join()
