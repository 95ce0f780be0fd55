"""The command line of data/prepare. Whatever goes wrong is one line on stderr."""
import argparse
import errno
import os
import re
import signal
import sys

from . import UserError

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}  # as in recipes
KEEPING = ("tokens", "recall", "ids", "chat")  # the others write one file, at their end
KEPT = "; what is finished is kept"
ADVICE = {errno.ENOSPC: "free space and call again", errno.EDQUOT: "free space and call again",
          errno.EFBIG: "the size of files is limited (ulimit -f)",
          errno.EMFILE: "the number of open files is limited (ulimit -n)",
          errno.EACCES: "check the permissions", errno.EPERM: "check the permissions",
          errno.EAGAIN: "no more processes could be started; use fewer --workers"}


def token_count(text):
    """320M, 64K or a plain number."""
    found = re.fullmatch(r"([0-9]{1,15})([KMG]?)", text)
    if not found or int(found[1]) < 1:
        raise argparse.ArgumentTypeError(f"expected a count such as 320M, 64K or 5000: '{text}'")
    return int(found[1]) * UNITS[found[2]]


def number_between(low, high):
    def read(text):
        if not re.fullmatch(r"[0-9]{1,18}", text) or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"expected a number from {low} to {high}: '{text}'")
        return int(text)
    return read


def plain_text(text):
    """Text that a file can hold and a line can show."""
    if not text or not text.isprintable():
        raise argparse.ArgumentTypeError(f"expected printable text, got {text!r}")
    return text


def listed(read):
    """Values with commas between them."""
    return lambda text: [read(part) for part in text.split(",")]


seed = number_between(0, (1 << 53) - 1)


def add_store_options(command):
    """Of what makes token stores."""
    cores = min(len(os.sched_getaffinity(0)), 1024)
    command.add_argument("--out", required=True, metavar="PREFIX",
                         help="makes PREFIX-00000.h5, PREFIX-00001.h5, ...")
    command.add_argument("--eos", type=plain_text,
                         help="id or special token at a document's end (from the folder)")
    command.add_argument("--shard-tokens", type=token_count, default=token_count("96M"),
                         metavar="N", help="most tokens in a shard (96M); documents stay whole")
    command.add_argument("--shuffle", type=seed, metavar="SEED", help="shuffle the documents")
    command.add_argument("--skip-bad", action="store_true",
                         help="leave out documents that cannot be read, and count them")
    command.add_argument("--workers", type=number_between(1, 1024), default=cores,
                         help="processes (all cores)")


def add_text_options(tokens):
    tokens.add_argument("inputs", nargs="+", metavar="INPUT",
                        help="JSONL (also .xz, .gz, .zst), Parquet, text files, or folders, also "
                        "those of Hugging Face `datasets` (save_to_disk)")
    tokens.add_argument("--source", required=True, metavar="NAME", type=plain_text,
                        help="name in losses by source")
    tokens.add_argument("--field", default="text", help="JSONL field or Parquet column (text)")
    tokens.add_argument("--limit-tokens", type=token_count, metavar="N", help="stop at N tokens")


def add_ids_options(ids):
    ids.add_argument("inputs", nargs="+", metavar="INPUT",
                     help="Megatron's PREFIX (of PREFIX.bin and PREFIX.idx), folders of Hugging "
                     "Face `datasets`, Parquet, JSONL (also .xz, .gz, .zst), or folders of these")
    ids.add_argument("--source", required=True, metavar="NAME", type=plain_text,
                     help="name in losses by source")
    ids.add_argument("--field", default="input_ids",
                     help="column or JSONL field of ids (input_ids)")
    ids.add_argument("--limit-tokens", type=token_count, metavar="N", help="stop at N tokens")
    ids.add_argument("--bos", type=plain_text,
                     help="id or token to put before documents that do not begin with it (none)")
    ids.add_argument("--split-at-eos", action="store_true",
                     help="a document ends at each EOS: for rows that hold several")


def add_chat_options(chat):
    chat.add_argument("inputs", nargs="+", metavar="INPUT",
                      help='JSONL (also .xz, .gz, .zst), Parquet, or folders, also those of '
                      'Hugging Face `datasets`: {"messages": [{"role", "content"}, ...]} a line')
    chat.add_argument("--source", default="chat", metavar="NAME", type=plain_text,
                      help="name in losses by source (chat)")
    chat.add_argument("--field", default="messages",
                      help="JSONL field or column of the list (messages)")
    chat.set_defaults(limit_tokens=None)


def add_recall_options(recall):
    recall.add_argument("--lengths", type=listed(token_count), default=[512, 2048],
                        metavar="N,N", help="shortest and longest stretch of text, in tokens, "
                        "about (512,2K); its questions come on top, a tenth or so: see that "
                        "documents fit the rows that they are for")
    recall.add_argument("--seed", type=seed, default=1, help="seed of what is hidden (1)")


