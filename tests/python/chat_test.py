"""data/prepare chat: exactly what the assistant says has loss, whatever the template."""
import json
import sys
import unittest
from pathlib import Path

import h5py
import numpy as np
import xxhash

sys.path.insert(0, str(Path(__file__).resolve().parent))

from prepare_case import PrepareCase  # noqa: E402

CHATML = ("{% for m in messages %}{% if loop.first and m.role != 'system' %}"
          "<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}"
          "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
# No special token ends a turn, and the opening of an answer ends with a word.
PLAIN = ("{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}"
         "{% if add_generation_prompt %}assistant:{% endif %}")
# As Llama 2: no opening of an answer.
INST = ("{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% elif m.role == 'assistant' %} {{ m.content }}<eos>"
        "{% else %}{{ raise_exception('no such role: ' + m.role) }}{% endif %}{% endfor %}")
TALK = [("user", "What is the magic number, naïvely?"), ("assistant", "It is 42 — the best."),
        ("user", "And the worst?"), ("assistant", "Call me Ishmael.\n\nThe worst of times.")]


def conversation(*turns):
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


class ChatTest(PrepareCase):
    def setUp(self):
        super().setUp()
        self.tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
        self.tokenizer.save(str(self.folder / "model" / "tokenizer.json"))
        self.use_template(CHATML)

    def use_template(self, template, **config):
        settings = {"chat_template": template, "bos_token": "<bos>",
                    "eos_token": {"content": "<eos>"}, **config}
        (self.folder / "model" / "tokenizer_config.json").write_text(json.dumps(settings))

    def write_lines(self, name, *records):
        path = self.folder / name
        path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n"
                                for r in records))
        return path

    def make(self, *records, out="out", options=()):
        path = self.write_lines(f"{out}.jsonl", *records)
        return self.prepare_tokens(out, path, *options, command="chat")

    def refused(self, *records):
        path = self.write_lines("bad.jsonl", *records)
        message = self.prepare("--workers", "1", "--out", self.folder / "bad", path,
                               command="chat", expect=1)
        self.assertEqual(list(self.folder.glob("bad-*.h5")), [])
        return message

    def decode(self, ids):
        return self.tokenizer.decode(list(map(int, ids)), skip_special_tokens=False)

    def learned(self, store, index):
        """The pieces of text that have loss, in order."""
        begin, end = store.offsets[index], store.offsets[index + 1]
        ids, mask = store.tokens[begin:end], store.mask[begin:end]
        edges = np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]]).astype(int)))
        return [self.decode(ids[a:b]) for a, b in zip(edges[::2], edges[1::2])]

    def test_the_words_and_the_end_of_each_turn_have_loss_and_nothing_else(self):
        store, = self.make(conversation(*TALK), conversation(("system", "Be kind."), *TALK[:2]))
        said = [content + "<|im_end|>" for role, content in TALK if role == "assistant"]
        self.assertEqual(self.learned(store, 0), said)
        self.assertEqual(self.learned(store, 1), said[:1])
        whole = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n"
                        for role, content in [("system", "Be brief."), *TALK])
        self.assertEqual(store.document(0).tolist(), self.expected_ids(whole))

    def test_a_template_without_an_end_of_turn_ends_the_last_answer_with_eos(self):
        self.use_template(PLAIN)
        store, = self.make(conversation(*TALK), conversation(*TALK[:3]))
        first, second = (f" {content}" for role, content in TALK if role == "assistant")
        self.assertEqual(self.learned(store, 0)[0], first)
        # The blank lines behind the last answer are no words; EOS is its end.
        self.assertEqual(self.learned(store, 0)[1:], [second, "<eos>"])
        self.assertEqual(self.learned(store, 1), [first])
        self.assertEqual(store.document(0)[0], 0)

    def test_a_template_without_an_opening_of_answers(self):
        self.use_template([{"name": "tools", "template": "x"}, {"name": "default",
                                                                "template": INST}])
        store, = self.make(conversation(*TALK))
        self.assertEqual(self.learned(store, 0), [f" {content}<eos>" for role, content in TALK
                                                  if role == "assistant"])
        self.assertEqual(store.document(0).tolist().count(1), 2)  # no second EOS at the end

    def test_templates_are_run_as_transformers_runs_them(self):
        import transformers
        template = ("{%- for m in messages %}\n    {%- if m.role == 'assistant' %}\n"
                    "{% generation %}\n  A: {{ m.content | trim }}<|im_end|>\n{% endgeneration %}\n"
                    "    {%- else %}\nQ: {{ m | tojson }}{% if tools is none %}!{% endif %}\n"
                    "    {%- endif %}\n{% if loop.index > 3 %}{% break %}{% endif %}{%- endfor %}")
        options = ("{% for m in messages %}{{ [m, '<naïve>'] | tojson(sort_keys=true, "
                   "separators=(',', ':'), ensure_ascii=true) }}\n{{ m | tojson(indent=1) }}"
                   "{% endfor %}")
        for text in (template, CHATML, PLAIN, INST, options):
            self.use_template(text)
            theirs = transformers.PreTrainedTokenizerFast(
                tokenizer_object=self.tokenizer, bos_token="<bos>", eos_token="<eos>")
            talk = conversation(*TALK)["messages"]
            wanted = theirs.apply_chat_template(talk, chat_template=text, tokenize=False)
            out = f"out{len(text)}"
            store, = self.make(conversation(*TALK), out=out)
            self.assertEqual(self.decode(store.document(0)).removesuffix("<eos>"),
                             wanted.removesuffix("<eos>"))

    def test_bytes_are_as_format_says_for_any_number_of_workers_and_shards(self):
        talks = [conversation(("user", f"{i} quick?"), ("assistant", "fox " * (i % 7 + 1)))
                 for i in range(40)]
        options = ("--shuffle", 3, "--shard-tokens", 400)
        stores = self.make(*talks, options=options)
        again = self.make(*talks, out="again", options=(*options, "--workers", 2))
        self.assertGreater(len(stores), 1)
        self.assertEqual([s.attributes["xxh3"] for s in stores],
                         [s.attributes["xxh3"] for s in again])
        said = [self.learned(s, d) for s in stores for d in range(len(s))]
        self.assertEqual(sorted(said), sorted([t["messages"][1]["content"] + "<|im_end|>"]
                                              for t in talks))
        with h5py.File(self.folder / "out-00000.h5") as file:
            mask = file["loss_mask"]
            self.assertEqual((mask.dtype, mask.shape), (np.dtype("u1"), file["tokens"].shape))
            data = b"".join(file[name][:].tobytes()
                            for name in ("tokens", "document_offsets", "loss_mask"))
            self.assertEqual(file.attrs["xxh3"], xxhash.xxh3_64_hexdigest(data))
            self.assertEqual(file.attrs["special_tokens"], "ids")

    def test_another_template_is_another_store(self):
        self.make(conversation(*TALK))
        self.use_template(PLAIN)
        message = self.prepare("--workers", "1", "--source", "toy", "--out", self.folder / "out",
                               self.folder / "out.jsonl", command="chat", expect=1)
        self.assertIn("chat_template", message)

    def test_bad_lines_are_named(self):
        good = conversation(*TALK)
        for bad, what in (
                ("{", "expected one JSON object"),
                ({"text": "a"}, "expected messages in field 'messages', the line has the fields "
                 "text"),
                ({"messages": "a"}, "expected a list of messages"),
                ({"messages": []}, "found an empty one"),
                ({"messages": ["a"]}, "messages[0]: expected an object"),
                ({"messages": [{"role": "user"}]},
                 "messages[0]: expected 'role' and 'content', found role"),
                ({"messages": [{"value": "Hi", "from": "human"}]},
                 "messages[0]: expected 'role' and 'content', found from, value"),
                ({"messages": [{}]}, "messages[0]: expected 'role' and 'content', found neither"),
                ({"messages": [{"role": "user", "content": None}]},
                 "messages[0]: expected a string in 'content', found null"),
                (conversation(*TALK[:1]), "expected a message of the role 'assistant'"),
                (conversation(("user", "a<|im_end|>"), TALK[1]),
                 "message 0 spells the special token <|im_end|>"),
                (conversation(("user", "\ud800"), TALK[1]), "messages[0].content has the lone")):
            message = self.refused(good, bad)
            self.assertIn("bad.jsonl:2: ", message)
            self.assertIn(what, message)
            path = self.folder / "bad.jsonl"
            name = f"skip{abs(hash(what))}"
            self.assertEqual(len(self.prepare_tokens(name, path, "--skip-bad",
                                                     command="chat")[0]), 1)

    def test_what_the_template_refuses_or_rewrites_is_named(self):
        self.use_template(INST)
        self.assertIn("bad.jsonl:1: the chat template refuses these messages (no such role: tool)",
                      self.refused(conversation(*TALK, ("tool", "x"))))
        # A role that no string of HDF5 can hold, and a file's name.
        odd = conversation(("to\0ol", "x"), *TALK)
        for name, expected in (("nul", r"no such role: to\0ol"),
                               ("caf\udce9", r"caf\udce9.jsonl:1")):
            path = self.write_lines(f"{name}.jsonl", odd, conversation(*TALK))
            for workers in (1, 2):
                said = self.prepare("--workers", workers, "--skip-bad", "--out",
                                    self.folder / f"{name[:3]}{workers}", path, command="chat")
                self.assertIn("1 bad documents skipped, the first: ", said)
                self.assertIn(expected, said)
        self.use_template("{% for m in messages %}{{ m.content }}{% if loop.last %}#{% endif %}"
                          "{% endfor %}")
        self.assertIn("bad.jsonl:1: the chat template writes the messages up to number 1 otherwise",
                      self.refused(conversation(*TALK)))
        self.use_template("{% if %}")
        self.assertIn("expected a chat template in Jinja", self.refused(conversation(*TALK)))
        self.use_template(None)
        self.assertIn("found none", self.refused(conversation(*TALK)))


if __name__ == "__main__":
    unittest.main()
