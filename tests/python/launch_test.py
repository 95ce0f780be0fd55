"""The scripts in launch/: pure parts, and the TensorBoard events as the library reads them."""
import contextlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).resolve().parent))


def load(name):
    """A script of launch/ as a module, under a name that hides no library."""
    import importlib.util
    sys.path.insert(0, str(ROOT / "launch"))
    try:
        spec = importlib.util.spec_from_file_location(f"launch_{name}", ROOT / f"launch/{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path = [p for p in sys.path if p != str(ROOT / "launch")]
    return module


class SmolLM2Test(unittest.TestCase):
    def test_unpermute_undoes_pairs_side_by_side(self):
        import numpy as np
        smollm2 = load("smollm2")
        heads, size, cols = 3, 8, 5
        ours = np.arange(heads * size * cols, dtype=np.float32).reshape(heads * size, cols)
        # llama.cpp's order: row 2i of a head is row i of ours, row 2i + 1 is row i + size/2.
        theirs = np.concatenate([head[[i // 2 + (i % 2) * size // 2 for i in range(size)]]
                                 for head in ours.reshape(heads, size, cols)])
        np.testing.assert_array_equal(smollm2.unpermute(theirs, heads), ours)


class DemoTextTest(unittest.TestCase):
    def test_unwrap_joins_prose_and_keeps_lists_and_code(self):
        demo_text = load("demo_text")
        text = ("1.1. Heading\n============\n\n"
                "   A paragraph that was wrapped by hand at about seventy columns, as\n"
                "   all of them were, with a compound at the end of a line: well-\n"
                "   known, is one line.\n\n"
                "      int main() {\n        return 0;\n      }\n\n"
                "═══════\n\nLast.\n")
        self.assertEqual(demo_text.unwrap(text), (
            "1.1. Heading\n\n"
            "A paragraph that was wrapped by hand at about seventy columns, as all of them were, "
            "with a compound at the end of a line: well-known, is one line.\n\n"
            "int main() {\n  return 0;\n}\n\nLast."))


class RandomModelTest(unittest.TestCase):
    TINY = {"model_type": "llama", "vocab_size": 64, "hidden_size": 8, "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.1,
            "tie_word_embeddings": True, "eos_token_id": 2}

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.out = Path(folder.name) / "out"
        self.script = load("random_model")
        self.script.SHAPES = {"tiny": self.TINY,
                              "untied": self.TINY | {"tie_word_embeddings": False}}

    def call(self, *arguments):
        """0, or what the call ended with, and what it said."""
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                self.script.main([arguments[0], str(self.out), *arguments[1:]])
        except SystemExit as stop:
            return stop.code, said.getvalue()
        return 0, said.getvalue()

    def test_counts_that_mean_nothing_are_refused_before_anything_is_written(self):
        for option, value in (("--tokens", "0"), ("--tokens", "-1"), ("--tokens", "1.5"),
                              ("--document-tokens", "-5"), ("--document-tokens", "x"),
                              ("--tokens", "999999999999999G")):
            code, said = self.call("tiny", f"{option}={value}")
            self.assertEqual(code, 2, said)
            self.assertIn(f"{option}: ", said)
            self.assertFalse(self.out.exists())

    def test_documents_have_the_length_that_is_asked_for(self):
        from preparation.store import Store
        for length, expected in (("1K", [1024] * 4), ("0", [4096]), ("3K", [3072, 1024])):
            self.assertEqual(self.call("tiny", "--tokens", "4K", "--document-tokens", length)[0], 0)
            with Store(self.out / "stores/random-00000.h5") as store:
                self.assertEqual([len(store.document(d)) for d in range(len(store))], expected)

    def test_tensors_are_those_of_the_family(self):
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM
        for shape, config in load("random_model").SHAPES.items():
            if config["model_type"] == "minicpm":  # the library has no such model
                continue
            options = {key: value for key, value in config.items() if key != "model_type"}
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(
                    AutoConfig.for_model(config["model_type"], **options))
            expected = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
            self.assertEqual(dict(self.script.tensor_shapes(config)), expected, shape)

    def test_its_own_model_is_replaced_whole_and_another_is_left_alone(self):
        from safetensors import safe_open
        (self.out / "model").mkdir(parents=True)  # an empty one is nobody's
        self.script.SHARD_BYTES = 1  # a file for each tensor
        self.assertEqual(self.call("tiny", "--tokens", "64")[0], 0)
        self.assertGreater(len(list((self.out / "model").glob("*.safetensors"))), 1)
        self.script.SHARD_BYTES = 1 << 20
        self.assertEqual(self.call("untied", "--tokens", "64")[0], 0)
        weights, = (self.out / "model").glob("*.safetensors*")
        with safe_open(weights, "np") as file:
            self.assertIn("lm_head.weight", file.keys())
        for name, content in (("tokenizer.json", '{"version": "1.0"}'),
                              ("config.json", json.dumps(self.TINY | {"vocab_size": 65})),
                              ("config.json", "no JSON")):
            (self.out / "model" / name).write_text(content)
            before = {file: file.read_bytes() for file in self.out.rglob("*") if file.is_file()}
            code, _ = self.call("tiny", "--tokens", "32")
            self.assertIn("holds something that this script has not made", code)
            self.assertEqual(before, {file: file.read_bytes() for file in before})


class GenerateTest(unittest.TestCase):
    """What is said before any model is loaded, and that the text goes on as the tokens do."""

    def call(self, *arguments, **files):
        """(code, stderr); nothing is printed before something is refused."""
        from toy_tokenizer import make_folder
        said, printed = io.StringIO(), io.StringIO()
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(said), \
                contextlib.redirect_stdout(printed):
            make_folder(folder, model_type="minicpm_sala")
            for name, text in files.items():
                (Path(folder) / f"{name}.json").write_text(text)
            try:
                code = load("generate").main([folder, *arguments])
            except SystemExit as stop:
                code = stop.code
        self.assertEqual(printed.getvalue(), "")
        return code, said.getvalue()

    def test_a_tokenizer_that_the_library_refuses_is_one_line(self):
        for text in ("{}", "no JSON", '{"model": {"type": "Unheard"}}'):
            code, said = self.call("x", tokenizer=text)
            self.assertEqual((code, said.count("\n")), (1, 1), said)
            self.assertIn("tokenizer.json: expected a tokenizer (", said)

    def test_the_chat_template_of_a_hybrid_is_read_without_warnings(self):
        with tempfile.TemporaryDirectory() as folder:
            from toy_tokenizer import make_folder
            make_folder(folder, model_type="minicpm_sala",
                        rope_scaling={"rope_type": "linear", "factor": 2.0})
            (Path(folder) / "tokenizer_config.json").write_text(json.dumps({
                "tokenizer_class": "PreTrainedTokenizerFast",
                "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"}))
            result = subprocess.run(
                [sys.executable, ROOT / "launch/generate.py", folder, "x", "--chat",
                 "--inspect", "/nowhere"], capture_output=True, text=True)
        self.assertEqual((result.returncode, result.stdout, result.stderr), (
            1, "", "generate: /nowhere: no such program; build it first (`make`)\n"))

    def test_a_device_that_is_not_there_is_told_before_anything_is_printed(self):
        import torch
        if torch.cuda.is_available():
            self.skipTest("there is a GPU")
        code, said = self.call("x", "--device", "cuda", config='{"model_type": "llama"}')
        self.assertEqual((code, said), (
            1, "generate: --device cuda: no GPU that this PyTorch can use\n"))
        with tempfile.TemporaryDirectory() as folder:
            inspect = Path(folder) / "inspect"
            inspect.write_text("#!/bin/sh\necho 'inspect: no GPU' >&2; exit 1\n")
            inspect.chmod(0o755)
            code, said = self.call("x", "--inspect", str(inspect), "--device", "cuda")
        self.assertEqual((code, said), (1, "generate: inspect: no GPU\n"))

    def test_what_cannot_be_done_is_one_line(self):
        for arguments, expected in ((("x", "--temperature", "0.7"), "greedily only"),
                                    (("",), "at least one token"),
                                    (("x", "--inspect", "/nowhere"), "/nowhere: no such program")):
            code, said = self.call(*arguments)
            self.assertEqual((code, said.count("\n")), (1, 1), said)
            self.assertIn(expected, said)

    def test_the_space_between_the_prompt_and_what_follows_is_there(self):
        import torch
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
        from transformers import LlamaConfig, LlamaForCausalLM
        from transformers.utils import logging
        logging.disable_progress_bar()
        words = "the quick brown fox jumps over a lazy dog".split()
        tokenizer = Tokenizer(models.WordLevel({f"\u2581{w}": i for i, w in enumerate(words)},
                                               unk_token="\u2581dog"))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            inspect = folder / "inspect"  # the last argument is the file that it writes
            inspect.write_text('#!/bin/bash\necho \'{"generated": [[3, 4, 5]]}\' > "${@: -1}"\n')
            inspect.chmod(0o755)
            LlamaForCausalLM(LlamaConfig(
                vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                num_attention_heads=2, eos_token_id=None)).save_pretrained(folder)
            tokenizer.save(str(folder / "tokenizer.json"))
            (folder / "tokenizer_config.json").write_text(
                '{"tokenizer_class": "PreTrainedTokenizerFast"}')
            for arguments, expected in (
                    (["--device", "cpu"], "the quick( [a-z]+){8}\n"),
                    (["--inspect", str(inspect)], "the quick fox jumps over\n")):
                said = io.StringIO()
                with contextlib.redirect_stdout(said):
                    code = load("generate").main([name, "the quick", "-n", "8", *arguments])
                self.assertEqual(code, 0)
                self.assertRegex(said.getvalue(), f"^{expected}$")
                # Then as a kind that transformers does not have.
                (folder / "config.json").write_text('{"model_type": "minicpm_sala"}')

    def test_values_out_of_range_are_refused(self):
        for arguments in (("-n", "0"), ("--temperature", "-1"), ("--temperature", "nan"),
                          ("--top-p", "0", "--temperature", "1"), ("--top-p", "0.5")):
            self.assertEqual(self.call("x", *arguments)[0], 2)


class TensorBoardTest(unittest.TestCase):
    RECORDS = [
        {"stage": "align", "step": 1, "event": "step", "time": 10.0, "loss": 2.5, "tokens": 512,
         "grad_norm": {"block.0": 0.5, "block.1": None}, "note": "text"},
        {"stage": "align", "step": 2, "event": "step", "time": 11.0, "loss": 2.25, "tokens": 1024},
        {"event": "evaluate", "model": "teacher", "stage": "swap", "tokens": 1024,
         "options": {"tokens": 64}, "sources": {"books": {"loss": 2.0}}},
        {"event": "evaluate", "model": "student", "stage": "swap", "tokens": 1024,
         "sources": {"books": {"loss": 4.0}}},
        {"stage": "distill", "step": 1, "event": "step", "loss": 3.0, "tokens": 2048},
        {"event": "evaluate", "model": "student", "stage": "distill", "step": 1, "tokens": 2048,
         "sources": {"books": {"loss": 3.5}}},
        {"event": "verdict", "stage": "distill", "text": "ended worse than it began"}]
    CURVES = {
        "steps/align": {"step/loss": [(1, 2.5), (2, 2.25)], "step/grad_norm/block.0": [(1, 0.5)]},
        "tokens/align": {"step/loss": [(512, 2.5), (1024, 2.25)],
                         "step/grad_norm/block.0": [(512, 0.5)]},
        "tokens/teacher": {"evaluate/sources/books/loss": [(1024, 2.0)]},
        "tokens/student": {"evaluate/sources/books/loss": [(1024, 4.0), (2048, 3.5)]},
        "steps/distill": {"step/loss": [(1, 3.0)], "evaluate/sources/books/loss": [(1, 3.5)]},
        "tokens/distill": {"step/loss": [(2048, 3.0)]}}

    def setUp(self):
        try:
            import tensorboard  # noqa: F401
        except ImportError:
            self.skipTest("needs the Python package tensorboard")
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def write(self, records, unfinished="", name="."):
        (self.folder / name).mkdir(exist_ok=True)
        (self.folder / name / "metrics.jsonl").write_text(
            "".join(json.dumps(r) + "\n" for r in records) + unfinished)

    def call(self, *arguments):
        return subprocess.run([sys.executable, ROOT / "launch/tensorboard.py", *arguments],
                              capture_output=True, text=True)

    def read(self, folder):
        """Curves, as the library reads them, and texts by run."""
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        curves, texts = {}, {}
        for events in sorted(folder.glob("*/*")):
            accumulator = EventAccumulator(str(events)).Reload()
            name, tags = str(events.relative_to(folder)), accumulator.Tags()
            curves[name] = {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)]
                            for tag in tags["scalars"]}
            for tag in tags["tensors"]:
                texts[name, tag] = [e.tensor_proto.string_val[0].decode()
                                    for e in accumulator.Tensors(tag)]
        return curves, texts

    def test_numbers_are_curves_on_steps_and_tokens_and_words_are_text(self):
        for name in ("a", "b"):
            self.write(self.RECORDS, '{"stage": "al', name)
        for _ in range(2):  # a second call replaces, it does not add
            result = self.call(self.folder / "a", self.folder / "b")
            self.assertEqual(result.returncode, 0, result.stderr)
        for name in ("a", "b"):
            curves, texts = self.read(self.folder / name / "tensorboard")
            self.assertEqual(curves, self.CURVES)
            self.assertEqual(texts,
                             {("steps/distill", "verdict/text"): ["ended worse than it began"]})

    def test_a_run_is_followed_also_where_it_goes_on_from_an_earlier_step(self):
        tensorboard = load("tensorboard")
        run = tensorboard.FollowedRun(self.folder, None)
        lost = [{"stage": "align", "step": s, "event": "step", "loss": 9.0, "tokens": 512 * s}
                for s in (2, 3)]
        for records, unfinished in ((self.RECORDS[:1], '{"stage'), (self.RECORDS[:1] + lost, ""),
                                    (self.RECORDS, ""), (self.RECORDS + [{"event": "end"}], "")):
            self.assertFalse(run.ended)
            self.write(records, unfinished)
            run.look()
        run.close()
        self.assertTrue(run.ended)
        self.assertEqual(self.read(self.folder / "tensorboard")[0], self.CURVES)

    def test_only_its_own_events_are_replaced(self):
        self.write(self.RECORDS)
        self.call(self.folder)
        board = self.folder / "tensorboard"
        foreign = [board / name for name in (
            "notes.md", "other/events.out.tfevents.1.host", "steps/mine/figure.png",
            "steps/align/layout.json", "events.out.tfevents.2.host")]
        for file in foreign:
            file.parent.mkdir(exist_ok=True)
            file.write_text("mine")
        self.write(self.RECORDS[:1])
        self.assertEqual(self.call(self.folder).returncode, 0)
        self.assertEqual([file.read_text() for file in foreign], ["mine"] * len(foreign))
        events = sorted(str(file.parent.relative_to(board))
                        for file in board.glob("*/*/events.out.tfevents.*"))
        self.assertEqual(events, ["steps/align", "tokens/align"])
        self.assertFalse((board / "tokens/teacher").exists())  # none of the runs is empty

    def test_what_is_no_run_folder_is_named(self):
        (self.folder / "file").write_text("")
        (self.folder / "empty").mkdir()
        for name in ("nothere", "file", "empty"):
            result = self.call(self.folder / name)
            self.assertEqual((result.returncode, result.stderr), (
                1, f"tensorboard: {self.folder / name}: expected a run folder, found no "
                   "metrics.jsonl there\n"))
            self.assertFalse((self.folder / name / "tensorboard").exists())

    def test_a_library_that_make_does_not_install_is_not_promised_by_it(self):
        import importlib.util
        if importlib.util.find_spec("wandb"):
            self.skipTest("wandb is installed here")
        self.write(self.RECORDS)
        result = self.call(self.folder, "--wandb", "project")
        self.assertEqual((result.returncode, result.stderr.count("\n")), (1, 1), result.stderr)
        self.assertIn("-m pip install wandb`", result.stderr)
        self.assertNotIn("make", result.stderr)

    def test_a_broken_line_is_named_and_earlier_events_stay(self):
        self.write(self.RECORDS)
        self.call(self.folder)
        (self.folder / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n')
        result = self.call(self.folder)
        self.assertEqual(result.returncode, 1)
        self.assertIn("metrics.jsonl:2: expected one JSON object a line", result.stderr)
        self.assertEqual(self.read(self.folder / "tensorboard")[0], self.CURVES)


class RunLocalTest(unittest.TestCase):
    """What run_local.sh says before it starts anything."""

    def call(self, *arguments, **environment):
        limit = environment.pop("limit", None)
        with tempfile.TemporaryDirectory() as build:
            program = Path(build) / "bin" / "sala-train"
            program.parent.mkdir()
            program.write_text("#!/bin/sh\nexit 3\n")
            program.chmod(0o755)
            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            clean = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
            return subprocess.run(
                [ROOT / "launch/run_local.sh", *arguments], capture_output=True, text=True,
                env={**clean, "SALA_BUILD": build, **environment},
                preexec_fn=limit and (
                    lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))))

    def expect_refusal(self, result, *parts):
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertEqual(result.stderr.count("\n"), 1, result.stderr)
        self.assertTrue(result.stderr.startswith("run_local: "), result.stderr)
        for part in parts:
            self.assertIn(part, result.stderr)

    def test_a_wrong_number_of_processes_is_named(self):
        for number in ("abc", "0", "-1", "1x", "", "1.5", "999999", "00"):
            self.expect_refusal(self.call("r.yaml", "-n", number), "-n: expected", f'"{number}"')
        self.expect_refusal(self.call("r.yaml", "-n"), "-n: expected")

    def test_one_process_for_each_gpu_that_is_to_be_seen(self):
        with tempfile.TemporaryDirectory() as folder:
            for name, text in (("nvidia-smi", "for i in 0 1 2 3; do echo GPU $i: toy; done"),
                               ("mpirun", 'echo "ranks: $2"')):
                program = Path(folder) / name
                program.write_text(f"#!/bin/bash\n{text}\n")
                program.chmod(0o755)
            path = f"{folder}:{os.environ['PATH']}"
            for visible, ranks in ((None, 4), ("2", 1), ("0,3", 2), ("GPU-a,GPU-b,GPU-c", 3),
                                   ("0,1,2,3,4,5", 4), ("", 1), ("-1", 1), ("1,-1,2", 1)):
                variables = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
                for arguments, expected in ((["r.yaml"], ranks), (["r.yaml", "-n", "3"], 3)):
                    result = self.call(*arguments, PATH=path, **variables)
                    self.assertEqual((result.returncode, result.stdout),
                                     (0, f"ranks: {expected}\n"), (visible, result.stderr))

    def test_a_temporary_folder_without_room_is_named(self):
        self.expect_refusal(self.call("r.yaml", "-n", "2", TMPDIR="/proc"), "/proc", "TMPDIR")
        with tempfile.TemporaryDirectory() as folder:
            result = self.call("r.yaml", "-n", "2", TMPDIR=folder, limit=2**20)
            self.expect_refusal(result, folder, "12 MB", "TMPDIR")
            self.assertEqual(list(Path(folder).iterdir()), [])

    def test_a_program_that_is_not_built_is_named(self):
        self.expect_refusal(self.call("r.yaml", SALA_BUILD="/nowhere"), "/nowhere/bin/sala-train")


