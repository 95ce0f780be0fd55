"""Reads documents, in a fixed order, from JSONL (plain, .xz, .gz, .zst), Parquet and text files."""
import gzip
import io
import json
import lzma
import zlib
from pathlib import Path
from typing import NamedTuple

from . import UserError

TEXT_SUFFIXES = {".txt", ".md", ".rst"}
JSON_SUFFIXES = {".jsonl", ".json", ".ndjson"}
COMPRESSED_SUFFIXES = {".xz", ".gz", ".zst"}


class Document(NamedTuple):
    text: str
    where: str  # file:line, file (row N) or file
    bytes_read: int  # of its file, compressed: for the progress bar


def find_files(inputs):
    """The files behind the inputs; a folder stands for all text, JSONL and Parquet files in it."""
    files = []
    for path in map(Path, inputs):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file() and reader_of(p))
            if not inside:
                raise UserError(f"{path}: expected text, JSONL or Parquet files in this folder, "
                                "found none")
            files += inside
        elif not path.exists():
            raise UserError(f"{path}: no such file or folder")
        elif not reader_of(path):
            raise UserError(f"{path}: expected .jsonl (also .xz, .gz, .zst), .parquet or "
                            f"{', '.join(sorted(TEXT_SUFFIXES))}")
        else:
            files.append(path)
    return files


def reader_of(path):
    suffixes = [s.lower() for s in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in COMPRESSED_SUFFIXES:
        suffixes.pop()
    suffix = suffixes[-1] if suffixes else ""
    if suffix in JSON_SUFFIXES:
        return read_jsonl
    if path.suffix.lower() == ".parquet":
        return read_parquet
    return read_text if path.suffix.lower() in TEXT_SUFFIXES else None


def read_documents(path, field):
    """Documents of one file, in its order."""
    return reader_of(path)(path, field)


def read_records(path):
    """(line number, JSON object, bytes read) of a JSONL file."""
    number = 0
    with open(path, "rb") as raw, decompressed(raw, path) as stream:
        try:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield number, parse_record(path, number, line), raw.tell()
        except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{path}:{number + 1}: compressed data is damaged or ends early "
                            f"({error})") from error


def parse_record(path, number, line):
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UserError(f"{path}:{number}: expected one JSON object a line ({error})") from error
    if not isinstance(record, dict):
        raise UserError(f"{path}:{number}: expected a JSON object, found a "
                        f"{type(record).__name__}")
    return record


def read_jsonl(path, field):
    for number, record, bytes_read in read_records(path):
        text = record.get(field)
        if not isinstance(text, str):
            raise UserError(f"{path}:{number}: expected a string in field '{field}', the line has "
                            f"the fields {sorted(record)} (--field names another)")
        yield Document(text, f"{path}:{number}", bytes_read)


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
            self.frame = zstandard.ZstdDecompressor().decompressobj()
        try:
            self.ready = self.frame.decompress(data)
        except zstandard.ZstdError as error:
            raise EOFError(str(error)) from error
        self.rest = b""
        if self.frame.eof:
            self.rest, self.frame = self.frame.unused_data, None
        return True


def decompressed(raw, path):
    suffix = path.suffix.lower()
    if suffix == ".xz":
        return lzma.LZMAFile(raw)
    if suffix == ".gz":
        return gzip.GzipFile(fileobj=raw)
    if suffix == ".zst":
        return io.BufferedReader(ZstdFile(raw), 1 << 20)
    return io.BufferedReader(raw)


def read_parquet(path, field):
    import pyarrow
    import pyarrow.parquet
    try:
        file = pyarrow.parquet.ParquetFile(path)
        if field not in file.schema_arrow.names:
            raise UserError(f"{path}: expected a column '{field}', the file has "
                            f"{file.schema_arrow.names} (--field names another)")
        row, num_rows, size = 0, file.metadata.num_rows, path.stat().st_size
        for batch in file.iter_batches(batch_size=256, columns=[field]):
            for text in batch.column(0).to_pylist():
                row += 1
                if not isinstance(text, str):
                    raise UserError(f"{path} (row {row}): expected a string in column '{field}', "
                                    f"found {type(text).__name__}")
                yield Document(text, f"{path} (row {row})", size * row // num_rows)
    except (pyarrow.ArrowException, OSError) as error:
        line = str(error).splitlines()[0]
        raise UserError(f"{path}: expected a Parquet file ({line})") from error


def read_text(path, field):
    del field  # a text file is one document
    data = path.read_bytes()
    try:
        yield Document(data.decode("utf-8"), str(path), len(data))
    except UnicodeDecodeError as error:
        line = data[:error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: expected UTF-8 ({error.reason})") from error
