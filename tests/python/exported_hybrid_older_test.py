"""exported_hybrid_test.py in the oldest transformers that an export is for. It goes into a virtual
environment in the build folder, once, with the torch of this Python."""
import subprocess
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from pip_environment import ROOT, python_with  # noqa: E402

OLDEST = "transformers==4.56.2"


class ExportedHybridOlderTest(unittest.TestCase):
    def test_everything_in_the_oldest_transformers(self):
        python = python_with(OLDEST.replace("==", "-"), [OLDEST])
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
