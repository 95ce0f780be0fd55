"""An exported hybrid in transformers, without the hub: the same logits as sala-train's, however the
tokens come, and what else people do with a model. exported_hybrid_versions_test.py runs all of this
in the oldest and the newest transformers that the export is for."""
import itertools
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from exported_hybrid import HYBRIDS, ROOT, ExportedHybridCase, load  # noqa: E402

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer  # noqa: E402

NAMES = sorted(path.name for path in HYBRIDS.iterdir())
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
LONGROPE = {"rope_type": "longrope", "factor": 4.0, "long_factor": [1 + i / 4 for i in range(16)],
            "short_factor": [1 + i / 16 for i in range(16)],
            "original_max_position_embeddings": 128}
SCALINGS = {
    "linear": {"rope_type": "linear", "factor": 2.5},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    "longrope": LONGROPE, "yarn": YARN, "yarn_mscale": {**YARN, "mscale": 1.2,
                                                        "mscale_all_dim": 0.7, "beta_fast": 16.0},
}


def feed(model, ids, lengths, **masks):
    """Logits of ids (B, T), handed over in calls of these lengths with a cache."""
    logits, cache, begin = [], None, 0
    for length in lengths:
        end = begin + length
        here = {name: mask[:, :end] for name, mask in masks.items()}
        out = model(ids[:, begin:end], past_key_values=cache, use_cache=True, **here)
        logits.append(out.logits)
        cache, begin = out.past_key_values, end
    return torch.cat(logits, dim=1)


def pad(rows, side):
    """Rows of ids as one batch, and its attention mask."""
    width = max(len(row) for row in rows)
    ids, mask = torch.full((len(rows), width), 2), torch.zeros(len(rows), width, dtype=torch.long)
    for b, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[b, place], mask[b, place] = row, 1
    return ids, mask


