"""Documents -> token stores, by several processes, continued where it was interrupted.

The documents, in order, are cut into units of a few megabytes. A unit becomes a part: a small token
store in PREFIX.parts/ that carries a hash of its text and settings, so a later call keeps the parts
that are whole and still right. Parts then become shards PREFIX-00000.h5, ..., which get their
names only when all are written and PREFIX.json lists them.
"""
import collections
import concurrent.futures
import json
import multiprocessing
import os
import shutil
import signal
import threading
from pathlib import Path

import numpy as np
import xxhash
from tqdm import tqdm

from . import UserError
from .documents import find_files, read_documents
from .store import Store, sync_and_rename, write_store
from .vocabulary import Vocabulary

UNIT_CHARS = 4_000_000


class InThisProcess(concurrent.futures.Executor):
    """Runs each call at once: for one worker, and so that small inputs start quickly."""

    def submit(self, function, /, *args, **kwargs):
        future = concurrent.futures.Future()
        future.set_result(function(*args, **kwargs))
        return future


_vocabulary = None  # of a worker process


def load_vocabulary(vocabulary_args):
    global _vocabulary
    _vocabulary = Vocabulary(*vocabulary_args)


def start_worker(vocabulary_args):
    def end_with_parent():  # a killed parent would leave workers waiting for ever
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    load_vocabulary(vocabulary_args)


def make_pool(workers, vocabulary_args):
    if workers == 1:
        load_vocabulary(vocabulary_args)
        return InThisProcess()
    return concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), start_worker, (vocabulary_args,))


def tokenize_unit(part, key, source, texts):
    """Writes one part and returns its number of tokens."""
    documents = [np.array(_vocabulary.encode_document(t), np.int64) for t in texts]
    offsets = np.cumsum([0] + [len(d) for d in documents])
    write_store(part, np.concatenate(documents), offsets, _vocabulary, source, unit=key)
    return int(offsets[-1])


def finished_part(part, key):
    """Number of tokens of a part that is already there, whole, and of this text; else None."""
    try:
        store = Store(part)
        if store.attributes.get("unit") == key and store.is_whole():
            return int(store.offsets[-1])
    except (OSError, KeyError):
        pass  # absent or torn: made again
    return None


def read_units(files, field, bar):
    """Lists of texts, each a work unit. Empty documents are left out."""
    texts, chars = [], 0
    for file in files:
        before = 0
        for document in read_documents(file, field):
            bar.update(document.bytes_read - before)
            before = document.bytes_read
            if document.text.strip():
                texts.append(document.text)
                chars += len(document.text)
            if chars >= UNIT_CHARS:
                yield texts
                texts, chars = [], 0
    if texts:
        yield texts


def unit_key(texts, settings_key):
    digest = xxhash.xxh3_64(settings_key)
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def make_parts(options, files, vocabulary_args, settings_key, parts):
    """All parts, in order, as paths. Without shuffling stops when the token limit is reached."""
    pool = make_pool(options.workers, vocabulary_args)
    try:
        return fill_parts(pool, options, files, settings_key, parts)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def fill_parts(pool, options, files, settings_key, parts):
    limit = options.limit_tokens if options.shuffle is None else None
    paths, pending, num_tokens, kept = [], collections.deque(), 0, 0
    total = sum(f.stat().st_size for f in files)
    with tqdm(total=total, unit="B", unit_scale=True, desc=options.source,
              disable=None) as bar:
        for index, texts in enumerate(read_units(files, options.field, bar)):
            path = parts / f"part-{index:06d}.h5"
            key = unit_key(texts, settings_key)
            known = finished_part(path, key)
            paths.append(path)
            kept += known is not None
            pending.append(known if known is not None else
                           pool.submit(tokenize_unit, path, key, options.source, texts))
            while pending and (len(pending) > 2 * options.workers or isinstance(pending[0], int)):
                num_tokens += count(pending.popleft())
                bar.set_postfix_str(f"{num_tokens:,} tokens")
            if limit is not None and num_tokens >= limit:
                break
        num_tokens += sum(count(p) for p in pending)
    if kept:
        print(f"{options.out}: kept {kept} of {len(paths)} parts of an earlier call")
    return paths


