"""The tokenizer of a Hugging Face folder, and documents as ids."""
import json
import os
from pathlib import Path

import xxhash

from . import UserError

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # we use processes

PIECE_CHARS = 40_000  # some tokenizers take quadratic time in the length of a text


def read_json(path):
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise UserError(f"{path}: expected JSON ({error})") from error


class Vocabulary:
    """Tokenizer with its hash, number of ids, EOS and (only if asked for) BOS."""

    def __init__(self, folder, eos=None, bos=None):
        from tokenizers import Tokenizer
        file = Path(folder) / "tokenizer.json"
        if not file.exists():
            raise UserError(f"{file}: no such file; --tokenizer names a Hugging Face folder")
        content = file.read_bytes()
        try:
            self.tokenizer = Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises nothing narrower
            raise UserError(f"{file}: expected a tokenizer ({error})") from error
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.hash = xxhash.xxh3_64_hexdigest(content)
        self.folder = Path(folder)
        config = read_json(self.folder / "config.json")
        self.size = config.get("vocab_size") or self.tokenizer.get_vocab_size()
        self.eos = self.id_of(eos) if eos is not None else self.default_eos(config)
        self.bos = self.id_of(bos) if bos is not None else None
        self.cut = self.find_cut()

    def id_of(self, token):
        """An id given as number or as token."""
        index = int(token) if str(token).isdigit() else self.tokenizer.token_to_id(token)
        if index is None or not 0 <= index < self.size:
            raise UserError(f"{self.folder}: expected an id below {self.size} or a token of the "
                            f"vocabulary, got '{token}'")
        return index

    def default_eos(self, config):
        for source in (config, read_json(self.folder / "generation_config.json")):
            eos = source.get("eos_token_id")
            eos = eos[0] if isinstance(eos, list) and eos else eos
            if isinstance(eos, int):
                return self.id_of(eos)
        token = read_json(self.folder / "tokenizer_config.json").get("eos_token")
        token = token.get("content") if isinstance(token, dict) else token
        if not token:
            raise UserError(f"{self.folder}: found no EOS token in config.json, "
                            "generation_config.json, tokenizer_config.json; name it with --eos")
        return self.id_of(token)

    def encode(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def find_cut(self):
        """Where to cut at a blank line, in characters from its first newline, so that the pieces
        give the ids of the whole. It depends on how the tokenizer splits white space."""
        before, after = "One line.", "Another line."
        whole = self.encode(f"{before}\n\n{after}")
        for cut in (2, 1):
            newlines = "\n" * cut, "\n" * (2 - cut)
            if self.encode(before + newlines[0]) + self.encode(newlines[1] + after) == whole:
                return cut
        return 2

    def pieces(self, text):
        """The text in pieces of at most PIECE_CHARS, cut at blank lines where there are any."""
        start = 0
        while len(text) - start > PIECE_CHARS:
            end = start + PIECE_CHARS
            for mark, cut in (("\n\n", self.cut), ("\n", 1), (" ", 0)):
                found = text.rfind(mark, start + 1, end)
                if found > 0:
                    end = found + cut
                    break
            yield text[start:end]
            start = end
        yield text[start:]

    def encode_document(self, text):
        """Ids of a document: BOS if asked for, the text, EOS."""
        ids = [] if self.bos is None else [self.bos]
        pieces = list(self.pieces(text))
        for encoding in self.tokenizer.encode_batch_fast(pieces, add_special_tokens=False):
            ids += encoding.ids
        ids.append(self.eos)
        return ids
