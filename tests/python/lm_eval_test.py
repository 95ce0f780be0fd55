"""lm-evaluation-harness on an exported hybrid: multiple choice gives evaluate's accuracies on the
same questions, generation the ids of sala-inspect. The harness is in a virtual environment in the
build folder."""
import json
import os
import random
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from exported_hybrid import BIN, RECIPE, ROOT, make_export, run  # noqa: E402
from pip_environment import python_with  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402
from toy_tokenizer import TEXT  # noqa: E402

EVALUATE = """  - evaluate: {choices: [quiz], kl: false}
  - export:"""
CHOICE = """task: toy_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/questions.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
GENERATE = """task: toy_generate
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/prompts.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{continued}}}}"
target_delimiter: ""
generation_kwargs: {{do_sample: false, max_gen_toks: 8, until: ["none of this"]}}
metric_list: [{{metric: exact_match}}]
"""


def questions(count):
    """Random words of the toy text; neither context nor choice is of one length."""
    rng, words = random.Random(7), TEXT.split()
    for _ in range(count):
        context = " ".join(rng.choices(words, k=rng.randint(2, 90)))
        choices = [" ".join(rng.choices(words, k=rng.randint(1, 6))) for _ in range(4)]
        yield {"context": context, "choices": choices, "answer": rng.randrange(4)}


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


class LmEvalTest(unittest.TestCase):
    def ours(self, folder, asked):
        write_lines(folder / "quiz.jsonl", [
            {"task": "toy", "contexts": [q["context"]] * 4, "answer": q["answer"],
             "choices": [" " + choice for choice in q["choices"]]} for q in asked])
        run(ROOT / "data/prepare", "choices", "--tokenizer", folder / "source", "--out",
            folder / "quiz.json", folder / "quiz.jsonl")
        recipe = RECIPE.replace("data: {{", "data: {{choices: ['{folder}/quiz.json'], ", 1)
        recipe = recipe.replace("  - export:", EVALUATE.replace("{", "{{").replace("}", "}}"))
        (folder / "evaluate.yaml").write_text(recipe.format(folder=folder))
        run(BIN / "sala-train", folder / "evaluate.yaml", "--evaluate", folder / "export",
            "--out", folder / "ours.json")
        return json.loads((folder / "ours.json").read_text())

    def theirs(self, python, folder):
        (folder / "tasks").mkdir()
        (folder / "tasks/choice.yaml").write_text(CHOICE.format(folder=folder))
        (folder / "tasks/generate.yaml").write_text(GENERATE.format(folder=folder))
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1",
                   "HF_HOME": str(folder / "cache")}
        result = subprocess.run(
            [python, "-m", "lm_eval", "--model", "hf", "--model_args",
             f"pretrained={folder}/export,trust_remote_code=True,dtype=float32", "--device", "cpu",
             "--include_path", folder / "tasks", "--tasks", "toy_choice,toy_generate",
             "--batch_size", "1", "--output_path", folder / "theirs.json"],
            capture_output=True, text=True, env=os.environ | offline)
        self.assertEqual(result.returncode, 0, result.stderr[-3000:])
        written, = folder.glob("theirs*.json")
        return json.loads(written.read_text())["results"]

    def test_its_numbers_are_ours(self):
        python = python_with("lm-eval", ["lm_eval==0.4.13", "accelerate"])
        if python is None:
            self.skipTest("pip could not install lm_eval")
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make_export(folder)
            # A real tokenizer names its end of text; the harness needs one.
            config = folder / "export/tokenizer_config.json"
            known = json.loads(config.read_text()) if config.exists() else {}
            config.write_text(json.dumps(
                {"tokenizer_class": "PreTrainedTokenizerFast", **known, "eos_token": "<eos>"}))
            asked = list(questions(60))
            write_lines(folder / "questions.jsonl", asked)
            tokenizer = Tokenizer.from_file(str(folder / "export/tokenizer.json"))
            prompts = [q["context"] for q in asked[:8]]
            ids = [tokenizer.encode(p).ids for p in prompts]
            continued = [tokenizer.decode(self.generated(folder, row)) for row in ids]
            write_lines(folder / "prompts.jsonl", [
                {"prompt": p, "continued": c} for p, c in zip(prompts, continued)])
            ours, theirs = self.ours(folder, asked), self.theirs(python, folder)
            mine, = ours["evaluation"]["choices"].values()
            self.assertEqual(mine["count"], 60)
            self.assertAlmostEqual(theirs["toy_choice"]["acc,none"], mine["acc"], 6)
            self.assertAlmostEqual(theirs["toy_choice"]["acc_norm,none"], mine["acc_norm"], 6)
            self.assertEqual(theirs["toy_generate"]["exact_match,none"], 1)

    def generated(self, folder, row):
        (folder / "ids.json").write_text(json.dumps([row]))
        out = run(BIN / "sala-inspect", folder / "export", "--ids", folder / "ids.json",
                  "--generate", "8")
        return json.loads(out.splitlines()[-1])["generated"][0]


if __name__ == "__main__":
    unittest.main()
