"""Writes the small model folders that the tests compare with: random weights and the logits of the
transformers library (MiniCPM, which it has no class for: of a plain implementation below).

    python tests/golden/make_goldens.py            # needs torch, transformers 5, safetensors, h5py
    python tests/golden/make_goldens.py --hybrid FOLDER

The second form repacks released-format hybrids with known results (FOLDER/<name>/golden/logits.npy,
blocks.npz, ids.json) into hybrid/<name>. Both forms replace what is there and are deterministic.
Logits are computed in float64 from the weights as stored; rotary angles in float32, as the models
do.
"""
import argparse
import json
import math
import pathlib
import shutil

import h5py
import numpy as np
import torch
from transformers import (AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config,
                          Qwen3Config)

HERE = pathlib.Path(__file__).resolve().parent
ROWS, TOKENS, VOCAB = 2, 40, 128
BASE = dict(vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=128)
FACTORS = [round(1 + 0.07 * i, 2) for i in range(16)]
LONG_FACTORS = [round(1 + 0.4 * i, 2) for i in range(16)]
LLAMA3 = dict(rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0,
              high_freq_factor=4.0, original_max_position_embeddings=32)
LONGROPE = dict(rope_type="longrope", rope_theta=1e4, factor=4.0, short_factor=FACTORS,
                long_factor=LONG_FACTORS)
YARN = dict(rope_type="yarn", rope_theta=1e6, factor=4.0, original_max_position_embeddings=32)

# name: (configuration class, keys beside BASE, dtype of the weights, form of config.json, sharded)
CASES = {
    "llama_default": (LlamaConfig, dict(num_key_value_heads=2, tie_word_embeddings=True,
                                        eos_token_id=[2, 5]), "bfloat16", "hub", False),
    "llama_llama3": (LlamaConfig, dict(num_attention_heads=4, num_key_value_heads=2, head_dim=32,
                                       rope_parameters=LLAMA3), "float32", "new", True),
    "llama_linear_bias": (LlamaConfig, dict(num_attention_heads=3, hidden_size=96,
                                            attention_bias=True, rope_parameters=dict(
                                                rope_type="linear", rope_theta=1e4, factor=2.5)),
                          "bfloat16", "hub", False),
    "llama_longrope": (LlamaConfig, dict(rope_parameters=dict(
        LONGROPE, original_max_position_embeddings=24)), "bfloat16", "new", False),
    "llama_head128": (LlamaConfig, dict(head_dim=128), "bfloat16", "new", False),
    "qwen2_default": (Qwen2Config, dict(tie_word_embeddings=True, sliding_window=8,
                                        max_window_layers=1, use_sliding_window=False,
                                        rope_parameters=dict(rope_type="default", rope_theta=1e6)),
                      "float16", "hub", False),
    "qwen2_yarn": (Qwen2Config, dict(num_key_value_heads=2, rope_parameters=YARN),
                   "bfloat16", "hub", True),
    "qwen3_default": (Qwen3Config, dict(num_attention_heads=4, num_key_value_heads=2, head_dim=32,
                                        tie_word_embeddings=True, rope_parameters=dict(
                                            rope_type="default", rope_theta=1e6)),
                      "bfloat16", "new", False),
    "qwen3_yarn": (Qwen3Config, dict(head_dim=64, rope_parameters=dict(
        YARN, beta_fast=16.0, beta_slow=2.0, attention_factor=1.1)), "bfloat16", "new", False),
    "mistral_window": (MistralConfig, dict(sliding_window=64), "bfloat16", "hub", False),
    "mistral_default": (MistralConfig, dict(num_attention_heads=4, num_key_value_heads=1,
                                            head_dim=32, sliding_window=None, rope_parameters=dict(
                                                rope_type="default", rope_theta=1e6)),
                        "bfloat16", "new", True),
    "llama_rope_twice": (LlamaConfig, dict(rope_parameters=YARN), "bfloat16", "both", False),
}
# MiniCPM4: keys beside BASE, sharded. Tokens reach 40, so the second one uses its long factors.
MINICPM = {
    "minicpm_short": (dict(tie_word_embeddings=True, eos_token_id=[2, 73], original=128), False),
    "minicpm_long": (dict(tie_word_embeddings=False, original=32), True),
}


def random_weights(shapes, dtype, generator):
    """Weights of a size that makes every part matter: logits have a spread of about one."""
    weights = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        if name.endswith("norm.weight"):
            value = 1 + 0.2 * noise
        elif name.endswith(".bias"):
            value = 0.3 * noise
        elif "embed_tokens" in name or "lm_head" in name:
            value = noise * shape[1] ** -0.5 * 2
        else:
            value = noise * shape[1] ** -0.5 * 1.5
        weights[name] = value.to(dtype)
    return weights


def random_ids(generator):
    return torch.randint(0, VOCAB, (ROWS, TOKENS), generator=generator)


