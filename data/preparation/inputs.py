"""Which files the inputs stand for. A folder stands for the documents in it, and what lies there
for other reasons (caches, checkpoints of editors, a data set's card) is left out and said."""
import os
import stat
from pathlib import Path

from . import UserError
from .megatron import bin_of, index_of
from .saved_data_set import arrow_names

TEXT_SUFFIXES = {".txt", ".md", ".rst"}
JSON_SUFFIXES = {".jsonl", ".json", ".ndjson"}
COMPRESSED_SUFFIXES = {".xz", ".gz", ".zst"}
OTHER_KINDS = {".parquet": "parquet", ".arrow": "arrow", ".idx": "megatron"}
# What downloaded and exported data sets carry beside their documents.
ABOUT_THE_SET = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json",
                 "metadata.json", "croissant.json"}
ABOUT_THE_SET_STEMS = {"readme", "license", "licence", "copying", "notice", "citation"}
KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device",
         stat.S_IFBLK: "a device"}
MAX_LISTED = 5


def kind_of(path):
    """'json', 'parquet', 'arrow', 'megatron', 'text' or None, by the name."""
    suffixes = [s.lower() for s in path.suffixes[-2:]]
    if not suffixes:
        return None
    if suffixes[-1] in TEXT_SUFFIXES:
        return "text"
    if suffixes[-1] in OTHER_KINDS:
        return OTHER_KINDS[suffixes[-1]]
    if suffixes[-1] in COMPRESSED_SUFFIXES:
        suffixes.pop()
    return "json" if suffixes and suffixes[-1] in JSON_SUFFIXES else None


class Skipped:
    """What a search left out, by reason, for one line that says so."""

    def __init__(self):
        self.reasons = {}

    def add(self, reason, name):
        self.reasons.setdefault(reason, []).append(name)

    def __str__(self):
        texts = []
        for reason, names in self.reasons.items():
            listed = sorted(set(names))
            dots = ", ..." if len(listed) > MAX_LISTED else ""
            texts.append(f"{len(names)} {reason} ({', '.join(listed[:MAX_LISTED])}{dots})")
        return "; ".join(texts)


def is_about_the_set(path):
    if path.name.lower() in ABOUT_THE_SET:
        return True
    if path.suffix.lower() in TEXT_SUFFIXES and path.stem.lower() in ABOUT_THE_SET_STEMS:
        return True
    # The listing of a token store.
    return path.suffix == ".json" and path.with_name(f"{path.stem}-00000.h5").exists()


def identity(status):
    return status.st_dev, status.st_ino


class Search:
    """Collects files, each once, however many names and links lead to it."""

    def __init__(self, kinds):
        self.kinds = kinds
        self.files, self.skipped = [], Skipped()
        self.seen = set()

    def first_time(self, path, status):
        if identity(status) in self.seen:
            self.skipped.add("reached a second time", str(path))
            return False
        self.seen.add(identity(status))
        return True

    def add_file(self, path, status):
        if self.first_time(path, status):
            self.files.append(path)

    def add_folder(self, folder):
        """Files below the folder in the order of their names; links are followed."""
        stack = [folder]
        while stack:
            path = stack.pop()
            try:
                status = os.stat(path)
            except FileNotFoundError:
                if kind_of(path) in self.kinds:  # a link to data that is gone: not for silence
                    raise
                self.skipped.add("broken links", path.name)
                continue
            if stat.S_ISDIR(status.st_mode):
                if not self.first_time(path, status):
                    continue
                stack += reversed([path / name for name in self.names_in(path)])
            elif "megatron" in self.kinds and index_of(path) != path:
                continue  # the index stands for both
            elif is_about_the_set(path):
                self.skipped.add("about the data", path.name)
            elif kind_of(path) not in self.kinds:
                self.skipped.add("of other kinds", f"*{path.suffix}" if path.suffix else path.name)
            elif not stat.S_ISREG(status.st_mode):
                self.skipped.add("that are no files", path.name)
            else:
                self.add_file(path, status)

    def names_in(self, folder):
        """Of a folder, what is not hidden; Arrow files as the data set has them."""
        names = [n for n in sorted(os.listdir(folder)) if not self.is_hidden(n)]
        if "arrow" not in self.kinds:
            return names
        arrow = arrow_names(folder, names)
        others = [n for n in names if not n.endswith(".arrow")]
        for name in set(names).difference(others, arrow):
            self.skipped.add("not of the data set", name)
        return others + arrow

    def is_hidden(self, name):
        if name.startswith((".", "_")):  # as Spark, Hive and data-set loaders take it
            self.skipped.add("hidden", name)
            return True
        return False


def expected_kinds(kinds):
    names = {"json": ".jsonl (also .xz, .gz, .zst)", "parquet": ".parquet",
             "arrow": ".arrow (a folder of `datasets`)", "megatron": ".bin with .idx (Megatron)",
             "text": ", ".join(sorted(TEXT_SUFFIXES))}
    return ", ".join(names[kind] for kind in kinds)


def files_read(files):
    """The files, and what is read with them: of a Megatron pair both."""
    return [f for file in files
            for f in ([file, bin_of(file)] if kind_of(file) == "megatron" else [file])]


def find_files(inputs, kinds=("json", "parquet", "arrow", "text")):
    """The files behind the inputs, in order, and a Skipped. What is named itself is taken whatever
    its name; hidden files and the like are only left out inside folders. Of Megatron's pairs the
    index stands for both."""
    search = Search(kinds)
    for path in map(Path, inputs):
        path = index_of(path) if "megatron" in kinds else path
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            before = len(search.files)
            already = identity(status) in search.seen
            search.add_folder(path)
            if len(search.files) == before and not already:
                why = f" (skipped: {search.skipped})" if search.skipped.reasons else ""
                raise UserError(f"{path}: expected {expected_kinds(kinds)} in this folder, "
                                f"found none{why}")
        elif not stat.S_ISREG(status.st_mode):
            found = KINDS.get(stat.S_IFMT(status.st_mode), "something else")
            raise UserError(f"{path}: expected a file, which can be read again after an "
                            f"interruption, found {found}")
        elif kind_of(path) not in kinds:
            raise UserError(f"{path}: expected {expected_kinds(kinds)}")
        else:
            search.add_file(path, status)
    return search.files, search.skipped
