"""Virtual environments in the build folder, for what the project itself does not need: other
versions of a library, libraries whose files it reads. Each is made once, on top of this Python's
packages."""
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(os.environ.get("SALA_BIN_DIR", ROOT / "build/bin"))


def python_with(name, *installs):
    """The Python of the environment of that name, into which pip put each of `installs` (lists of
    arguments); None where pip cannot."""
    folder = BIN.parent / "tests" / name
    python, done = folder / "bin/python", folder / "done"
    if done.exists():
        return python
    venv.create(folder, with_pip=True, clear=True)
    site = next(folder.glob("lib/python3*/site-packages"))
    paths = [path for path in sys.path if path.endswith("site-packages")]
    (site / "ours.pth").write_text("\n".join(paths) + "\n")  # its own first, then these
    for arguments in installs:
        result = subprocess.run([python, "-m", "pip", "install", "-q",
                                 "--disable-pip-version-check", *arguments],
                                capture_output=True, text=True)
        if result.returncode:
            print(result.stderr, file=sys.stderr)
            return None
    done.touch()
    return python