def add_ruler_options(ruler):
    cores = min(len(os.sched_getaffinity(0)), 1024)
    ruler.add_argument("--out", required=True, metavar="FILE", help="HDF5 file to write")
    ruler.add_argument("--lengths", required=True, metavar="N,N", type=listed(token_count),
                       help="tokens of prompt and answer together, such as 4K,8K")
    ruler.add_argument("--count", type=number_between(1, 100_000), default=100,
                       help="prompts for each task and length (100)")
    ruler.add_argument("--text", nargs="+", default=[], metavar="INPUT",
                       help="text that haystacks are cut from, as for tokens (made sentences)")
    ruler.add_argument("--tasks", type=listed(plain_text), default=[], metavar="NAME,NAME",
                       help="niah_single_1, vt, cwe, mrcr_2, ... (RULER's thirteen)")
    ruler.add_argument("--seed", type=seed, default=1, help="seed of prompts (1)")
    ruler.add_argument("--workers", type=number_between(1, 1024), default=cores,
                       help="processes (all cores)")


def parse_args(argv):
    parser = argparse.ArgumentParser(prog="data/prepare", description="Text to token stores.")
    commands = parser.add_subparsers(dest="command", required=True)
    tokens = commands.add_parser("tokens", help="documents -> HDF5 token stores")
    recall = commands.add_parser("recall", help="documents with things hidden in them and asked "
                                 "for -> token stores")
    ids = commands.add_parser("ids", help="documents that are ids already (Megatron's .bin and "
                              ".idx, columns of ids) -> HDF5 token stores")
    chat = commands.add_parser("chat", help="conversations -> token stores with a loss mask")
    needles = commands.add_parser("needles", help="facts, questions and answers for retrieval")
    choices = commands.add_parser("choices", help="multiple-choice questions")
    ruler = commands.add_parser("ruler", help="long-context tasks in the form of RULER")
    for command in (tokens, recall, ids, chat, needles, choices, ruler):
        command.add_argument("--tokenizer", required=True, metavar="FOLDER",
                             help="Hugging Face folder with tokenizer.json and config.json")
    for command in (tokens, recall, needles, choices, ruler):  # a chat's template writes BOS itself
        command.add_argument("--bos", type=plain_text, default="own",
                             help="id or token at the start of documents and prompts, or none "
                             "(what the tokenizer itself puts there, if anything)")
    for command in (tokens, recall, ids, chat):
        add_store_options(command)
    for command in (tokens, recall):
        add_text_options(command)
    add_recall_options(recall)
    add_ids_options(ids)
    add_chat_options(chat)

    needles.add_argument("--out", required=True, metavar="FILE", help="JSON file to write")
    needles.add_argument("--count", type=number_between(1, 1_000_000), default=64,
                         help="number of items (64)")
    needles.add_argument("--seed", type=seed, default=1, help="seed of words and numbers (1)")

    choices.add_argument("inputs", nargs="+", metavar="INPUT",
                         help="JSONL: contexts, choices, answer, task")
    choices.add_argument("--out", required=True, metavar="FILE", help="JSON file to write")
    add_ruler_options(ruler)
    for command in (tokens, choices):
        command.add_argument("--special-tokens", action="store_true",
                             help="text that spells a special token, such as <|im_start|>, becomes "
                             "that token (by default it stays text)")
    return parser.parse_args(argv)


def describe(error, keeps):
    """An OSError as 'file: what; what to do'."""
    text = ": ".join(str(part) for part in (error.filename, error.strerror) if part) or str(error)
    advice = ADVICE.get(error.errno)
    kept = KEPT if keeps and error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return f"{text}; {advice}{kept}" if advice else text


def complain(text):
    """One line, whatever is in names of files and in messages of libraries."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    print(f"data/prepare: {line}", file=sys.stderr, flush=True)
    return 1


def run(args):
    if args.command == "tokens":
        from .tokens import prepare_tokens as prepare
    elif args.command == "recall":
        from .recall.command import prepare_recall as prepare
    elif args.command == "ids":
        from .ids import prepare_ids as prepare
    elif args.command == "chat":
        from .chat import prepare_chat as prepare
    elif args.command == "needles":
        from .needles import prepare_needles as prepare
    elif args.command == "ruler":
        from .ruler.command import prepare_ruler as prepare
    else:
        from .choices import prepare_choices as prepare
    prepare(args)


def main(argv=None):
    args = parse_args(argv)
    keeps = args.command in KEEPING
    try:
        run(args)
    except ModuleNotFoundError as error:
        return complain(f"needs the Python package {error.name}; `make` installs it into .venv")
    except UserError as error:
        return complain(str(error))
    except OSError as error:
        return complain(describe(error, keeps))
    except MemoryError:
        return complain("memory ran out; use fewer --workers" + (
            f" or smaller --shard-tokens{KEPT}" if keeps else ""))
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        complain("interrupted; the same call " + ("goes on from here" if keeps else
                                                  "begins anew, nothing was written"))
        return 130
    return 0


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # names of files may hold any bytes
    sys.exit(main())
