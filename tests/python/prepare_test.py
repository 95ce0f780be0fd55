"""data/prepare: what the stores hold, that nothing is lost or torn, and what errors say."""
import contextlib
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import h5py
import numpy as np
import pyarrow
import pyarrow.parquet
import xxhash
import zstandard

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "data"), str(Path(__file__).resolve().parent)]

from preparation import UserError, tokens, vocabulary  # noqa: E402
from preparation.__main__ import main  # noqa: E402
from preparation.documents import find_files, read_documents  # noqa: E402
from preparation.store import Store  # noqa: E402
from preparation.vocabulary import Vocabulary  # noqa: E402
from toy_tokenizer import make_folder  # noqa: E402


def sample_texts(count=23, seed=3):
    rng = np.random.default_rng(seed)
    words = "the quick brown fox jumps over a lazy dog in 1999 and — naïvely — it rains".split()
    return [("\n\n".join(" ".join(rng.choice(words, rng.integers(1, 30)))
                         for _ in range(rng.integers(1, 12)))) for _ in range(count)]


class PrepareTest(unittest.TestCase):
    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory()
        self.addCleanup(self.temporary.cleanup)
        self.folder = Path(self.temporary.name)
        self.tokenizer = make_folder(self.folder / "model")

    def write_jsonl(self, name, texts, opener=open):
        path = self.folder / name
        with opener(path, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts)
        return path

    def prepare(self, *args, command="tokens", expect=0):
        """What the command prints to stdout, or to stderr where it has to fail."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([command, "--tokenizer", str(self.folder / "model"), *map(str, args)])
        self.assertEqual(code, expect, err.getvalue())
        return err.getvalue() if expect else out.getvalue()

    def prepare_tokens(self, prefix, *args, **kwargs):
        out = self.folder / prefix
        self.prepare("--source", "toy", "--workers", "1", "--out", out, *args, **kwargs)
        return [Store(p) for p in sorted(out.parent.glob(f"{out.name}-*.h5"))]

    def expected_ids(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids + [1]


class StoresTest(PrepareTest):
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
                "num_documents": 23, "xxh3": xxhash.xxh3_64_hexdigest(data)})

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
        files = find_files([self.folder / "in"])
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


class ResumeTest(PrepareTest):
    def options(self, path, prefix):
        from argparse import Namespace
        return Namespace(inputs=[path], out=str(self.folder / prefix), source="toy", field="text",
                         eos=None, bos=None, tokenizer=self.folder / "model", shard_tokens=10**6,
                         limit_tokens=None, shuffle=None, workers=1)

    def test_parts_are_kept_if_whole_and_made_again_if_torn(self):
        before = tokens.UNIT_CHARS
        self.addCleanup(setattr, tokens, "UNIT_CHARS", before)
        tokens.UNIT_CHARS = 2000
        path = self.write_jsonl("a.jsonl", sample_texts())
        parts = self.folder / "parts"
        parts.mkdir()

        def made():
            with contextlib.redirect_stdout(io.StringIO()):
                return tokens.make_parts(self.options(path, "out"), [path],
                                         (self.folder / "model", None, None), b"key", parts)

        paths = made()
        self.assertGreater(len(paths), 3)
        content = [p.read_bytes() for p in paths]
        times = [p.stat().st_mtime_ns for p in paths]
        paths[0].write_bytes(content[0][:len(content[0]) // 2])
        with h5py.File(paths[1], "r+") as file:
            file["tokens"][3] ^= 1
        paths[2].unlink()
        self.assertEqual(made(), paths)
        self.assertEqual([Store(p).tokens[:].tolist() for p in paths[:3]],
                         [Store(p).tokens[:].tolist() for p in made()[:3]])
        self.assertTrue(all(Store(p).is_whole() for p in paths))
        self.assertEqual([p.stat().st_mtime_ns for p in paths[3:]], times[3:])

    def test_killed_and_called_again_equals_never_killed(self):
        path = self.write_jsonl("a.jsonl", sample_texts(60) * 150)
        args = ["--source", "toy", "--workers", "2", path, "--shuffle", "2"]
        self.prepare("--out", self.folder / "whole", *args)
        process = subprocess.Popen(
            [sys.executable, "-m", "preparation", "tokens", "--tokenizer", self.folder / "model",
             "--out", self.folder / "killed", *args], stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT / "data")})
        parts = self.folder / "killed.parts"
        while process.poll() is None and not list(parts.glob("part-*.h5")):
            pass
        process.kill()
        process.wait()
        self.prepare("--out", self.folder / "killed", *args)
        self.assertEqual((self.folder / "killed-00000.h5").read_bytes(),
                         (self.folder / "whole-00000.h5").read_bytes())
        self.assertFalse(parts.exists())

    def test_second_call_changes_nothing_and_other_settings_are_refused(self):
        path = self.write_jsonl("a.jsonl", sample_texts())
        self.prepare_tokens("out", path)
        file = self.folder / "out-00000.h5"
        before = file.stat().st_mtime_ns
        self.prepare_tokens("out", path)
        self.assertEqual(file.stat().st_mtime_ns, before)
        message = self.prepare("--source", "toy", "--out", self.folder / "out", path,
                               "--shuffle", "1", expect=1)
        self.assertIn("made from other inputs or options", message)
        self.assertEqual(file.stat().st_mtime_ns, before)


class ErrorsTest(PrepareTest):
    def test_each_bad_input_is_one_line_that_says_where(self):
        good = json.dumps({"text": "fine"}).encode() + b"\n"
        packed = lzma.compress(good * 5000)
        squeezed = zstandard.compress(os.urandom(100000).hex().encode())
        cases = [
            ("torn.jsonl", good + b'{"text": "half', "torn.jsonl:2: expected one JSON object"),
            ("list.jsonl", b"[1]\n", "list.jsonl:1: expected a JSON object"),
            ("field.jsonl", good + b'{"body": "x"}\n', "field.jsonl:2: expected a string in field"),
            ("number.jsonl", b'{"text": 3}\n', "number.jsonl:1: expected a string"),
            ("bytes.jsonl", b'{"text": "\xff"}\n', "bytes.jsonl:1: expected one JSON object"),
            ("cut.jsonl.xz", packed[:len(packed) // 2], "damaged or ends early"),
            ("cut.jsonl.zst", squeezed[:len(squeezed) // 2], "damaged or ends early"),
            ("cut.jsonl.gz", gzip.compress(good)[:-9], "damaged or ends early"),
            ("plain.jsonl.xz", good, "damaged or ends early"),
            ("bad.parquet", b"PAR1 no", "expected a Parquet file"),
            ("latin.txt", b"one\ntwo \xe9\n", "latin.txt:2: expected UTF-8"),
            ("empty.jsonl", b"\n", "expected documents with text, found none"),
            ("image.png", b"x", "expected .jsonl"),
        ]
        for name, content, expected in cases:
            with self.subTest(name):
                (self.folder / name).write_bytes(content)
                message = self.prepare("--source", "toy", "--workers", "1", "--out",
                                       self.folder / "bad", self.folder / name, expect=1)
                self.assertIn(expected, message)
                self.assertEqual(message.strip().splitlines()[-1:], [message.strip()])
                self.assertEqual(list(self.folder.glob("bad-*")), [])

    def test_tokenizer_folders_that_cannot_work_are_refused(self):
        path = self.write_jsonl("a.jsonl", ["text"])
        cases = [
            ({"eos_token_id": None}, [], "found no EOS token"),
            ({}, ["--eos", "<nothing>"], "expected an id below"),
            ({"vocab_size": 3}, [], "vocab_size is 3"),
        ]
        for config, args, expected in cases:
            with self.subTest(expected):
                make_folder(self.folder / "model", **config)
                message = self.prepare("--source", "toy", "--workers", "1", "--out",
                                       self.folder / "bad", path, *args, expect=1)
                self.assertIn(expected, message)
        with self.assertRaisesRegex(UserError, "no such file"):
            Vocabulary(self.folder / "nowhere")


class QuestionsTest(PrepareTest):
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

    def test_choices_are_the_rest_of_the_whole(self):
        record = {"task": "toy", "contexts": ["What is it? It is", "What is it? It is"],
                  "choices": [" a dog", " the best"], "answer": 1}
        path = self.folder / "mc.jsonl"
        path.write_text(json.dumps(record) + "\n")
        self.prepare("--out", self.folder / "mc.json", path, command="choices")
        item, = json.loads((self.folder / "mc.json").read_text())["items"]
        for context, choice, text in zip(item["contexts"], item["choices"], record["choices"]):
            self.assertEqual(self.tokenizer.decode(context + choice), record["contexts"][0] + text)
        self.assertEqual((item["answer"], item["choice_bytes"]), (1, [6, 9]))
        path.write_text(json.dumps({**record, "answer": 2}) + "\n")
        message = self.prepare("--out", self.folder / "mc.json", path, command="choices", expect=1)
        self.assertIn("mc.jsonl:1: expected as many 'contexts' as 'choices'", message)


if __name__ == "__main__":
    unittest.main()
