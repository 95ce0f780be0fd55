"""Documents that are token ids already -> token stores.

Ids say nothing of the tokenizer that made them, so the call names it, every id has to be in its
vocabulary, and the text of the first documents is tokenized again: the share of ids that this gives
is said, for people to judge."""
import functools
import itertools
from difflib import SequenceMatcher

import numpy as np

from . import BadDocument, say
from .inputs import find_files
from .tokenized import TokenizedDocument, read_tokenized
from .tokens import prepare_stores
from .vocabulary import Vocabulary

LOOKED_AT = 50  # documents that are tokenized again
LOOKED_AT_IDS = 1000  # of each
FITS = 0.98
SHOWN = 60  # characters of the first text


class IdsVocabulary(Vocabulary):
    """Documents are ids; BOS, if asked for, and EOS are put where they are not."""

    def __init__(self, folder, eos, bos, split_at_eos):
        super().__init__(folder, eos, bos, special_tokens=True)
        self.more_settings = {"split_at_eos": split_at_eos}

    def encode_document(self, ids):
        if ids.min() < 0 or ids.max() >= self.size:
            at = int(np.argmax((ids < 0) | (ids >= self.size)))
            raise BadDocument(f"id {ids[at]} at position {at} is not in the vocabulary of "
                              f"{self.folder}, which has {self.size:,}: another tokenizer's?")
        start = [] if self.bos is None or ids[0] == self.bos else [self.bos]
        end = [] if ids[-1] == self.eos else [self.eos]
        return np.concatenate([np.array(part, np.int64) for part in (start, ids, end)])


def split_after(ids, end):
    """Pieces that end with `end`, but for what comes behind the last."""
    ends = np.flatnonzero(ids == end) + 1
    return [piece for piece in np.split(ids, ends) if len(piece)]


class Reader:
    """Reads documents as they are to be stored, and counts how they end."""

    def __init__(self, eos, split_at_eos):
        self.eos, self.split_at_eos = eos, split_at_eos
        self.by_file = {}  # a file that is read again is counted again, not twice

    def __call__(self, path, field):
        self.by_file[path] = counts = {"documents": 0, "without": 0, "inside": 0, "last": set()}
        for document in read_tokenized(path, field):
            if isinstance(document, BadDocument) or document.is_empty:
                yield document
                continue
            pieces = split_after(document.ids, self.eos) if self.split_at_eos else [document.ids]
            for ids in pieces:
                self.count(counts, ids)
                yield TokenizedDocument(ids, document.where, document.bytes_read)

    def count(self, counts, ids):
        counts["documents"] += 1
        counts["inside"] += bool((ids[:-1] == self.eos).any())
        if ids[-1] != self.eos:
            counts["without"] += 1
            if len(counts["last"]) < 2:
                counts["last"].add(int(ids[-1]))

    def say_what_was_found(self):
        total = {key: sum(c[key] for c in self.by_file.values())
                 for key in ("documents", "without", "inside")}
        last = set().union(*(c["last"] for c in self.by_file.values()))
        if total["without"]:
            same = (f"; all of these end with {last.pop()}: if that is their EOS, name it with "
                    "--eos" if len(last) == 1 and total["without"] > 1 else "")
            say(f"{total['without']:,} of {total['documents']:,} documents ended without EOS "
                f"({self.eos}), which was added{same}")
        if total["inside"]:
            say(f"{total['inside']:,} of {total['documents']:,} documents have EOS ({self.eos}) "
                "inside; --split-at-eos ends a document there")


def say_how_well_it_fits(vocabulary, documents):
    """How the first document begins, and how many of the first ids are what the tokenizer makes of
    their text. (Of ids that mean other tokens it makes most again, but not nearly all.)"""
    texts, same, total = [], 0, 0
    for document in documents:
        ids = document.ids[:LOOKED_AT_IDS].tolist()
        if ids and min(ids) >= 0 and max(ids) < vocabulary.size:
            texts.append(vocabulary.tokenizer.decode(ids, skip_special_tokens=False))
            again = vocabulary.encode(texts[-1])
            blocks = SequenceMatcher(None, ids, again, autojunk=False).get_matching_blocks()
            same, total = same + sum(block.size for block in blocks), total + len(ids)
    if total:
        doubt = "" if same > FITS * total else ": were they made with another tokenizer?"
        say(f"{vocabulary.folder}: tokenizes the text of the first {total:,} ids to "
            f"{same / total:.1%} of them{doubt}; it begins {texts[0][:SHOWN]!r}")


def prepare_ids(options):
    files, skipped = find_files(options.inputs, kinds=("megatron", "arrow", "parquet", "json"))
    make_vocabulary = functools.partial(IdsVocabulary, options.tokenizer, options.eos, options.bos,
                                        options.split_at_eos)
    vocabulary = make_vocabulary()
    first = itertools.islice(read_tokenized(files[0], options.field), LOOKED_AT)
    say_how_well_it_fits(vocabulary, [d for d in first if not isinstance(d, BadDocument)])
    read = Reader(vocabulary.eos, options.split_at_eos)
    prepare_stores(options, files, skipped, read, make_vocabulary)
    read.say_what_was_found()
