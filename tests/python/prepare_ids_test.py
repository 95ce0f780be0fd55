"""data/prepare ids: documents that are ids already, from Megatron's indexed data sets and from
columns of ids, arrive as they were, and files that are cut, swapped or damaged are one line that
says where. prepare_written_by_others_test.py has the libraries themselves write such files."""
import json
import random
import struct
import sys
import unittest
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

sys.path.insert(0, str(Path(__file__).resolve().parent))

from prepare_case import PrepareCase, make_folder, sample_texts  # noqa: E402
from prepare_data_sets_test import save  # noqa: E402
from preparation import BadDocument, UserError, megatron  # noqa: E402
from preparation.tokenized import read_tokenized  # noqa: E402

CODES = {np.uint8: 1, np.int16: 3, np.int32: 4, np.int64: 5, np.uint16: 8}
EOS = 1


def write_megatron(prefix, documents, dtype=np.int32, tail=b""):
    """documents: lists of sequences, each a list of ids."""
    sequences = [sequence for document in documents for sequence in document]
    lengths = np.array([len(s) for s in sequences], np.int32)
    begins = np.cumsum(np.concatenate([[0], lengths[:-1]])) * np.dtype(dtype).itemsize
    borders = np.cumsum([0] + [len(document) for document in documents])
    prefix.with_name(f"{prefix.name}.bin").write_bytes(
        b"".join(np.array(s, dtype).tobytes() for s in sequences))
    prefix.with_name(f"{prefix.name}.idx").write_bytes(
        b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, CODES[dtype], len(sequences), len(borders))
        + lengths.tobytes() + begins.astype(np.int64).tobytes()
        + borders.astype(np.int64).tobytes() + tail)
    return prefix


class IdsCase(PrepareCase):
    def sample_ids(self, count=23):
        return [self.expected_ids(text) for text in sample_texts(count)]

    def prepare_ids(self, prefix, *args):
        return self.prepare_tokens(prefix, *args, command="ids")

    def said(self, prefix, *args):
        return self.prepare("--source", "toy", "--workers", "1", "--out", self.folder / prefix,
                            *args, command="ids")

    def refused(self, *args):
        message = self.prepare("--source", "toy", "--workers", "1", "--out", self.folder / "bad",
                               *args, command="ids", expect=1)
        self.assertEqual(list(self.folder.glob("bad-*.h5")), [])
        return message

    def documents_in(self, prefix):
        return [store.document(d).tolist() for store in self.stores(prefix)
                for d in range(len(store))]


