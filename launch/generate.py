#!/usr/bin/env python3
"""Continues a text with a source model or a hybrid: tokenizer here, model in sala-inspect.

usage: launch/generate.py FOLDER "prompt" [-n 64]
"""
import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from project_python import ROOT, require

require("tokenizers")


def load_tokenizer(folder):
    from tokenizers import Tokenizer
    file = folder / "tokenizer.json"
    if not file.exists():
        raise RuntimeError(f"{file}: no such file; expected a Hugging Face folder with a tokenizer")
    return Tokenizer.from_file(str(file))


def generate(inspect, folder, rows, num_tokens):
    """Greedy continuations of rows of ids, as rows of ids."""
    if not Path(inspect).exists():
        raise RuntimeError(f"{inspect}: no such program; build it first (`make`)")
    with tempfile.TemporaryDirectory() as temporary:
        ids, out = Path(temporary) / "ids.json", Path(temporary) / "generated.json"
        ids.write_text(json.dumps(rows))
        result = subprocess.run(
            [str(inspect), str(folder), "--ids", str(ids), "--generate", str(num_tokens),
             "--out", str(out)], capture_output=True, text=True)
        if result.returncode or not out.exists():
            lines = (result.stderr.strip() or result.stdout.strip()).splitlines()
            raise RuntimeError(lines[-1] if lines else
                               f"{inspect} ended with code {result.returncode}")
        return json.loads(out.read_text())["generated"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="Hugging Face folder, of any model we read")
    parser.add_argument("prompt")
    parser.add_argument("-n", type=int, default=64, help="tokens to generate (64)")
    parser.add_argument("--inspect", type=Path, default=ROOT / "build" / "bin" / "sala-inspect")
    args = parser.parse_args()
    if args.n < 1:
        parser.error("-n expects a positive number")
    try:
        tokenizer = load_tokenizer(args.folder)
        prompt = tokenizer.encode(args.prompt).ids  # with BOS, where the model has one
        if not prompt:
            raise RuntimeError("expected a prompt of at least one token")
        continuation = generate(args.inspect, args.folder, [prompt], args.n)[0]
    except (RuntimeError, OSError) as error:
        print(f"generate: {error}", file=sys.stderr)
        return 1
    print(args.prompt + tokenizer.decode(continuation))
    return 0


if __name__ == "__main__":
    sys.exit(main())
