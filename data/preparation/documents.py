"""Reads documents, in a fixed order, from JSONL (plain, .xz, .gz, .zst), Parquet, Arrow and text
files.

A document that cannot be used comes as a BadDocument in its place, so that the caller decides
whether it ends the work. What concerns a whole file (damage, no such column) is raised."""
import codecs
import json
import re
from pathlib import Path
from typing import NamedTuple

from . import BadDocument, UserError
from .compression import DAMAGE, decompressed
from .inputs import COMPRESSED_SUFFIXES, kind_of

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
COMPRESSED_MARKS = {b"\x1f\x8b": ("gzip", ".gz"), b"\xfd7zXZ\0": ("xz", ".xz"),
                    b"\x28\xb5\x2f\xfd": ("zstd", ".zst")}
UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
SURROGATE = re.compile("[\ud800-\udfff]")
MAX_LISTED = 10
JSON_TYPES = {type(None): "null", bool: "true or false", int: "a number", float: "a number",
              str: "a string", list: "an array", dict: "an object"}


class Document(NamedTuple):
    text: str
    where: str  # file:line, file (row N) or file
    bytes_read: int  # of its file, compressed: for the progress bar

    @property
    def content(self):
        """What a vocabulary encodes."""
        return self.text

    @property
    def data(self):
        """The bytes that it is known by."""
        return self.text.encode()

    @property
    def is_empty(self):
        return not self.text.strip()


class TooShort(Document):
    """One of which nothing can be made (recall/)."""


def type_name(value):
    return JSON_TYPES.get(type(value), type(value).__name__)


def listed(names):
    dots = ", ..." if len(names) > MAX_LISTED else ""
    return ", ".join(map(str, names[:MAX_LISTED])) + dots


def check_unicode(text, where, what="the text"):
    """Half of a UTF-16 pair alone, which JSON can spell and UTF-8 cannot, is no character."""
    found = SURROGATE.search(text)
    if found:
        raise BadDocument(f"{where}: {what} has the lone surrogate \\u{ord(found[0]):04x} at "
                          f"character {found.start()}, which is no Unicode text")


def check_start(path):
    """Refuses what is not there yet, and other encodings."""
    with open(path, "rb") as file:
        start = file.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        raise UserError(f"{path}: is a git-lfs pointer, the data were not downloaded: "
                        "`git lfs pull` gets them")
    if start[:2] in UTF16_MARKS and kind_of(path) in ("json", "text"):
        raise UserError(f"{path}: expected UTF-8, found UTF-16; `iconv -f UTF-16 -t UTF-8` "
                        "converts")


def read_documents(path, field):
    """Documents (or BadDocuments) of one file, in its order."""
    check_start(path)
    if kind_of(path) in ("parquet", "arrow"):
        from .columns import read_texts  # pyarrow takes its time to load
        return read_texts(path, field)
    readers = {"json": read_jsonl, "text": read_text}
    return readers[kind_of(path)](path, field)


def check_name(path, start):
    """Refuses compressed data whose name does not say that it is."""
    if path.suffix.lower() in COMPRESSED_SUFFIXES:
        return
    for mark, (kind, suffix) in COMPRESSED_MARKS.items():
        if start.startswith(mark):
            raise UserError(f"{path}: {kind} data: name it {path.name}{suffix}")


def read_lines(path):
    """(line number, line, bytes read) of a file that may be compressed, without empty lines."""
    number = 0
    with open(path, "rb") as raw:
        if path.stat().st_size == 0 and path.suffix.lower() in COMPRESSED_SUFFIXES:
            raise UserError(f"{path}: compressed data are missing, the file is empty")
        check_name(path, raw.peek(8))
        with decompressed(raw, path) as stream:
            try:
                for number, line in enumerate(stream, 1):
                    if line.strip():
                        yield number, line, raw.tell()
            except DAMAGE as error:
                raise UserError(f"{path}:{number + 1}: compressed data is damaged or ends early "
                                f"({error})") from error


def parse_record(line, where):
    """A JSON object; a byte-order mark, which ends up inside where files were joined, is passed
    over."""
    try:
        record = json.loads(line.decode("utf-8").removeprefix("\ufeff"))
    except UnicodeDecodeError as error:
        raise BadDocument(f"{where}: expected one JSON object a line in UTF-8, byte "
                          f"{error.start} of the line is none ({error.reason})") from error
    except ValueError as error:
        raise BadDocument(f"{where}: expected one JSON object a line ({error})") from error
    except RecursionError as error:
        raise BadDocument(f"{where}: the JSON is nested too deeply") from error
    if not isinstance(record, dict):
        raise BadDocument(f"{where}: expected a JSON object, found {type_name(record)}")
    return record


def text_of(record, field, where):
    if field not in record:
        raise BadDocument(f"{where}: expected a string in field '{field}', the line has the "
                          f"fields {listed(sorted(record))} (--field names another)")
    text = record[field]
    if not isinstance(text, str):
        raise BadDocument(f"{where}: expected a string in field '{field}', found {type_name(text)}")
    check_unicode(text, where)
    return text


def read_jsonl(path, field):
    for number, line, bytes_read in read_lines(path):
        where = f"{path}:{number}"
        try:
            yield Document(text_of(parse_record(line, where), field, where), where, bytes_read)
        except BadDocument as error:
            yield error


def read_text(path, field):
    """A text file is one document; its lines end in \\n, whichever system wrote it."""
    del field
    data = Path(path).read_bytes()
    try:
        text = data.decode("utf-8").removeprefix("\ufeff").replace("\r\n", "\n")
        yield Document(text, str(path), len(data))
    except UnicodeDecodeError as error:
        line = data[:error.start].count(b"\n") + 1
        yield BadDocument(f"{path}:{line}: expected UTF-8 ({error.reason})")
