"""A toy source model, token store and recipe in a folder: a run of 48 short steps on the CPU."""
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import xxhash
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "data"))
from preparation.store import write_store  # noqa: E402

NUM_STEPS = 48  # 24 of align, 24 of train
VOCAB, WIDTH, FFN, HEAD, LAYERS = 96, 32, 64, 16, 2
CONFIG = {
    "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": FFN,
    "num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": HEAD, "vocab_size": VOCAB, "max_position_embeddings": 1024, "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "tie_word_embeddings": True, "eos_token_id": 0, "bos_token_id": 0,
    "hidden_act": "silu"}
STAGES = """
  - align: {tokens: 6K, row_length: 64, batch_tokens: 256, data: {a: 1}, lr: 3e-3}
  - swap: {layers: [0]}
  - train: {tokens: 6K, row_length: 64, batch_tokens: 256, data: {a: 1}, lr: 1e-3}
"""


def tensor_shapes():
    yield "model.embed_tokens.weight", (VOCAB, WIDTH)
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        for name, shape in (("q_proj", (2 * HEAD, WIDTH)), ("k_proj", (HEAD, WIDTH)),
                            ("v_proj", (HEAD, WIDTH)), ("o_proj", (WIDTH, 2 * HEAD))):
            yield f"{prefix}self_attn.{name}.weight", shape
        for name, shape in (("gate_proj", (FFN, WIDTH)), ("up_proj", (FFN, WIDTH)),
                            ("down_proj", (WIDTH, FFN))):
            yield f"{prefix}mlp.{name}.weight", shape
        yield f"{prefix}input_layernorm.weight", (WIDTH,)
        yield f"{prefix}post_attention_layernorm.weight", (WIDTH,)
    yield "model.norm.weight", (WIDTH,)


def documents(rng, count=80):
    """Every token follows from the one before, with noise; 0 ends a document."""
    for _ in range(count):
        ids = [int(rng.integers(1, VOCAB))]
        for _ in range(int(rng.integers(20, 300))):
            ids.append(int(rng.integers(1, VOCAB)) if rng.random() < 0.2
                       else 1 + (ids[-1] * 7 + 3) % (VOCAB - 1))
        yield ids + [0]


def make(folder):
    """Writes source/, a.h5 and recipe.yaml, whose run goes to `folder`/run."""
    rng = np.random.default_rng(1)
    source = folder / "source"
    source.mkdir(parents=True)
    (source / "config.json").write_text(json.dumps(CONFIG))
    (source / "tokenizer.json").write_text("{}")
    save_file({name: (np.ones(shape) if len(shape) == 1 else rng.normal(0, 0.15, shape))
               .astype(np.float32) for name, shape in tensor_shapes()},
              source / "model.safetensors")
    texts = list(documents(rng))
    vocabulary = SimpleNamespace(folder=source, size=VOCAB, eos=0, special_tokens_are="text",
                                 hash=xxhash.xxh3_64_hexdigest(b"{}"))
    write_store(folder / "a.h5", np.concatenate([np.array(t) for t in texts]),
                np.cumsum([0] + [len(t) for t in texts]), vocabulary, "toy")
    (folder / "recipe.yaml").write_text(
        f"source: {source}\nrun: {{folder: {folder}/run, seed: 3, device: cpu}}\n"
        f"data: {{sources: {{a: {{files: [{folder}/a.h5]}}}}, lanes: 6}}\nstages:{STAGES}")
