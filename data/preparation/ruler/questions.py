"""Invented people and towns as short documents, and questions that they answer."""
from . import words

TRADES = ("baker carpenter painter doctor teacher gardener sailor printer weaver miller tailor "
          "clockmaker mason fisher potter smith").split()


def person(rng, name, town):
    year, other = rng.randrange(1500, 1990), words.name(rng)
    facts = {"trade": rng.choice(TRADES), "year": str(year), "town": town}
    text = (f"{name}\n{name} was born in the year {year} in the town of {town}. After some years "
            f"with an uncle in {other}, {name} became a {facts['trade']} and was known for a "
            f"{rng.choice(words.ADJECTIVES)} {rng.choice(words.WORDS)}. "
            f"{words.made_sentence(rng)} {words.made_sentence(rng)}")
    return text, facts


def place(rng, town):
    land, river = words.name(rng) + "ia", words.name(rng)
    facts = {"land": land, "river": river}
    text = (f"{town}\n{town} is a {rng.choice(words.ADJECTIVES)} town in the land of {land}. It "
            f"lies on the river {river} and is known for its {rng.choice(words.WORDS)}. "
            f"{words.made_sentence(rng)} {words.made_sentence(rng)}")
    return text, facts


def one_hop(rng, who, facts):
    kind = rng.choice(("trade", "year", "town"))
    question = {"trade": f"What was the trade of {who}?", "year": f"In which year was {who} born?",
                "town": f"In which town was {who} born?"}[kind]
    return question, [facts[kind]]


def two_hops(rng, who, facts):
    kind = rng.choice(("land", "river"))
    return {"land": f"In which land is the town where {who} was born?",
            "river": f"On which river lies the town where {who} was born?"}[kind], [facts[kind]]


def make(rng, amount, hops):
    """(documents in random order, question, references); amount: documents, `hops` of them needed,
    the others about other people and other towns, half and half where hops is 2."""
    towns = words.distinct(lambda: words.name(rng), amount)
    people = words.distinct(lambda: f"{words.name(rng)} {words.name(rng)}", amount)
    text, facts = person(rng, people[0], towns[0])
    documents = [text]
    if hops == 2:
        text, of_town = place(rng, towns[0])
        documents.append(text)
        question, references = two_hops(rng, people[0], of_town)
    else:
        question, references = one_hop(rng, people[0], facts)
    for i in range(len(documents), amount):
        if hops == 2 and i % 2 == 1:
            documents.append(place(rng, towns[i])[0])
        else:
            documents.append(person(rng, people[i], towns[i])[0])
    rng.shuffle(documents)
    return documents, question, references
