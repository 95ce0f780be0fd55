"""data/prepare on files that the libraries themselves wrote: data sets by `datasets`, indexed data
sets by Megatron-LM's megatron-core. Both are in a virtual environment in the build folder."""
import json
import subprocess
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from pip_environment import python_with  # noqa: E402
from prepare_case import PrepareCase, sample_texts  # noqa: E402

INSTALLS = [["datasets==5.2.0"], ["--no-deps", "megatron-core==0.16.1"]]
WRITE_DATA_SETS = """
import json, sys
from datasets import Dataset, DatasetDict
given = json.load(open("given.json"))
texts = Dataset.from_dict({"text": given["texts"], "n": list(range(len(given["texts"])))})
texts.save_to_disk("texts", num_shards=3)
DatasetDict({"train": texts, "test": texts.select([4, 2])}).save_to_disk("splits")
texts.filter(lambda row: row["n"] % 2 == 0).shuffle(seed=3).save_to_disk("half")
rows = {"input_ids": given["ids"], "attention_mask": [[1] * len(ids) for ids in given["ids"]]}
Dataset.from_dict(rows).save_to_disk("ids")
Dataset.from_dict({"messages": given["talks"]}).save_to_disk("talks")
"""
WRITE_MEGATRON = """
import json, numpy, torch
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
for name in ("uint16", "int32", "int64"):
    builder = IndexedDatasetBuilder(f"{name}.bin", dtype=getattr(numpy, name))
    for d, ids in enumerate(json.load(open("given.json"))["ids"]):
        if d % 2:
            builder.add_document(ids, [len(ids)])
        else:
            builder.add_item(torch.tensor(ids[:3]))
            builder.add_item(torch.tensor(ids[3:]))
            builder.end_document()
    builder.finalize(f"{name}.idx")
"""


class WrittenByOthersTest(PrepareCase):
    def setUp(self):
        super().setUp()
        self.python = python_with("writers", *INSTALLS)
        if self.python is None:
            self.skipTest("pip could not install datasets and megatron-core")
        self.texts = sample_texts(21)
        self.ids = [self.expected_ids(text) for text in self.texts]
        self.talks = [[{"role": "user", "content": t[:40]}, {"role": "assistant", "content": t}]
                      for t in self.texts]
        (self.folder / "given.json").write_text(json.dumps(
            {"texts": self.texts, "ids": self.ids, "talks": self.talks}))

    def write(self, program):
        result = subprocess.run([self.python, "-c", program], cwd=self.folder, capture_output=True,
                                text=True)
        self.assertEqual(result.returncode, 0, result.stderr)

    def documents_in(self, prefix):
        return [store.document(d).tolist() for store in self.stores(prefix)
                for d in range(len(store))]

    def test_data_sets(self):
        self.write(WRITE_DATA_SETS)
        self.prepare_tokens("of_texts", self.folder / "texts")
        self.assertEqual(self.texts_in("of_texts"), self.texts)
        self.prepare_tokens("of_split", self.folder / "splits/test")
        self.assertEqual(self.texts_in("of_split"), [self.texts[4], self.texts[2]])
        self.assertIn("has the splits train, test", self.refused_tokens(self.folder / "splits"))
        self.prepare_tokens("of_half", self.folder / "half")
        self.assertEqual(sorted(self.texts_in("of_half")), sorted(self.texts[::2]))
        self.prepare_tokens("of_ids", self.folder / "ids", command="ids")
        self.assertEqual(self.documents_in("of_ids"), self.ids)

    def test_conversations_of_a_data_set_are_those_of_the_same_json(self):
        self.write(WRITE_DATA_SETS)
        (self.folder / "model/tokenizer_config.json").write_text(json.dumps({"chat_template": (
            "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
            "{% if add_generation_prompt %}assistant:{% endif %}")}))
        path = self.folder / "talks.jsonl"
        path.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in self.talks))
        stores = [self.prepare_tokens(name, given, command="chat")[0]
                  for name, given in (("of_json", path), ("of_set", self.folder / "talks"))]
        self.assertEqual(stores[0].attributes["xxh3"], stores[1].attributes["xxh3"])

    def test_indexed_data_sets(self):
        self.write(WRITE_MEGATRON)
        for name in ("uint16", "int32", "int64"):
            self.prepare_tokens(f"of_{name}", self.folder / name, command="ids")
            self.assertEqual(self.documents_in(f"of_{name}"), self.ids)


if __name__ == "__main__":
    unittest.main()
