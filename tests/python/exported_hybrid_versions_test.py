"""exported_hybrid_test.py in the oldest transformers that an export is for, and in one newer than
ours. Each is in a virtual environment in the build folder, with the torch of this Python."""
import subprocess
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from pip_environment import ROOT, python_with  # noqa: E402


class ExportedHybridVersionsTest(unittest.TestCase):
    def check(self, version):
        python = python_with(f"transformers-{version}", [f"transformers=={version}"])
        if python is None:
            self.skipTest(f"pip could not install transformers {version}")
        found = subprocess.run([python, "-c", "import transformers as t; print(t.__version__)"],
                               capture_output=True, text=True).stdout.strip()
        self.assertEqual(found, version)
        result = subprocess.run(
            [python, "-m", "unittest", "-v", ROOT / "tests/python/exported_hybrid_test.py"],
            cwd=ROOT, capture_output=True, text=True)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertNotIn("skipped", result.stderr)

    def test_everything_in_the_oldest_transformers(self):
        self.check("4.56.2")

    def test_everything_in_a_newer_one_which_calls_a_cache_by_another_name(self):
        self.check("5.24.0")


if __name__ == "__main__":
    unittest.main()
