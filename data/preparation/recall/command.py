"""`data/prepare recall`: token stores of documents in which things are to be recalled."""
import functools
import random

from .. import BadDocument, UserError
from ..documents import TooShort, read_documents
from ..inputs import find_files
from ..tokens import prepare_stores
from ..vocabulary import Vocabulary
from .forms import FORMS, FORMS_EDITION

CHARS_PER_TOKEN = 4  # of English; lengths are about right with it, which is all they need to be


def paragraphs_of(text):
    return [p.strip() for p in text.split("\n\n") if p.strip()]


def stretches(rng, paragraphs, shortest, longest):
    """The paragraphs in groups of about `shortest` to `longest` characters: lengths even in their
    logarithm. What is left at the end is dropped; a paragraph that is too long is cut."""
    group, size = [], 0
    wanted = shortest * (longest / shortest) ** rng.random()
    for paragraph in paragraphs:
        for begin in range(0, len(paragraph), shortest):
            group.append(paragraph[begin:begin + shortest])
            size += len(group[-1])
            if size >= wanted:
                yield group
                group, size = [], 0
                wanted = shortest * (longest / shortest) ** rng.random()


def with_recall(document, lengths, seed):
    """Documents made of one: each a stretch of it in one of the forms. They depend on the seed, the
    lengths and the text alone."""
    rng = random.Random(f"{seed} {document.text[:4096]}")
    shortest, longest = (n * CHARS_PER_TOKEN for n in lengths)
    for group in stretches(rng, paragraphs_of(document.text), shortest, longest):
        yield document._replace(text="\n\n".join(rng.choice(FORMS)(rng, group)))


def read_recall(path, field, lengths, seed):
    for document in read_documents(path, field):
        if isinstance(document, BadDocument) or document.is_empty:
            yield document
            continue
        count = 0
        for count, made in enumerate(with_recall(document, lengths, seed), 1):
            yield made
        if count == 0:
            yield TooShort(*document)


class RecallVocabulary(Vocabulary):
    """What the documents are made with belongs to what decides a store."""

    def __init__(self, lengths, seed, *args):
        super().__init__(*args)
        self.more_settings = {"recall": [FORMS_EDITION, *lengths, seed]}


def prepare_recall(options):
    if len(options.lengths) != 2 or not 128 <= options.lengths[0] <= options.lengths[1]:
        raise UserError("--lengths: expected the shortest and the longest, 128 tokens or more, such "
                        f"as 512,2K; got {','.join(map(str, options.lengths))}")
    files, skipped = find_files(options.inputs)
    prepare_stores(options, files, skipped,
                   functools.partial(read_recall, lengths=options.lengths, seed=options.seed),
                   functools.partial(RecallVocabulary, options.lengths, options.seed,
                                     options.tokenizer, options.eos, options.bos))
