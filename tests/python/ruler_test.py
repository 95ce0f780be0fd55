"""data/prepare ruler: prompts of every task fit their length, hold their answers, depend on the
seed alone, and their ids can be read without the tokenizer."""
import json
import random
import re
import sys
import tempfile
import unittest
from collections import Counter
from pathlib import Path

import h5py
from tokenizers import Tokenizer, decoders, models

sys.path.insert(0, str(Path(__file__).resolve().parent))

from prepare_case import PrepareCase, sample_texts  # noqa: E402
from preparation.ruler.fit import TooShort, fit  # noqa: E402
from preparation.ruler.tasks import TASKS  # noqa: E402
from preparation.ruler.words import Text  # noqa: E402
from preparation.token_bytes import token_bytes  # noqa: E402
from preparation.vocabulary import Vocabulary  # noqa: E402

LENGTHS = [6000, 9000]


class RulerTest(PrepareCase):
    def ruler(self, name, *args, **kwargs):
        out = self.folder / name
        message = self.prepare("--out", out, "--workers", "1", *args, command="ruler", **kwargs)
        return message if kwargs.get("expect") else out

    def read(self, path):
        """[(index's facts, ids, text by the file's own vocabulary)]"""
        with h5py.File(path) as file:
            offsets, table = file["prompt_offsets"][:], file["vocabulary_offsets"][:]
            spelled, tokens = bytes(file["vocabulary"][:]), file["tokens"][:]
            index = json.loads(bytes(file["index"][:]))
        self.assertEqual(index["stop_ids"], [1])
        prompts = []
        for i, facts in enumerate(index["prompts"]):
            ids = tokens[offsets[i]:offsets[i + 1]].tolist()
            text = b"".join(spelled[table[j]:table[j + 1]] for j in ids).decode()
            prompts.append((facts, ids, text))
        return prompts

    def test_prompts_fit_their_length_hold_their_answers_and_can_be_read(self):
        lengths = ",".join(map(str, LENGTHS))
        default = self.read(self.ruler("all.h5", "--lengths", lengths, "--count", "2"))
        self.assertEqual(len(default), 13 * len(LENGTHS) * 2)
        more = self.read(self.ruler("more.h5", "--lengths", lengths, "--count", "2", "--tasks",
                                    "mrcr_2,mrcr_4,mrcr_8"))
        prompts = default + more
        self.assertEqual({facts["task"] for facts, _, _ in prompts}, set(TASKS))
        for facts, ids, text in prompts:
            with self.subTest(facts["task"], length=facts["length"]):
                used = len(ids) + facts["max_new_tokens"]
                self.assertLessEqual(used, facts["length"])
                if facts["task"] != "fwe":  # whose steps are many words
                    self.assertGreater(used, 0.93 * facts["length"])
                context = text[:text.rindex("\n")]
                for reference in facts["references"]:
                    self.assertIn(reference, context)
                    self.assertNotIn(reference, text[text.rindex("\n"):])
                self.assertEqual(self.tokenizer.decode(ids), text)

    def test_the_seed_decides_and_workers_do_not(self):
        args = ["--lengths", "3000", "--tasks", "niah_multiquery,vt,qa_2", "--count", "2"]
        one = self.ruler("one.h5", *args)
        same = self.folder / "two.h5"
        self.prepare("--out", same, "--workers", "2", *args, command="ruler")
        other = self.ruler("three.h5", *args, "--seed", "2")
        texts = [[text for _, _, text in self.read(path)] for path in (one, same, other)]
        self.assertEqual(texts[0], texts[1])
        self.assertTrue(all(a != b for a, b in zip(texts[0], texts[2])))
        self.assertEqual(len(set(texts[0])), len(texts[0]))

    def test_haystacks_are_cut_from_the_users_text(self):
        path = self.write_jsonl("a.jsonl", [f"{t} It was number {i}." for i, t in
                                            enumerate(sample_texts(40))])
        out = self.ruler("text.h5", "--lengths", "3000", "--tasks", "niah_single_2", "--count", "1",
                         "--text", path, "--bos", "<bos>")
        (_, ids, text), = self.read(out)
        self.assertEqual(ids[0], 0)
        self.assertIn("the quick brown fox"[:9], text)
        self.assertIn("It was number", text)

    def test_what_is_asked_has_the_answers_that_the_references_say(self):
        text, rng = Text(), random.Random(5)
        for name in ("cwe", "fwe"):
            example = TASKS[name].make(rng, 2000, text, 8192)
            counted = Counter(example.prompt[:example.prompt.rindex("\n")].split("\n")[-1].split())
            least = min(counted[reference] for reference in example.references)
            most = max(n for word, n in counted.items()
                       if word not in example.references and re.fullmatch("[a-z]{4,10}", word))
            self.assertGreater(least, most, name)
        example = TASKS["vt"].make(rng, 20, text, 8192)
        value = example.prompt.split("the value ")[-1].split(":")[0]
        holders = set()
        for line in example.prompt.split("\n"):
            if line.startswith("VAR "):
                target, source = line[4:].split(" = ")
                if source == value or source.removeprefix("VAR ") in holders:
                    holders.add(target)
        self.assertEqual(sorted(holders), sorted(example.references))

    def test_the_reply_asked_for_is_the_one_of_that_number(self):
        for name, count in (("mrcr_2", 2), ("mrcr_8", 8)):
            for seed in range(5):
                example = TASKS[name].make(random.Random(seed), 30, Text(), 0)
                lines = example.prompt.split("\n")
                asked = r"User: Repeat, word for word, the (\w+) (\w+) about a (.*)\."
                number, form, topic = re.fullmatch(asked, lines[-2]).groups()
                replies = [reply for request, reply in zip(lines, lines[1:])
                           if request == f"User: Write a {form} about a {topic}."]
                self.assertEqual(len(replies), count)
                right = replies[TASKS[name].ordinals.index(number)]
                self.assertEqual(right, f"Assistant: {example.references[0]}.")

    def test_a_length_without_room_and_wrong_names_are_told(self):
        self.assertIn("the shortest prompt of cwe takes", self.ruler(
            "x.h5", "--lengths", "500", "--tasks", "cwe", "--count", "1", expect=1))
        self.assertIn("expected some of niah_single_1", self.ruler(
            "x.h5", "--lengths", "5000", "--tasks", "nihh", expect=1))
        (self.folder / "notes.h5").write_text("mine")
        self.assertIn("no file of format sala-tasks", self.ruler(
            "notes.h5", "--lengths", "5000", expect=1))
        self.assertEqual((self.folder / "notes.h5").read_text(), "mine")

    def test_fit_finds_the_largest_amount_that_has_room(self):
        for size_of in (lambda n: 3 * n + 7, lambda n: 3 * n + 7 + n % 5, lambda n: n * n // 50):
            for room in (900, 10_000, 123_456):
                for guess in (None, 3, 10_000_000):
                    amount = fit(size_of, room, 2, guess)
                    self.assertLessEqual(size_of(amount), room)
                    self.assertGreater(size_of(amount + 1 + amount // 20), 0.98 * room)
        with self.assertRaises(TooShort):
            fit(lambda n: n + 100, 50, 1)


class TokenBytesTest(unittest.TestCase):
    def test_sentence_piece_words_bytes_and_special_tokens(self):
        vocabulary = {"<unk>": 0, "<s>": 1, "\u2581a": 2, "b": 3, "<0xC3>": 4, "<0xA9>": 5}
        tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
        tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "),
                                               decoders.ByteFallback(), decoders.Fuse()])
        tokenizer.add_special_tokens(["<s>"])
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save(str(Path(folder) / "tokenizer.json"))
            (Path(folder) / "config.json").write_text('{"eos_token_id": [1, 0], "vocab_size": 9}')
            known = Vocabulary(folder, eos=0)
            table = token_bytes(known.tokenizer, folder)
            self.assertEqual(known.stop_ids(), [0, 1])
        self.assertEqual(table[1:], [b"", b" a", b"b", b"\xc3", b"\xa9"])
        self.assertEqual(b"".join(table[i] for i in (2, 3, 4, 5)).decode(), " ab\u00e9")


if __name__ == "__main__":
    unittest.main()
