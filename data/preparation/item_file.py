"""The JSON files of needle sets and multiple-choice sets. FORMAT.md has their fields."""
import json
from pathlib import Path

from . import UserError
from .atomic_file import refuse_special, write_atomically


class ItemFile:
    """A file of one format, to be made. One that is there is replaced only if it is of the same
    format: an --out by mistake must not cost somebody's file."""

    def __init__(self, path, format_name):
        self.path, self.format = Path(path).resolve(), format_name
        refuse_special(self.path)
        if self.path.exists():
            with open(self.path, "rb") as file:
                start = file.read(len(self.start()))
            if start != self.start():
                raise UserError(f"{path}: is there already and no file of format {format_name}; "
                                "delete it or choose another --out")

    def start(self):
        return f'{{"format": "{self.format}"'.encode()

    def write(self, vocabulary, items, **more):
        content = {"format": self.format, "tokenizer_hash": vocabulary.hash,
                   "vocab_size": vocabulary.size,
                   "special_tokens": vocabulary.special_tokens_are, **more, "items": items}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, (json.dumps(content, ensure_ascii=False) + "\n").encode())
