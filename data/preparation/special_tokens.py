"""Special tokens as ordinary text: a document that spells <eos> must not get the id of <eos>.

`encode_special_tokens` of the library keeps the tokens that are marked special from being looked
for. Two more doors are closed here: tokens that the folder uses as special though tokenizer.json
does not mark them, and models (Unigram, WordLevel) that have the special token among their words
and find it there."""
import json

from . import UserError

NAMED = ("eos_token", "bos_token", "pad_token", "unk_token", "sep_token", "cls_token",
         "mask_token", "additional_special_tokens", "extra_special_tokens")
IDS = ("eos_token_id", "bos_token_id", "pad_token_id")


def read_json(path):
    """The object in a file of the folder; {} if there is no such file."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: expected JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def contents(value):
    """The tokens that a value of tokenizer_config.json names: a text, an object with `content`,
    or a list or mapping of these."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict) and isinstance(value.get("content"), str):
        yield value["content"]
    elif isinstance(value, (list, dict)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from contents(inner)


def named_tokens(folder, keys=NAMED):
    """Tokens that the folder's files name under these keys."""
    found = set()
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        config = read_json(folder / name)
        for key in keys:
            found.update(contents(config.get(key)))
    return found


def marked_tokens(folder):
    """Tokens that tokenizer_config.json marks as special, which tokenizer.json may not."""
    added = read_json(folder / "tokenizer_config.json").get("added_tokens_decoder")
    tokens = added.values() if isinstance(added, dict) else []
    return {content for token in tokens
            if isinstance(token, dict) and token.get("special") is True
            for content in contents(token)}


def named_ids(folder):
    found = set()
    for name in ("config.json", "generation_config.json"):
        config = read_json(folder / name)
        for key in IDS:
            value = config.get(key)
            found.update(i for i in (value if isinstance(value, list) else [value])
                         if type(i) is int)
    return found


class SpecialTokens:
    """The special tokens of a tokenizer, and text encoded without them."""

    def __init__(self, tokenizer, folder, more_ids):
        added = tokenizer.get_added_tokens_decoder()
        named = named_tokens(folder) | marked_tokens(folder)
        ids = named_ids(folder) | more_ids
        unmarked = [t for i, t in added.items()
                    if not t.special and (t.content in named or i in ids)]
        for token in unmarked:
            token.special = True
        if unmarked:
            tokenizer.add_special_tokens(unmarked)
        self.tokenizer = tokenizer
        self.by_id = {i: t.content for i, t in tokenizer.get_added_tokens_decoder().items()
                      if t.special}
        self.ids = frozenset(self.by_id)
        model_unknown = getattr(tokenizer.model, "unk_token", None)
        self.unknown = named_tokens(folder, ["unk_token"]) | {model_unknown, "<unk>"}
        self.longest = max(map(len, self.by_id.values()), default=0)

    def make_ordinary(self):
        self.tokenizer.encode_special_tokens = True

    def in_text(self, ids):
        return not self.ids.isdisjoint(ids)

    def encode_ordinary(self, text):
        """Ids of a text in which the model found special tokens: it is cut inside each, so that
        the model sees two words that are none."""
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        cuts = [cut for index, (begin, end) in zip(encoding.ids, encoding.offsets)
                if index in self.ids and (cut := self.cut_inside(text, index, begin, end))]
        if not cuts:
            return encoding.ids
        return [index for begin, end in zip([0, *cuts], [*cuts, len(text)])
                for index in self.encode_ordinary(text[begin:end])]

    def cut_inside(self, text, index, begin, end):
        """Where to cut; None where this is no spelling of the token but text that the model does
        not know, or one character, for which there is no other id."""
        content = self.by_id[index]
        found = text.find(content, begin, end)
        if found >= 0:
            begin, end = found, found + len(content)
        elif content in self.unknown:
            return None
        return (begin + end) // 2 if end - begin > 1 else None

    def cut_before(self, text, cut):
        """The cut, moved in front of a special token's spelling that it would tear."""
        if self.longest > 1:
            around = text[max(0, cut - self.longest + 1):cut + self.longest - 1]
            start = max(0, cut - self.longest + 1)
            for content in self.by_id.values():
                found = around.find(content)
                while found >= 0:
                    if start + found < cut < start + found + len(content):
                        return start + found
                    found = around.find(content, found + 1)
        return cut
