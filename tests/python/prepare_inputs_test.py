"""data/prepare on the inputs that people have: which files a folder stands for, what is read of
them, and the one line that each bad one ends with."""
import gzip
import json
import lzma
import os
import socket
import sys
import unittest
from pathlib import Path

import pyarrow
import pyarrow.parquet
import zstandard

sys.path.insert(0, str(Path(__file__).resolve().parent))

from prepare_case import PrepareCase, make_folder  # noqa: E402
from preparation import UserError  # noqa: E402
from preparation.inputs import find_files  # noqa: E402
from preparation.vocabulary import Vocabulary  # noqa: E402

GOOD = json.dumps({"text": "fine"}).encode() + b"\n"


class FoldersTest(PrepareCase):
    def found(self, *inputs):
        files, skipped = find_files([self.folder / i for i in inputs])
        return [str(f.relative_to(self.folder)) for f in files], str(skipped)

    def test_only_documents_of_a_folder_are_taken_and_the_rest_is_said_once(self):
        for name in ("a.jsonl", ".ipynb_checkpoints/a-checkpoint.jsonl", "b/.cache/x.txt",
                     "b/c.txt", "_delta_log/0.json", "README.md", "b/LICENSE.txt",
                     "dataset_info.json", "b/table.csv", "b/.hidden.jsonl", "store.json"):
            path = self.folder / "in" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(GOOD)
        (self.folder / "in/store-00000.h5").write_bytes(b"")
        os.mkfifo(self.folder / "in/pipe.jsonl")
        files, skipped = self.found("in")
        self.assertEqual(files, ["in/a.jsonl", "in/b/c.txt"])
        for part in ("4 hidden (.cache, .hidden.jsonl, .ipynb_checkpoints, _delta_log)",
                     "1 that are no files (pipe.jsonl)", "*.csv", "LICENSE.txt", "README.md"):
            self.assertIn(part, skipped)
        out = self.prepare("--source", "toy", "--workers", "1", "--out", self.folder / "out",
                           self.folder / "in")
        self.assertEqual(out.count("skipped: "), 1)
        self.assertEqual(self.texts_in("out"), ["fine", GOOD.decode()])
        self.assertEqual(self.found("in/README.md", "in/b/.hidden.jsonl")[0],
                         ["in/README.md", "in/b/.hidden.jsonl"])

    def test_links_are_followed_loops_end_and_each_file_counts_once(self):
        self.write_jsonl("in/a.jsonl", ["one"])
        self.write_jsonl("elsewhere/a.jsonl", ["two"])
        (self.folder / "in/link").symlink_to(self.folder / "elsewhere")
        (self.folder / "in/loop").symlink_to(self.folder / "in")
        (self.folder / "elsewhere/back").symlink_to(self.folder / "in")
        files, skipped = self.found("in", "in/a.jsonl", "elsewhere")
        self.assertEqual(files, ["in/a.jsonl", "in/link/a.jsonl"])
        self.assertIn("reached a second time", skipped)
        (self.folder / "in/gone.jsonl").symlink_to("nowhere")
        with self.assertRaises(FileNotFoundError):
            self.found("in")

    def test_a_store_made_inside_its_input_folder_is_found_complete(self):
        path = self.write_jsonl("in/a.jsonl", ["one"]).parent
        for _ in range(2):
            self.prepare_tokens("in/books", path)
        self.assertEqual(self.texts_in("in/books"), ["one"])

    def test_what_is_no_file_is_refused_at_once(self):
        os.mkfifo(self.folder / "pipe.jsonl")
        server = socket.socket(socket.AF_UNIX)
        self.addCleanup(server.close)
        server.bind(str(self.folder / "socket.jsonl"))
        (self.folder / "empty").mkdir()
        for name, expected in (("pipe.jsonl", "found a pipe"), ("socket.jsonl", "found a socket"),
                               ("nowhere.jsonl", "nowhere.jsonl: No such file"),
                               ("empty", "found none"), ("new\nline.jsonl", "new\\nline.jsonl")):
            self.assertIn(expected, self.refused_tokens(self.folder / name))


