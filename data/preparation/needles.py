"""Needle sets: a fact to hide in a long text, the question about it, and the answer, as ids."""
import random

from . import UserError, say
from .item_file import ItemFile
from .vocabulary import Vocabulary

WORDS = (
    "apple anchor autumn badger bakery banjo barley basket beacon birch blanket bottle bridge "
    "bucket butter cabin camel candle canyon carpet castle cedar cherry chimney circus cliff "
    "clover compass copper coral cotton cricket crystal curtain daisy desert dolphin dragon eagle "
    "ember engine falcon feather ferry fiddle flute forest fountain garden ginger glacier goose "
    "granite guitar hammer harbor harvest hazel helmet heron honey island ivory jacket jasmine "
    "jungle kettle kitten ladder lantern lemon library lizard lobster magnet maple marble meadow "
    "melon mirror monkey mountain mushroom needle notebook oasis ocean olive onion orange orchard "
    "otter oyster paddle palace panther paper parrot pasture peacock pebble pepper pigeon pillow "
    "planet pocket pony puzzle rabbit raven ribbon river rocket saddle salmon scarf shadow silver "
    "snow spider squirrel statue sugar summer sunset swallow temple thunder tiger timber tower "
    "trumpet tulip tunnel turtle valley velvet village violet violin walnut whale willow window "
    "winter wizard zebra"
).split()


def make_item(vocabulary, word, number):
    """One item, or None where question and answer do not stay apart as tokens: generation is asked
    with the question's ids, so the ids of the answer must be exactly those that follow."""
    needle = f"\nThe special magic number for {word} is {number}.\n"
    question = (f"\nWhat is the special magic number for {word}? "
                f"The special magic number for {word} is")
    question_ids, whole = vocabulary.encode(question), vocabulary.encode(f"{question} {number}")
    answer_ids = whole[len(question_ids):]
    if whole[:len(question_ids)] != question_ids or not answer_ids:
        return None
    return {"needle": vocabulary.encode(needle), "question": question_ids, "answer": answer_ids,
            "text": needle.strip()}


def prepare_needles(options):
    out = ItemFile(options.out, "sala-needles")
    vocabulary = Vocabulary(options.tokenizer, eos=0, bos=options.bos)
    rng = random.Random(options.seed)
    items = []
    for attempt in range(10 * options.count):
        if attempt % len(WORDS) == 0:
            words = rng.sample(WORDS, len(WORDS))
        item = make_item(vocabulary, words[attempt % len(WORDS)], rng.randrange(10**6, 10**7))
        if item is not None:
            items.append(item)
        if len(items) == options.count:
            break
    if len(items) < options.count:
        raise UserError(f"{options.tokenizer}: this tokenizer joins question and answer into one "
                        f"token too often ({len(items)} of {options.count} items could be made)")
    out.write(vocabulary, items, start=vocabulary.start)
    say(f"{options.out}: {len(items)} needles; \"{items[0]['text']}\"")
