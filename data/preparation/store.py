"""Token stores: HDF5 files of token ids and document offsets. FORMAT.md has the bytes."""
import os
from pathlib import Path

import h5py
import numpy as np
import xxhash

from . import UserError

FORMAT = "sala-token-store"
CHUNK_ELEMENTS = 65536


def token_dtype(vocab_size):
    return np.dtype("<u2") if vocab_size <= 65536 else np.dtype("<u4")


def checksum(tokens, offsets):
    digest = xxhash.xxh3_64(np.ascontiguousarray(tokens))
    digest.update(np.ascontiguousarray(offsets))
    return digest.hexdigest()


def sync_and_rename(temporary, path):
    """Gives a finished file its name, so that no half-written file ever has it."""
    for target in (temporary, Path(path).parent):
        handle = os.open(target, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    os.replace(temporary, path)


def write_store(path, tokens, offsets, vocabulary, source, **extra):
    """tokens: (num_tokens,) ids; offsets: (num_documents + 1,) from 0 to num_tokens."""
    if len(tokens) and int(tokens.max()) >= vocabulary.size:
        raise UserError(f"{vocabulary.folder}: the tokenizer gave id {int(tokens.max())}, "
                        f"config.json's vocab_size is {vocabulary.size}")
    tokens = np.ascontiguousarray(tokens, token_dtype(vocabulary.size))
    offsets = np.ascontiguousarray(offsets, "<i8")
    temporary = f"{path}.tmp"
    with h5py.File(temporary, "w") as file:
        for name, data in (("tokens", tokens), ("document_offsets", offsets)):
            chunk = (min(len(data), CHUNK_ELEMENTS),) if len(data) else None
            file.create_dataset(name, data=data, chunks=chunk)
        file.attrs.update({
            "format": FORMAT, "vocab_size": np.int64(vocabulary.size),
            "eos_id": np.int64(vocabulary.eos), "tokenizer_hash": vocabulary.hash,
            "source": source, "num_tokens": np.int64(len(tokens)),
            "num_documents": np.int64(len(offsets) - 1), "xxh3": checksum(tokens, offsets),
            **extra})
    sync_and_rename(temporary, path)


class Store:
    """A store opened for reading. `is_whole` compares the data with their checksum."""

    def __init__(self, path):
        self.file = h5py.File(path, "r")
        self.tokens = self.file["tokens"]
        self.offsets = self.file["document_offsets"][:]
        self.attributes = dict(self.file.attrs)

    def is_whole(self):
        return self.attributes.get("xxh3") == checksum(self.tokens[:], self.offsets)

    def document(self, index):
        return self.tokens[self.offsets[index]:self.offsets[index + 1]]

    def __len__(self):
        return len(self.offsets) - 1
