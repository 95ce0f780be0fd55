"""Documents -> token stores, by several processes, continued where it was interrupted.

Parts (parts.py) are made in PREFIX.parts/, then shards of them (shards.py). Shards get their names
PREFIX-00000.h5, ... only when all are written and PREFIX.json, the listing, names them. PREFIX.lock
keeps a second call out meanwhile.
"""
import functools
import json
import os
import re
import shutil
from pathlib import Path

import xxhash
from tqdm import tqdm

from . import UserError, say
from .atomic_file import sync, write_atomically
from .documents import listed, read_documents
from .inputs import files_read, find_files
from .lock import Lock
from .parts import LeftOut, make_parts, read_units, unit_key
from .shards import write_shards
from .store import Store
from .vocabulary import Vocabulary

PLAN = "plan"  # in PREFIX.parts/: that the folder is ours
PLAN_TEXT = b"parts of token stores that data/prepare is making\n"


class Output:
    """The files that one --out stands for."""

    def __init__(self, out):
        self.prefix = Path(out)
        if not self.prefix.name or self.prefix.name == "..":
            raise UserError(f"--out {out}: expected a prefix of file names, such as stores/books")
        if str(out).endswith("/"):  # without it a folder of that name may stand beside the files
            raise UserError(f"--out {out}: names a folder, expected a prefix of file names; for "
                            f"files in that folder say {self.prefix / 'NAME'}")
        self.folder, self.name = self.prefix.parent, self.prefix.name
        self.listing = self.beside(".json")
        self.parts = self.beside(".parts")
        self.lock = self.beside(".lock")

    def beside(self, ending):
        return self.prefix.with_name(self.name + ending)

    def shards(self):
        """Files that have the name of a shard: en-00000.h5 of `en`, not en-2024-00000.h5."""
        pattern = re.compile(re.escape(self.name) + r"-[0-9]{5,}\.h5")
        return sorted(n for n in os.listdir(self.folder) if pattern.fullmatch(n))

    def make_folder(self):
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {self.prefix}: cannot make the folder {self.folder}: "
                            f"{error.strerror}") from error

    def read_listing(self):
        """What PREFIX.json says; {} if there is none."""
        try:
            content = json.loads(self.listing.read_bytes())
        except FileNotFoundError:
            return {}
        except (ValueError, RecursionError):
            content = None
        if not (isinstance(content, dict) and isinstance(content.get("settings"), dict)
                and isinstance(content.get("shards"), list)
                and all(isinstance(s, dict) and "file" in s for s in content["shards"])):
            raise UserError(
                f"{self.listing}: expected the listing of a token store, found something else or a "
                f"damaged one; choose another --out, or, if it is one, delete it and "
                f"{self.prefix}-*.h5 and call again")
        return content

    def is_complete(self, listing):
        """True if the shards that are named are there and the ones that were written."""
        for shard in listing["shards"]:
            file = self.folder / shard["file"]
            try:
                if file.stat().st_size != shard.get("num_bytes"):
                    return False
                with Store(file) as store:
                    if store.attributes.get("xxh3") != shard.get("xxh3"):
                        return False
            except (OSError, KeyError, RuntimeError):
                return False
        return True

    def begin_parts(self):
        """Makes PREFIX.parts/, or takes over what an earlier call left, never someone else's."""
        plan = self.parts / PLAN
        if not os.path.lexists(self.parts):
            self.parts.mkdir()
        elif self.parts.is_symlink() or not self.parts.is_dir() or (
                any(self.parts.iterdir()) and not plan.exists()):
            raise UserError(f"{self.parts}: is in the way and was not made by data/prepare; move "
                            "it or choose another --out")
        if not plan.exists():
            write_atomically(plan, PLAN_TEXT)
        for left in self.parts.glob("*.tmp"):  # of a killed writer
            left.unlink()

    def put_in_place(self, listing):
        """Moves shards out of the parts folder, if they are there."""
        for shard in listing["shards"]:
            made = self.parts / shard["file"]
            if made.exists():
                os.replace(made, self.folder / shard["file"])
        sync(self.folder)

    def remove_parts(self):
        if (self.parts / PLAN).exists():
            shutil.rmtree(self.parts, ignore_errors=True)


def settings_of(options, vocabulary):
    """All that decides what the store holds, but the inputs."""
    return {"field": options.field, "source": options.source, "tokenizer_hash": vocabulary.hash,
            "vocab_size": vocabulary.size, "eos_id": vocabulary.eos, "bos_id": vocabulary.bos,
            "special_tokens": vocabulary.special_tokens_are, "skip_bad": options.skip_bad,
            "shard_tokens": options.shard_tokens, "limit_tokens": options.limit_tokens,
            "shuffle": options.shuffle, **vocabulary.more_settings}