class RunLocalCodeTest(unittest.TestCase):
    """The exit code, with a stand-in for mpirun, which fails once it is asked to end at once."""

    def ended(self, run_code, requests):
        """run_local.sh's code after so many requests; the ranks tell `run_code`, if any."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            tell = f'echo {run_code} > "$SALA_LAUNCH_FOLDER/code"' if run_code is not None else ":"
            for program, text in (
                    ("mpirun", f'trap "exit 1" TERM; {tell}; touch {folder}/told; [ {requests} -gt '
                               "0 ] || exit 1; while :; do sleep 0.02; done"),
                    ("sala-train", "")):
                file = folder / "bin" / program
                file.parent.mkdir(exist_ok=True)
                file.write_text(f"#!/bin/bash\n{text}\n")
                file.chmod(0o755)
            job = subprocess.Popen(
                [ROOT / "launch/run_local.sh", "r.yaml", "-n", "1"], stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE, text=True,
                env={**os.environ, "PATH": f"{folder}/bin:{os.environ['PATH']}", "SALA_BUILD": name,
                     "TMPDIR": name})
            self.addCleanup(job.stderr.close)
            self.addCleanup(job.kill)
            while job.poll() is None and not (folder / "told").exists():
                time.sleep(0.01)
            for said in ("stopping after a checkpoint", "ending the run")[:requests]:
                job.send_signal(signal.SIGTERM)
                self.assertIn(said, job.stderr.readline())
            return job.wait(timeout=20)

    def test_a_second_request_does_not_hide_that_the_run_checkpointed(self):
        self.assertEqual(self.ended(75, requests=2), 75)

    def test_a_run_that_was_ended_before_it_checkpointed_has_failed(self):
        self.assertEqual(self.ended(None, requests=2), 1)
        self.assertEqual(self.ended(1, requests=2), 1)

    def test_a_failure_that_nobody_asked_for_is_one(self):
        self.assertEqual(self.ended(0, requests=0), 1)


class RunSlurmTest(unittest.TestCase):
    """What is submitted and what goes back into the queue, with stand-ins for Slurm's programs."""

    def stand_ins(self, folder, step=""):
        """Variables with which they are found; `step` is what the ranks do."""
        for name, text in (("srun", f"touch {folder}/begun; {step}"),
                           ("scontrol", f'[ "$1" = show ] || echo $* > {folder}/requeued'),
                           ("sbatch", f"echo $* > {folder}/submitted; "
                                      f"env | grep ^SLURM_ > {folder}/passed; echo 18"),
                           ("squeue", "echo 4:59"),
                           ("sala-train", "")):
            program = folder / "bin" / name
            program.parent.mkdir(exist_ok=True)
            program.write_text(f"#!/bin/bash\n{text}\n")
            program.chmod(0o755)
        return {**os.environ, "PATH": f"{folder}/bin:{os.environ['PATH']}", "SALA_ROOT": str(ROOT),
                "SALA_BUILD": str(folder), "SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "n1",
                "SLURM_CPUS_ON_NODE": "2"}

    def requeued(self, step, ask):
        """Exit code and whether `scontrol requeue` was called, by the copy that Slurm runs."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            copy = folder / "slurm_script"
            shutil.copy(ROOT / "launch/run_slurm.sbatch", copy)
            job = subprocess.Popen([copy, "recipe.yaml"], stdout=subprocess.DEVNULL,
                                   env=self.stand_ins(folder, step))
            while ask and not (folder / "begun").exists():
                time.sleep(0.01)
            if ask:
                job.send_signal(ask)
            return job.wait(timeout=20), (folder / "requeued").exists()

    def test_in_a_session_that_is_a_job_itself_it_submits_and_leaves_that_job_alone(self):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            recipe = folder / "recipe.yaml"
            recipe.touch()
            session = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_CONF": "/etc/slurm.conf"}
            result = subprocess.run(
                [ROOT / "launch/run_slurm.sbatch", "--nodes=2", recipe, "--set", "run.seed=2"],
                capture_output=True, text=True, env=self.stand_ins(folder, "exit 75") | session)
            self.assertEqual((result.returncode, result.stdout, result.stderr),
                             (0, "Submitted batch job 18\n", ""))
            self.assertEqual((folder / "submitted").read_text(),
                             f"--parsable --nodes=2 {ROOT}/launch/run_slurm.sbatch {recipe} "
                             "--set run.seed=2\n")
            # Not what describes the session's job, which the new one would take for its own.
            self.assertEqual((folder / "passed").read_text(), "SLURM_CONF=/etc/slurm.conf\n")
            self.assertFalse((folder / "begun").exists() or (folder / "requeued").exists())

    def test_a_stopped_run_goes_back_and_a_failed_one_does_not(self):
        self.assertEqual(self.requeued("exit 75", None), (75, True))
        self.assertEqual(self.requeued("exit 0", None), (0, False))
        self.assertEqual(self.requeued("exit 1", None), (1, False))
        self.assertEqual(self.requeued("exit 138", None), (138, False))  # not by our signal

    CHECKPOINT = "[info] checkpoint 01-train-8 (stage train, step 8), stall 0.1 s, written in 2.0 s"

    def failed(self, step, said_before="", seconds=0):
        """Whether a start that lived for `seconds` goes back, and what it says, in a log in which the
        starts before it have said something."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            copy = folder / "slurm_script"
            shutil.copy(ROOT / "launch/run_slurm.sbatch", copy)
            (folder / "log").write_text(said_before)
            with open(folder / "log", "a") as log:
                subprocess.run([copy, "recipe.yaml"], stdout=log, stderr=log,
                               env=self.stand_ins(folder, step) | {"SECONDS": str(seconds)})
            return (folder / "requeued").exists(), (folder / "log").read_text()[len(said_before):]

    def test_a_run_that_fails_after_a_checkpoint_or_half_an_hour_goes_back(self):
        for code in (1, 137):
            back, said = self.failed(f"echo '{self.CHECKPOINT}'; exit {code}")
            self.assertTrue(back, said)
            self.assertRegex(said, f"run failed .{code}. after [0-9] s; failure 1 in a row without a "
                                   "new checkpoint; back into the queue")
        self.assertTrue(self.failed("exit 1", seconds=2000)[0])
        back, said = self.failed("exit 1", said_before=self.CHECKPOINT + "\n")  # of another start
        self.assertFalse(back)
        self.assertIn("failed (1) within half an hour and without a checkpoint: the job ends", said)
        self.assertFalse(self.failed(f"echo '{self.CHECKPOINT}'; exit 2", seconds=2000)[0])

    def test_a_run_that_fails_again_and_again_does_not_go_back_for_ever(self):
        log = self.CHECKPOINT + "\n"
        for number in range(1, 6):
            back, said = self.failed("exit 1", log, seconds=2000)
            self.assertTrue(back, said)
            self.assertIn(f"; failure {number} in a row", said)
            log += said
        back, said = self.failed("exit 1", log, seconds=2000)
        self.assertFalse(back)
        self.assertIn("six times in a row without a new checkpoint: the job ends", said)
        self.assertIn("; failure 1 in a row",
                      self.failed(f"echo '{self.CHECKPOINT}'; exit 1", log, seconds=2000)[1])

    def test_without_a_log_to_read_starts_are_counted(self):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            copy = folder / "slurm_script"
            shutil.copy(ROOT / "launch/run_slurm.sbatch", copy)
            for restarts, back in ((4, True), (5, False)):
                (folder / "requeued").unlink(missing_ok=True)
                subprocess.run([copy, "recipe.yaml"], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL,
                               env=self.stand_ins(folder, "exit 1") |
                               {"SECONDS": "2000", "SLURM_RESTART_COUNT": str(restarts)})
                self.assertEqual((folder / "requeued").exists(), back)

    def test_a_signal_that_came_before_the_ranks_could_catch_it_goes_back(self):
        for number in (signal.SIGUSR1, signal.SIGTERM):
            self.assertEqual(self.requeued("sleep 10 & wait", number), (138, True))
        caught = "trap 'exit 75' USR1; sleep 10 & wait"
        self.assertTrue(self.requeued(caught, signal.SIGUSR1)[1])


if __name__ == "__main__":
    unittest.main()
