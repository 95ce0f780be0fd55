"""The tokenizer of a Hugging Face folder, and documents as ids."""
import os
import re
from pathlib import Path

import xxhash

from . import UserError
from .documents import listed
from .special_tokens import SpecialTokens, marked_tokens, named_tokens, read_json

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # we use processes

PIECE_CHARS = 40_000  # some tokenizers take quadratic time in the length of a text
OWN, NONE = "own", "none"  # of --bos
MAX_VOCABULARY = 1 << 31  # ids are stored as u32, and read as i64 below this


def is_count(value):
    return type(value) is int and 0 < value < MAX_VOCABULARY


def load_tokenizer(file, content):
    from tokenizers import Tokenizer
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{file}: expected a tokenizer ({error})") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


class Vocabulary:
    """Tokenizer with its hash, number of ids, EOS and BOS (None, "none": none; OWN: the one that
    the tokenizer itself puts before a text, if it does; else an id or token). Text that spells a
    special token is ordinary text unless `special_tokens`."""

    has_mask = False  # whether documents are [ids, mask] (chat.py)
    more_settings = {}  # what else decides the ids

    def __init__(self, folder, eos=None, bos=None, special_tokens=False):
        self.folder = Path(folder)
        file = self.folder / "tokenizer.json"
        if not file.exists():
            raise UserError(f"{file}: no such file; --tokenizer names a Hugging Face folder")
        content = file.read_bytes()
        self.tokenizer = load_tokenizer(file, content)
        self.hash = xxhash.xxh3_64_hexdigest(content)
        config = read_json(self.folder / "config.json")
        self.size = config.get("vocab_size", self.tokenizer.get_vocab_size())
        if not is_count(self.size):
            raise UserError(f"{self.folder / 'config.json'}: expected a number of tokens in "
                            f"vocab_size, found {self.size!r}")
        self.eos = self.chosen_eos(eos) if eos is not None else self.default_eos(config)
        self.bos = self.find_bos(bos)
        ends = {i for i in (self.eos, self.bos) if i is not None}
        self.special = SpecialTokens(self.tokenizer, self.folder, ends)
        self.special_tokens = special_tokens
        if not special_tokens:
            self.special.make_ordinary()
        self.cut = self.find_cut()

    @property
    def special_tokens_are(self):
        """As the stores' attribute says it."""
        return "ids" if self.special_tokens else "text"

    def id_of(self, token):
        """An id given as number or as token."""
        number = re.fullmatch(r"[0-9]{1,18}", str(token))
        index = int(token) if number else self.tokenizer.token_to_id(token)
        if index is None or not 0 <= index < self.size:
            raise UserError(f"{self.folder}: expected an id below {self.size} or a token of the "
                            f"vocabulary, got '{token}'")
        return index

    def chosen_eos(self, eos):
        """An ordinary word would end a document wherever it stands in a text: an id has to say so.
        """
        if re.fullmatch(r"[0-9]{1,18}", str(eos)):
            return self.id_of(eos)
        special = self.special_names()
        if eos == NONE or eos not in special:
            found = listed(special) if special else "it names none"
            what = " (every document ends with one)" if eos == NONE else ""
            raise UserError(f"--eos: expected a special token of {self.folder} ({found}) or an id "
                            f"below {self.size}, got '{eos}'{what}")
        return self.id_of(eos)

    def special_names(self):
        """Special tokens, as tokenizer.json and the folder's other files have them, by id."""
        added = self.tokenizer.get_added_tokens_decoder()
        names = {token.content for token in added.values() if token.special}
        names |= named_tokens(self.folder) | marked_tokens(self.folder)
        ids = {name: self.tokenizer.token_to_id(name) for name in names}
        return sorted((n for n, i in ids.items() if i is not None and i < self.size), key=ids.get)

    def find_bos(self, bos):
        if bos is None or bos == NONE:
            return None
        return self.own_bos() if bos == OWN else self.id_of(bos)

    def own_bos(self):
        """As Hugging Face's libraries begin a prompt with this tokenizer."""
        plain = self.tokenizer.encode("a", add_special_tokens=False).ids
        whole = self.tokenizer.encode("a", add_special_tokens=True).ids
        count = next((i for i in range(len(whole)) if whole[i:i + len(plain)] == plain), 0)
        if count > 1:
            raise UserError(f"{self.folder}/tokenizer.json: begins a text with {count} special "
                            "tokens, expected one at most; name one with --bos, or none")
        return self.id_of(whole[0]) if count else None

    @property
    def start(self):
        """Ids that every document and prompt begins with."""
        return [] if self.bos is None else [self.bos]

    def default_eos(self, config):
        for source in (config, read_json(self.folder / "generation_config.json")):
            eos = source.get("eos_token_id")
            eos = eos[0] if isinstance(eos, list) and eos else eos
            if type(eos) is int:
                return self.id_of(eos)
        token = read_json(self.folder / "tokenizer_config.json").get("eos_token")
        token = token.get("content") if isinstance(token, dict) else token
        if not isinstance(token, str) or not token:
            raise UserError(f"{self.folder}: found no EOS token in config.json, "
                            "generation_config.json, tokenizer_config.json; name it with --eos")
        return self.id_of(token)

    def encode(self, text):
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        return self.without_special(text, ids)

    def without_special(self, text, ids):
        if self.special_tokens or not self.special.in_text(ids):
            return ids
        return self.special.encode_ordinary(text)

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
            if self.special_tokens:
                end = max(start + 1, self.special.cut_before(text, end))
            yield text[start:end]
            start = end
        yield text[start:]

    def encode_long(self, text):
        """Ids of a text of any length, tokenised in pieces."""
        pieces = list(self.pieces(text))
        encodings = self.tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
        return [index for piece, encoding in zip(pieces, encodings)
                for index in self.without_special(piece, encoding.ids)]

    def encode_document(self, text):
        """Ids of a document: BOS if asked for, the text, EOS."""
        return [*self.start, *self.encode_long(text), self.eos]

    def stop_ids(self):
        """Ids that end an answer, as the folder names them."""
        found = set()
        for name in ("config.json", "generation_config.json"):
            eos = read_json(self.folder / name).get("eos_token_id")
            found.update(i for i in (eos if isinstance(eos, list) else [eos])
                         if type(i) is int and 0 <= i < self.size)
        return sorted(found)
