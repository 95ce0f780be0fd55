"""What the tests of exported hybrids share: an export made by sala-train, and folders of the
checked hybrids (tests/golden/hybrid) with the Python code of that export. No hub is asked."""
import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(os.environ.get("SALA_BIN_DIR", ROOT / "build/bin"))
HYBRIDS = ROOT / "tests/golden/hybrid"
sys.path[:0] = [str(ROOT / "data"), str(Path(__file__).resolve().parent)]
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp()  # the code as it is now, of this version alone
os.environ["OMP_NUM_THREADS"] = "1"  # of models this small, threads only cost

import h5py  # noqa: E402
import torch  # noqa: E402
from toy_tokenizer import TEXT, make_folder  # noqa: E402
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM  # noqa: E402
from transformers.utils import logging  # noqa: E402

logging.set_verbosity_error()
logging.disable_progress_bar()

RECIPE = """source: {folder}/source
run: {{folder: {folder}/run, device: cpu}}
model: {{sparse: {{dense_len: 256, topk: 2, window_size: 64}}}}
data: {{sources: {{toy: {{files: '{folder}/toy-*.h5'}}}}}}
stages:
  - align: {{tokens: 256, row_length: 64, batch_tokens: 256, data: {{toy: 1}}, lr: 1e-3}}
  - swap: {{layers: [0, 3]}}
  - export: {{folder: {folder}/export}}
"""


def run(*command):
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if result.returncode:
        raise AssertionError(f"{command}: {result.stdout}{result.stderr}")
    return result.stdout


def make_export(folder):
    """A Llama with random weights and a toy tokenizer, through sala-train. Returns the folder."""
    torch.manual_seed(5)
    make_folder(folder / "source")
    LlamaForCausalLM(LlamaConfig(
        vocab_size=512, hidden_size=96, intermediate_size=96, num_hidden_layers=4,
        num_attention_heads=6, num_key_value_heads=2, head_dim=24, max_position_embeddings=1024,
        eos_token_id=1)).save_pretrained(folder / "source")
    (folder / "toy.jsonl").write_text(json.dumps({"text": TEXT * 3}) + "\n")
    run(ROOT / "data/prepare", "tokens", "--tokenizer", folder / "source", "--source", "toy",
        "--workers", "1", "--out", folder / "toy", folder / "toy.jsonl")
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder))
    run(BIN / "sala-train", folder / "recipe.yaml")
    return folder / "export"


def load(folder, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=dtype).eval()


def inspect(folder, rows, work, *arguments):
    """What sala-inspect makes of rows of ids, written into the folder `work`."""
    (work / "ids.json").write_text(json.dumps(rows))
    run(BIN / "sala-inspect", folder, "--ids", work / "ids.json", *arguments)


def inspect_logits(folder, ids, work):
    inspect(folder, ids.tolist(), work, "--logits", work / "logits.h5")
    with h5py.File(work / "logits.h5") as file:
        return torch.from_numpy(file["logits"][:])


class ExportedHybridCase(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        temporary = tempfile.TemporaryDirectory()
        cls.addClassCleanup(temporary.cleanup)
        cls.root = Path(temporary.name)
        cls.export = make_export(cls.root)
        cls.models = {}

    def folder_of(self, name, copy=None, **config):
        """A checked hybrid as export would write it, with other keys in its config.json."""
        folder = self.root / (copy or name)
        if folder.exists():
            return folder
        shutil.copytree(HYBRIDS / name, folder)
        for file in self.export.glob("*.py"):
            shutil.copy(file, folder)
        exported = json.loads((self.export / "config.json").read_text())
        written = json.loads((folder / "config.json").read_text())
        written.update(auto_map=exported["auto_map"], **config)
        (folder / "config.json").write_text(json.dumps(written))
        return folder

    def model(self, name):
        if name not in self.models:
            self.models[name] = load(self.folder_of(name))
        return self.models[name]

    def ids(self, name):
        return torch.tensor(json.loads((HYBRIDS / name / "ids.json").read_text()))

    def golden_logits(self, name):
        with h5py.File(HYBRIDS / name / "logits.h5") as file:
            return torch.from_numpy(file["logits"][:])

    def inspect_logits(self, folder, ids):
        return inspect_logits(folder, ids, self.root)

    def inspect_greedy(self, folder, rows, count):
        inspect(folder, rows, self.root, "--generate", count, "--out", self.root / "generated.json")
        return json.loads((self.root / "generated.json").read_text())["generated"]

    def assert_close(self, actual, expected, tolerance=1e-4):
        self.assertEqual(actual.shape, expected.shape)
        self.assertLessEqual((actual - expected).abs().max().item(), tolerance)
