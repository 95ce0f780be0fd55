"""A model that was trained without a swap, exported: transformers loads it as it loads the source,
and gives the logits of sala-inspect. Sources are the golden folders: every family and kind of RoPE.
"""
import json
import shutil
import sys
import tempfile
import unittest
from pathlib import Path
from types import SimpleNamespace

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "golden"),
                str(Path(__file__).resolve().parent)]

from exported_hybrid import BIN, ROOT, inspect_logits, load, run  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
import xxhash  # noqa: E402
from make_goldens import CASES, MINICPM, VOCAB, MiniCPM  # noqa: E402
from preparation.store import write_store  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

FAMILIES = {"llama", "minicpm", "mistral", "qwen2", "qwen3"}
EOS = 2
RECIPE = """source: {folder}/source
run: {{folder: {folder}/run, device: cpu}}
data: {{sources: {{toy: {{files: '{folder}/toy.h5'}}}}}}
stages:
  - train: {{tokens: 1K, row_length: 32, batch_tokens: 256, data: {{toy: 1}}, lr: 1e-2}}
  - export: {{folder: {folder}/export}}
"""


def write_tokens(path, source):
    """Documents of random ids, for a model that needs no tokenizer here."""
    rng = np.random.default_rng(4)
    documents = [[*rng.integers(3, VOCAB, rng.integers(20, 90)), EOS] for _ in range(60)]
    vocabulary = SimpleNamespace(folder=source, size=VOCAB, eos=EOS, special_tokens_are="text",
                                 hash=xxhash.xxh3_64_hexdigest(b"{}"))
    write_store(path, np.concatenate(documents), np.cumsum([0] + [len(d) for d in documents]),
                vocabulary, "toy")


def weights_of(folder):
    return {name: tensor for file in sorted(folder.glob("*.safetensors"))
            for name, tensor in load_file(file).items()}


class ExportedDenseTest(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.root = Path(temporary.name)

    def train(self, name):
        """Folders of a source and of its export."""
        folder = self.root / name
        shutil.copytree(ROOT / "tests/golden" / name, folder / "source",
                        ignore=shutil.ignore_patterns("ids.json", "logits.h5"))
        (folder / "source/tokenizer.json").write_text("{}")
        write_tokens(folder / "toy.h5", folder / "source")
        (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder))
        run(BIN / "sala-train", folder / "recipe.yaml")
        return folder / "source", folder / "export"

    def logits_elsewhere(self, name, export, ids):
        """By transformers; of MiniCPM, which it has no class for, by the goldens' plain one."""
        if name in MINICPM:
            config = json.loads((export / "config.json").read_text())
            return MiniCPM(config, weights_of(export)).logits(ids).float()
        with torch.no_grad():
            return load(export)(ids).logits

    def check_config(self, source, export):
        """It is the source's, but for its dtype. Returns the family."""
        before, after = (json.loads((folder / "config.json").read_text())
                         for folder in (source, export))
        dtypes = {key: after.pop(key) for key in ("dtype", "torch_dtype") if key in after}
        self.assertEqual(set(dtypes.values()), {"bfloat16"})
        for key in ("dtype", "torch_dtype"):
            before.pop(key, None)
        self.assertEqual(after, before)
        return after["model_type"]

    def test_every_family_keeps_its_format_and_gives_the_logits_of_sala_inspect(self):
        families = set()
        for name in [*CASES, *MINICPM]:
            with self.subTest(name):
                source, export = self.train(name)
                families.add(self.check_config(source, export))
                before, after = weights_of(source), weights_of(export)
                self.assertEqual(before.keys(), after.keys())
                for key in before:  # each of them was trained
                    self.assertFalse(torch.equal(before[key].bfloat16(), after[key]), key)
                ids = json.loads((ROOT / "tests/golden" / name / "ids.json").read_text())
                ids = torch.tensor(ids)
                expected = inspect_logits(export, ids, self.root)
                actual = self.logits_elsewhere(name, export, ids)
                self.assertEqual(actual.shape, expected.shape)
                self.assertLessEqual((actual - expected).abs().max().item(), 1e-4)
                untrained = inspect_logits(source, ids, self.root)
                self.assertGreater((untrained - expected).abs().max().item(), 0.1)
        self.assertEqual(families, FAMILIES)


if __name__ == "__main__":
    unittest.main()