class ReadingTest(PrepareCase):
    def written(self, name, content):
        (self.folder / name).write_bytes(content)
        return self.folder / name

    def test_marks_line_ends_and_odd_characters_of_other_systems(self):
        mark = "\ufeff".encode()
        line = b'{"text": "one\\u0000\\r\\ntwo"}'
        inputs = [self.written("a.jsonl", mark + line + b"\r\n" + mark + line + b"\r\n\r\n" + line),
                  self.written("b.txt", mark + b"one\r\ntwo"),
                  self.written("c.jsonl", b""),
                  self.written("d.jsonl", b'{"text": "  ", "id": 1}\n')]
        self.prepare_tokens("out", *inputs)
        self.assertEqual(self.texts_in("out"), ["one\0\r\ntwo"] * 3 + ["one\ntwo"])

    def test_files_of_one_name_in_two_folders_are_two(self):
        self.prepare_tokens("out", self.write_jsonl("x/a.jsonl", ["one"]),
                            self.write_jsonl("y/a.jsonl", ["two"]))
        self.assertEqual(self.texts_in("out"), ["one", "two"])

    def test_zstd_with_long_windows_and_several_frames(self):
        frames = b""
        for window_log in (28, 31):
            settings = zstandard.ZstdCompressionParameters.from_level(
                1, window_log=window_log, enable_ldm=True)
            stream = zstandard.ZstdCompressor(compression_params=settings).compressobj()
            frames += stream.compress(GOOD) + stream.flush()
        skippable = b"\x50\x2a\x4d\x18\x04\x00\x00\x00pass"
        self.prepare_tokens("out", self.written("a.jsonl.zst", frames[:-1] + frames[-1:] +
                                                skippable + frames))
        self.assertEqual(self.texts_in("out"), ["fine"] * 4)

    def test_kinds_of_string_columns(self):
        column = pyarrow.array(["one", "two", "one"])
        for index, kind in enumerate((pyarrow.large_string(), pyarrow.string_view(),
                                      pyarrow.dictionary(pyarrow.int32(), pyarrow.string()))):
            path = self.folder / f"{index}.parquet"
            pyarrow.parquet.write_table(pyarrow.table({"text": column.cast(kind)}), path)
            self.prepare_tokens(f"out{index}", path)
            self.assertEqual(self.texts_in(f"out{index}"), ["one", "two", "one"])


def parquet_bytes(column, name="text"):
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({name: column}), sink, use_dictionary=False,
                                compression="none")
    return sink.getvalue().to_pybytes()


# One bad document between two good ones: what the file is called, the bad line, what is said.
BAD_LINES = [
    ("torn", b'{"text": "half', ":2: expected one JSON object"),
    ("list", b"[1]", ":2: expected a JSON object, found an array"),
    ("field", b'{"body": "x"}', ":2: expected a string in field 'text', the line has the"),
    ("null", b'{"text": null}', ":2: expected a string in field 'text', found null"),
    ("number", b'{"text": 3}', ":2: expected a string in field 'text', found a number"),
    ("bytes", b'{"text": "\xff"}', ":2: expected one JSON object a line in UTF-8, byte 10"),
    ("encoded_surrogate", b'{"text": "\xed\xa0\xbd"}', ":2: expected one JSON object a line in"),
    ("surrogate", b'{"text": "a \\ud83d b"}', ":2: the text has the lone surrogate \\ud83d at"),
    ("deep", b'{"text": ' + b"[" * 200_000, ":2: the JSON is nested too deeply"),
    ("digits", b'{"id": ' + b"1" * 5000 + b', "text": "x"}', ":2: expected one JSON object"),
    ("nul", b"\0\0\0\0", ":2: expected one JSON object"),
]


