"""What each id of a tokenizer says, in bytes, so that a program without the tokenizer can turn ids
into text. For byte-level tokenizers (GPT-2's letters for bytes) and SentencePiece-like ones (▁ for
a space, <0xNN> for a byte)."""
import json
import re

from . import UserError

SPACE = "\u2581"


def byte_letters():
    """The letter of each byte in byte-level vocabularies: printable ones stand for themselves, the
    others, in order, for the characters from 256 on."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in own]
    return {chr(b): b for b in own} | {chr(256 + i): b for i, b in enumerate(others)}


def decoder_steps(tokenizer):
    decoder = json.loads(tokenizer.to_str()).get("decoder") or {}
    return decoder.get("decoders", [decoder])


def byte_level(token, letters=byte_letters()):
    return bytes(letters[c] for c in token) if all(c in letters for c in token) else None


def sentence_piece(token):
    byte = re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", token)
    return bytes([int(byte[1], 16)]) if byte else token.replace(SPACE, " ").encode()


def token_bytes(tokenizer, folder):
    """A list by id; special tokens and unused ids say nothing."""
    kinds = {step.get("type") for step in decoder_steps(tokenizer)}
    if "ByteLevel" in kinds:
        spell = byte_level
    elif kinds & {"Metaspace", "ByteFallback", "Replace"}:
        spell = sentence_piece
    else:
        raise UserError(f"{folder}/tokenizer.json: expected a byte-level or SentencePiece decoder, "
                        f"found {', '.join(sorted(map(str, kinds)))}; answers in ids could not be "
                        "read as text")
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    table = [b""] * (max(vocabulary.values()) + 1)
    for token, index in vocabulary.items():
        table[index] = spell(token) or b""
    for index, added in tokenizer.get_added_tokens_decoder().items():
        table[index] = b"" if added.special else added.content.encode()
    return table
