"""What is hidden in a stretch of text, and how it is asked for. A form is a function (rng,
paragraphs) -> paragraphs: the stretch with statements put in, and the answered questions at its
end, many of them: of all its tokens those of the answers alone teach to recall."""
import re

from ..needles import WORDS
from ..ruler import words

FORMS_EDITION = 2  # one more whenever the forms write other text: older stores hold another
CHARS_PER_FACT = 400  # of a stretch, where most things are hidden

ATTRIBUTES = {  # what things have, and what it looks like
    "code": lambda rng: "".join(rng.choices("0123456789", k=rng.randint(3, 9))),
    "telephone number": lambda rng: f"{rng.randrange(100, 1000)}-{rng.randrange(1000, 10000)}",
    "price": lambda rng: f"{rng.randrange(2, 1000)}.{rng.randrange(100):02d}",
    "birthday": lambda rng: f"{rng.randint(1, 28)} {rng.choice(MONTHS)} {rng.randint(1500, 2020)}",
    "password": lambda rng: words.letters(rng, rng.randint(4, 8)),
    "key": lambda rng: f"{rng.getrandbits(32):08x}-{rng.getrandbits(32):08x}",
    "sign": words.word,
    "home": words.name,
    "friend": words.name,
    "favourite thing": lambda rng: rng.choice(WORDS),
}
MONTHS = ("January February March April May June July August September October November "
          "December").split()
STATEMENTS = (
    "The {what} of {who} is {value}.",
    "{value} is the {what} of {who}.",
    "Note: {who} has the {what} {value}.",
    "As to {who}, the {what} is {value}.",
    "({who}: {what} {value})",
    "{who} | {what} | {value}",
)
QUESTIONS = (
    "What is the {what} of {who}? {value}",
    "Question: what is the {what} of {who}?\nAnswer: {value}",
    "So the {what} of {who} is {value}.",
    "{who} | {what} | {value}",
    "The {what} of {who}, as we have read, is {value}.",
    "Q: {who}, {what}? A: {value}",
    "Asked for the {what} of {who}, one has to answer: {value}",
)
SETS = ("The {what}s of {who}, all that the text has, are {values}.",
        "What are the {what}s of {who}? {values}",
        "Question: which {what}s does {who} have?\nAnswer: {values}")
ECHOES = ("Once more: {passage}", "It was said above: \"{passage}\"", "{passage}",
          "We repeat what was written: {passage}", "Copy: {passage}")
SEQUELS = ("After the words \"{first}\" the text goes on: \"{rest}\"",
           "The passage that begins \"{first}\" reads on with \"{rest}\"",
           "How does \"{first}\" continue? {rest}")


def subject(rng):
    """Somebody or something that has attributes."""
    return rng.choice((words.name, lambda r: f"{words.name(r)} {words.name(r)}",
                       lambda r: f"the {r.choice(words.ADJECTIVES)} {r.choice(WORDS)}",
                       lambda r: f"number {r.randint(1, 999)}"))(rng)


def some(rng, most):
    """A count from 1 to `most`, small ones more often."""
    return max(1, round(most ** rng.random()))


