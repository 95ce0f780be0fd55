"""The scripts in launch/: pure parts, and the TensorBoard events as the library reads them."""
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


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


class TensorBoardTest(unittest.TestCase):
    def test_events_hold_every_number_of_whole_lines(self):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        records = [
            {"stage": "align", "step": 1, "event": "step", "time": 10.0, "loss": 2.5,
             "grad_norm": {"block.0": 0.5, "block.1": None}, "note": "text"},
            {"stage": "align", "step": 2, "event": "step", "time": 11.0, "loss": 2.25},
            {"stage": "distill", "step": 1, "event": "evaluate", "loss": {"books": [3.5, 3.25]}}]
        with tempfile.TemporaryDirectory() as folder:
            lines = "".join(json.dumps(r) + "\n" for r in records) + '{"stage": "al'
            (Path(folder) / "metrics.jsonl").write_text(lines)
            for _ in range(2):  # a second call replaces, it does not add
                subprocess.run([sys.executable, ROOT / "launch/tensorboard.py", folder], check=True,
                               capture_output=True)
            stages = {}
            for stage in ("align", "distill"):
                accumulator = EventAccumulator(f"{folder}/tensorboard/{stage}").Reload()
                stages[stage] = {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)]
                                 for tag in accumulator.Tags()["scalars"]}
        self.assertEqual(stages, {
            "align": {"step/loss": [(1, 2.5), (2, 2.25)], "step/grad_norm/block.0": [(1, 0.5)]},
            "distill": {"evaluate/loss/books/0": [(1, 3.5)], "evaluate/loss/books/1": [(1, 3.25)]}})

    def test_a_broken_line_is_named(self):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n')
            result = subprocess.run([sys.executable, ROOT / "launch/tensorboard.py", folder],
                                    capture_output=True, text=True)
        self.assertEqual(result.returncode, 1)
        self.assertIn("metrics.jsonl:2: expected one JSON object a line", result.stderr)


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
            return subprocess.run(
                [ROOT / "launch/run_local.sh", *arguments], capture_output=True, text=True,
                env={**os.environ, "SALA_BUILD": build, **environment},
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

    def test_a_temporary_folder_without_room_is_named(self):
        self.expect_refusal(self.call("r.yaml", "-n", "2", TMPDIR="/proc"), "/proc", "TMPDIR")
        with tempfile.TemporaryDirectory() as folder:
            result = self.call("r.yaml", "-n", "2", TMPDIR=folder, limit=2**20)
            self.expect_refusal(result, folder, "12 MB", "TMPDIR")
            self.assertEqual(list(Path(folder).iterdir()), [])

    def test_a_program_that_is_not_built_is_named(self):
        self.expect_refusal(self.call("r.yaml", SALA_BUILD="/nowhere"), "/nowhere/bin/sala-train")


class RunSlurmTest(unittest.TestCase):
    """What goes back into the queue, with stand-ins for the two programs of Slurm."""

    def requeued(self, step, ask):
        """Exit code and whether `scontrol requeue` was called; `step` is what the ranks do."""
        with tempfile.TemporaryDirectory() as folder:
            for name, text in (("srun", f"touch {folder}/begun; {step}"),
                               ("scontrol", f"echo $* > {folder}/requeued"),
                               ("sala-train", "")):
                program = Path(folder) / "bin" / name
                program.parent.mkdir(exist_ok=True)
                program.write_text(f"#!/bin/bash\n{text}\n")
                program.chmod(0o755)
            job = subprocess.Popen(
                ["bash", ROOT / "launch/run_slurm.sbatch", "recipe.yaml"], stdout=subprocess.DEVNULL,
                env={**os.environ, "PATH": f"{folder}/bin:{os.environ['PATH']}",
                     "SALA_ROOT": str(ROOT), "SALA_BUILD": folder, "SLURM_JOB_ID": "17"})
            while ask and not (Path(folder) / "begun").exists():
                time.sleep(0.01)
            if ask:
                job.send_signal(ask)
            return job.wait(timeout=20), (Path(folder) / "requeued").exists()

    def test_a_stopped_run_goes_back_and_a_failed_one_does_not(self):
        self.assertEqual(self.requeued("exit 75", None), (75, True))
        self.assertEqual(self.requeued("exit 0", None), (0, False))
        self.assertEqual(self.requeued("exit 1", None), (1, False))
        self.assertEqual(self.requeued("exit 138", None), (138, False))  # not by our signal

    def test_a_signal_that_came_before_the_ranks_could_catch_it_goes_back(self):
        for number in (signal.SIGUSR1, signal.SIGTERM):
            self.assertEqual(self.requeued("sleep 10 & wait", number), (138, True))
        caught = "trap 'exit 75' USR1; sleep 10 & wait"
        self.assertTrue(self.requeued(caught, signal.SIGUSR1)[1])


if __name__ == "__main__":
    unittest.main()
