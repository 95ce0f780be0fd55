"""The HDF5 file of a set of tasks. FORMAT.md has its parts."""
import json
from pathlib import Path

import h5py
import numpy as np
import xxhash

from .. import UserError
from ..atomic_file import refuse_special, write_atomically
from ..store import CHUNK_ELEMENTS

FORMAT = "sala-tasks"


def check_out(path):
    """A file that is there is replaced only if it is of this format."""
    refuse_special(path)
    if not path.exists():
        return
    try:
        with h5py.File(path, "r") as file:
            ours = file.attrs.get("format") == FORMAT
    except OSError:
        ours = False
    if not ours:
        raise UserError(f"{path}: is there already and no file of format {FORMAT}; delete it or "
                        "choose another --out")


def end_to_end(parts):
    """(offsets, all of it) of byte strings or arrays."""
    return np.cumsum([0, *map(len, parts)]).astype("<i8")


def write_tasks(path, vocabulary, prompts, table, stop_ids):
    """prompts: [(ids as stored, what the index says of it)]; table: bytes of each id."""
    ids = [tokens for tokens, _ in prompts]
    index = {"stop_ids": stop_ids,
             "prompts": [{**facts, "xxh3": xxhash.xxh3_64_hexdigest(tokens.tobytes())}
                         for tokens, facts in prompts]}
    small = {"prompt_offsets": end_to_end(ids),
             "index": np.frombuffer(json.dumps(index).encode(), "u1"),
             "vocabulary": np.frombuffer(b"".join(table), "u1"),
             "vocabulary_offsets": end_to_end(table)}
    digest = xxhash.xxh3_64()
    for data in small.values():
        digest.update(data.tobytes())
    tokens = np.concatenate(ids)
    # The file is made in memory: on a disk that is full, HDF5 ends the process when it closes.
    with h5py.File("tasks", "w", driver="core", backing_store=False) as file:
        file.create_dataset("tokens", data=tokens, chunks=(min(len(tokens), CHUNK_ELEMENTS),))
        for name, data in small.items():
            file.create_dataset(name, data=data)
        file.attrs.update({
            "format": FORMAT, "vocab_size": np.int64(vocabulary.size),
            "tokenizer_hash": vocabulary.hash, "special_tokens": vocabulary.special_tokens_are,
            "num_prompts": np.int64(len(prompts)), "num_tokens": np.int64(len(tokens)),
            "xxh3": digest.hexdigest()})
        file.flush()
        image = file.id.get_file_image()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, image)
