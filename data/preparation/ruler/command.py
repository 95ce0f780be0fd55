"""`data/prepare ruler`: prompts of every task and length, as ids."""
import functools
import random
from pathlib import Path

import numpy as np

from .. import UserError, say
from ..documents import read_documents
from ..inputs import find_files
from ..store import token_dtype
from ..token_bytes import token_bytes
from ..vocabulary import Vocabulary
from ..workers import Workers
from .fit import TooShort, fit
from .task_file import check_out, write_tasks
from .tasks import RULER, TASKS
from .words import Text

MOST_TEXT = 64 << 20  # characters that haystacks are cut from


class Maker:
    """Prompts of one task at one length. The text of number i depends on the seed, the task, the
    length and i alone."""

    def __init__(self, options, text, vocabulary=None):
        self.options, self.text = options, text
        self.vocabulary = vocabulary or Vocabulary(options.tokenizer, eos=0, bos=options.bos)

    def example(self, task, length, number, amount):
        rng = random.Random(f"{self.options.seed} {task.name} {length} {number}")
        return task.make(rng, amount, self.text, length)

    def ids(self, prompt):
        return self.vocabulary.start + self.vocabulary.encode_long(prompt)

    def prompt(self, task, length, number, guess):
        """(ids as stored, facts for the index, amount of filler, the text)"""
        room = length - task.answer_tokens

        def size_of(amount):
            return len(self.ids(self.example(task, length, number, amount).prompt))
        try:
            amount = fit(size_of, room, task.least, guess)
        except TooShort as error:
            raise UserError(
                f"--lengths {length}: the shortest prompt of {task.name} takes {error.needed} "
                f"tokens and its answer {task.answer_tokens}; use longer prompts or leave the task "
                "out (--tasks)") from error
        example = self.example(task, length, number, amount)
        ids = np.array(self.ids(example.prompt), "<i8")
        if ids.max() >= self.vocabulary.size:
            raise UserError(f"{self.vocabulary.folder}: the tokenizer gave id {ids.max()}, "
                            f"config.json's vocab_size is {self.vocabulary.size}")
        facts = {"task": task.name, "length": length, "match": task.match,
                 "max_new_tokens": task.answer_tokens, "references": example.references}
        return ids.astype(token_dtype(self.vocabulary.size)), facts, amount, example.prompt

    def all_of(self, name, length):
        """All prompts of a task and length; the text of the first."""
        made, guess, first = [], None, ""
        for number in range(self.options.count):
            ids, facts, amount, prompt = self.prompt(TASKS[name], length, number, guess)
            guess, first = guess or amount, first or prompt
            made.append((ids, facts))
        return made, first


def read_text(inputs):
    """The first characters of the documents behind `inputs`; without any, nothing."""
    if not inputs:
        return ""
    parts, size = [], 0
    files, _ = find_files(inputs)
    for file in files:
        for document in read_documents(file, "text"):
            if isinstance(document, Exception):
                raise document
            parts.append(document.text[:MOST_TEXT - size])
            size += len(parts[-1])
            if size >= MOST_TEXT:
                return "\n".join(parts)
    return "\n".join(parts)


def chosen_tasks(names):
    unknown = [n for n in names if n not in TASKS]
    if unknown:
        raise UserError(f"--tasks {unknown[0]}: expected some of {', '.join(TASKS)}")
    return [n for n in TASKS if n in (names or RULER)]


def check_readable(vocabulary, table, ids, prompt):
    """That the table gives the text back."""
    read = b"".join(table[i] for i in ids if i < len(table)).decode(errors="replace")
    if read.lstrip() != prompt.lstrip():
        raise UserError(f"{vocabulary.folder}/tokenizer.json: the text of its ids is not the text "
                        "that they were made of; answers could not be read")


def make_unit(maker, *unit):
    return unit, maker.all_of(*unit)


def make_all(options, text, units):
    """What Maker.all_of gives for each unit, in their order."""
    made = {}
    with Workers(min(options.workers, len(units)), make_unit,
                 functools.partial(Maker, options, text), lambda result: made.update([result]),
                 kept="nothing was written") as workers:
        for unit in units:
            workers.give(*unit)
        workers.finish()
    return [made[unit] for unit in units]


def prepare_ruler(options):
    out = Path(options.out).resolve()
    check_out(out)
    vocabulary = Vocabulary(options.tokenizer, eos=0, bos=options.bos)
    table = token_bytes(vocabulary.tokenizer, vocabulary.folder)
    text = Text(read_text(options.text))
    names = chosen_tasks(options.tasks)
    units = [(name, length) for length in sorted(set(options.lengths)) for name in names]
    prompts = []
    for made, first in make_all(options, text, units):
        check_readable(vocabulary, table, made[0][0].tolist()[len(vocabulary.start):], first)
        prompts += made
    write_tasks(out, vocabulary, prompts, table, vocabulary.stop_ids())
    say(f"{options.out}: {len(prompts)} prompts of {len(names)} tasks at "
        f"{', '.join(str(n) for n in sorted(set(options.lengths)))} tokens, haystacks of "
        f"{'your text' if text.sentences else 'made sentences'}")
