"""data/prepare recall: what is asked for at a document's end stands before in it, wording is not
that of the tests of recall, and text, lengths and seed alone decide the store."""
import random
import re
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from prepare_case import PrepareCase, sample_texts  # noqa: E402
from preparation.recall import forms  # noqa: E402
from preparation.recall.command import stretches  # noqa: E402

PARAGRAPHS = [" ".join(f"Sentence {i} of paragraph {p} has word{i * p} in it."
                       for i in range(1, 9)) for p in range(1, 7)]


class FormsTest(unittest.TestCase):
    def each(self, form, count=40):
        for seed in range(count):
            given = list(PARAGRAPHS)
            made = form(random.Random(f"{form.__name__} {seed}"), given)
            self.assertEqual(given, PARAGRAPHS)  # a form does not change what it is given
            yield "\n\n".join(made), made

    def answer(self, line):
        """who, what and the values that a line at the end asks for and tells."""
        for form in forms.QUESTIONS + forms.SETS:
            pattern = re.escape(form).replace(r"\n", "\n")
            for name in ("who", "what", "values", "value"):
                group = f"(?P<{name}>.+)"
                pattern = pattern.replace(r"\{%s\}" % name, group, 1)
            if found := re.fullmatch(pattern, line):
                values = found.groupdict().get("values")
                values = re.split(", | and ", values) if values else [found["value"]]
                return found["who"], found["what"], values
        self.fail(line)

    def test_values_asked_for_stand_before_in_their_order(self):
        for form in (forms.facts, forms.table):
            for _, made in self.each(form):
                who, what, values = self.answer(made[-1])
                before, at = "\n\n".join(made[:-1]), 0
                for value in values:
                    told = [s.format(who=who, what=what, value=value) for s in forms.STATEMENTS]
                    self.assertTrue(any(t in before for t in told), (made[-1], before))
                    here = min(before.find(t) for t in told if t in before)
                    self.assertGreaterEqual(here, at)
                    at = here

    def test_passages_are_the_texts_own(self):
        source = " ".join(PARAGRAPHS)
        for text, made in self.each(forms.echo):
            self.assertEqual(made[:len(PARAGRAPHS)], PARAGRAPHS)
            for line in made[len(PARAGRAPHS):]:
                spoken = line.split(": ")[-1].strip('"')
                self.assertIn(spoken, source)
        for text, made in self.each(forms.sequel):
            for line in made[len(PARAGRAPHS):]:
                quoted = re.findall(r'"([^"]+)"', line)
                rest = quoted[1] if len(quoted) > 1 else line.split("continue? ")[1]
                self.assertIn(f"{quoted[0]} {rest}", source)

    def test_chains_lead_from_the_value_to_every_name(self):
        for text, made in self.each(forms.chain):
            asked = re.findall(r"^The names that stand for (\d+) are (.+)\.$", text, re.MULTILINE)
            self.assertIn(asked[-1][0], made[-1])
            self.assertEqual(len(asked), len(set(asked)))
            for value, names in asked:
                names = re.split(", | and ", names)
                self.assertIn(f"Let {names[0]} be {value}.", text)
                for before, after in zip(names, names[1:]):
                    line = f"Let {after} be the same as {before}."
                    self.assertIn(line, text)
                    self.assertGreater(text.index(line), text.index(f"Let {names[0]} be {value}."))

    def test_the_most_frequent_words_of_a_tally_are_named(self):
        for text, made in self.each(forms.tally):
            listed = made[0].removeprefix("A list: ").rstrip(".").split(", ")
            named = re.split(", | and ", re.sub(r".*(comes|come) ", "", made[1]).rstrip("."))
            least = min(listed.count(w) for w in named)
            self.assertGreater(least, 3)

    def test_nothing_is_worded_as_in_what_measures_recall(self):
        for form in set(forms.FORMS):
            for text, _ in self.each(form, 20):
                self.assertNotRegex(text, "magic|VAR |numbered list|in code|mentioned in the text")


class RecallTest(PrepareCase):
    def recall(self, prefix, *args, **kwargs):
        return self.prepare_tokens(prefix, *args, command="recall", **kwargs)

    def texts(self, prefix, *args):
        store, = self.recall(prefix, *args)
        return [self.tokenizer.decode(store.document(i).tolist()) for i in range(len(store))]

    def test_text_lengths_and_seed_decide_and_workers_do_not(self):
        path = self.write_jsonl("a.jsonl", [" ".join(t.split()) + "\n\n" + t
                                            for t in sample_texts(60)])
        args = [path, "--lengths", "128,256"]
        one = self.texts("one", *args)
        self.assertGreater(len(one), 5)
        self.assertEqual(self.texts("two", *args, "--workers", 2), one)
        self.assertNotEqual(self.texts("three", *args, "--seed", 2), one)
        again = self.prepare("--source", "toy", "--out", self.folder / "one", *args,
                             command="recall")
        self.assertIn("already complete", again)
        error = self.prepare("--source", "toy", "--out", self.folder / "one", path, "--lengths",
                             "128,512", command="recall", expect=1)
        self.assertIn("recall", error)

    def test_lengths_are_about_those_asked_for(self):
        rng = random.Random(1)
        sizes = [sum(map(len, group)) for group in
                 stretches(rng, ["word " * 60] * 4000, 1024, 8192)]
        self.assertGreater(len(sizes), 100)
        self.assertGreaterEqual(min(sizes), 1024)
        self.assertLessEqual(max(sizes), 8192 + 1024)

    def test_documents_that_are_too_short_are_counted(self):
        long = "\n\n".join(sample_texts(40))
        some = self.write_jsonl("some.jsonl", ["brief", long, "", long[:100]])
        args = ["--source", "toy", "--workers", 1, "--lengths", "128,256"]
        said = self.prepare(*args, "--out", self.folder / "some", some, command="recall")
        self.assertIn("1 empty documents left out; 2 documents left out as too short for --lengths",
                      said)
        none = self.write_jsonl("none.jsonl", ["brief", long[:400]])
        said = self.prepare(*args, "--out", self.folder / "none", none, command="recall", expect=1)
        self.assertIn("none.jsonl: expected documents with text, found none (2 documents left out "
                      "as too short for --lengths (give smaller ones", said)

    def test_lengths_that_make_no_sense_are_refused(self):
        path = self.write_jsonl("a.jsonl", sample_texts())
        for lengths in ("2K,512", "64,128", "512", "512,1K,2K"):
            error = self.prepare("--source", "toy", "--out", self.folder / "x", path, "--lengths",
                                 lengths, command="recall", expect=1)
            self.assertIn("--lengths", error)
            self.assertFalse((self.folder / "x-00000.h5").exists())


if __name__ == "__main__":
    unittest.main()
