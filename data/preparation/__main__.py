"""The command line of data/prepare."""
import argparse
import os
import sys

from . import UserError

UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}  # as in recipes


def token_count(text):
    """320M, 64K or a plain number."""
    number, unit = (text[:-1], UNITS[text[-1]]) if text[-1:] in UNITS else (text, 1)
    if not number.isdigit() or int(number) < 1:
        raise argparse.ArgumentTypeError(f"expected a count such as 320M, 64K or 5000: '{text}'")
    return int(number) * unit


def parse_args(argv):
    parser = argparse.ArgumentParser(prog="data/prepare", description="Text to token stores.")
    commands = parser.add_subparsers(dest="command", required=True)
    tokens = commands.add_parser("tokens", help="documents -> HDF5 token stores")
    needles = commands.add_parser("needles", help="facts, questions and answers for retrieval")
    choices = commands.add_parser("choices", help="multiple-choice questions")
    for command in (tokens, needles, choices):
        command.add_argument("--tokenizer", required=True, metavar="FOLDER",
                             help="Hugging Face folder with tokenizer.json and config.json")

    tokens.add_argument("inputs", nargs="+", metavar="INPUT",
                        help="JSONL (also .xz, .gz, .zst), Parquet, text files, or folders")
    tokens.add_argument("--out", required=True, metavar="PREFIX",
                        help="makes PREFIX-00000.h5, PREFIX-00001.h5, ...")
    tokens.add_argument("--source", required=True, metavar="NAME", help="name in losses by source")
    tokens.add_argument("--field", default="text", help="JSONL field or Parquet column (text)")
    tokens.add_argument("--eos", help="id or token at a document's end (from the folder)")
    tokens.add_argument("--bos", help="id or token at a document's start (none)")
    tokens.add_argument("--shard-tokens", type=token_count, default=token_count("96M"),
                        metavar="N", help="most tokens in a shard (96M); documents stay whole")
    tokens.add_argument("--limit-tokens", type=token_count, metavar="N", help="stop at N tokens")
    tokens.add_argument("--shuffle", type=int, metavar="SEED", help="shuffle the documents")
    tokens.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (all cores)")

    needles.add_argument("--out", required=True, metavar="FILE", help="JSON file to write")
    needles.add_argument("--count", type=int, default=64, help="number of items (64)")
    needles.add_argument("--seed", type=int, default=1, help="seed of words and numbers (1)")

    choices.add_argument("inputs", nargs="+", metavar="INPUT",
                         help="JSONL: contexts, choices, answer, task")
    choices.add_argument("--out", required=True, metavar="FILE", help="JSON file to write")
    args = parser.parse_args(argv)
    for name in ("workers", "count"):
        if getattr(args, name, 1) < 1:
            parser.error(f"--{name} expects a positive number, got {getattr(args, name)}")
    return args


def main(argv=None):
    args = parse_args(argv)
    try:
        if args.command == "tokens":
            from .tokens import prepare_tokens as run
        elif args.command == "needles":
            from .needles import prepare_needles as run
        else:
            from .choices import prepare_choices as run
        run(args)
    except ModuleNotFoundError as error:
        print(f"data/prepare: needs the Python package {error.name}; `make` installs it into .venv",
              file=sys.stderr)
        return 1
    except (UserError, OSError) as error:
        print(f"data/prepare: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("data/prepare: interrupted; the same call goes on from here", file=sys.stderr,
              flush=True)
        os._exit(130)  # the ordinary way out waits for the workers, which end with us
    return 0


if __name__ == "__main__":
    sys.exit(main())
