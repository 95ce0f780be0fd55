"""The thirteen tasks, and three more that are made where they are named. task.make(rng, amount,
text, length) gives an Example whose prompt grows with `amount`, the number of its filler units,
from task.least on."""
import math
from typing import NamedTuple

from . import questions, words

CAPITALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Example(NamedTuple):
    prompt: str
    references: list  # texts that the answer is searched for


class Needles:
    """Keys with values hidden in a text; asked is for all values of some keys."""
    match, answer_tokens = "all", 128
    kinds = {"numbers": words.number, "words": words.word, "uuids": words.unique_id}

    def __init__(self, name, haystack, key="words", value="numbers", keys=1, values=1, asked=1):
        self.name, self.haystack = name, haystack
        self.make_key, self.make_value = self.kinds[key], self.kinds[value]
        self.value_name = {"numbers": "number", "words": "word", "uuids": "uuid"}[value]
        self.keys, self.values, self.asked = keys, values, asked
        self.least = 2 * keys * values

    def line(self, key, value):
        return f"A special magic {self.value_name} for {key} is: {value}."

    def filler(self, rng, amount, text, keys):
        if self.haystack == "noise":
            return [words.NOISE] * amount
        if self.haystack == "text":
            return text.cut(rng, amount)
        lines = []
        while len(lines) < amount:
            key = self.make_key(rng)
            if key not in keys:
                lines.append(self.line(key, self.make_value(rng)))
        return lines

    def make(self, rng, amount, text, length):
        del length
        keys = words.distinct(lambda: self.make_key(rng), self.keys)
        values = words.distinct(lambda: self.make_value(rng), self.keys * self.values)
        of_key = {k: values[i * self.values:(i + 1) * self.values] for i, k in enumerate(keys)}
        needles = [self.line(k, v) for k in keys for v in of_key[k]]
        rng.shuffle(needles)
        units = self.filler(rng, amount, text, set(keys))
        for place, needle in zip(sorted(rng.sample(range(len(units) + 1), len(needles)),
                                        reverse=True), needles):
            units.insert(place, needle)
        asked = rng.sample(keys, self.asked)
        query = asked[0] if len(asked) == 1 else f"{', '.join(asked[:-1])}, and {asked[-1]}"
        context = (" " if self.haystack == "text" else "\n").join(units)
        return Example(self.prompt(context, query), [v for k in asked for v in of_key[k]])

    def prompt(self, context, query):
        one = self.asked * self.values == 1
        what = f"special magic {self.value_name}" + ("" if one else "s")
        verb = "is" if one else "are"
        it = "it" if one else "them"
        return (f"The text below mentions {'a' if one else 'some'} {what}. Keep {it} in mind, you "
                f"will be asked for {it} at the end.\n{context}\nWhich {what} for {query} {verb} "
                f"mentioned in the text? The {what} for {query} mentioned in the text {verb}")


class VariableTracking:
    """One variable gets a number, others get it from each other in a chain; asked is for all that
    hold it. An example with its answer comes first. In RULER it has as much filler as 500 tokens
    have room for, in steps of five units: ten, by the tokenizers of today's models."""
    name, match, answer_tokens, least, hops, filler_of_example = "vt", "all", 30, 6, 4, 10

    def chain(self, rng, letters):
        names = words.distinct(lambda: words.letters(rng, letters, CAPITALS), self.hops + 1)
        value = str(rng.randrange(10_000, 100_000))
        lines = [f"VAR {names[0]} = {value}"]
        lines += [f"VAR {b} = VAR {a}" for a, b in zip(names, names[1:])]
        return names, value, lines

    def part(self, rng, amount, letters):
        names, value, lines = self.chain(rng, letters)
        units = [words.NOISE] * amount
        places = sorted(rng.sample(range(amount + 1), len(lines)))
        for shift, (place, line) in enumerate(zip(places, lines)):
            units.insert(place + shift, line)
        context = "\n".join(units)
        return (f"Variables are set in the text below, one to a number and others to a variable "
                f"that was set before. Follow them.\n\n{context}\nQuestion: Which variables hold "
                f"the value {value}? Answer: These {len(names)} variables hold the value {value}:"
                ), names

    def make(self, rng, amount, text, length):
        del text, length
        example, answer = self.part(rng, self.filler_of_example, letters=3)
        prompt, names = self.part(rng, amount, letters=5)
        return Example(f"{example} {' '.join(answer)}\n\n{prompt}", names)


