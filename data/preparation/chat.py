"""Conversations -> token stores with a loss mask: 1 on what the assistant says and on the token
that ends its turn, 0 on all else. One conversation is one document.

A conversation is rendered by the tokenizer's own chat template, and tokenised as a whole. What an
assistant's message is in that text comes from the template alone: it lies between the rendering of
the messages before it, with the opening of an answer (add_generation_prompt), and the rendering of
the messages up to it. Each of these has to be a prefix of the whole."""
import functools
import json
from typing import NamedTuple

import xxhash

from . import BadDocument
from .chat_template import ChatTemplate
from .documents import Document, check_unicode, listed, parse_record, read_lines, type_name
from .inputs import find_files, kind_of
from .tokens import prepare_stores
from .vocabulary import Vocabulary

ASSISTANT = "assistant"


def check_messages(messages, field, where):
    """A list of {"role", "content"}, texts, with something that the assistant says."""
    if not isinstance(messages, list) or not messages:
        raise BadDocument(f"{where}: expected a list of messages in field '{field}', found "
                          f"{'an empty one' if messages == [] else type_name(messages)}")
    for number, message in enumerate(messages):
        name = f"{field}[{number}]"
        if not isinstance(message, dict):
            raise BadDocument(f"{where}: {name}: expected an object with 'role' and 'content', "
                              f"found {type_name(message)}")
        for key in ("role", "content"):
            if key not in message:
                raise BadDocument(f"{where}: {name}: expected 'role' and 'content', found "
                                  f"{listed(sorted(message)) or 'neither'}")
            if not isinstance(message.get(key), str):
                raise BadDocument(f"{where}: {name}: expected a string in '{key}', found "
                                  f"{type_name(message.get(key))}")
            check_unicode(message[key], where, f"{name}.{key}")
    if not any(m["role"] == ASSISTANT and m["content"].strip() for m in messages):
        raise BadDocument(f"{where}: expected a message of the role '{ASSISTANT}' with content: "
                          "nothing else is learned from")


def without_nulls(message):
    """Columns have every key in every row: null is where a message has none."""
    if not isinstance(message, dict):
        return message
    return {key: value for key, value in message.items() if value is not None}


def rows_of_messages(path, field):
    """(messages, where, bytes read) of each row of a column."""
    from .columns import column_names, read_rows

    def choose(schema, path):
        column_names(schema, path, field)
        return [field]

    for rows in read_rows(path, choose):
        for row, value in enumerate(rows.columns[0], rows.first):
            where = f"{path} (row {row})"
            try:
                messages = value.as_py()
            except UnicodeDecodeError as error:
                messages = BadDocument(f"{where}: expected UTF-8 in column '{field}' "
                                       f"({error.reason})")
            if isinstance(messages, list):
                messages = [without_nulls(message) for message in messages]
            yield messages, where, rows.bytes_read


def lines_of_messages(path, field):
    """The same of each JSON object; a BadDocument where there is none with that field."""
    for number, line, bytes_read in read_lines(path):
        where = f"{path}:{number}"
        try:
            record = parse_record(line, where)
            if field not in record:
                raise BadDocument(f"{where}: expected messages in field '{field}', the line has "
                                  f"the fields {listed(sorted(record))} (--field names another)")
            yield record[field], where, bytes_read
        except BadDocument as error:
            yield error, where, bytes_read


def read_conversations(path, field):
    """Conversations (or BadDocuments) of one file; their text is the JSON of the messages."""
    read = lines_of_messages if kind_of(path) == "json" else rows_of_messages
    for messages, where, bytes_read in read(path, field):
        try:
            if isinstance(messages, BadDocument):
                raise messages
            check_messages(messages, field, where)
            yield Document(json.dumps(messages), where, bytes_read)
        except BadDocument as error:
            yield error


class Span(NamedTuple):
    """Characters of the rendering that are one message of the assistant, end of turn and all."""
    begin: int
    end: int


def assistant_spans(template, messages):
    """The rendering of all messages, and the Spans in it."""
    whole = template.render(messages)
    spans = []
    for number, message in enumerate(messages):
        if message["role"] != ASSISTANT:
            continue
        before = template.render(messages[:number], add_generation_prompt=True)
        up_to = template.render(messages[:number + 1])
        for text in (before, up_to):
            if not whole.startswith(text):
                raise BadDocument(
                    f"the chat template writes the messages up to number {number} otherwise when "
                    "more follow, so that the assistant's words cannot be told apart in the whole")
        if len(up_to) < len(before):
            raise BadDocument(f"the chat template leaves message {number} out")
        spans.append(Span(len(before), len(up_to)))
    return whole, spans


def end_of_turn(whole, span, special):
    """Where what is learned ends: after the token that ends the turn, the last special one of the
    span with nothing but white space behind it; without one after the last word. And which."""
    inside = [end for begin, end in special if span.begin <= begin < span.end]
    if inside and not whole[inside[-1]:span.end].strip():
        return inside[-1], True
    return span.begin + len(whole[span.begin:span.end].rstrip()), False


class ChatVocabulary(Vocabulary):
    """Documents are conversations, as JSON; special tokens of the template are ids."""

    has_mask = True

    def __init__(self, folder, eos=None):
        super().__init__(folder, eos, None, special_tokens=True)
        self.template = ChatTemplate(self.folder)

    @property
    def more_settings(self):
        return {"chat_template": xxhash.xxh3_64_hexdigest(self.template.identity())}

    def refuse_special(self, messages):
        """Words that spell a special token would become it, and end a turn where none ends."""
        for number, message in enumerate(messages):
            for token in self.special.by_id.values():
                if token in message["content"]:
                    raise BadDocument(f"message {number} spells the special token {token}")

    def encode_document(self, text):
        """[ids, mask] of a conversation; EOS at the end, where the template writes none."""
        messages = json.loads(text)
        self.refuse_special(messages)
        whole, spans = assistant_spans(self.template, messages)
        encoding = self.tokenizer.encode(whole, add_special_tokens=False)
        ids, offsets = encoding.ids, encoding.offsets
        special = [o for i, o in zip(ids, offsets) if i in self.special.ids]
        mask, ended = [0] * len(ids), True
        for span in spans:
            end, ended = end_of_turn(whole, span, special)
            for t, (begin, _) in enumerate(offsets):
                if span.begin <= begin < end:
                    mask[t] = 1
        if not any(mask):
            raise BadDocument("the chat template writes nothing of what the assistant says")
        if ids[-1] != self.eos:
            # Of an answer that no token of the template ends, EOS is the end.
            last = messages[-1]["role"] == ASSISTANT and not ended
            ids, mask = [*ids, self.eos], [*mask, int(last)]
        return [ids, mask]


def prepare_chat(options):
    files, skipped = find_files(options.inputs, kinds=("json", "parquet", "arrow"))
    prepare_stores(options, files, skipped, read_conversations,
                   functools.partial(ChatVocabulary, options.tokenizer, options.eos))