class ExportedHybridTest(ExportedHybridCase):
    def test_the_export_holds_the_code_of_the_checkout_and_its_hashes(self):
        for file in (ROOT / "trainer/folder/transformers").glob("*.py"):
            self.assertEqual((self.export / file.name).read_bytes(), file.read_bytes())
            self.assertIn(f"  {file.name}\n", (self.export / "SHA256SUMS").read_text())
        log = (self.root / "run/run.log").read_text()
        self.assertIn("transformers loads it: version 4.56 or later, or 5", log)

    def test_the_export_loads_and_gives_the_logits_of_sala_inspect(self):
        model = load(self.export)
        ids = torch.arange(2, 402)[None]  # above dense_len
        for count in (200, 400):
            with torch.no_grad():
                logits = model(ids[:, :count]).logits
            self.assert_close(logits, self.inspect_logits(self.export, ids[:, :count]))
        base = AutoModel.from_pretrained(self.export, trust_remote_code=True)
        self.assertEqual(type(base).__name__, "MiniCPMSALAModel")

    def test_the_tokenizer_of_the_export_needs_no_code(self):
        tokenizer = AutoTokenizer.from_pretrained(self.export, trust_remote_code=False)
        text = "What is the special magic number?"
        self.assertEqual(tokenizer.decode(tokenizer(text).input_ids), text)

    def test_a_sentence_is_continued_by_the_lines_of_the_readme(self):
        tokenizer = AutoTokenizer.from_pretrained(self.export, trust_remote_code=False)
        model = load(self.export)
        for text in ("What is the", "It was the best of times, it was the worst of times. " * 40):
            given = tokenizer(text, return_tensors="pt")
            ids = given.input_ids[0].tolist()
            expected, = self.inspect_greedy(self.export, [ids], 12)
            out = model.generate(**given, max_new_tokens=12)
            self.assertEqual(out[0].tolist(), ids + expected)

    @torch.no_grad()
    def test_logits_are_the_checked_ones_in_one_call_and_in_many(self):
        for name, device in itertools.product(NAMES, DEVICES):
            model, golden = self.model(name), self.golden_logits(name)
            ids = self.ids(name).to(device)
            self.assert_close(model.to(device)(ids).logits.cpu(), golden)
            pieces = [ids.size(1) - 79, 70] + [1] * 9
            self.assert_close(feed(model, ids, pieces).cpu(), golden)
            model.cpu()

    @torch.no_grad()
    def test_slabs_of_queries_change_nothing(self):
        for name in ("group2", "group3"):
            model = self.model(name)
            module = sys.modules[type(model).__module__]
            whole, module.SLAB_SCORES = module.SLAB_SCORES, 1
            self.addCleanup(setattr, module, "SLAB_SCORES", whole)
            self.assert_close(model(self.ids(name)).logits, self.golden_logits(name))
            module.SLAB_SCORES = whole

    @torch.no_grad()
    def test_a_padded_batch_gives_each_row_what_it_gets_alone(self):
        for name, lengths in (("group2", (400, 255, 256, 31)), ("group1_bias", (260, 300))):
            model, ids = self.model(name), self.ids(name)[0]
            rows = [ids[3 * b:3 * b + length] for b, length in enumerate(lengths)]
            alone = [model(row[None]).logits[0] for row in rows]
            for side, device in itertools.product(("left", "right"), DEVICES):
                batch, mask = pad(rows, side)
                whole = model.to(device)(batch.to(device), attention_mask=mask.to(device))
                whole = whole.logits.cpu()
                model.cpu()
                for b, expected in enumerate(alone):
                    self.assert_close(whole[b][mask[b] == 1], expected)
            # A row is sparse or dense by what has come of it: compare what does not cross over.
            batch, mask = pad([rows[0], rows[-1]], "left")
            pieces = feed(model, batch, [batch.size(1) - 3, 1, 2], attention_mask=mask)
            self.assert_close(pieces[0][mask[0] == 1], alone[0])
            if lengths[-1] < 256:
                self.assert_close(pieces[1][mask[1] == 1], alone[-1])

    def test_generation_continues_as_sala_inspect_does(self):
        count = 8
        for name, lengths in (("group2", (40, 300)), ("group1_bias", (270, 31)), ("dense", (9,))):
            model, ids = self.model(name), self.ids(name)[0]
            prompts = [ids[:length] for length in lengths]
            expected = self.inspect_greedy(self.folder_of(name), [p.tolist() for p in prompts],
                                           count)
            options = {"max_new_tokens": count, "do_sample": False, "pad_token_id": 2}
            for prompt, continuation in zip(prompts, expected):
                for use_cache in (True, False) if name == "group2" else (True,):
                    whole = torch.ones_like(prompt[None])
                    out = model.generate(prompt[None], attention_mask=whole, use_cache=use_cache,
                                         **options)
                    self.assertEqual(out[0, len(prompt):].tolist(), continuation)
            batch, mask = pad(prompts, "left")
            out = model.generate(batch, attention_mask=mask, **options)[:, batch.size(1):].tolist()
            for row, continuation in zip(out, expected):
                self.assertEqual(row[:len(continuation)], continuation)

    def test_a_conversation_goes_on_from_the_cache_of_what_was_said(self):
        model, ids = self.model("group2"), self.ids("group2")
        options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 2,
                   "return_dict_in_generate": True}
        for begin in (40, 300):  # dense and sparse rows
            out = model.generate(ids[:, :begin], attention_mask=torch.ones(1, begin), **options)
            cache = out.past_key_values
            self.assertGreaterEqual(cache.get_seq_length(), begin)
            said = torch.cat((out.sequences, ids[:, begin:begin + 20]), dim=1)
            mask = torch.ones_like(said)
            whole = model.generate(said, attention_mask=mask, **options).sequences
            kept = model.generate(said, attention_mask=mask, past_key_values=cache, **options)
            self.assertEqual(kept.sequences.tolist(), whole.tolist())
            self.assertIs(kept.past_key_values, cache)
            self.assertEqual(cache.get_seq_length(), whole.size(1) - 1)

    def test_beams_and_samples_keep_their_own_cache(self):
        model, prompt = self.model("group2"), self.ids("group2")[:, :270]
        options = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 4,
                   "pad_token_id": 2}
        beams = [model.generate(prompt, num_beams=3, do_sample=False, use_cache=cached, **options)
                 for cached in (True, False)]
        self.assertEqual(beams[0].tolist(), beams[1].tolist())
        torch.manual_seed(0)
        samples = model.generate(prompt, num_return_sequences=2, do_sample=True, **options)
        self.assertEqual(samples.size(0), 2)

    def test_gradients_are_those_of_finite_differences(self):
        model, ids = load(self.folder_of("group3"), torch.float64), self.ids("group3")[:, :150]
        module = sys.modules[type(model).__module__]
        self.addCleanup(setattr, module, "SLAB_SCORES", module.SLAB_SCORES)
        module.SLAB_SCORES = 1  # slabs are computed again in the backward pass

        def loss():
            return F.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:])  # theirs is in float32

        loss().backward()
        for name in ("layers.0.self_attn.k_proj", "layers.0.mlp.up_proj",
                     "layers.1.self_attn.v_proj", "layers.2.self_attn.q_norm",
                     "layers.3.self_attn.o_gate", "embed_tokens"):
            weight = model.get_parameter(f"model.{name}.weight")
            step = torch.zeros_like(weight).view(-1)
            step[weight.grad.abs().argmax()] = 1e-6
            losses = []
            for sign in (1, -1):
                with torch.no_grad():
                    weight += sign * step.view_as(weight)
                    losses.append(loss().item())
                    weight -= sign * step.view_as(weight)
            difference = (losses[0] - losses[1]) / 2e-6
            self.assertAlmostEqual(difference / weight.grad.abs().max().item(),
                                   float(torch.sign(weight.grad.view(-1)[step.argmax()])), places=4,
                                   msg=name)
        gradient = model.lm_head.weight.grad.clone(), model.model.embed_tokens.weight.grad.clone()
        model.zero_grad()
        model.train()
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        loss().backward()
        self.assert_close(model.lm_head.weight.grad, gradient[0], 1e-10)
        self.assert_close(model.model.embed_tokens.weight.grad, gradient[1], 1e-10)

    @torch.no_grad()
    def test_what_is_saved_loads_again_everywhere(self):
        saved = self.root / "saved"
        for source, ids in ((self.export, torch.arange(2, 302)[None]),
                            (self.folder_of("group1_bias"), self.ids("group1_bias"))):
            model = load(source)
            with tempfile.TemporaryDirectory() as folder:
                saved = Path(folder) / "saved"
                model.save_pretrained(saved)
                logits = model(ids).logits
                self.assert_close(load(saved)(ids).logits, logits, 0)
                self.assert_close(self.inspect_logits(saved, ids), logits)
                self.assertEqual(model.config.sparse_config,
                                 AutoModelForCausalLM.from_pretrained(
                                     saved, trust_remote_code=True).config.sparse_config)

    @torch.no_grad()
    def test_scaled_rotary_embeddings_are_those_of_sala_inspect(self):
        ids = self.ids("odd_length")[:, :200]
        for name, scaling in SCALINGS.items():
            folder = self.folder_of("odd_length", copy=name, rope_scaling=scaling)
            self.assert_close(load(folder)(ids).logits, self.inspect_logits(folder, ids))

    @torch.no_grad()
    def test_longrope_goes_by_a_rows_own_tokens_and_not_by_its_padding(self):
        folder = self.folder_of("odd_length", copy="longrope", rope_scaling=LONGROPE)
        ids = self.ids("odd_length")[0]
        rows = [ids[:200], ids[3:63]]
        for device in DEVICES:
            model = load(folder).to(device)
            alone = [model(row[None].to(device)).logits[0] for row in rows]
            for side in ("left", "right"):
                batch, mask = (x.to(device) for x in pad(rows, side))
                # At once, and with a cache: the short row stays short with its last tokens.
                for lengths in ([200], [197, 1, 2]):
                    whole = feed(model, batch, lengths, attention_mask=mask)
                    for b, expected in enumerate(alone):
                        self.assert_close(whole[b][mask[b] == 1], expected)

    def test_a_cache_or_mask_of_another_kind_is_named(self):
        model, ids = self.model("dense"), self.ids("dense")[:, :8]
        with self.assertRaisesRegex(TypeError, "expected the MiniCPMSALACache"):
            model(ids, past_key_values=((ids, ids),))
        with self.assertRaisesRegex(ValueError, r"attention_mask: expected \(1, 8\)"):
            model(ids, attention_mask=torch.ones(1, 5))


if __name__ == "__main__":
    unittest.main()
