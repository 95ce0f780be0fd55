"""Megatron's indexed data sets: PREFIX.bin holds ids end to end, PREFIX.idx where sequences begin
and which of them are a document. The index, little-endian:

    "MMIDIDX\\0\\0", u64 version 1, u8 code of the ids' type, u64 S sequences, u64 D + 1
    i32 (S)      length of each sequence, in ids
    i64 (S)      where it begins in PREFIX.bin, in bytes
    i64 (D + 1)  first sequence of each document; begins with 0, ends with S
    i8  (S)      mode of each sequence; only in multimodal sets, which are refused

as megatron/core/datasets/indexed_dataset.py of NVIDIA/Megatron-LM writes it."""
import struct
from pathlib import Path

import numpy as np

from . import UserError

MAGIC = b"MMIDIDX\0\0"
OLDER_MAGIC = b"TNTIDX\0\0"
HEADER = struct.Struct("<9sQBQQ")
VERSION = 1
DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
FLOATS = (6, 7)
CHECKED_AT_ONCE = 1 << 20  # sequences


def bin_of(index):
    return index.with_suffix(".bin")


def index_of(path):
    """The index of PREFIX.bin, or of PREFIX, as Megatron names a pair; else the path itself."""
    index = path.with_suffix(".idx") if path.suffix == ".bin" else Path(f"{path}.idx")
    return index if index.exists() and (path.suffix == ".bin" or not path.exists()) else path


def read_header(path):
    """(type of the ids, S, D + 1) of an index whose size is right."""
    with open(path, "rb") as file:
        header = file.read(HEADER.size)
    if header.startswith(OLDER_MAGIC):
        raise UserError(f"{path}: an index of the older kind (TNTIDX); Megatron's preprocess_data "
                        "with --dataset-impl mmap makes the kind that is read here")
    if len(header) < HEADER.size or not header.startswith(MAGIC):
        raise UserError(f"{path}: expected the index of a Megatron data set, which begins with "
                        f"MMIDIDX, found {header[:9]!r}")
    _, version, code, num_sequences, num_borders = HEADER.unpack(header)
    if version != VERSION:
        raise UserError(f"{path}: expected version {VERSION} of Megatron's index, found {version}")
    if code not in DTYPES:
        what = "numbers that are no ids" if code in FLOATS else "an unknown code"
        raise UserError(f"{path}: expected a type of ids (codes {sorted(DTYPES)}), found {code}, "
                        f"{what}")
    check_size(path, num_sequences, num_borders)
    return np.dtype(DTYPES[code]), num_sequences, num_borders


def check_size(path, num_sequences, num_borders):
    expected = HEADER.size + 12 * num_sequences + 8 * num_borders
    found = path.stat().st_size
    if found == expected + num_sequences and num_sequences:
        raise UserError(f"{path}: is of a multimodal data set (it has modes); only text is read")
    if found != expected:
        raise UserError(f"{path}: expected {expected:,} bytes for its {num_sequences:,} sequences "
                        f"and {num_borders:,} borders of documents, the file has {found:,}; it "
                        "was cut off or damaged")


class IndexedDataSet:
    """A pair of files, mapped and checked. Index d in 0..len - 1 is a document."""

    def __init__(self, path):
        self.path, self.bin = path, bin_of(path)
        if not self.bin.exists():
            raise UserError(f"{self.bin}: no such file, though {path.name} is there; copy both")
        dtype, num_sequences, num_borders = read_header(path)
        if not num_sequences or num_borders < 2:
            raise UserError(f"{path}: expected documents, found none")
        data = np.memmap(path, np.uint8, "r")[HEADER.size:]
        self.lengths = data[:4 * num_sequences].view("<i4")
        self.begins = data[4 * num_sequences:12 * num_sequences].view("<i8")
        self.borders = data[12 * num_sequences:].view("<i8")
        self.check_sequences(dtype.itemsize)
        self.check_borders()
        self.ids = np.memmap(self.bin, dtype, "r") if self.num_ids else np.empty(0, dtype)

    def check_sequences(self, id_bytes):
        """Each begins where the one before ends, and together they are the file."""
        end = 0
        for first in range(0, len(self.lengths), CHECKED_AT_ONCE):
            lengths = self.lengths[first:first + CHECKED_AT_ONCE].astype(np.int64)
            if lengths.min() < 0:
                at = first + int(np.argmax(lengths < 0))
                raise UserError(f"{self.path}: sequence {at} has {self.lengths[at]} ids; the file "
                                "is damaged")
            expected = end + id_bytes * np.concatenate([[0], np.cumsum(lengths)])
            wrong = np.flatnonzero(self.begins[first:first + CHECKED_AT_ONCE] != expected[:-1])
            if len(wrong):
                at = first + int(wrong[0])
                raise UserError(f"{self.path}: expected sequence {at} to begin at byte "
                                f"{expected[wrong[0]]:,} of {self.bin.name}, where the one before "
                                f"ends, found {self.begins[at]:,}; the file is damaged")
            end = int(expected[-1])
        size = self.bin.stat().st_size
        if size != end:
            raise UserError(f"{self.bin}: expected {end:,} bytes, as {self.path.name} says, the "
                            f"file has {size:,}; it was cut off, or the two are not a pair")
        self.num_ids = end // id_bytes

    def check_borders(self):
        first, last = int(self.borders[0]), int(self.borders[-1])
        if first != 0 or last != len(self.lengths) or (np.diff(self.borders) < 0).any():
            raise UserError(f"{self.path}: expected the documents to begin at rising sequences "
                            f"from 0 to {len(self.lengths)}, found {first} to {last}"
                            f"{'' if first or last != len(self.lengths) else ', not rising'}; the "
                            "file is damaged")

    def __len__(self):
        return len(self.borders) - 1

    def document(self, index):
        """Ids of all its sequences, and where they end in PREFIX.bin in bytes."""
        id_bytes = self.ids.itemsize
        begin, end = (self.num_ids if s == len(self.begins) else int(self.begins[s]) // id_bytes
                      for s in self.borders[index:index + 2])
        return self.ids[begin:end], end * id_bytes