def count(result):
    return result if isinstance(result, int) else result.result()


def documents_in_order(paths, shuffle, limit):
    """Arrays of ids, one a document; the last one is cut where the limit is reached."""
    stores = [Store(p) for p in paths]
    order = [(s, d) for s, store in enumerate(stores) for d in range(len(store))]
    if shuffle is not None:
        order = [order[i] for i in np.random.default_rng(shuffle).permutation(len(order))]
    num_tokens = 0
    for store_idx, document_idx in order:
        ids = stores[store_idx].document(document_idx)
        if limit is not None and num_tokens + len(ids) > limit:
            ids[limit - num_tokens - 1] = ids[-1]  # EOS
            ids = ids[:limit - num_tokens]
        num_tokens += len(ids)
        yield ids
        if limit is not None and num_tokens >= limit:
            return


def write_shards(options, paths, vocabulary, folder):
    """Shards in `folder`, under their final names; a shard holds at least one document."""
    shards, documents = [], []

    def flush():
        name = f"{Path(options.out).name}-{len(shards):05d}.h5"
        offsets = np.cumsum([0] + [len(d) for d in documents])
        write_store(folder / name, np.concatenate(documents), offsets, vocabulary, options.source)
        shards.append({"file": name, "num_tokens": int(offsets[-1]),
                       "num_documents": len(documents)})
        documents.clear()

    size = 0
    for ids in documents_in_order(paths, options.shuffle, options.limit_tokens):
        if documents and size + len(ids) > options.shard_tokens:
            flush()
            size = 0
        documents.append(ids)
        size += len(ids)
    flush()
    return shards


def settings_of(options, files, vocabulary):
    return {"inputs": [[str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in files],
            "field": options.field, "source": options.source, "tokenizer_hash": vocabulary.hash,
            "vocab_size": vocabulary.size, "eos_id": vocabulary.eos, "bos_id": vocabulary.bos,
            "shard_tokens": options.shard_tokens, "limit_tokens": options.limit_tokens,
            "shuffle": options.shuffle}


def put_in_place(prefix, shards, parts):
    """Moves shards out of the parts folder; true if all are now where they belong."""
    for shard in shards:
        made, final = parts / shard["file"], prefix.parent / shard["file"]
        if made.exists():
            os.replace(made, final)
        if not final.exists():
            return False
    shutil.rmtree(parts, ignore_errors=True)
    return True


def report(prefix, shards, note=""):
    for shard in shards:
        print(f"{prefix.parent / shard['file']}: {shard['num_documents']:,} documents, "
              f"{shard['num_tokens']:,} tokens{note}")


def prepare_tokens(options):
    files = find_files(options.inputs)
    vocabulary_args = (options.tokenizer, options.eos, options.bos)
    vocabulary = Vocabulary(*vocabulary_args)
    settings = settings_of(options, files, vocabulary)
    prefix = Path(options.out)
    prefix.parent.mkdir(parents=True, exist_ok=True)
    listing, parts = prefix.with_name(prefix.name + ".json"), prefix.with_name(
        prefix.name + ".parts")

    listed = json.loads(listing.read_text()) if listing.exists() else {}
    if listed.get("settings") == settings:
        if put_in_place(prefix, listed["shards"], parts):
            return report(prefix, listed["shards"], " (already complete)")
    elif existing := sorted(prefix.parent.glob(f"{prefix.name}-[0-9]*.h5")):
        raise UserError(f"{existing[0]}: made from other inputs or options; delete "
                        f"{prefix}-*.h5 and {listing}, or choose another --out")

    parts.mkdir(exist_ok=True)
    part_settings = [vocabulary.hash, vocabulary.size, vocabulary.eos, vocabulary.bos]
    paths = make_parts(options, files, vocabulary_args, repr(part_settings).encode(), parts)
    if not paths:
        raise UserError(f"{files[0]}: expected documents with text, found none")
    shards = write_shards(options, paths, vocabulary, parts)
    temporary = parts / listing.name
    temporary.write_text(json.dumps({"settings": settings, "shards": shards}, indent=1) + "\n")
    sync_and_rename(temporary, listing)
    put_in_place(prefix, shards, parts)
    return report(prefix, shards)
