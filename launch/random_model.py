#!/usr/bin/env python3
"""A model folder of a real model's shape with random weights, and token stores of random ids to run
it on: for trying a recipe at full size (memory, speed, restarts) where the model itself is not at
hand. Losses mean nothing.

usage: launch/random_model.py SHAPE OUT_FOLDER [--tokens 8M] [--document-tokens COUNT]

SHAPE   minicpm4-8b (32 layers x 4096, 32 query and 2 KV heads of 128, untied), smollm2-1.7b
        (24 x 2048, 32 query and 32 KV heads of 64, tied), llama-1.7b (24 x 2048, 16 query and 8 KV
        heads of 128, tied: no published model's; the tables of 1.7B were measured on it), or
        qwen2.5-0.5b (24 x 896, 14 query and 2 KV heads of 64, biases of q, k and v, tied)
OUT_FOLDER gets model/ and stores/random-00000.h5; a model/ that this script has made is replaced,
any other is refused
"""
import argparse
import json
import sys
from pathlib import Path
from types import SimpleNamespace

from project_python import ROOT, require

require("h5py", "numpy", "safetensors", "torch", "xxhash")
sys.path.insert(0, str(ROOT / "data"))

import numpy as np
import torch
import xxhash
from preparation.__main__ import token_count
from preparation.store import write_store
from safetensors.torch import save_file

COMMON = {"hidden_act": "silu", "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2}
SHAPES = {
    "minicpm4-8b": COMMON | {
        "model_type": "minicpm", "architectures": ["MiniCPMForCausalLM"], "vocab_size": 73448,
        "hidden_size": 4096, "intermediate_size": 16384, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 2, "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": False,
        "initializer_range": 0.1, "scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256},
    "smollm2-1.7b": COMMON | {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 49152,
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24,
        "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5, "rope_theta": 130000.0, "tie_word_embeddings": True,
        "initializer_range": 0.02},
    "llama-1.7b": COMMON | {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 49152,
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 500000.0,
        "tie_word_embeddings": True, "initializer_range": 0.02},
    "qwen2.5-0.5b": COMMON | {
        "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "vocab_size": 151936,
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": True,
        "initializer_range": 0.02},
}
SHARD_BYTES = 4_000_000_000
TOKENIZER = b"{}\n"  # there is none: what tells the stores and the model that they belong together


def tensor_shapes(c):
    """(name, shape) of every tensor, in the order of a Hugging Face folder."""
    width, ffn = c["hidden_size"], c["intermediate_size"]
    head_size = c.get("head_dim", width // c["num_attention_heads"])
    q, kv = c["num_attention_heads"] * head_size, c["num_key_value_heads"] * head_size
    yield "model.embed_tokens.weight", (c["vocab_size"], width)
    for layer in range(c["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name, shape in (("q_proj", (q, width)), ("k_proj", (kv, width)),
                            ("v_proj", (kv, width)), ("o_proj", (width, q))):
            yield f"{prefix}self_attn.{name}.weight", shape
            if c["model_type"] == "qwen2" and name != "o_proj":
                yield f"{prefix}self_attn.{name}.bias", shape[:1]
        for name, shape in (("gate_proj", (ffn, width)), ("up_proj", (ffn, width)),
                            ("down_proj", (width, ffn))):
            yield f"{prefix}mlp.{name}.weight", shape
        yield f"{prefix}input_layernorm.weight", (width,)
        yield f"{prefix}post_attention_layernorm.weight", (width,)
    yield "model.norm.weight", (width,)
    if not c["tie_word_embeddings"]:
        yield "lm_head.weight", (c["vocab_size"], width)


def is_ours(folder):
    """Whether this script has made the model there: no real one has such a tokenizer, and an export
    of a run on random weights, which has it too, has another config.json."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        return config in SHAPES.values() and (folder / "tokenizer.json").read_bytes() == TOKENIZER
    except (OSError, ValueError):
        return False


def make_room(folder):
    """Leaves nothing in the folder that a model of another shape would be read with."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not is_ours(folder):
        sys.exit(f"random_model.py: {folder}: holds something that this script has not made; "
                 "choose another OUT_FOLDER")
    for old in (*folder.glob("model*.safetensors"), folder / "model.safetensors.index.json"):
        old.unlink(missing_ok=True)


def write_model(config, folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "tokenizer.json").write_bytes(TOKENIZER)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(1)
    shards, num_bytes = [{}], 0
    for name, shape in tensor_shapes(config):
        if name.endswith("norm.weight"):
            tensor = torch.ones(shape, dtype=torch.bfloat16)
        else:
            deviation = config["initializer_range"]
            tensor = torch.empty(shape, dtype=torch.bfloat16, device=device)
            tensor = tensor.normal_(0, deviation, generator=generator).cpu()
        if num_bytes + tensor.nbytes > SHARD_BYTES and shards[-1]:
            shards.append({})
            num_bytes = 0
        shards[-1][name] = tensor
        num_bytes += tensor.nbytes
    places = {}
    for number, tensors in enumerate(shards, 1):
        file = ("model.safetensors" if len(shards) == 1
                else f"model-{number:05d}-of-{len(shards):05d}.safetensors")
        save_file(tensors, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, file)
        tensors.clear()
    if len(shards) > 1:
        index = {"metadata": {}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def random_documents(num_tokens, length, config):
    """(tokens, offsets); `length` is that of each document but the last."""
    tokens = np.random.default_rng(1).integers(3, config["vocab_size"], num_tokens)
    offsets = np.append(np.arange(0, num_tokens, length), num_tokens)
    tokens[offsets[1:] - 1] = config["eos_token_id"]
    return tokens, offsets


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("out_folder", type=Path)
    parser.add_argument("--tokens", type=token_count, default=token_count("8M"), metavar="COUNT",
                        help="tokens of the store, such as 64K (8M)")
    parser.add_argument("--document-tokens", metavar="COUNT", default=0,
                        type=lambda text: 0 if text == "0" else token_count(text),
                        help="tokens of each document; 0 = one document of all (0)")
    arguments = parser.parse_args(argv)
    config = SHAPES[arguments.shape]
    length = arguments.document_tokens or arguments.tokens
    try:  # before gigabytes of weights are written
        tokens, offsets = random_documents(arguments.tokens, length, config)
    except (MemoryError, ValueError):  # NumPy's for a size beyond all memory
        parser.error(f"--tokens: {arguments.tokens} tokens do not fit into memory")
    make_room(arguments.out_folder / "model")
    write_model(config, arguments.out_folder / "model")
    stores = arguments.out_folder / "stores"
    stores.mkdir(parents=True, exist_ok=True)
    vocabulary = SimpleNamespace(folder=arguments.out_folder / "model", size=config["vocab_size"],
                                 eos=config["eos_token_id"], special_tokens_are="text",
                                 hash=xxhash.xxh3_64_hexdigest(TOKENIZER))
    write_store(stores / "random-00000.h5", tokens, offsets, vocabulary, "random")
    print(f"{arguments.out_folder}: model/ of {arguments.shape}'s shape, "
          f"stores/random-00000.h5 with {len(tokens)} tokens in {len(offsets) - 1} documents")


if __name__ == "__main__":
    main()
