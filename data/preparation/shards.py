"""Parts -> shards: which document goes where, decided from lengths alone, then copied. One part is
open at a time, so their number is not limited by that of open files."""
from typing import NamedTuple

import numpy as np

from . import UserError
from .store import Store, token_dtype, write_store


class Documents(NamedTuple):
    """Arrays over the documents in the order of the store."""
    part: np.ndarray    # which part holds it
    start: np.ndarray   # of its first id, in the part
    length: np.ndarray  # of what is taken of it; the last one may be cut


def open_part(part):
    """The part, which must be the one that this plan made."""
    store = Store(part.path)
    if store.attributes.get("unit") != part.key:
        raise UserError(f"{part.path}: was changed while shards were made of it; nothing else may "
                        "write here: call again")
    return store


def documents_in_order(parts, shuffle, limit):
    starts, lengths, numbers = [], [], []
    for part in parts:
        with open_part(part) as store:
            starts.append(store.offsets[:-1])
            lengths.append(np.diff(store.offsets))
        numbers.append(len(starts[-1]))
    documents = Documents(np.repeat(np.arange(len(parts)), numbers), np.concatenate(starts),
                          np.concatenate(lengths))
    if shuffle is not None:
        order = np.random.default_rng(shuffle).permutation(len(documents.length))
        documents = Documents(*(values[order] for values in documents))
    ends = np.cumsum(documents.length)
    if limit is not None and ends[-1] > limit:
        last = int(np.searchsorted(ends, limit))
        documents = Documents(*(values[:last + 1] for values in documents))
        documents.length[last] -= ends[last] - limit
    return documents


def shard_ranges(lengths, shard_tokens):
    """(begin, end) of each shard's documents: as many as fit, at least one."""
    ends = np.cumsum(lengths)
    begin = 0
    while begin < len(lengths):
        before = int(ends[begin - 1]) if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, before + shard_tokens, side="right")))
        yield begin, end
        begin = end


def gather(parts, documents, vocabulary):
    """The ids of documents, end to end, their offsets and, where there is one, their mask. A cut one
    ends with EOS like the others."""
    offsets = np.cumsum(np.concatenate([[0], documents.length]))
    ids = np.empty(int(offsets[-1]), token_dtype(vocabulary.size))
    mask = np.empty(len(ids), np.uint8) if vocabulary.has_mask else None
    by_part = np.argsort(documents.part, kind="stable")
    for chosen in np.split(by_part, np.flatnonzero(np.diff(documents.part[by_part])) + 1):
        with open_part(parts[documents.part[chosen[0]]]) as store:
            for d in chosen:
                start, length = documents.start[d], documents.length[d]
                ids[offsets[d]:offsets[d] + length] = store.tokens[start:start + length]
                if mask is not None:
                    mask[offsets[d]:offsets[d] + length] = store.mask[start:start + length]
    ids[offsets[1:] - 1] = vocabulary.eos
    return ids, offsets, mask


def write_shards(options, parts, vocabulary, folder, name):
    """Shards in `folder`, under their final names; what the listing says of each."""
    documents = documents_in_order(parts, options.shuffle, options.limit_tokens)
    shards = []
    for begin, end in shard_ranges(documents.length, options.shard_tokens):
        file = f"{name}-{len(shards):05d}.h5"
        ids, offsets, mask = gather(parts, Documents(*(v[begin:end] for v in documents)), vocabulary)
        num_bytes, xxh3 = write_store(folder / file, ids, offsets, vocabulary, options.source,
                                      mask)
        shards.append({"file": file, "num_tokens": len(ids), "num_documents": end - begin,
                       "num_bytes": num_bytes, "xxh3": xxh3})
    return shards
