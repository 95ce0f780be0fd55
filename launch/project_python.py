"""Lets a script be called directly: if a library is missing and the project has its virtual
environment (.venv, made by `make`), the script starts again with that Python."""
import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INSTALLED = ROOT.parts[-2:] == ("share", "sala-train")
# The folder with bin/, as in env.sh.
BUILD = Path(os.environ.get("SALA_BUILD") or (ROOT.parents[1] if INSTALLED else ROOT / "build"))


def require(*modules, advice="`make` installs them into .venv"):
    missing = [m for m in modules if importlib.util.find_spec(m) is None]
    if not missing:
        return
    python = ROOT / ".venv" / "bin" / "python"
    if python.exists() and Path(sys.prefix) != ROOT / ".venv":
        os.execv(python, [str(python), *sys.argv])
    sys.exit(f"{Path(sys.argv[0]).name}: needs the Python packages {', '.join(missing)}; "
             f"{advice}")