def inputs_of(files):
    return [[str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in files_read(files)]


def hash_of(keys):
    digest = xxhash.xxh3_64()
    for key in keys:
        digest.update(key.encode())
    return digest.hexdigest()


class Plan:
    """What a call is to make, and whether a listing is of the same."""

    def __init__(self, options, read, files, vocabulary):
        self.options, self.read, self.files = options, read, files
        self.settings = settings_of(options, vocabulary)
        self.inputs = inputs_of(files)
        of_part = ("tokenizer_hash", "vocab_size", "eos_id", "bos_id", "special_tokens",
                   *vocabulary.more_settings)
        self.part_settings = repr([self.settings[name] for name in of_part]).encode()

    def differences(self, listing):
        """Names of what is not as in the listing; empty if it is of this plan."""
        settings = listing["settings"]
        names = [n for n in self.settings if settings.get(n, "none") != self.settings[n]]
        same_files = listing.get("inputs") == self.inputs
        return names or ([] if same_files or self.same_texts(listing) else ["inputs"])

    def same_texts(self, listing):
        """Inputs that were moved or touched count as the same if their documents are: then they
        are read again, not tokenised."""
        inputs, texts = listing.get("inputs"), listing.get("texts")
        sizes = [size for _, size, _ in self.inputs]
        if not isinstance(inputs, list) or not texts or [i[1] for i in inputs] != sizes:
            return False
        keys = []
        for unit in read_units(self.read, self.files, self.options.field, tqdm(disable=True),
                               LeftOut(self.options.skip_bad)):
            keys.append(unit_key(unit, self.part_settings))
            if self.options.limit_tokens is not None and len(keys) == texts["units"]:
                break
        return {"units": len(keys), "xxh3": hash_of(keys)} == texts

    def check_unchanged(self):
        for before, after in zip(self.inputs, inputs_of(self.files)):
            if before != after:
                raise UserError(f"{before[0]}: was changed while it was read; call again when it "
                                "is finished")


def report(output, listing, note=""):
    for shard in listing["shards"]:
        say(f"{output.folder / shard['file']}: {shard['num_documents']:,} documents, "
            f"{shard['num_tokens']:,} tokens{note}")
    if listing.get("left_out"):
        say(f"{output.prefix}: {listing['left_out']}")


def finished(output, plan):
    """The listing of a store that is complete and of this plan, else None. Refuses another's."""
    listing = output.read_listing()
    if listing and not (differences := plan.differences(listing)):
        return listing if output.is_complete(listing) else None
    existing = output.shards() if output.folder.is_dir() else []
    if existing:
        what = f"in {listed(differences)}" if listing else "or unlisted"
        raise UserError(f"{output.folder / existing[0]}: made from other inputs or options ({what}"
                        f"); delete {output.prefix}-?????.h5 and {output.listing}, or choose "
                        "another --out")
    return None


def make_store(output, plan, vocabulary, make_vocabulary):
    output.begin_parts()
    parts, left_out = make_parts(plan.options, plan.read, plan.files, make_vocabulary,
                                 plan.part_settings, output.parts)
    shards = write_shards(plan.options, parts, vocabulary, output.parts, output.name)
    plan.check_unchanged()
    listing = {"settings": plan.settings, "inputs": plan.inputs,
               "texts": {"units": len(parts), "xxh3": hash_of(part.key for part in parts)},
               "left_out": str(left_out), "shards": shards}
    write_atomically(output.listing, (json.dumps(listing, indent=1) + "\n").encode())
    output.put_in_place(listing)
    return listing


def prepare_tokens(options):
    files, skipped = find_files(options.inputs)
    prepare_stores(options, files, skipped, read_documents,
                   functools.partial(Vocabulary, options.tokenizer, options.eos, options.bos,
                                     options.special_tokens))


def prepare_stores(options, files, skipped, read, make_vocabulary):
    """Stores of the documents that read(file, field) finds in the files."""
    output = Output(options.out)
    if skipped.reasons:
        say(f"skipped: {skipped}")
    vocabulary = make_vocabulary()
    plan = Plan(options, read, files, vocabulary)
    if listing := finished(output, plan):
        return report(output, listing, " (already complete)")
    output.make_folder()
    with Lock(output.lock, output.prefix):
        listing = output.read_listing()
        if listing and output.parts.is_dir() and not plan.differences(listing):
            output.put_in_place(listing)  # a call that was killed while it did
        if not (listing := finished(output, plan)):
            listing = make_store(output, plan, vocabulary, make_vocabulary)
        output.remove_parts()
    return report(output, listing)
