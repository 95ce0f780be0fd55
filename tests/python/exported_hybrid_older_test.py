"""exported_hybrid_test.py in the oldest transformers that an export is for. It goes into a virtual
environment in the build folder, once, with the torch of this Python."""
import os
import subprocess
import sys
import unittest
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(os.environ.get("SALA_BIN_DIR", ROOT / "build/bin"))
OLDEST = "transformers==4.56.2"


def oldest_python():
    """The Python of that environment, made where it is missing; None where pip cannot."""
    folder = BIN.parent / "tests" / OLDEST.replace("==", "-")
    python, done = folder / "bin/python", folder / "done"
    if done.exists():
        return python
    venv.create(folder, with_pip=True, clear=True)
    site = next(folder.glob("lib/python3*/site-packages"))
    paths = [path for path in sys.path if path.endswith("site-packages")]
    (site / "torch.pth").write_text("\n".join(paths) + "\n")  # ours first, then these
    result = subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check",
                             OLDEST], capture_output=True, text=True)
    if result.returncode:
        print(result.stderr, file=sys.stderr)
        return None
    done.touch()
    return python


class ExportedHybridOlderTest(unittest.TestCase):
    def test_everything_in_the_oldest_transformers(self):
        python = oldest_python()
        if python is None:
            self.skipTest(f"pip could not install {OLDEST}")
        version = subprocess.run([python, "-c", "import transformers as t; print(t.__version__)"],
                                 capture_output=True, text=True).stdout.strip()
        self.assertEqual(version, OLDEST.split("==")[1])
        result = subprocess.run(
            [python, "-m", "unittest", "-v", ROOT / "tests/python/exported_hybrid_test.py"],
            cwd=ROOT, capture_output=True, text=True)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertNotIn("skipped", result.stderr)


if __name__ == "__main__":
    unittest.main()