def room_for(paragraphs):
    """How many things are hidden in them at most."""
    return max(8, sum(map(len, paragraphs)) // CHARS_PER_FACT)


def asked_of(rng, items, most):
    """Those that are asked for, in any order: often all of them."""
    return rng.sample(items, min(len(items), max(1, round(2 * most * rng.random()))))


def joined(values):
    return values[0] if len(values) == 1 else f"{', '.join(values[:-1])} and {values[-1]}"


def sentences_of(paragraph):
    return re.split(r"(?<=[.!?])\s+", paragraph)


def hide(rng, paragraphs, statement):
    """Between two sentences of a paragraph, or between two paragraphs."""
    place = rng.randrange(len(paragraphs))
    if rng.random() < 0.5:
        paragraphs.insert(place, statement)
        return
    sentences = sentences_of(paragraphs[place])
    sentences.insert(rng.randint(0, len(sentences)), statement)
    paragraphs[place] = " ".join(sentences)


def facts(rng, paragraphs):
    """Some things and what each has, once or several times; asked is for some of them."""
    found = list(paragraphs)
    what = rng.choice(list(ATTRIBUTES))
    asked = []
    most = room_for(paragraphs)
    for who in words.distinct(lambda: subject(rng), some(rng, most)):
        if rng.random() < 0.3:
            what = rng.choice(list(ATTRIBUTES))
        count = some(rng, 4) if rng.random() < 0.3 else 1
        values = words.distinct(lambda: ATTRIBUTES[what](rng), count)
        statement = rng.choice(STATEMENTS)
        told = [statement.format(who=who, what=what, value=value) for value in values]
        for line in told:
            hide(rng, found, line)
        asked.append((who, what, values, told))
    question, text = (rng.choice(QUESTIONS), rng.choice(SETS)), "\n\n".join(found)
    for who, what, values, told in asked_of(rng, asked, most):
        form = question[0] if len(values) == 1 else question[1]
        values = [v for _, v in sorted(zip(map(text.index, told), values))]  # as they come in it
        found.append(form.format(who=who, what=what, value=values[0], values=joined(values)))
    return found


def table(rng, paragraphs):
    """As many lines as the stretch was long, a thing and its value each; asked is for some."""
    room, most = sum(map(len, paragraphs)), room_for(paragraphs)
    what = rng.choice(list(ATTRIBUTES))
    statement = rng.choice(STATEMENTS)
    lines, asked, used = [], {}, 0
    while used < room:
        who = subject(rng)
        if who in asked:
            continue
        asked[who] = ATTRIBUTES[what](rng)
        lines.append(statement.format(who=who, what=what, value=asked[who]))
        used += len(lines[-1]) + 1
    question = rng.choice(QUESTIONS)
    answers = [question.format(who=who, what=what, value=asked[who])
               for who in asked_of(rng, list(asked), most)]
    return ["\n".join(lines), *answers]


def passage(rng, paragraphs):
    """8 to 80 words in a row of one paragraph."""
    spoken = rng.choice(paragraphs).split()
    count = min(len(spoken), round(8 * 10 ** rng.random()))
    first = rng.randint(0, len(spoken) - count)
    return spoken[first:first + count]


def echo(rng, paragraphs):
    """Passages come again, word for word."""
    return paragraphs + [rng.choice(ECHOES).format(passage=" ".join(passage(rng, paragraphs)))
                         for _ in range(some(rng, room_for(paragraphs)))]


def sequel(rng, paragraphs):
    """A passage by its first words."""
    asked = []
    for _ in range(some(rng, room_for(paragraphs))):
        spoken = passage(rng, paragraphs)
        cut = max(1, min(len(spoken) // 2, 8))
        asked.append(rng.choice(SEQUELS).format(first=" ".join(spoken[:cut]),
                                                rest=" ".join(spoken[cut:])))
    return paragraphs + asked


def chain(rng, paragraphs):
    """Names that stand for each other, some chains of them; asked is for all of some."""
    found = list(paragraphs)
    chains, taken = [], set()
    most = max(4, room_for(paragraphs) // 4)
    for value in words.distinct(lambda: str(rng.randrange(100, 100_000)), some(rng, most)):
        names = words.distinct(lambda: words.name(rng).upper(), rng.randint(2, 5), taken)
        taken.update(names)
        lines = [f"Let {names[0]} be {value}."]
        lines += [f"Let {b} be the same as {a}." for a, b in zip(names, names[1:])]
        places = sorted(rng.sample(range(len(found) + len(lines)), len(lines)))
        for place, line in zip(places, lines):
            found.insert(place, line)
        chains.append((names, value))
    return found + [f"The names that stand for {value} are {joined(names)}."
                    for names, value in asked_of(rng, chains, most)]


def tally(rng, paragraphs):
    """Lists of words, together as long as the stretch; in each some come more often than the
    others."""
    count = some(rng, room_for(paragraphs) // 4)
    return [line for _ in range(count)
            for line in counted(rng, sum(map(len, paragraphs)) // 14 // count)]


def counted(rng, num_words):
    often = words.distinct(lambda: words.word(rng), rng.randint(1, 6))
    times = rng.randint(4, 12)
    others = [words.word(rng) for _ in range(max(1, num_words - times * len(often)))]
    listed = others + often * times
    rng.shuffle(listed)
    return [f"A list: {', '.join(listed)}.",
            f"Most often in this list {'comes' if len(often) == 1 else 'come'} {joined(often)}."]


FORMS = (facts, facts, facts, table, echo, sequel, chain, tally)
