"""The build as its users meet it: an installed tree that works, a wrong path that is named."""
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(os.environ.get("SALA_BIN_DIR", ROOT / "build/bin"))
CMAKE = shutil.which("cmake", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


@unittest.skipUnless(CMAKE, "needs cmake")
class InstallTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def call(self, *command, cwd=None, **environment):
        clean = {k: v for k, v in os.environ.items() if k != "SALA_BUILD"}
        return subprocess.run([str(part) for part in command], capture_output=True, text=True,
                              cwd=cwd, env={**clean, **environment})

    def test_an_installed_tree_works_from_any_folder(self):
        prefix, elsewhere = self.folder / "a prefix", self.folder / "elsewhere"
        elsewhere.mkdir()
        for _ in range(2):  # also over itself
            result = self.call(CMAKE, "--install", BIN.parent, "--prefix", prefix)
            self.assertEqual(result.returncode, 0, result.stderr)
        share = prefix / "share/sala-train"
        for program in ("sala-train", "sala-inspect", "sala-bench"):
            result = self.call(prefix / "bin" / program, "--version", cwd=elsewhere)
            self.assertEqual(result.returncode, 0, result.stderr)
            for part in (f"{program} ", "LibTorch 2.", "MPI"):
                self.assertIn(part, result.stdout)
        recipe = share / "recipes/demo_cpu.yaml"
        result = self.call(share / "launch/run_local.sh", recipe, "-n", "1", "--version",
                           cwd=elsewhere)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("sala-train ", result.stdout)
        told = "".join(file.read_text() for file in (share / "README.md", share / "data/FORMAT.md",
                                                     *(share / "recipes").iterdir()))
        named = set(re.findall(r"\blaunch/\w+\.(?:py|sh|sbatch)\b", told))
        self.assertGreater(len(named), 5)
        self.assertIn("launch/env.sh", named)  # which is for other scripts to source
        self.assertTrue((share / "launch/env.sh").exists())
        called = named - {"launch/env.sh"}
        self.assertEqual([name for name in called if not os.access(share / name, os.X_OK)], [])
        for script in ("data/prepare", "launch/tensorboard.py", "launch/generate.py",
                       "launch/demo_text.py", "launch/random_model.py", "launch/bench_fla.py"):
            result = self.call(share / script, "--help", cwd=elsewhere)
            self.assertEqual(result.returncode, 0, result.stderr)
        result = self.call(share / "launch/generate.py", elsewhere, "x", cwd=elsewhere)
        self.assertEqual(result.returncode, 1)
        self.assertIn("no such file", result.stderr.lower())

    def test_a_prefix_path_without_libtorch_is_not_replaced_by_another(self):
        result = self.call(CMAKE, "-S", ROOT, "-B", self.folder / "build", "-DSALA_CUDA=OFF",
                           f"-DCMAKE_PREFIX_PATH={self.folder}", f"-DSALA_PYTHON={sys.executable}")
        self.assertNotEqual(result.returncode, 0)
        self.assertIn(f"No LibTorch in CMAKE_PREFIX_PATH ({self.folder})", result.stderr)


if __name__ == "__main__":
    unittest.main()
