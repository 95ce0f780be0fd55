"""Token stores: HDF5 files of token ids and document offsets. FORMAT.md has the bytes."""
import h5py
import numpy as np
import xxhash

from . import UserError
from .atomic_file import write_atomically

FORMAT = "sala-token-store"
CHUNK_ELEMENTS = 65536


def token_dtype(vocab_size):
    return np.dtype("<u2") if vocab_size <= 65536 else np.dtype("<u4")


def checksum(tokens, offsets, mask=None):
    digest = xxhash.xxh3_64(np.ascontiguousarray(tokens))
    digest.update(np.ascontiguousarray(offsets))
    if mask is not None:
        digest.update(np.ascontiguousarray(mask))
    return digest.hexdigest()


def write_store(path, tokens, offsets, vocabulary, source, mask=None, **extra):
    """tokens: (num_tokens,) ids; offsets: (num_documents + 1,) from 0 to num_tokens; mask:
    (num_tokens,) of 0 and 1, or none. Returns the number of bytes and the checksum."""
    if len(tokens) and int(tokens.max()) >= vocabulary.size:
        raise UserError(f"{vocabulary.folder}: the tokenizer gave id {int(tokens.max())}, "
                        f"config.json's vocab_size is {vocabulary.size}")
    tokens = np.ascontiguousarray(tokens, token_dtype(vocabulary.size))
    offsets = np.ascontiguousarray(offsets, "<i8")
    datasets = {"tokens": tokens, "document_offsets": offsets}
    if mask is not None:
        datasets["loss_mask"] = mask = np.ascontiguousarray(mask, np.uint8)
    xxh3 = checksum(tokens, offsets, mask)
    # The file is made in memory: on a disk that is full, HDF5 ends the process when it closes.
    with h5py.File("store", "w", driver="core", backing_store=False) as file:
        for name, data in datasets.items():
            chunk = (min(len(data), CHUNK_ELEMENTS),) if len(data) else None
            file.create_dataset(name, data=data, chunks=chunk)
        file.attrs.update({
            "format": FORMAT, "vocab_size": np.int64(vocabulary.size),
            "eos_id": np.int64(vocabulary.eos), "tokenizer_hash": vocabulary.hash,
            "special_tokens": vocabulary.special_tokens_are,
            "source": source, "num_tokens": np.int64(len(tokens)),
            "num_documents": np.int64(len(offsets) - 1), "xxh3": xxh3, **extra})
        file.flush()
        image = file.id.get_file_image()
    write_atomically(path, image)
    return len(image), xxh3


class Store:
    """A store opened for reading. `is_whole` compares the data with their checksum."""

    def __init__(self, path):
        self.file = h5py.File(path, "r")
        self.tokens = self.file["tokens"]
        self.offsets = self.file["document_offsets"][:]
        self.mask = self.file.get("loss_mask")
        self.attributes = dict(self.file.attrs)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.file.close()

    def is_whole(self):
        mask = None if self.mask is None else self.mask[:]
        return self.attributes.get("xxh3") == checksum(self.tokens[:], self.offsets, mask)

    def document(self, index):
        return self.tokens[self.offsets[index]:self.offsets[index + 1]]

    def __len__(self):
        return len(self.offsets) - 1