class ErrorsTest(PrepareCase):
    def test_each_bad_document_is_named_or_skipped_and_counted(self):
        for name, line, expected in BAD_LINES:
            with self.subTest(name):
                path = self.folder / f"{name}.jsonl"
                path.write_bytes(GOOD + line + b"\n" + GOOD)
                message = self.refused_tokens(path)
                self.assertIn(f"{name}.jsonl{expected}", message)
                self.assertIn("--skip-bad leaves such documents out", message)
                self.assertLess(len(message), 500)
        files = sorted(self.folder.glob("*.jsonl"))
        (self.folder / "latin.txt").write_bytes(b"one\ntwo \xe9\n")
        column = pyarrow.Array.from_buffers(
            pyarrow.string(), 3, [None, pyarrow.array([0, 1, 2, 3], pyarrow.int32()).buffers()[1],
                                  pyarrow.py_buffer(b"a\xffb")])
        (self.folder / "bytes.parquet").write_bytes(parquet_bytes(column))
        (self.folder / "null.parquet").write_bytes(parquet_bytes(["a", None, "b"]))
        others = [(self.folder / "latin.txt", "latin.txt:2: expected UTF-8"),
                  (self.folder / "bytes.parquet", "bytes.parquet (row 2): expected UTF-8"),
                  (self.folder / "null.parquet", "null.parquet (row 2): expected a string in "
                                                 "column 'text', found null")]
        for path, expected in others:
            self.assertIn(expected, self.refused_tokens(path))
        out = self.prepare("--source", "toy", "--workers", "1", "--skip-bad", "--out",
                           self.folder / "out", *files, *[path for path, _ in others])
        self.assertIn(f"{len(BAD_LINES) + 3} bad documents skipped, the first: ", out)
        self.assertEqual(self.texts_in("out"), ["fine", "fine"] * len(BAD_LINES) + ["a", "b"] * 2)
        message = self.refused_tokens(others[0][0], "--skip-bad")
        self.assertIn("found none (1 bad documents skipped, the first: ", message)

    def test_each_bad_file_is_one_line_that_says_where_even_when_bad_documents_are_skipped(self):
        packed = lzma.compress(GOOD * 5000)
        squeezed = zstandard.compress(os.urandom(100000).hex().encode())
        whole = parquet_bytes(["fine" * 100] * 2000)
        cases = [
            ("cut.jsonl.xz", packed[:len(packed) // 2], "damaged or ends early"),
            ("cut.jsonl.zst", squeezed[:len(squeezed) // 2], "damaged or ends early"),
            ("cut.jsonl.gz", gzip.compress(GOOD)[:-9], "damaged or ends early"),
            ("tail.jsonl.gz", gzip.compress(GOOD) + b"tail", "damaged or ends early"),
            ("plain.jsonl.xz", GOOD, "damaged or ends early"),
            ("none.jsonl.gz", b"", "the file is empty"),
            ("none.JSONL.XZ", b"", "the file is empty"),
            ("none.json.jsonl", b"", "expected documents with text, found none"),
            ("bad.parquet", b"PAR1 no", "expected a Parquet file"),
            ("none.parquet", b"", "expected a Parquet file"),
            ("hole.parquet", whole[:9000] + b"\xff" * 9000 + whole[18000:], "a Parquet file"),
            ("column.parquet", parquet_bytes(["x"], "body"), "expected a column 'text', the file"),
            ("kind.parquet", parquet_bytes([[1], [2]]), "expected strings in column 'text', found"),
            ("empty.jsonl", b"\n", "expected documents with text, found none"),
            ("blank.jsonl", b'{"text": ""}\n', "found none (1 empty documents left out)"),
            ("gz.jsonl", gzip.compress(b"{}"), "gz.jsonl: gzip data: name it gz.jsonl.gz"),
            ("xz.json", lzma.compress(b"{}"), "xz.json: xz data: name it xz.json.xz"),
            ("zst.jsonl", zstandard.compress(b"{}"), "zstd data: name it zst.jsonl.zst"),
            ("wide.jsonl", '{"text": "x"}\n'.encode("utf-16"), "found UTF-16"),
            ("lfs.txt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
             "is a git-lfs pointer"),
            ("image.png", b"x", "expected .jsonl"),
        ]
        for name, content, expected in cases:
            with self.subTest(name):
                (self.folder / name).write_bytes(content)
                message = self.refused_tokens(self.folder / name, "--skip-bad")
                self.assertIn(expected, message)
                self.assertIn(name, message)

    def test_tokenizer_folders_that_cannot_work_are_refused(self):
        path = self.write_jsonl("a.jsonl", ["text"])
        cases = [
            ({"eos_token_id": None}, [], "found no EOS token"),
            ({}, ["--bos", "<nothing>"], "expected an id below"),
            ({}, ["--eos", "512"], "expected an id below 512"),
            ({}, ["--eos", "٣"], "--eos: expected a special token"),
            ({}, ["--eos", "9" * 5000], "--eos: expected a special token"),
            ({"vocab_size": 3}, [], "vocab_size is 3"),
            ({"vocab_size": "many"}, [], "expected a number of tokens in vocab_size"),
        ]
        for config, args, expected in cases:
            with self.subTest(expected):
                make_folder(self.folder / "model", **config)
                self.assertIn(expected, self.refused_tokens(path, *args))
        for name, content, expected in (("config.json", "[1]", "expected a JSON object, found l"),
                                        ("config.json", "{", "expected JSON"),
                                        ("tokenizer.json", "{", "expected a tokenizer")):
            with self.subTest(content):
                make_folder(self.folder / "model")
                (self.folder / "model" / name).write_text(content)
                self.assertIn(f"{name}: {expected}", self.refused_tokens(path))
        with self.assertRaisesRegex(UserError, "no such file"):
            Vocabulary(self.folder / "nowhere")

    def test_only_a_special_token_or_an_id_ends_documents(self):
        path = self.write_jsonl("a.jsonl", ["text"])
        folder = self.folder / "model"
        self.tokenizer.add_tokens(["none", "<end>"])  # both ordinary
        self.tokenizer.save(str(folder / "tokenizer.json"))
        for name in ("none", "the", "<nothing>", "<end>"):
            message = self.refused_tokens(path, "--eos", name)
            self.assertIn(f"--eos: expected a special token of {folder} (<bos>, <eos>) or an id "
                          f"below 512, got '{name}'", message)
        # As some folders have it: tokenizer.json alone does not say that it is special.
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"additional_special_tokens": ["<end>"], "pad_token": "none"}))
        for name, eos in (("<end>", self.tokenizer.token_to_id("<end>")), ("<bos>", 0),
                          ("7", 7), (str(self.tokenizer.token_to_id("none")),
                                     self.tokenizer.token_to_id("none"))):
            store, = self.prepare_tokens(f"out{eos}", path, "--eos", name)
            self.assertEqual(store.attributes["eos_id"], eos)
        self.assertIn("every document ends with one", self.refused_tokens(path, "--eos", "none"))

    def test_options_that_mean_nothing_are_refused_by_name(self):
        path = self.write_jsonl("a.jsonl", ["text"])
        for option, value in (("--shuffle", "-1"), ("--shuffle", "²"), ("--shard-tokens", "²"),
                              ("--limit-tokens", "0"), ("--workers", "0"), ("--source", ""),
                              ("--source", "a\nb"), ("--eos", "\udcff"), ("--shuffle", "9" * 5000)):
            with self.subTest(option + ascii(value)[:20]), self.assertRaises(SystemExit):
                self.refused_tokens(path, f"{option}={value}")


if __name__ == "__main__":
    unittest.main()
