"""A small byte-level BPE tokenizer in a folder, as a model's folder has it."""
import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TEXT = ("The quick brown fox jumps over the lazy dog. What is the special magic number? "
        "It was the best of times, it was the worst of times.\n\nCall me Ishmael. ") * 4


def make_folder(folder, **config):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<bos>", "<eos>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"vocab_size": 512, "eos_token_id": 1, **config}
    (folder / "config.json").write_text(json.dumps(settings))
    return tokenizer
