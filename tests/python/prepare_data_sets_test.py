"""data/prepare on folders that `datasets` of Hugging Face saves: the rows that the data set has, in
its order, and one line for each folder that is none. prepare_written_by_others_test.py has the
library itself write them."""
import json
import random
import sys
import unittest
from pathlib import Path

import pyarrow
import pyarrow.parquet

sys.path.insert(0, str(Path(__file__).resolve().parent))

from prepare_case import PrepareCase, sample_texts  # noqa: E402
from preparation import UserError  # noqa: E402
from preparation.documents import read_documents  # noqa: E402


def stream_of(table, rows_in_batch=3):
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows_in_batch)
    return sink.getvalue().to_pybytes()


def save(folder, *tables, **state):
    """A data set of one file for each table, as save_to_disk lays it out."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"data-{i:05d}-of-{len(tables):05d}.arrow" for i in range(len(tables))]
    for name, table in zip(names, tables):
        (folder / name).write_bytes(stream_of(pyarrow.table(table)))
    (folder / "state.json").write_text(json.dumps(
        {"_data_files": [{"filename": name} for name in names], "_split": None, **state}))
    (folder / "dataset_info.json").write_text(json.dumps({"description": "", "features": {}}))
    return folder


class DataSetsTest(PrepareCase):
    def test_rows_come_in_the_order_of_the_set_and_its_caches_are_left_out(self):
        texts = sample_texts(17)
        folder = save(self.folder / "set", {"text": texts[:10], "id": range(10)},
                      {"id": range(7), "text": pyarrow.array(texts[10:], pyarrow.large_string())})
        (folder / "cache-0123456789.arrow").write_bytes(stream_of(pyarrow.table({"text": ["no"]})))
        out = self.prepare("--source", "toy", "--workers", "1", "--out", self.folder / "out",
                           folder)
        self.assertIn("1 not of the data set (cache-0123456789.arrow)", out)
        self.assertEqual(self.texts_in("out"), texts)
        state = json.loads((folder / "state.json").read_text())
        state["_data_files"].reverse()
        (folder / "state.json").write_text(json.dumps(state))
        self.prepare_tokens("turned", folder)
        self.assertEqual(self.texts_in("turned"), texts[10:] + texts[:10])

    def test_number_of_workers_changes_no_byte(self):
        folder = save(self.folder / "set", {"text": sample_texts(30)})
        for name, workers in (("one", 1), ("two", 2)):
            self.prepare_tokens(name, folder, "--shuffle", 4, "--workers", workers)
        self.assertEqual((self.folder / "one-00000.h5").read_bytes(),
                         (self.folder / "two-00000.h5").read_bytes())

    def test_one_split_is_taken_and_of_several_one_has_to_be_named(self):
        for splits in (["train"], ["train", "test"]):
            (self.folder / "sets").mkdir(exist_ok=True)
            for split in splits:
                save(self.folder / "sets" / split, {"text": [f"of {split}"]})
            (self.folder / "sets/dataset_dict.json").write_text(json.dumps({"splits": splits}))
            if len(splits) == 1:
                self.prepare_tokens("whole", self.folder / "sets")
                self.assertEqual(self.texts_in("whole"), ["of train"])
        message = self.refused_tokens(self.folder / "sets")
        self.assertIn("sets: has the splits train, test: name one of them, such as ", message)
        self.prepare_tokens("test", self.folder / "sets/test")
        self.assertEqual(self.texts_in("test"), ["of test"])

    def test_a_file_without_state_is_taken_as_it_is(self):
        (self.folder / "in").mkdir()
        for name, text in (("set-train.arrow", "good"), ("cache-1.arrow", "no")):
            (self.folder / "in" / name).write_bytes(stream_of(pyarrow.table({"text": [text]})))
        self.prepare_tokens("folder", self.folder / "in")
        self.prepare_tokens("file", self.folder / "in/set-train.arrow")
        self.assertEqual(self.texts_in("folder") + self.texts_in("file"), ["good"] * 2)

    def test_each_bad_row_is_named_or_skipped(self):
        text = pyarrow.Array.from_buffers(
            pyarrow.string(), 3, [None, pyarrow.array([0, 1, 2, 3], pyarrow.int32()).buffers()[1],
                                  pyarrow.py_buffer(b"a\xffb")])
        nulls = save(self.folder / "nulls", {"text": ["a", None, "b"]})
        bytes_ = save(self.folder / "bytes", {"text": text})
        self.assertIn("(row 2): expected a string in column 'text', found null",
                      self.refused_tokens(nulls))
        self.assertIn("(row 2): expected UTF-8 in column 'text'", self.refused_tokens(bytes_))
        self.prepare_tokens("out", nulls, bytes_, "--skip-bad")
        self.assertEqual(self.texts_in("out"), ["a", "b"] * 2)

    def test_each_bad_set_is_one_line_that_says_where(self):
        whole = stream_of(pyarrow.table({"text": ["fine"] * 9}))
        last_batch = whole.rfind(b"fine")
        offsets = bytearray(whole)
        at = offsets.find(pyarrow.array([0, 4, 8], pyarrow.int32()).buffers()[1].to_pybytes()[:12])
        offsets[at + 4:at + 8] = b"\xff\xff\xff\x7f"
        file_kind = pyarrow.BufferOutputStream()
        with pyarrow.ipc.new_file(file_kind, pyarrow.schema([("text", pyarrow.string())])):
            pass
        name = "data-00000-of-00001.arrow"
        cases = [
            ({name: whole[:last_batch]}, "expected an Arrow stream; it is damaged"),
            ({name: whole[:-8]}, "the end of the stream is missing"),
            ({name: whole + whole}, "the stream ends before the file does"),
            ({name: bytes(offsets)}, "expected an Arrow stream; it is damaged"),
            ({name: b""}, "expected an Arrow stream; it is damaged"),
            ({name: file_kind.getvalue().to_pybytes()}, "found the random-access kind"),
            ({name: b"version https://git-lfs.github.com/spec/v1\n"}, "is a git-lfs pointer"),
            ({name: stream_of(pyarrow.table({"body": ["x"]}))}, "expected a column 'text', the"),
            ({name: stream_of(pyarrow.table({"text": [1]}))}, "expected strings in column 'text'"),
            ({name: stream_of(pyarrow.table({"input_ids": [[1]]}))}, "`data/prepare ids` takes"),
            ({name: None}, f"{name}: no such file, though state.json names it"),
            ({"state.json": b"{"}, "state.json: expected what `datasets` saves"),
            ({"state.json": b'{"_data_files": [{"filename": "../x.arrow"}]}'},
             "expected names of Arrow files in _data_files"),
            ({"state.json": b'{"_data_files": [], "_indices_data_files": [{"filename": "i"}]}'},
             "was saved as a selection of rows"),
        ]
        for files, expected in cases:
            with self.subTest(expected):
                folder = save(self.folder / "bad_set", {"text": ["fine"] * 9})
                for file, content in files.items():
                    (folder / file).unlink()
                    if content is not None:
                        (folder / file).write_bytes(content)
                message = self.refused_tokens(folder, "--skip-bad")
                self.assertIn(expected, message)
                self.assertIn("bad_set", message)

    def test_damage_anywhere_is_an_error_or_other_text_and_never_a_crash(self):
        whole, rng = stream_of(pyarrow.table({"text": sample_texts(4), "id": range(4)})), \
            random.Random(7)
        refused = 0
        for _ in range(300):
            damaged = bytearray(whole)
            for _ in range(rng.choice((1, 4))):
                damaged[rng.randrange(len(damaged))] = rng.choice((0, 255, rng.randrange(256)))
            path = self.folder / "a.arrow"
            path.write_bytes(damaged[:rng.choice((len(damaged), rng.randrange(len(damaged))))])
            try:
                list(read_documents(path, "text"))
            except UserError as error:
                refused += 1
                self.assertIn("a.arrow", str(error))
        self.assertGreater(refused, 150)


class ConversationsTest(PrepareCase):
    TEMPLATE = ("{% for m in messages %}{{ m.role }}{% if m.name is defined %} {{ m.name }}"
                "{% endif %}: {{ m.content }}\n{% endfor %}"
                "{% if add_generation_prompt %}assistant:{% endif %}")

    def test_columns_of_messages_are_the_conversations_of_the_same_json(self):
        talks = [[{"role": "user", "content": "one?", "name": "Ann"},
                  {"role": "assistant", "content": "two"}],
                 [{"role": "user", "content": "three?"}, {"role": "assistant", "content": "four"}]]
        (self.folder / "model/tokenizer_config.json").write_text(
            json.dumps({"chat_template": self.TEMPLATE}))
        path = self.folder / "talks.jsonl"
        path.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
        parquet = self.folder / "talks.parquet"
        pyarrow.parquet.write_table(pyarrow.table({"messages": talks}), parquet)
        stores = [self.prepare_tokens(name, given, command="chat")[0]
                  for name, given in (("json", path), ("parquet", parquet),
                                      ("set", save(self.folder / "talks", {"messages": talks})))]
        self.assertIn("user Ann: one?", self.texts_in("json")[0])
        for store in stores[1:]:
            for data in ("tokens", "document_offsets", "loss_mask"):
                self.assertEqual(store.file[data][:].tolist(), stores[0].file[data][:].tolist())
        save(self.folder / "bad", {"messages": [talks[0], None]})
        message = self.prepare("--out", self.folder / "no", "--workers", "1", self.folder / "bad",
                               command="chat", expect=1)
        self.assertIn("(row 2): expected a list of messages in field 'messages', found null",
                      message)
        message = self.prepare("--out", self.folder / "no", save(self.folder / "x", {"a": [1]}),
                               command="chat", expect=1)
        self.assertIn("expected a column 'messages', the file has a", message)


if __name__ == "__main__":
    unittest.main()