def write_results(folder, ids, logits):
    (folder / "ids.json").write_text(json.dumps(ids.tolist()) + "\n")
    with h5py.File(folder / "logits.h5", "w") as file:
        file["logits"] = logits.to(torch.float32).numpy()


def to_hub_form(config, dtype):
    """What the hub's folders look like: rope_theta and rope_scaling at top level, torch_dtype."""
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    if kind == "default":
        config["rope_scaling"] = None
    else:
        config["rope_scaling"] = {"type": kind, **rope}
    config.pop("dtype", None)
    config.pop("layer_types", None)
    config["torch_dtype"] = dtype
    return config


def make_transformers_case(name, index):
    cls, keys, dtype, form, sharded = CASES[name]
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    config = cls(**{**BASE, **keys})
    config.architectures = None
    generator = torch.Generator().manual_seed(100 + index)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    state = {k: v for k, v in model.state_dict().items()
             if not (config.tie_word_embeddings and k == "lm_head.weight")}
    shapes = {k: v.shape for k, v in state.items()}
    weights = random_weights(shapes, getattr(torch, dtype), generator)
    model.load_state_dict(weights, strict=False)
    model.tie_weights()
    model.save_pretrained(folder, max_shard_size="120KB" if sharded else "5GB")
    (folder / "generation_config.json").unlink(missing_ok=True)
    if form == "both":  # as users write it who follow a card: beside what transformers 5 saved
        written = json.loads((folder / "config.json").read_text())
        written["rope_scaling"] = written["rope_parameters"]
        text = json.dumps(written, indent=2, sort_keys=True)
        (folder / "config.json").write_text(text + "\n")
    if form == "hub":
        written = json.loads((folder / "config.json").read_text())
        text = json.dumps(to_hub_form(written, dtype), indent=2, sort_keys=True)
        (folder / "config.json").write_text(text + "\n")
    # Read back, so that the results belong to the files.
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64,
                                                 attn_implementation="eager").eval()
    ids = random_ids(generator)
    with torch.no_grad():
        write_results(folder, ids, model(ids).logits)