class MegatronTest(IdsCase):
    def test_documents_arrive_as_they_were_from_every_type_of_ids(self):
        for dtype in CODES:
            documents = [[i for i in ids if i < 256] for ids in self.sample_ids()]
            prefix = write_megatron(self.folder / dtype.__name__, [[d] for d in documents], dtype)
            for ending in ("", ".bin", ".idx"):
                out = f"out_{dtype.__name__}{ending}"
                self.prepare_ids(out, f"{prefix}{ending}")
                self.assertEqual(self.documents_in(out), documents)

    def test_sequences_of_a_document_are_joined_and_the_store_is_that_of_the_text(self):
        texts, ids = sample_texts(), self.sample_ids()
        cut = [[d[:len(d) // 3], [], d[len(d) // 3:]] if i % 2 else [d] for i, d in enumerate(ids)]
        (self.folder / "in").mkdir()
        write_megatron(self.folder / "in/a", cut[:9])
        write_megatron(self.folder / "in/b.c", cut[9:])
        self.assertNotIn("skipped", self.said("ids", self.folder / "in", "--shard-tokens", "2K"))
        self.prepare_tokens("text", self.write_jsonl("a.jsonl", texts), "--shard-tokens", "2K",
                            "--special-tokens")
        self.assertEqual([s.file.attrs["xxh3"] for s in self.stores("ids")],
                         [s.file.attrs["xxh3"] for s in self.stores("text")])
        self.assertEqual([dict(s.file.attrs) for s in self.stores("ids")],
                         [dict(s.file.attrs) for s in self.stores("text")])

    def test_number_of_workers_and_of_sequences_checked_at_once_change_no_byte(self):
        documents = self.sample_ids(60)
        prefix = write_megatron(self.folder / "a", [[d] for d in documents])
        self.prepare_ids("one", prefix, "--shuffle", 3)
        before = megatron.CHECKED_AT_ONCE
        self.addCleanup(setattr, megatron, "CHECKED_AT_ONCE", before)
        megatron.CHECKED_AT_ONCE = 7
        self.prepare_ids("two", prefix, "--shuffle", 3, "--workers", 2)
        self.assertEqual((self.folder / "one-00000.h5").read_bytes(),
                         (self.folder / "two-00000.h5").read_bytes())

    def test_empty_documents_are_left_out_and_other_data_under_the_same_names_are_noticed(self):
        prefix = write_megatron(self.folder / "a", [[[5, EOS]], [], [[]], [[6, EOS]]])
        self.assertIn("2 empty documents left out", self.said("out", prefix))
        self.assertEqual(self.documents_in("out"), [[5, EOS], [6, EOS]])
        self.assertIn("already complete", self.said("out", prefix))
        write_megatron(self.folder / "a", [[[5, EOS], [6, EOS]]])  # the same .bin
        self.assertIn("(in inputs)", self.prepare("--source", "toy", "--out", self.folder / "out",
                                                  prefix, command="ids", expect=1))

    def test_pairs_that_are_none_are_one_line(self):
        whole = write_megatron(self.folder / "whole", [[[5, 6, EOS]], [[7, 8], [9, EOS]]])
        index = Path(f"{whole}.idx").read_bytes()

        def changed(at, *values, kind="<q"):
            data = bytearray(index)
            for i, value in enumerate(values):
                struct.pack_into(kind, data, at + i * struct.calcsize(kind), value)
            return bytes(data)

        ids = Path(f"{whole}.bin").read_bytes()
        begins, borders = 34 + 3 * 4, 34 + 3 * 12
        cases = [
            (b"", ids, "expected the index of a Megatron data set, which begins with MMIDIDX"),
            (index[:30], ids, "expected the index of a Megatron data set"),
            (b"TNTIDX\0\0" + index[8:], ids, "an index of the older kind (TNTIDX)"),
            (changed(9, 2), ids, "expected version 1 of Megatron's index, found 2"),
            (changed(17, 7, kind="<B"), ids, "found 7, numbers that are no ids"),
            (changed(17, 99, kind="<B"), ids, "found 99, an unknown code"),
            (changed(18, 1 << 60), ids, "it was cut off or damaged"),
            (index[:-1], ids, "expected 94 bytes for its 3 sequences and 3 borders"),
            (index + b"\0", ids, "the file has 95; it was cut off or damaged"),
            (index + b"\0\0\0", ids, "is of a multimodal data set"),
            (changed(34, -3, kind="<i"), ids, "sequence 0 has -3 ids"),
            (changed(34, 4, kind="<i"), ids, "expected sequence 1 to begin at byte 16 of"),
            (changed(begins + 8, 8), ids, "expected sequence 1 to begin at byte 12 of bad.bin"),
            (changed(borders, 1), ids, "from 0 to 3, found 1 to 3"),
            (changed(borders, 0, 1, 2), ids, "from 0 to 3, found 0 to 2"),
            (changed(borders, 0, 5, 3), ids, "found 0 to 3, not rising"),
            (changed(17, 5, kind="<B"), ids, "expected sequence 1 to begin at byte 24"),
            (index, ids[:-2], "bad.bin: expected 28 bytes, as bad.idx says, the file has 26"),
            (index, ids + b"\0" * 4, "the two are not a pair"),
            (index, None, "bad.bin: no such file, though bad.idx is there"),
            (index, b"version https://git-lfs.github.com/spec/v1\n", "is a git-lfs pointer"),
            (index[:18] + struct.pack("<QQ", 0, 1) + bytes(8), b"", "expected documents, found no"),
        ]
        for idx, bin_, expected in cases:
            with self.subTest(expected):
                (self.folder / "bad.idx").write_bytes(idx)
                (self.folder / "bad.bin").unlink(missing_ok=True)
                if bin_ is not None:
                    (self.folder / "bad.bin").write_bytes(bin_)
                message = self.refused(self.folder / "bad.idx", "--skip-bad")
                self.assertIn(expected, message)
                self.assertIn(str(self.folder / "bad."), message)

    def test_damage_anywhere_is_an_error_or_other_ids_and_never_a_crash(self):
        prefix = write_megatron(self.folder / "a", [[d] for d in self.sample_ids(9)])
        path, rng, refused = Path(f"{prefix}.idx"), random.Random(5), 0
        whole = path.read_bytes()
        for _ in range(500):
            damaged = bytearray(whole)
            damaged[rng.randrange(len(damaged))] = rng.choice((0, 255, rng.randrange(256)))
            path.write_bytes(damaged)
            try:
                ids = list(read_tokenized(path, ""))
                self.assertEqual(sum(len(d.ids) * d.ids.itemsize for d in ids),
                                 Path(f"{prefix}.bin").stat().st_size)
            except UserError as error:
                self.assertNotIsInstance(error, BadDocument)
                refused += 1
        self.assertGreater(refused, 250)


class ColumnsTest(IdsCase):
    def tables(self, documents):
        """One data set in every form that has columns or fields of ids."""
        kinds = {"i32": pyarrow.list_(pyarrow.int32()), "u16": pyarrow.large_list(pyarrow.uint16())}
        for name, kind in kinds.items():
            table = {"input_ids": pyarrow.array(documents, kind), "n": range(len(documents))}
            yield name, save(self.folder / name, table)
            pyarrow.parquet.write_table(pyarrow.table(table), self.folder / f"{name}.parquet")
            yield f"{name}_parquet", self.folder / f"{name}.parquet"
        path = self.folder / "ids.jsonl"
        path.write_text("".join(json.dumps({"input_ids": d}) + "\n" for d in documents))
        yield "json", path

    def test_every_form_gives_the_same_store(self):
        documents = self.sample_ids()
        for name, path in self.tables(documents):
            self.prepare_ids(f"out_{name}", path)
            self.assertEqual(self.documents_in(f"out_{name}"), documents)

    def test_only_ids_that_the_mask_attends_to_are_taken(self):
        rows = {"input_ids": [[0, 5, 6, EOS], [7, EOS, 0, 0]],
                "attention_mask": [[0, 1, 1, 1], [1, 1, 0, 0]]}
        path = self.folder / "a.jsonl"
        path.write_text("".join(json.dumps({k: v[r] for k, v in rows.items()}) + "\n"
                                for r in range(2)))
        fixed = {k: pyarrow.array(v, pyarrow.list_(pyarrow.int64(), 4)) for k, v in rows.items()}
        for name, given in (("json", path), ("set", save(self.folder / "set", fixed))):
            self.prepare_ids(name, given)
            self.assertEqual(self.documents_in(name), [[5, 6, EOS], [7, EOS]])

    def test_each_bad_row_is_named_or_skipped(self):
        bad = [({"input_ids": [5, 512]}, "id 512 at position 1 is not in the vocabulary of"),
               ({"input_ids": [-1]}, "id -1 at position 0 is not in the vocabulary"),
               ({"input_ids": [5, 1.5]}, "expected a list of ids in field 'input_ids', found a nu"),
               ({"input_ids": [True]}, "found true or false in it"),
               ({"input_ids": "5"}, "found a string"),
               ({"input_ids": [1 << 70]}, "found a number of more than 64 bits"),
               ({"ids": [5]}, "the line has the fields ids (--field names another)"),
               ({"input_ids": [5], "attention_mask": [1, 1]}, "for each id, found 2 for 1")]
        path, good = self.folder / "a.jsonl", json.dumps({"input_ids": [5, EOS]}) + "\n"
        for record, expected in bad:
            with self.subTest(expected):
                path.write_text(good + json.dumps(record) + "\n" + good)
                message = self.refused(path)
                self.assertIn(expected, message)
                self.assertIn("a.jsonl:2: ", message)
        path.write_text(good + "".join(json.dumps(record) + "\n" for record, _ in bad) + good)
        self.assertIn("8 bad documents skipped", self.said("out", path, "--skip-bad"))
        self.assertEqual(self.documents_in("out"), [[5, EOS]] * 2)
        for name, column, expected in (
                ("null", [[5], None], "(row 2): expected a list of ids in column 'input_ids', f"),
                ("null_in", [[5], [None]], "found null in it"),
                ("big", pyarrow.array([[(1 << 64) - 1]], pyarrow.list_(pyarrow.uint64())),
                 "id 18446744073709551615 at position 0"),
                ("text", ["5"], "expected lists of integers in column 'input_ids', found string"),
                ("floats", [[5.0]], "expected lists of integers in column 'input_ids', found l")):
            with self.subTest(name):
                folder = save(self.folder / name, {"input_ids": column})
                self.assertIn(expected, self.refused(folder))
        self.assertIn("expected a column 'input_ids', the file has text",
                      self.refused(save(self.folder / "x", {"text": ["a"]})))


class EndsTest(IdsCase):
    def test_eos_is_put_where_it_is_missing_and_that_is_said(self):
        prefix = write_megatron(self.folder / "a", [[[5, 6]], [[7, EOS]], [[8, 6]]])
        said = self.said("out", prefix)
        self.assertIn("2 of 3 documents ended without EOS (1), which was added; all of these end "
                      "with 6: if that is their EOS, name it with --eos", said)
        self.assertEqual(self.documents_in("out"), [[5, 6, EOS], [7, EOS], [8, 6, EOS]])
        prefix = write_megatron(self.folder / "b", [[[5, 6]], [[8, 6]]])
        self.prepare_ids("six", prefix, "--eos", "6", "--bos", "5")
        self.assertEqual(self.documents_in("six"), [[5, 6], [5, 8, 6]])
        self.assertEqual(self.stores("six")[0].attributes["eos_id"], 6)

    def test_rows_that_hold_several_documents_are_split_when_asked_for(self):
        prefix = write_megatron(self.folder / "a", [[[5, EOS, 6, 7]], [[8, EOS, EOS]]])
        self.assertIn("2 of 2 documents have EOS (1) inside; --split-at-eos",
                      self.said("out", prefix))
        self.assertEqual(self.documents_in("out"), [[5, EOS, 6, 7, EOS], [8, EOS, EOS]])
        said = self.said("split", prefix, "--split-at-eos")
        self.assertNotIn("inside", said)
        self.assertIn("1 of 4 documents ended without EOS", said)
        self.assertEqual(self.documents_in("split"), [[5, EOS], [6, 7, EOS], [8, EOS], [EOS]])
        message = self.prepare("--source", "toy", "--out", self.folder / "split", prefix,
                               command="ids", expect=1)
        self.assertIn("other inputs or options (in split_at_eos)", message)

    def test_how_well_the_tokenizer_fits_is_said(self):
        prefix = write_megatron(self.folder / "a", [[ids] for ids in self.sample_ids()])
        start = repr(sample_texts()[0][:60])
        self.assertIn(f" ids to 100.0% of them; it begins {start}\n", self.said("right", prefix))
        rng = np.random.default_rng(0)
        prefix = write_megatron(self.folder / "b", [[rng.integers(2, 380, 500).tolist()]])
        self.assertIn("were they made with another tokenizer?", self.said("wrong", prefix))

    def test_a_large_vocabulary_is_stored_in_32_bits(self):
        make_folder(self.folder / "model", vocab_size=70_000)
        self.prepare_ids("out", write_megatron(self.folder / "a", [[[69_999, EOS]]]))
        self.assertEqual(self.documents_in("out"), [[69_999, EOS]])


if __name__ == "__main__":
    unittest.main()
