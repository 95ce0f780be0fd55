"""data/prepare: what the stores hold, and that nothing is lost or torn."""
import gzip
import json
import lzma
import os
import sys
import unittest
from argparse import Namespace
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pyarrow
import pyarrow.parquet
import xxhash
import zstandard

sys.path.insert(0, str(Path(__file__).resolve().parent))

from prepare_case import PrepareCase, make_folder, sample_texts  # noqa: E402
from preparation import parts, vocabulary  # noqa: E402
from preparation.documents import read_documents  # noqa: E402
from preparation.inputs import find_files  # noqa: E402
from preparation.store import Store  # noqa: E402
from preparation.vocabulary import Vocabulary  # noqa: E402


class StoresTest(PrepareCase):
    def test_store_holds_the_ids_of_every_document_in_order(self):
        texts = sample_texts()
        store, = self.prepare_tokens("out", self.write_jsonl("a.jsonl", texts))
        self.assertEqual(len(store), len(texts))
        for index, text in enumerate(texts):
            self.assertEqual(store.document(index).tolist(), self.expected_ids(text))

    def test_bytes_are_as_format_says(self):
        self.prepare_tokens("out", self.write_jsonl("a.jsonl", sample_texts()))
        with h5py.File(self.folder / "out-00000.h5") as file:
            stored, offsets = file["tokens"], file["document_offsets"]
            self.assertEqual((stored.dtype, offsets.dtype), (np.dtype("<u2"), np.dtype("<i8")))
            self.assertIsNotNone(stored.chunks)
            self.assertEqual((offsets[0], offsets[-1]), (0, len(stored)))
            self.assertTrue((np.diff(offsets[:]) > 0).all())
            data = stored[:].tobytes() + offsets[:].tobytes()
            content = (self.folder / "model" / "tokenizer.json").read_bytes()
            self.assertEqual(dict(file.attrs), {
                "format": "sala-token-store", "vocab_size": 512, "eos_id": 1, "source": "toy",
                "tokenizer_hash": xxhash.xxh3_64_hexdigest(content), "num_tokens": len(stored),
                "num_documents": 23, "special_tokens": "text",
                "xxh3": xxhash.xxh3_64_hexdigest(data)})

    def test_large_vocabulary_is_stored_in_32_bits(self):
        make_folder(self.folder / "model", vocab_size=65537)
        store, = self.prepare_tokens("out", self.write_jsonl("a.jsonl", ["one"]))
        self.assertEqual(store.tokens.dtype, np.dtype("<u4"))

    def test_every_kind_of_file_gives_the_same_documents(self):
        texts = sample_texts(7)
        (self.folder / "in").mkdir()
        self.write_jsonl("in/a.jsonl", texts)
        self.write_jsonl("in/b.jsonl.xz", texts, lzma.open)
        self.write_jsonl("in/c.jsonl.gz", texts, gzip.open)
        self.write_jsonl("in/d.jsonl.zst", texts, zstandard.open)
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), self.folder / "in/e.parquet",
                                    row_group_size=3)
        (self.folder / "in/f").mkdir()
        for index, text in enumerate(texts):
            (self.folder / f"in/f/{index}.txt").write_text(text)
        files, _ = find_files([self.folder / "in"])
        documents = [d.text for f in files for d in read_documents(f, "text")]
        self.assertEqual(documents, texts * 6)

    def test_long_documents_in_pieces_give_the_ids_of_the_whole(self):
        text = "\n\n".join(sample_texts(40)) + "\n\n\nend"
        known = Vocabulary(self.folder / "model")
        before = vocabulary.PIECE_CHARS
        self.addCleanup(setattr, vocabulary, "PIECE_CHARS", before)
        vocabulary.PIECE_CHARS = 1000
        self.assertGreater(len(list(known.pieces(text))), 5)
        self.assertEqual("".join(known.pieces(text)), text)
        self.assertEqual(known.encode_document(text), self.expected_ids(text))
        self.assertEqual("".join(known.pieces("x" * 2500)), "x" * 2500)

    def test_shards_keep_documents_whole_and_hold_everything(self):
        texts = sample_texts()
        stores = self.prepare_tokens("out", self.write_jsonl("a.jsonl", texts),
                                     "--shard-tokens", 300)
        self.assertGreater(len(stores), 2)
        documents = [s.document(i).tolist() for s in stores for i in range(len(s))]
        self.assertEqual(documents, [self.expected_ids(t) for t in texts])
        self.assertTrue(all(len(s) == 1 or s.offsets[-1] <= 300 for s in stores))
        self.assertTrue(all(s.is_whole() for s in stores))

    def test_shuffle_is_a_fixed_permutation(self):
        texts = sample_texts()
        path = self.write_jsonl("a.jsonl", texts)
        first, = self.prepare_tokens("s1", path, "--shuffle", 5)
        again, = self.prepare_tokens("s2", path, "--shuffle", 5)
        other, = self.prepare_tokens("s3", path, "--shuffle", 6)
        self.assertEqual(first.tokens[:].tolist(), again.tokens[:].tolist())
        self.assertNotEqual(first.tokens[:].tolist(), other.tokens[:].tolist())
        self.assertEqual(sorted(first.document(i).tolist() for i in range(len(first))),
                         sorted(self.expected_ids(t) for t in texts))

    def test_limit_cuts_the_last_document_and_ends_it(self):
        path = self.write_jsonl("a.jsonl", sample_texts())
        whole, = self.prepare_tokens("whole", path)
        for shuffle in ([], ["--shuffle", 1]):
            store, = self.prepare_tokens(f"limit{len(shuffle)}", path, "--limit-tokens", 501,
                                         *shuffle)
            self.assertEqual(len(store.tokens), 501)
            self.assertEqual(int(store.tokens[-1]), 1)
        store = Store(self.folder / "limit0-00000.h5")
        self.assertEqual(store.tokens[:500].tolist(), whole.tokens[:500].tolist())

    def test_bos_opens_each_document_only_when_asked_for(self):
        store, = self.prepare_tokens("out", self.write_jsonl("a.jsonl", ["one", "two"]),
                                     "--bos", "<bos>", "--eos", "7")
        for index in range(2):
            ids = store.document(index).tolist()
            self.assertEqual((ids[0], ids[-1]), (0, 7))

    def test_bos_opens_documents_and_prompts_where_the_tokenizer_puts_it(self):
        from tokenizers import processors
        self.tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", 0)])
        self.tokenizer.save(str(self.folder / "model/tokenizer.json"))
        path = self.write_jsonl("a.jsonl", ["one", "two"])
        record = {"contexts": ["It is", "It is"], "choices": [" a", " the"], "answer": 0}
        (self.folder / "q.jsonl").write_text(json.dumps(record) + "\n")
        for name, args, expected in (("own", [], [0]), ("none", ["--bos", "none"], [])):
            store, = self.prepare_tokens(name, path, *args)
            self.assertEqual(store.document(1).tolist()[:-1],
                             expected + self.tokenizer.encode("two", add_special_tokens=False).ids)
            out = self.folder / f"{name}_n.json"
            self.prepare("--out", out, "--count", 3, *args, command="needles")
            self.assertEqual(json.loads(out.read_text())["start"], expected)
            out = self.folder / f"{name}_q.json"
            self.prepare("--out", out, self.folder / "q.jsonl", *args, command="choices")
            item, = json.loads(out.read_text())["items"]
            self.assertEqual([c[:1] == [0] for c in item["contexts"]], [bool(expected)] * 2)
            out = self.folder / f"{name}.h5"
            self.prepare("--out", out, "--lengths", "3000", "--count", 1, "--tasks", "vt",
                         "--workers", 1, *args, command="ruler")
            with h5py.File(out) as file:
                self.assertEqual(int(file["tokens"][0]) == 0, bool(expected))


