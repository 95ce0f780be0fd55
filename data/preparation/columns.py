"""Columns of Parquet files and of the Arrow streams that `datasets` saves, a batch of rows at a
time. What a damaged file holds is checked before a value of it is looked at."""
from typing import NamedTuple

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
from pyarrow import types

from . import BadDocument, UserError
from .documents import Document, listed, type_name
from .inputs import kind_of

BATCH_ROWS = 256
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"  # without it, rows may be missing


class Rows(NamedTuple):
    columns: list  # pyarrow arrays, of the columns asked for
    first: int  # number of the first row, from 1
    bytes_read: int  # of the file, about


def column_names(schema, path, field):
    """Checks that there is one such column; returns all."""
    if schema.names.count(field) != 1:
        raise UserError(f"{path}: expected a column '{field}', the file has "
                        f"{listed(schema.names)} (--field names another)")
    return schema.names


def checked(column):
    """The column; offsets that lead out of its memory are an error. That text is UTF-8 is checked
    value by value."""
    kind = column.type
    plain = {pyarrow.string(): pyarrow.binary(), pyarrow.large_string(): pyarrow.large_binary()}
    (column.view(plain[kind]) if kind in plain else column).validate(full=True)
    return column


def parquet_batches(path, choose):
    with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
        names = choose(file.schema_arrow, path)
        rows, size, num_rows = 0, path.stat().st_size, max(1, file.metadata.num_rows)
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=names):
            rows += batch.num_rows
            yield [batch.column(name) for name in names], size * rows // num_rows


def arrow_batches(path, choose):
    with pyarrow.memory_map(str(path)) as file:
        if file.read(6) == b"ARROW1":
            raise UserError(f"{path}: expected an Arrow stream, as `datasets` saves it, found the "
                            "random-access kind")
        file.seek(max(0, file.size() - len(END_OF_STREAM)))
        if file.read() != END_OF_STREAM:
            raise pyarrow.ArrowInvalid("the end of the stream is missing")
        file.seek(0)
        with pyarrow.ipc.open_stream(file) as stream:
            names = choose(stream.schema, path)
            for batch in stream:
                yield [checked(batch.column(name)) for name in names], file.tell()
        if file.tell() != file.size():
            raise pyarrow.ArrowInvalid("the stream ends before the file does")


def read_rows(path, choose):
    """Rows of the columns that choose(schema, path) names; it raises UserError where it finds none.
    Whatever pyarrow cannot read is a UserError that says how far it came."""
    batches, name = {"parquet": (parquet_batches, "a Parquet file"),
                     "arrow": (arrow_batches, "an Arrow stream")}[kind_of(path)]
    row = 0
    try:
        for columns, bytes_read in batches(path, choose):
            yield Rows(columns, row + 1, bytes_read)
            row += len(columns[0])
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:  # names may be torn
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: expected {name}; it is damaged or of a kind that is not "
                        f"supported, after row {row} ({line})") from error


def check_text_column(schema, path, field):
    names = schema.names
    if field not in names and "input_ids" in names:
        raise UserError(f"{path}: expected a column '{field}', the file has {listed(names)}; "
                        "`data/prepare ids` takes documents that are ids already")
    column_names(schema, path, field)
    kind = schema.field(field).type
    if types.is_dictionary(kind):
        kind = kind.value_type
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
            or types.is_null(kind)):
        raise UserError(f"{path}: expected strings in column '{field}', found {kind}")
    return [field]


def read_texts(path, field):
    """Documents (or BadDocuments) of a column of strings."""
    for rows in read_rows(path, lambda schema, path: check_text_column(schema, path, field)):
        for row, value in enumerate(rows.columns[0], rows.first):
            yield text_document(value, field, f"{path} (row {row})", rows.bytes_read)


def text_document(value, field, where, bytes_read):
    """One row as a Document or BadDocument."""
    try:
        text = value.as_py()
    except UnicodeDecodeError as error:
        return BadDocument(f"{where}: expected UTF-8 in column '{field}' ({error.reason})")
    if not isinstance(text, str):
        return BadDocument(f"{where}: expected a string in column '{field}', found "
                           f"{type_name(text)}")
    return Document(text, where, bytes_read)
