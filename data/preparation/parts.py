"""Documents -> parts: the documents, in order, are cut into units of a few megabytes, and a unit
becomes a part, a small token store that carries a hash of its text and settings (`unit`). A later
call keeps the parts that are whole and still right."""
from typing import NamedTuple

import numpy as np
import xxhash
from tqdm import tqdm

from . import BadDocument, UserError, say
from .documents import TooShort
from .inputs import files_read
from .store import Store, write_store
from .workers import Workers

UNIT_SIZE = 4_000_000  # characters, or ids where documents are ids already


class LeftOut:
    """Counts the documents that are not in the stores: empty and short ones, bad ones by choice."""

    def __init__(self, skip_bad):
        self.skip_bad = skip_bad
        self.empty = self.short = self.bad = 0
        self.first_bad = ""

    def add_bad(self, error):
        if not self.skip_bad:
            raise BadDocument(f"{error} (--skip-bad leaves such documents out)") from error
        # A part's attribute: HDF5's strings end at a NUL and are UTF-8, which names of files and
        # what documents hold may not be.
        text = str(error).encode(errors="backslashreplace").decode().replace("\0", r"\0")
        self.first_bad = self.first_bad or text
        self.bad += 1

    def __str__(self):
        texts = [f"{self.empty:,} empty documents left out"] if self.empty else []
        if self.short:
            texts.append(f"{self.short:,} documents left out as too short for --lengths (give "
                         "smaller ones, or join documents)")
        if self.bad:
            texts.append(f"{self.bad:,} bad documents skipped, the first: {self.first_bad}")
        return "; ".join(texts)


class Part(NamedTuple):
    path: str
    key: str  # the part's attribute `unit`


def read_units(read, files, field, bar, left_out):
    """Lists of Documents, each a work unit. read(file, field): the file's Documents."""
    unit, size = [], 0
    for file in files:
        before = 0
        for document in read(file, field):
            if isinstance(document, BadDocument):
                left_out.add_bad(document)
                continue
            bar.update(document.bytes_read - before)
            before = document.bytes_read
            if document.is_empty:
                left_out.empty += 1
                continue
            if isinstance(document, TooShort):
                left_out.short += 1
                continue
            unit.append(document)
            size += len(document.content)
            if size >= UNIT_SIZE:
                yield unit
                unit, size = [], 0
    if unit:
        yield unit


def unit_key(unit, settings_key):
    digest = xxhash.xxh3_64(settings_key)
    for document in unit:
        data = document.data
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def encode_or_refuse(vocabulary, document):
    """Ids (length), or ids and mask (2, length)."""
    try:
        return np.array(vocabulary.encode_document(document.content), np.int64)
    except (KeyboardInterrupt, MemoryError, SystemExit):
        raise
    except BadDocument as error:
        raise BadDocument(f"{document.where}: {error}") from error
    except BaseException as error:  # a panic of the tokenizers library is no Exception
        raise BadDocument(f"{document.where}: the tokenizer failed on this text ({error})") \
            from error


def tokenize_unit(vocabulary, part, source, skip_bad, unit):
    """Writes one part; returns its number of tokens and the documents left out."""
    left_out, documents = LeftOut(skip_bad), []
    for document in unit:
        try:
            documents.append(encode_or_refuse(vocabulary, document))
        except BadDocument as error:
            left_out.add_bad(error)
    offsets = np.cumsum([0] + [d.shape[-1] for d in documents])
    empty = np.empty((2, 0) if vocabulary.has_mask else 0, np.int64)
    whole = np.concatenate(documents, axis=-1) if documents else empty
    ids, mask = whole if vocabulary.has_mask else (whole, None)
    write_store(part.path, ids, offsets, vocabulary, source, mask, unit=part.key,
                bad_documents=np.int64(left_out.bad), first_bad=left_out.first_bad)
    return int(offsets[-1]), left_out


def finished_part(part, skip_bad):
    """What tokenize_unit returns, of a part that is already there, whole, and of this text; else
    None."""
    try:
        with Store(part.path) as store:
            left_out = LeftOut(skip_bad)
            left_out.bad = int(store.attributes["bad_documents"])
            left_out.first_bad = store.attributes["first_bad"]
            right = store.attributes["unit"] == part.key and (skip_bad or not left_out.bad)
            return (int(store.offsets[-1]), left_out) if right and store.is_whole() else None
    except (OSError, KeyError, IndexError, RuntimeError):
        return None  # absent or torn: made again


class Tally:
    """What all units together gave."""

    def __init__(self, skip_bad):
        self.num_tokens, self.left_out = 0, LeftOut(skip_bad)

    def add(self, result):
        num_tokens, left_out = result
        self.num_tokens += num_tokens
        self.left_out.bad += left_out.bad
        self.left_out.first_bad = self.left_out.first_bad or left_out.first_bad


def make_parts(options, read, files, make_vocabulary, settings_key, folder):
    """All parts, in order, and a LeftOut. Without shuffling stops when the token limit is
    reached."""
    limit = options.limit_tokens if options.shuffle is None else None
    tally, parts, num_kept = Tally(options.skip_bad), [], 0
    total = sum(f.stat().st_size for f in files_read(files))
    with Workers(options.workers, tokenize_unit, make_vocabulary, tally.add) as workers, \
            tqdm(total=total, unit="B", unit_scale=True, desc=options.source, disable=None) as bar:
        for unit in read_units(read, files, options.field, bar, tally.left_out):
            part = Part(str(folder / f"part-{len(parts):06d}.h5"), unit_key(unit, settings_key))
            parts.append(part)
            known = finished_part(part, options.skip_bad)
            if known:
                num_kept += 1
                tally.add(known)
            else:
                workers.give(part, options.source, options.skip_bad, unit)
            bar.set_postfix_str(f"{tally.num_tokens:,} tokens")
            if limit is not None and tally.num_tokens >= limit:
                break
        workers.finish()
    if num_kept:
        say(f"{options.out}: kept {num_kept} of {len(parts)} parts of an earlier call")
    if not tally.num_tokens:
        why = f" ({tally.left_out})" if str(tally.left_out) else ""
        raise UserError(f"{files[0]}: expected documents with text, found none{why}")
    return parts, tally.left_out
