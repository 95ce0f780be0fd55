"""Reads documents that are token ids already: Megatron's data sets (megatron.py), and columns or
JSON fields of ids, as tokenizers of Hugging Face make them.

Of a row with an attention_mask only the ids count that it attends to: the others are padding."""
from typing import NamedTuple

import numpy as np

from . import BadDocument, UserError
from .documents import check_start, listed, parse_record, read_lines, type_name
from .inputs import kind_of
from .megatron import IndexedDataSet, bin_of

MASK = "attention_mask"


class TokenizedDocument(NamedTuple):
    ids: np.ndarray  # (number of ids,), of any integer type
    where: str
    bytes_read: int

    @property
    def content(self):
        return self.ids

    @property
    def data(self):
        return self.ids.astype("<i8").tobytes()

    @property
    def is_empty(self):
        return not len(self.ids)


def read_tokenized(path, field):
    """TokenizedDocuments (or BadDocuments) of one file, in its order."""
    check_start(path)
    readers = {"json": read_json_ids, "parquet": read_column_ids, "arrow": read_column_ids,
               "megatron": read_megatron}
    return readers[kind_of(path)](path, field)


def read_megatron(path, field):
    del field
    if bin_of(path).exists():
        check_start(bin_of(path))
    data_set = IndexedDataSet(path)
    # The progress bar counts both files.
    of_index = path.stat().st_size
    for index in range(len(data_set)):
        ids, end = data_set.document(index)
        yield TokenizedDocument(np.array(ids), f"{path} (document {index})",
                                end + of_index * (index + 1) // len(data_set))


def without_padding(ids, mask, where):
    if mask is None:
        return ids
    if len(mask) != len(ids):
        raise BadDocument(f"{where}: expected one number in '{MASK}' for each id, found "
                          f"{len(mask)} for {len(ids)}")
    return ids[mask != 0]


def json_numbers(record, field, where):
    """Integers of a field as an array."""
    values = record[field]
    if not isinstance(values, list) or not all(type(v) is int for v in values):
        wrong = (type_name(next(v for v in values if type(v) is not int))
                 if isinstance(values, list) else type_name(values))
        raise BadDocument(f"{where}: expected a list of ids in field '{field}', found {wrong}"
                          f"{' in it' if isinstance(values, list) else ''}")
    try:
        return np.array(values, np.int64)
    except OverflowError as error:
        raise BadDocument(f"{where}: expected ids in field '{field}', found a number of more than "
                          "64 bits") from error


def read_json_ids(path, field):
    for number, line, bytes_read in read_lines(path):
        where = f"{path}:{number}"
        try:
            record = parse_record(line, where)
            if field not in record:
                raise BadDocument(
                    f"{where}: expected a list of ids in field '{field}', the line has the fields "
                    f"{listed(sorted(record))} (--field names another)")
            ids = json_numbers(record, field, where)
            mask = json_numbers(record, MASK, where) if MASK in record else None
            yield TokenizedDocument(without_padding(ids, mask, where), where, bytes_read)
        except BadDocument as error:
            yield error


def check_id_columns(schema, path, field):
    """The column of ids and, where there is one, that of the mask."""
    from pyarrow import types
    from .columns import column_names
    names = [n for n in dict.fromkeys((field, MASK)) if n in column_names(schema, path, field)]
    for name in names:
        kind = schema.field(name).type
        is_list = (types.is_list(kind) or types.is_large_list(kind)
                   or types.is_fixed_size_list(kind))
        if not is_list or not types.is_integer(kind.value_type):
            raise UserError(f"{path}: expected lists of integers in column '{name}', found {kind}")
    return names


def row_numbers(column, row, name, where):
    """A row of a column of lists as an array."""
    values = column[row].values
    if values is None or values.null_count:
        raise BadDocument(f"{where}: expected a list of ids in column '{name}', found null"
                          f"{'' if values is None else ' in it'}")
    return values.to_numpy()


def read_column_ids(path, field):
    from .columns import read_rows
    for rows in read_rows(path, lambda schema, path: check_id_columns(schema, path, field)):
        for row in range(len(rows.columns[0])):
            where = f"{path} (row {rows.first + row})"
            try:
                ids, *mask = [row_numbers(column, row, name, where)
                              for name, column in zip((field, MASK), rows.columns)]
                ids = without_padding(ids, mask[0] if mask else None, where)
                yield TokenizedDocument(np.array(ids), where, rows.bytes_read)
            except BadDocument as error:
                yield error