class CommonWords:
    """A numbered list in which ten words come often and the others seldom. An example comes
    first."""
    name, match, answer_tokens, least, common = "cwe", "all", 120, 1, 10

    def part(self, rng, text, others, often, seldom):
        chosen = text.different_words(rng, self.common + others)
        entries = chosen[:self.common] * often + chosen[self.common:] * seldom
        rng.shuffle(entries)
        listed = " ".join(f"{i}. {w}" for i, w in enumerate(entries, 1))
        return (f"Here is a numbered list of words; a few of them come more often than the others."
                f" Keep those in mind.\n{listed}\nQuestion: Which {self.common} words come most "
                "often in the list? Answer: The words that come most often in the list are:"
                ), chosen[:self.common]

    def make(self, rng, amount, text, length):
        short = length < 4096
        example, answer = self.part(rng, text, *((10, 3, 1) if short else (30, 10, 3)))
        prompt, common = self.part(rng, text, amount, *((6, 1) if short else (30, 3)))
        told = " ".join(f"{i}. {w}" for i, w in enumerate(answer, 1))
        return Example(f"{example} {told}\n{prompt}", common)


class FrequentWords:
    """Coded words whose frequencies fall with the square of their rank (a zeta distribution). The
    most frequent one is dots, asked is for the three after it."""
    name, match, answer_tokens, least, alpha = "fwe", "all", 50, 150, 2.0

    def make(self, rng, amount, text, length):
        del text
        coded = words.distinct(lambda: words.letters(rng, 6), max(length // 50, 10))
        coded[0] = "..."
        units = []
        for rank, w in enumerate(coded, 1):
            units += [w] * int(amount * rank**-self.alpha / (math.pi**2 / 6))
        rng.shuffle(units)
        return Example(
            "The text below is in code. Count how often each coded word comes; the dots '...' are "
            f"no word. {' '.join(units)}\nQuestion: Which three coded words come most often? Give "
            "the words alone. Answer: The three coded words that come most often are:", coded[1:4])


class Documents:
    """Numbered documents about invented people and towns, and a question that one of them answers
    (hops 1) or two of them together (hops 2)."""
    match, answer_tokens = "part", 32

    def __init__(self, name, hops):
        self.name, self.hops, self.least = name, hops, hops

    def make(self, rng, amount, text, length):
        del text, length
        documents, question, references = questions.make(rng, amount, self.hops)
        context = "\n\n".join(f"Document {i}:\n{d}" for i, d in enumerate(documents, 1))
        ask = "Answer the question from the documents. Give the answer alone, no other words."
        return Example(f"{ask}\n\nThe documents:\n\n{context}\n\n{ask}\n\nQuestion: {question} "
                       "Answer:", references)


class Rounds:
    """A long conversation in which one request comes several times, word for word, each time with
    another reply; asked is for the reply to one of them, by its number (as in MRCR, Vodrahalli et
    al. 2024, arXiv:2409.12640, with short replies that are searched for as a whole)."""
    match, answer_tokens = "all", 48
    forms = "poem riddle letter list story song".split()
    ordinals = "first second third fourth fifth sixth seventh eighth".split()

    def __init__(self, name, needles):
        self.name, self.needles, self.least = name, needles, 2

    def round(self, rng, form, topic):
        reply = " ".join(rng.choice(words.WORDS) for _ in range(6))
        return f"User: Write a {form} about a {topic}.\nAssistant: {reply}.", reply

    def make(self, rng, amount, text, length):
        del text, length
        asked = rng.choice(self.forms), words.word(rng)
        rounds = []
        while len(rounds) < amount:
            other = rng.choice(self.forms), words.word(rng)
            if other != asked:
                rounds.append(self.round(rng, *other)[0])
        same = [self.round(rng, *asked) for _ in range(self.needles)]
        places = sorted(rng.sample(range(amount + self.needles), self.needles))
        for place, (one, _) in zip(places, same):
            rounds.insert(place, one)
        number = rng.randrange(self.needles)
        return Example("\n".join(rounds) + f"\nUser: Repeat, word for word, the "
                       f"{self.ordinals[number]} {asked[0]} about a {asked[1]}.\nAssistant:",
                       [same[number][1]])


TASKS = {task.name: task for task in (
    Needles("niah_single_1", "noise"),
    Needles("niah_single_2", "text"),
    Needles("niah_single_3", "text", value="uuids"),
    Needles("niah_multikey_1", "text", keys=4),
    Needles("niah_multikey_2", "needles"),
    Needles("niah_multikey_3", "needles", key="uuids", value="uuids"),
    Needles("niah_multivalue", "text", values=4),
    Needles("niah_multiquery", "text", keys=4, asked=4),
    VariableTracking(), CommonWords(), FrequentWords(),
    Documents("qa_1", hops=1), Documents("qa_2", hops=2))}
RULER = tuple(TASKS)
TASKS |= {task.name: task for task in (
    Rounds("mrcr_2", 2), Rounds("mrcr_4", 4), Rounds("mrcr_8", 8))}
