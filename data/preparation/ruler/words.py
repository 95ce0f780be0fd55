"""Words, numbers, names and filler sentences that tasks are made of."""
import itertools
import re
import uuid

from ..needles import WORDS

ADJECTIVES = (
    "able amber ample ancient bold brave brief bright brisk broad calm careful cheerful clear "
    "clever cold cool crisp curious dark deep distant dry eager early easy even faint fair famous "
    "fancy fast fine firm flat fond free fresh full gentle glad golden good grand grave great "
    "green grey happy hardy heavy hidden high hollow honest humble icy kind large late lean level "
    "light little lively lone long loud lucky merry mighty mild modern narrow neat new nimble "
    "noble odd old open pale patient plain polite proud quick quiet rapid rare ready red rich ripe "
    "rough round royal rusty sharp short shy silent simple slow small smooth soft solid spare "
    "steady steep still strange strong sturdy sunny sweet swift tall tame tender thin tidy tiny "
    "vast warm wide wild wise young"
).split()
# Ours: what RULER calls noise, the same few sentences again and again.
NOISE = ("The road is long. The river runs slow. The lamp is on. We walk a while. Then we come "
         "home again.")
TIMES = "in the morning|at noon|in the evening|after the rain|before winter|all summer".split("|")
DEEDS = ("waited for|looked after|painted|remembered|forgot|described|visited|measured|carried "
         "home|talked about").split("|")
PEOPLE = "the teacher|a sailor|my neighbour|the baker|an old friend|the children".split("|")


def number(rng):
    return str(rng.randrange(10**6, 10**7))


def word(rng):
    return f"{rng.choice(ADJECTIVES)}-{rng.choice(WORDS)}"


def unique_id(rng):
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def letters(rng, count, alphabet="abcdefghijklmnopqrstuvwxyz"):
    return "".join(rng.choices(alphabet, k=count))


def distinct(make, count, taken=()):
    """`count` different values of make(), none of `taken`."""
    found, seen = [], set(taken)
    while len(found) < count:
        value = make()
        if value not in seen:
            seen.add(value)
            found.append(value)
    return found


def invented_words():
    """Endlessly: words of two syllables and more, in a fixed order."""
    syllables = [c + v for c in "bdfghklmnprstvz" for v in "aeiou"]
    for count in itertools.count(2):
        for parts in itertools.product(syllables, repeat=count):
            yield "".join(parts)


def name(rng):
    """A capitalised name that nobody bears."""
    return "".join(rng.choice("bdfghklmnprstvz") + rng.choice("aeiou")
                   for _ in range(rng.choice((2, 3)))).capitalize() + rng.choice("nrlsx")


def made_sentence(rng):
    return (f"{rng.choice(PEOPLE)} {rng.choice(DEEDS)} the {rng.choice(ADJECTIVES)} "
            f"{rng.choice(WORDS)} near the {rng.choice(ADJECTIVES)} {rng.choice(WORDS)} "
            f"{rng.choice(TIMES)}.").capitalize()


def sentences_of(text):
    return [s for s in re.split(r"(?<=[.!?])\s+", re.sub(r"\s+", " ", text).strip()) if s]


def words_of(text):
    """Its plain words of four letters and more, in the order of the alphabet."""
    return sorted(set(re.findall(r"\b[a-z]{4,10}\b", text)))


class Text:
    """What haystacks are cut from: the user's text, or sentences that we make."""

    def __init__(self, text=""):
        self.sentences = sentences_of(text)
        self.words = words_of(text) or sorted(WORDS)

    def cut(self, rng, count):
        """`count` sentences from a random one on, around the end."""
        if not self.sentences:
            return [made_sentence(rng) for _ in range(count)]
        first = rng.randrange(len(self.sentences))
        return [self.sentences[(first + i) % len(self.sentences)] for i in range(count)]

    def different_words(self, rng, count):
        if count <= len(self.words):
            return rng.sample(self.words, count)
        more = distinct(invented_words().__next__, count - len(self.words), self.words)
        return rng.sample(self.words + more, count)