class MiniCPM:
    """MiniCPM4 (arXiv:2506.07900): Llama's block; x0 = scale_emb * E[id]; each branch times
    scale_depth / sqrt(layers); logits = W (norm(x) / (hidden / dim_model_base)); longrope, whose
    factor list is chosen by the length, its amplitude sqrt(1 + ln(max / original) / ln(original)).
    """

    def __init__(self, config, weights):
        self.c = config
        self.w = {name: value.double() for name, value in weights.items()}

    def norm(self, x, name):
        square = x.square().mean(-1, keepdim=True)
        return x * torch.rsqrt(square + self.c["rms_norm_eps"]) * self.w[name]

    def tables(self, num_tokens, size):
        scaling = self.c["rope_scaling"]
        original = scaling["original_max_position_embeddings"]
        factors = scaling["long_factor" if num_tokens > original else "short_factor"]
        power = torch.arange(0, size, 2).float() / size
        inv_freq = 1.0 / (torch.tensor(factors) * 10000.0 ** power)
        angle = torch.outer(torch.arange(num_tokens).float(), inv_freq)
        ratio = self.c["max_position_embeddings"] / original
        amplitude = math.sqrt(1 + math.log(ratio) / math.log(original))
        double = torch.cat([angle, angle], -1)
        return (double.cos() * amplitude).double(), (double.sin() * amplitude).double()

    def attention(self, x, prefix):
        batch, num_tokens, width = x.shape
        heads, kv_heads = self.c["num_attention_heads"], self.c["num_key_value_heads"]
        size = width // heads
        cos, sin = self.tables(num_tokens, size)

        def project(part, count):
            y = x @ self.w[f"{prefix}{part}_proj.weight"].T
            return y.view(batch, num_tokens, count, size).transpose(1, 2)

        def rotate(y):
            first, second = y.chunk(2, -1)
            return y * cos + torch.cat([-second, first], -1) * sin

        q, k = rotate(project("q", heads)), rotate(project("k", kv_heads))
        v = project("v", kv_heads)
        k, v = (y.repeat_interleave(heads // kv_heads, 1) for y in (k, v))
        scores = q @ k.transpose(-1, -2) / math.sqrt(size)
        future = torch.ones(num_tokens, num_tokens, dtype=torch.bool).triu(1)
        out = scores.masked_fill(future, -math.inf).softmax(-1) @ v
        out = out.transpose(1, 2).reshape(batch, num_tokens, width)
        return out @ self.w[prefix + "o_proj.weight"].T

    def logits(self, ids):
        c, w = self.c, self.w
        x = w["model.embed_tokens.weight"][ids] * c["scale_emb"]
        scale = c["scale_depth"] / math.sqrt(c["num_hidden_layers"])
        for i in range(c["num_hidden_layers"]):
            p = f"model.layers.{i}."
            u = self.norm(x, p + "input_layernorm.weight")
            x = x + scale * self.attention(u, p + "self_attn.")
            u = self.norm(x, p + "post_attention_layernorm.weight")
            gate = torch.nn.functional.silu(u @ w[p + "mlp.gate_proj.weight"].T)
            up = u @ w[p + "mlp.up_proj.weight"].T
            x = x + scale * ((gate * up) @ w[p + "mlp.down_proj.weight"].T)
        x = self.norm(x, "model.norm.weight") / (c["hidden_size"] / c["dim_model_base"])
        head = "model.embed_tokens.weight" if c["tie_word_embeddings"] else "lm_head.weight"
        return x @ w[head].T


def minicpm_shapes(c):
    width, ffn = c["hidden_size"], c["intermediate_size"]
    kv = width // c["num_attention_heads"] * c["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": (VOCAB, width), "model.norm.weight": (width,)}
    if not c["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (VOCAB, width)
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        shapes.update({p + "input_layernorm.weight": (width,),
                       p + "post_attention_layernorm.weight": (width,),
                       p + "self_attn.q_proj.weight": (width, width),
                       p + "self_attn.k_proj.weight": (kv, width),
                       p + "self_attn.v_proj.weight": (kv, width),
                       p + "self_attn.o_proj.weight": (width, width),
                       p + "mlp.gate_proj.weight": (ffn, width),
                       p + "mlp.up_proj.weight": (ffn, width),
                       p + "mlp.down_proj.weight": (width, ffn)})
    return shapes


def save_shards(folder, weights, count):
    from safetensors.torch import save_file
    names = sorted(weights)
    weight_map = {}
    for i in range(count):
        file = f"model-{i + 1:05d}-of-{count:05d}.safetensors" if count > 1 else "model.safetensors"
        part = names[i * len(names) // count:(i + 1) * len(names) // count]
        save_file({n: weights[n] for n in part}, folder / file, metadata={"format": "pt"})
        weight_map.update({n: file for n in part})
    if count > 1:
        total = sum(w.numel() * w.element_size() for w in weights.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def make_minicpm_case(name, index):
    keys, sharded = MINICPM[name]
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    original = keys["original"]
    config = {**BASE, **{k: v for k, v in keys.items() if k != "original"}}
    config.update(model_type="minicpm", architectures=["MiniCPMForCausalLM"], hidden_act="silu",
                  rms_norm_eps=1e-6, initializer_range=0.1, scale_emb=12, scale_depth=1.4,
                  dim_model_base=16, bos_token_id=1, pad_token_id=2, torch_dtype="bfloat16",
                  rope_scaling={"rope_type": "longrope", "long_factor": LONG_FACTORS,
                                "short_factor": FACTORS,
                                "original_max_position_embeddings": original},
                  sparse_config={"kernel_size": 32, "kernel_stride": 16, "init_blocks": 1,
                                 "block_size": 64, "window_size": 2048, "topk": 64,
                                 "use_nope": False, "dense_len": 8192})
    config.setdefault("eos_token_id", 2)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generator = torch.Generator().manual_seed(200 + index)
    weights = random_weights(minicpm_shapes(config), torch.bfloat16, generator)
    head = "lm_head.weight" if "lm_head.weight" in weights else "model.embed_tokens.weight"
    weights[head] *= 4  # the head divides by hidden_size / dim_model_base
    save_shards(folder, weights, 2 if sharded else 1)
    ids = random_ids(generator)
    write_results(folder, ids, MiniCPM(config, weights).logits(ids))


def repack_hybrid(source):
    folder = HERE / "hybrid" / source.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in sorted(source.glob("*")):
        if file.is_file():
            shutil.copyfile(file, folder / file.name)
    ids = json.loads((source / "golden" / "ids.json").read_text())
    (folder / "ids.json").write_text(json.dumps([ids]) + "\n")
    shutil.copyfile(source / "golden" / "meta.json", folder / "meta.json")
    with h5py.File(folder / "logits.h5", "w") as file:
        file["logits"] = np.load(source / "golden" / "logits.npy")[None].astype(np.float32)
        blocks = source / "golden" / "blocks.npz"
        if blocks.exists():
            for name, value in np.load(blocks).items():
                file[f"blocks/{name.removeprefix('layer')}"] = value.astype(np.int32)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hybrid", type=pathlib.Path, help="folder of hybrids to repack")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.hybrid:
        for source in sorted(p for p in options.hybrid.iterdir() if (p / "golden").is_dir()):
            repack_hybrid(source)
        return
    for index, name in enumerate(CASES):
        make_transformers_case(name, index)
    for index, name in enumerate(MINICPM):
        make_minicpm_case(name, index)


if __name__ == "__main__":
    main()
