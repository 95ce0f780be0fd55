"""Compressed files as streams of bytes; what is damaged or ends early is an error."""
import gzip
import io
import lzma
import zlib

DAMAGE = (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile)
MAX_ZSTD_WINDOW = 1 << 31  # what `zstd --long=31` writes, and its own limit


class ZstdFile(io.RawIOBase):
    """Decompressed bytes of a .zst file; unlike the library's reader, an unfinished frame is an
    error."""

    def __init__(self, raw):
        self.raw, self.frame, self.rest, self.ready = raw, None, b"", b""

    def readable(self):
        return True

    def readinto(self, buffer):
        while not self.ready and self.advance():
            pass
        count = min(len(buffer), len(self.ready))
        buffer[:count], self.ready = self.ready[:count], self.ready[count:]
        return count

    def advance(self):
        import zstandard
        data = self.rest or self.raw.read(1 << 16)
        if not data:
            if self.frame is not None:
                raise EOFError("unfinished frame")
            return False
        if self.frame is None:
            decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW)
            self.frame = decompressor.decompressobj()
        try:
            self.ready = self.frame.decompress(data)
        except zstandard.ZstdError as error:
            raise EOFError(str(error)) from error
        self.rest = b""
        if self.frame.eof:
            self.rest, self.frame = self.frame.unused_data, None
        return True


def decompressed(raw, path):
    """`raw`, an open file, as the stream of bytes that its name says it holds."""
    suffix = path.suffix.lower()
    if suffix == ".xz":
        return lzma.LZMAFile(raw)
    if suffix == ".gz":
        return gzip.GzipFile(fileobj=raw)
    if suffix == ".zst":
        return io.BufferedReader(ZstdFile(raw), 1 << 20)
    return io.BufferedReader(raw)
