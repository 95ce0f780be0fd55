"""Text to token stores and to what else needs a tokenizer. FORMAT.md has the bytes."""
import os
import sys


class UserError(Exception):
    """Something in the input or the options; printed as one line."""


class BadDocument(UserError):
    """One document that cannot be used, while its neighbours can: --skip-bad leaves it out."""


def say(text):
    """Prints a line for people. That nobody reads it any more (`| head`) must not end the work."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
