"""The bytes of a file, plain or compressed, in pieces."""

import gzip
import io
import zlib
from collections.abc import Callable, Iterator

from config import DataError

Advance = Callable[[int], None]
"""Called with the number of source bytes just read."""
CHUNK_BYTES = 1 << 20


def chunks(path: str, advance: Advance, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """The content of a file from byte start to stop, decompressed by its suffix (.gz, .zst), in pieces."""
    try:
        with open(path, "rb") as file:
            if path.endswith(".gz"):
                yield from _gzip_chunks(file, advance)
            elif path.endswith(".zst"):
                yield from _zstd_chunks(file, advance)
            else:
                yield from _plain_chunks(file, advance, start, stop)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged or cut short ({error}); copy or download it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _plain_chunks(file: io.BufferedReader, advance: Advance, start: int, stop: int | None) -> Iterator[bytes]:
    file.seek(start)
    left = stop - start if stop is not None else None
    while chunk := file.read(CHUNK_BYTES if left is None else min(CHUNK_BYTES, left)):
        if left is not None:
            left -= len(chunk)
        advance(len(chunk))
        yield chunk


def _gzip_chunks(file: io.BufferedReader, advance: Advance) -> Iterator[bytes]:
    position = 0
    with gzip.GzipFile(fileobj=file) as content:
        while chunk := content.read(CHUNK_BYTES):
            advance(file.tell() - position)
            position = file.tell()
            yield chunk


def _zstd_chunks(file: io.BufferedReader, advance: Advance) -> Iterator[bytes]:
    """Frame by frame, because zstandard's own reader ends quietly where a file was cut short."""
    import zstandard

    frame = None
    while compressed := file.read(CHUNK_BYTES // 64):
        advance(len(compressed))
        while compressed:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            try:
                yield frame.decompress(compressed)
            except zstandard.ZstdError as error:
                raise EOFError(str(error)) from error
            compressed = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("the last frame does not end")
