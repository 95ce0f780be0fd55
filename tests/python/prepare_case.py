"""What the tests of data/prepare share: a folder with a toy tokenizer, and calls of the command."""
import contextlib
import io
import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "data"), str(Path(__file__).resolve().parent)]

from preparation.__main__ import main  # noqa: E402
from preparation.store import Store  # noqa: E402
from toy_tokenizer import make_folder  # noqa: E402


def sample_texts(count=23, seed=3):
    rng = np.random.default_rng(seed)
    words = "the quick brown fox jumps over a lazy dog in 1999 and — naïvely — it rains".split()
    return [("\n\n".join(" ".join(rng.choice(words, rng.integers(1, 30)))
                         for _ in range(rng.integers(1, 12)))) for _ in range(count)]


class PrepareCase(unittest.TestCase):
    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory()
        self.addCleanup(self.temporary.cleanup)
        self.folder = Path(self.temporary.name)
        self.tokenizer = make_folder(self.folder / "model")

    def write_jsonl(self, name, texts, opener=open):
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        with opener(path, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts)
        return path

    def prepare(self, *args, command="tokens", expect=0):
        """What the command prints to stdout, or to stderr, one line, where it has to fail."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([command, "--tokenizer", str(self.folder / "model"), *map(str, args)])
        self.assertEqual(code, expect, err.getvalue())
        if expect:
            self.assertEqual(err.getvalue().count("\n"), 1, err.getvalue())
        return err.getvalue() if expect else out.getvalue()

    def prepare_tokens(self, prefix, *args, **kwargs):
        out = self.folder / prefix
        self.prepare("--source", "toy", "--workers", "1", "--out", out, *args, **kwargs)
        return self.stores(prefix)

    def stores(self, prefix):
        out = self.folder / prefix
        return [Store(p) for p in sorted(out.parent.glob(f"{out.name}-?????.h5"))]

    def refused_tokens(self, *args, out="bad"):
        """The one line that a call ends with, which leaves no shard."""
        message = self.prepare("--source", "toy", "--workers", "1", "--out", self.folder / out,
                               *args, expect=1)
        self.assertEqual(list(self.folder.glob(f"{out}-*.h5")), [])
        return message

    def start(self, *args, command=("tokens", "--source", "toy"), before="", **kwargs):
        """data/prepare as a process of its own, after the shell command `before`."""
        call = [str(ROOT / "data/prepare"), *command, "--tokenizer", str(self.folder / "model"),
                *map(str, args)]
        return subprocess.Popen(["bash", "-c", f'{before}\nexec "$@"', "bash", *call], text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kwargs)

    def ended(self, process, seconds=60):
        """(code, stdout, stderr) of a process that must not hang."""
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            self.fail("data/prepare hangs")
        return process.returncode, out, err

    def expected_ids(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids + [1]

    def texts_in(self, prefix):
        """The documents of a store, decoded, without their EOS."""
        return [self.tokenizer.decode(store.document(d)[:-1].tolist(), skip_special_tokens=False)
                for store in self.stores(prefix) for d in range(len(store))]