class ResumeTest(PrepareCase):
    def make_parts(self, path, folder):
        before = parts.UNIT_SIZE
        self.addCleanup(setattr, parts, "UNIT_SIZE", before)
        parts.UNIT_SIZE = 2000
        options = Namespace(out="out", source="toy", field="text", limit_tokens=None,
                            shuffle=None, workers=1, skip_bad=False)
        made, _ = parts.make_parts(options, read_documents, [path],
                                   partial(Vocabulary, self.folder / "model"), b"key", folder)
        return [Path(part.path) for part in made]

    def test_parts_are_kept_if_whole_and_made_again_if_torn(self):
        path = self.write_jsonl("a.jsonl", sample_texts())
        paths = self.make_parts(path, self.folder)
        self.assertGreater(len(paths), 3)
        before = [Store(p).tokens[:].tolist() for p in paths]
        times = [p.stat().st_mtime_ns for p in paths]
        content = paths[0].read_bytes()
        paths[0].write_bytes(content[:len(content) // 2])
        with h5py.File(paths[1], "r+") as file:
            file["tokens"][3] ^= 1
        paths[2].unlink()
        self.assertEqual(self.make_parts(path, self.folder), paths)
        self.assertEqual([Store(p).tokens[:].tolist() for p in paths], before)
        self.assertTrue(all(Store(p).is_whole() for p in paths))
        self.assertEqual([p.stat().st_mtime_ns for p in paths[3:]], times[3:])

    def test_killed_and_called_again_equals_never_killed(self):
        path = self.write_jsonl("a.jsonl", sample_texts(60) * 150)
        args = ["--source", "toy", "--workers", "2", path, "--shuffle", "2"]
        self.prepare("--out", self.folder / "whole", *args)
        process = self.start("--out", self.folder / "killed", *args[2:])
        folder = self.folder / "killed.parts"
        while process.poll() is None and not list(folder.glob("part-*.h5")):
            pass
        process.kill()
        process.communicate()
        self.prepare("--out", self.folder / "killed", *args)
        self.assertEqual((self.folder / "killed-00000.h5").read_bytes(),
                         (self.folder / "whole-00000.h5").read_bytes())
        self.assertEqual({p.name for p in self.folder.glob("killed*")},
                         {"killed-00000.h5", "killed.json"})

    def test_second_call_changes_nothing_and_other_settings_are_refused(self):
        path = self.write_jsonl("a.jsonl", sample_texts())
        self.prepare_tokens("out", path)
        file = self.folder / "out-00000.h5"
        before = file.stat().st_mtime_ns
        self.prepare_tokens("out", path)
        self.assertEqual(file.stat().st_mtime_ns, before)
        for option, value in (("--shuffle", "1"), ("--special-tokens", None), ("--eos", "7")):
            args = [option] if value is None else [option, value]
            message = self.prepare("--source", "toy", "--out", self.folder / "out", path, *args,
                                   expect=1)
            self.assertIn(f"other inputs or options (in {option[2:].replace('-', '_')[:3]}",
                          message)
        self.assertEqual(file.stat().st_mtime_ns, before)

    def test_inputs_that_moved_or_were_touched_are_the_same_and_changed_ones_are_not(self):
        path = self.write_jsonl("a.jsonl", ["one", "two"])
        self.prepare_tokens("out", path)
        os.utime(path, (1, 1))
        args = ["--source", "toy", "--out", self.folder / "out"]
        self.assertIn("already complete", self.prepare(*args, path))
        moved = path.rename(self.folder / "b.jsonl")
        self.assertIn("already complete", self.prepare(*args, moved))
        moved.write_text(moved.read_text().replace("two", "six"))
        self.assertIn("(in inputs)", self.prepare(*args, moved, expect=1))

    def test_a_shard_that_is_gone_or_not_the_one_listed_is_made_again(self):
        path = self.write_jsonl("a.jsonl", sample_texts())
        self.prepare_tokens("out", path)
        file = self.folder / "out-00000.h5"
        right = file.read_bytes()
        self.prepare_tokens("other", self.write_jsonl("b.jsonl", ["another"]))
        for damage in (lambda: file.unlink(), lambda: file.write_bytes(right[:-9]),
                       lambda: file.write_bytes((self.folder / "other-00000.h5").read_bytes())):
            damage()
            self.prepare_tokens("out", path)
            self.assertEqual(file.read_bytes(), right)

    def test_a_name_that_begins_like_another_stores_is_free(self):
        path = self.write_jsonl("a.jsonl", ["text"])
        self.prepare_tokens("en-2024", path)
        self.prepare_tokens("en", path, "--shuffle", "1")
        self.prepare_tokens("e[n]", path)
        self.assertEqual(len(list(self.folder.glob("*-00000.h5"))), 3)


class QuestionsTest(PrepareCase):
    def test_needles_are_consistent_with_the_text_as_a_whole(self):
        out = self.folder / "needles.json"
        self.prepare("--out", out, "--count", 200, command="needles")
        content = json.loads(out.read_text())
        self.assertEqual((content["format"], len(content["items"])), ("sala-needles", 200))
        known = Vocabulary(self.folder / "model")
        self.assertEqual(content["tokenizer_hash"], known.hash)
        for item in content["items"]:
            whole = self.tokenizer.decode(item["question"] + item["answer"])
            self.assertEqual(known.encode(whole), item["question"] + item["answer"])
            self.assertTrue(self.tokenizer.decode(item["needle"]).strip() == item["text"])
            self.assertTrue(item["text"].endswith(self.tokenizer.decode(item["answer"]) + "."))
        self.prepare("--out", self.folder / "again.json", "--count", 200, command="needles")
        self.assertEqual(out.read_bytes(), (self.folder / "again.json").read_bytes())

    def prepare_choices(self, records, *args, **kwargs):
        path = self.folder / "mc.jsonl"
        path.write_text("".join(json.dumps(r) + "\n" for r in records))
        message = self.prepare("--out", self.folder / "mc.json", path, *args, command="choices",
                               **kwargs)
        return message if kwargs else json.loads((self.folder / "mc.json").read_text())["items"]

    def test_choices_are_the_rest_of_the_whole(self):
        record = {"task": "toy", "contexts": ["What is it? It is", "What is it? It is"],
                  "choices": [" a dog", " the best"], "answer": 1}
        item, = self.prepare_choices([record])
        for context, choice, text in zip(item["contexts"], item["choices"], record["choices"]):
            self.assertEqual(self.tokenizer.decode(context + choice), record["contexts"][0] + text)
        self.assertEqual((item["answer"], item["choice_chars"]), (1, [5, 8]))

    def test_where_tokens_merge_over_the_border_the_context_keeps_its_own(self):
        known = Vocabulary(self.folder / "model")
        contexts = ["It was the wor", "It was the best "]
        record = {"contexts": contexts, "choices": ["st of times", "of times"], "answer": 0}
        item, = self.prepare_choices([record])
        for i, (context, choice) in enumerate(zip(contexts, record["choices"])):
            own, whole = known.encode(context.rstrip()), known.encode(context + choice)
            self.assertEqual(item["contexts"][i], own)
            self.assertEqual(item["choices"][i], whole[len(own):])
            self.assertEqual(own != whole[:len(own)], i == 0)  # the first one merges
        message = self.prepare_choices([{**record, "choices": ["st", "of"]}], expect=1)
        self.assertIn("mc.jsonl:1: the tokenizer joins the whole choice 'st' to its context's last",
                      message)

    def test_questions_that_are_none_are_named(self):
        record = {"contexts": ["one", "two"], "choices": [" a", " b"], "answer": 1}
        cases = [({"answer": 2}, "expected as many 'contexts' as 'choices'"),
                 ({"answer": True}, "expected as many 'contexts' as 'choices'"),
                 ({"choices": [1, 2]}, "expected text in 'contexts', 'choices' and 'task'"),
                 ({"contexts": [None, "x"]}, "expected text in"),
                 ({"task": 3}, "expected text in"),
                 ({"contexts": ["\ud83d", "x"]}, "lone surrogate"),
                 ({"choices": ["", "x"]}, "at least one token")]
        for change, expected in cases:
            with self.subTest(change):
                message = self.prepare_choices([record, {**record, **change}], expect=1)
                self.assertIn("mc.jsonl:2: ", message)
                self.assertIn(expected, message)
        self.assertFalse((self.folder / "mc.json").exists())

    def test_an_out_by_mistake_costs_no_file(self):
        path = self.folder / "notes.txt"
        path.write_text("mine")
        self.assertIn("no file of format sala-needles",
                      self.prepare("--out", path, command="needles", expect=1))
        self.assertEqual(path.read_text(), "mine")
        os.mkfifo(self.folder / "pipe")
        self.assertIn("device or a pipe", self.prepare("--out", self.folder / "pipe",
                                                       command="needles", expect=1))


class SpecialTokensTest(PrepareCase):
    TEXT = "before<eos>after <bos> \n<eos>"

    def ids_of(self, tokenizer, **settings):
        """Ids of a text that spells the EOS, from a folder with this tokenizer.json."""
        tokenizer.save(str(self.folder / "model/tokenizer.json"))
        (self.folder / "model/config.json").write_text(json.dumps({"eos_token_id": 1, **settings}))
        return Vocabulary(self.folder / "model").encode_document("a <eos> a<eos>")

    def test_text_that_spells_special_tokens_stays_text_unless_it_means_them(self):
        path = self.write_jsonl("a.jsonl", [self.TEXT])
        for name, args, num_special in (("text", [], 0), ("ids", ["--special-tokens"], 3)):
            store, = self.prepare_tokens(name, path, *args)
            ids = store.document(0).tolist()
            self.assertEqual(sum(i in (0, 1) for i in ids), num_special + 1)
            self.assertEqual(self.tokenizer.decode(ids[:-1], skip_special_tokens=False), self.TEXT)
            self.assertEqual(store.attributes["special_tokens"], name)
        record = {"contexts": [self.TEXT] * 2, "choices": [" <eos>", " x"], "answer": 0}
        (self.folder / "q.jsonl").write_text(json.dumps(record) + "\n")
        for name, args, expected in (("q1", [], False), ("q2", ["--special-tokens"], True)):
            out = self.folder / f"{name}.json"
            self.prepare("--out", out, self.folder / "q.jsonl", *args, command="choices")
            item, = json.loads(out.read_text())["items"]
            self.assertEqual(1 in item["choices"][0], expected)
            self.assertEqual(0 in item["contexts"][0], expected)

    def test_tokens_that_only_the_folder_calls_special_and_models_that_know_them_as_words(self):
        from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
        words = {"<unk>": 0, "<eos>": 1, "a": 2}
        word_level = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
        word_level.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        word_level.add_tokens([AddedToken("<eos>", special=False)])
        pieces = [("<unk>", 0.0), ("<eos>", 0.0), ("a", -2.0), ("▁", -2.0), ("<", -3.0),
                  ("e", -3.0), ("o", -3.0), ("s", -3.0), (">", -3.0)]
        unigram = Tokenizer(models.Unigram(pieces, unk_id=0))
        unigram.pre_tokenizer = pre_tokenizers.Metaspace()
        unigram.add_special_tokens([AddedToken("<eos>", special=True)])
        for tokenizer in (word_level, unigram):
            ids = self.ids_of(tokenizer)
            self.assertEqual((ids.count(1), ids[-1]), (1, 1))
            self.assertIn(2, ids)
        many = Vocabulary(self.folder / "model").encode_document("a<eos>" * 6000)
        self.assertEqual(many.count(1), 1)

    def test_a_cut_tears_no_special_token(self):
        known = Vocabulary(self.folder / "model", special_tokens=True)
        before = vocabulary.PIECE_CHARS
        self.addCleanup(setattr, vocabulary, "PIECE_CHARS", before)
        vocabulary.PIECE_CHARS = 101
        ids = known.encode_document("abc<eos>" * 500)
        self.assertEqual(ids.count(1), 501)


if __name__ == "__main__":
    unittest.main()
