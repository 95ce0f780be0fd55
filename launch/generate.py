#!/usr/bin/env python3
"""Continues a text, or answers a question, with a source model or a hybrid.

A folder that transformers can load here (a source model, an export of a model without a swap) runs
there: it samples, and prints as it goes. A hybrid with sparse layers runs in sala-inspect, which
takes the likeliest token; its text comes at the end. Both keep what they have computed.

usage: launch/generate.py FOLDER "prompt" [-n 64] [--chat] [--temperature 0.7 --top-p 0.9 --seed 1]
"""
import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

from project_python import BUILD, require

require("tokenizers")


def read_config(folder):
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise RuntimeError(f"{file}: {error.strerror}; expected a Hugging Face folder")
    except ValueError as error:
        raise RuntimeError(f"{file}: expected JSON ({error})")
    if not isinstance(config, dict):
        raise RuntimeError(f"{file}: expected a JSON object")
    return config


def load_tokenizer(folder):
    from tokenizers import Tokenizer
    file = folder / "tokenizer.json"
    if not file.exists():
        raise RuntimeError(f"{file}: no such file; expected a Hugging Face folder with a tokenizer")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise RuntimeError(f"{file}: expected a tokenizer ({error})") from error


def why_not_transformers(config):
    """Empty where transformers has this kind of model itself; code of the folder is never run."""
    try:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    except ImportError:
        return "the Python package transformers is not installed"
    kind = str(config.get("model_type"))
    return "" if kind in CONFIG_MAPPING_NAMES else f"transformers has no model type {kind}"


@contextlib.contextmanager
def quiet_transformers():
    """For a tokenizer alone: that transformers does not have the model is no matter then."""
    from transformers.utils import logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)


def chat_text(folder, prompt):
    """The prompt as a user's turn, as the folder's chat template writes it."""
    require("transformers")
    with quiet_transformers():
        from transformers import AutoTokenizer
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True,
                                                  trust_remote_code=False)  # it never asks
    if not tokenizer.chat_template:
        raise RuntimeError(f"{folder}: no chat template; leave out --chat")
    turns = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


def prompt_ids(args, tokenizer):
    if args.chat:  # the template writes BOS itself
        ids = tokenizer.encode(chat_text(args.folder, args.prompt), add_special_tokens=False).ids
    else:
        ids = tokenizer.encode(args.prompt).ids  # with BOS, where the model has one
    if not ids:
        raise RuntimeError("expected a prompt of at least one token")
    return ids


def continued(tokenizer, ids, more):
    """The text that `more` ids add to that of `ids`. Alone they may have another: a tokenizer like
    SentencePiece's has no space at the start of a text."""
    return tokenizer.decode(ids + more)[len(tokenizer.decode(ids)):]


def with_transformers(args, ids):
    """Prints the prompt once the model stands, and tokens as they come."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer
    from transformers.utils import logging

    class Streamer(TextStreamer):
        """As `continued`: what is printed already, the prompt at first, stands before the rest."""
        def put(self, value):
            is_prompt, self.next_tokens_are_prompt = self.next_tokens_are_prompt, False
            if not is_prompt:
                super().put(value)
            if not self.token_cache:  # also after each line
                self.token_cache = value.flatten().tolist()
                self.print_len = len(self.tokenizer.decode(self.token_cache, **self.decode_kwargs))

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("--device cuda: no GPU that this PyTorch can use")
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    tokenizer = AutoTokenizer.from_pretrained(args.folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(args.folder, dtype=dtype, local_files_only=True)
    model.to(device)
    torch.manual_seed(args.seed)
    sampling = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if args.temperature > 0:
        sampling = {"do_sample": True, "temperature": args.temperature, "top_p": args.top_p,
                    "top_k": 0}
    prompt = torch.tensor([ids], device=device)
    if not args.chat:
        print(args.prompt, end="", flush=True)
    try:
        model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=args.n,
                       streamer=Streamer(tokenizer, skip_special_tokens=True), **sampling)
    except BaseException:
        print(flush=True)  # what is said about it gets a line of its own
        raise


def with_inspect(inspect, args, rows):
    """Greedy continuations of rows of ids, as rows of ids."""
    if not Path(inspect).exists():
        raise RuntimeError(f"{inspect}: no such program; build it first (`make`)")
    with tempfile.TemporaryDirectory() as temporary:
        ids, out = Path(temporary) / "ids.json", Path(temporary) / "generated.json"
        ids.write_text(json.dumps(rows))
        result = subprocess.run(
            [str(inspect), str(args.folder), "--ids", str(ids), "--generate", str(args.n),
             "--out", str(out), *(["--device", args.device] if args.device else [])],
            capture_output=True, text=True)
        if result.returncode or not out.exists():
            lines = (result.stderr.strip() or result.stdout.strip()).splitlines()
            raise RuntimeError(lines[-1] if lines else
                               f"{inspect} ended with code {result.returncode}")
        return json.loads(out.read_text())["generated"]


def generate(args):
    tokenizer = load_tokenizer(args.folder)
    why_not = why_not_transformers(read_config(args.folder))
    if why_not and args.temperature > 0:
        raise RuntimeError(f"{args.folder}: {why_not}, and sala-inspect continues greedily only; "
                           "leave out --temperature")
    ids = prompt_ids(args, tokenizer)
    if not why_not:
        with_transformers(args, ids)
        return
    continuation = with_inspect(args.inspect, args, [ids])[0]
    print("" if args.chat else args.prompt, continued(tokenizer, ids, continuation), sep="")


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="Hugging Face folder, of any model we read")
    parser.add_argument("prompt")
    parser.add_argument("-n", type=int, default=64, help="tokens to generate, at most (64)")
    parser.add_argument("--chat", action="store_true",
                        help="the prompt is a user's turn, by the folder's chat template")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where it can")
    parser.add_argument("--temperature", type=float, default=0, help="0: the likeliest token (0)")
    parser.add_argument("--top-p", type=float, default=1,
                        help="sample from the likeliest tokens with this share (1)")
    parser.add_argument("--seed", type=int, default=1, help="of the sampling (1)")
    parser.add_argument("--inspect", type=Path, default=BUILD / "bin" / "sala-inspect")
    args = parser.parse_args(argv)
    if args.n < 1:
        parser.error("-n expects a positive number")
    if not 0 <= args.temperature < float("inf"):
        parser.error("--temperature expects 0 or a positive number")
    if not 0 < args.top_p <= 1:
        parser.error("--top-p expects a number above 0, at most 1")
    if args.top_p < 1 and args.temperature == 0:
        parser.error("--top-p needs --temperature")
    return args


def main(argv=None):
    args = parse_args(argv)
    try:
        generate(args)
    except (RuntimeError, OSError, ValueError) as error:
        print(f"generate: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
