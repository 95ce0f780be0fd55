"""Text to token stores and to what else needs a tokenizer. FORMAT.md has the bytes."""


class UserError(Exception):
    """Something in the input or the options; printed as one line."""
