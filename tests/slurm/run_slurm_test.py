"""launch/run_slurm.sbatch under a real Slurm: toy runs that are stopped, preempted, lost and moved.

Every scenario has nodes of its own, and they run side by side: most of the time goes into waiting.
Ends with 77, which ctest shows as skipped, where no cluster can be started.

usage: tests/slurm/run_slurm_test.py BIN_FOLDER FAIL_CALLS_LIBRARY [arguments of unittest]
"""
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cluster as slurm
import toy_recipe

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch/run_slurm.sbatch"
EXIT_SKIPPED = 77
SIDE_BY_SIDE = 5
BIN_FOLDER, FAIL_CALLS = "", ""  # from the command line

PARTITIONS = {
    "whole": (["w1", "w2"], "Default=YES"), "limit": (["t1", "t2"], ""),
    "lost": (["l1", "l2"], ""), "host": (["h1", "h2"], ""),
    "low": (["p1", "p2"], "PriorityTier=1 GraceTime=60"), "high": (["p1", "p2"], "PriorityTier=2"),
    "count": (["c1", "c2"], ""), "array": (["a1", "a2"], ""), "killed": (["k1"], "")}
# Of a line of metrics.jsonl: what differs from run to run.
VARYING = {"time", "seconds", "tokens_per_second", "memory_bytes", "mfu", "spent", "skew_seconds"}


class Job:
    """A job of the script, whose run goes to a folder and log of its own."""

    def __init__(self, cluster, folder, partition, options, arguments=(), slow_ms=0, recipe=None,
                 by_itself=False):
        """slow_ms: each step waits so long, without computing, for its line in metrics.jsonl.
        by_itself: the script is called, which calls sbatch, within a job such as srun --pty has."""
        self.cluster, self.folder, self.restarts = cluster, folder, 0
        folder.mkdir()
        names = {option.split("=")[0] for option in options}
        defaults = [option for option in ("--gpus-per-node=0", "--signal=B:USR1@10", "--time=10")
                    if option.split("=")[0] not in names]
        session = ["srun", f"--partition={partition}", "--ntasks=1", SCRIPT]
        command = [*(session if by_itself else ["sbatch"]), f"--partition={partition}",
                   "--mem=2000", f"--output={folder}/%a.log", *defaults, *options,
                   *([] if by_itself else [SCRIPT]), recipe or folder.parent / "recipe.yaml",
                   "--set", f"run.folder={folder}/run", *arguments]
        variables = {"SALA_ROOT": str(ROOT), "SALA_BUILD": str(Path(BIN_FOLDER).parent),
                     "OMP_NUM_THREADS": "1"}
        if slow_ms:
            variables |= {"SALA_FAIL_CALLS": f"write */metrics.jsonl 1 DELAY:{slow_ms} -1",
                          "LD_PRELOAD": FAIL_CALLS}
        self.id = re.search("Submitted batch job ([0-9]+)", cluster.call(*command, **variables))[1]

    def log(self):
        """What the job said; without an array %a is no number that anybody would expect."""
        return "".join(file.read_text() for file in sorted(self.folder.glob("*.log")))

    def events(self, event, run="run"):
        file = self.folder / run / "metrics.jsonl"
        lines = file.read_text().split("\n")[:-1] if file.exists() else []
        records = [json.loads(line) for line in lines if f'"{event}"' in line]
        return [{k: v for k, v in r.items() if k not in VARYING} for r in records
                if r["event"] == event]

    def wait_for_steps(self, count):
        slurm.wait_for(f"step {count} of {self.folder.name}",
                       lambda: len(self.events("step")) >= count)

    def wait_for_text(self, text):
        slurm.wait_for(f"'{text}' in the log of {self.folder.name}", lambda: text in self.log())

    def start_again(self):
        """After it was put back into the queue."""
        self.restarts += 1
        self.cluster.wait_for_requeue(self.id, self.restarts)
        self.cluster.start_again(self.id)

    def end(self):
        return self.cluster.wait_for_end(self.id)


class RunSlurmTest(unittest.TestCase):
    """Its tests wait for the scenarios below, which are methods of it that take no part alone."""

    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory(prefix="sala_slurm_", dir="/tmp")
        cls.addClassCleanup(cls.temporary.cleanup)
        cls.folder = Path(cls.temporary.name)
        toy_recipe.make(cls.folder)
        (cls.folder / "cluster").mkdir()
        cls.cluster = slurm.Cluster(cls.folder / "cluster", PARTITIONS)
        cls.addClassCleanup(cls.cluster.stop)
        cls.cluster.start()
        cls.pool = ThreadPoolExecutor(SIDE_BY_SIDE)
        cls.addClassCleanup(cls.pool.shutdown)
        cls.reference = cls.pool.submit(cls().run_undisturbed)
        cls.results = {name: cls.pool.submit(cls().play, name) for name in SCENARIOS}

    def play(self, name):
        """With the logs of the jobs that it submitted, where it fails."""
        self.jobs = []
        try:
            getattr(self, name)()
        except Exception as error:
            logs = "".join(f"\njob {job.id}:\n{job.log()}\n{self.cluster.told_of(job.id)}"
                           for job in self.jobs)
            raise AssertionError(f"{error}{logs}") from error

    def run_undisturbed(self):
        """Steps of a run on this machine without Slurm, on two ranks."""
        folder = self.folder / "local"
        folder.mkdir()
        with open(folder / "log", "w") as log:
            code = subprocess.call(
                [ROOT / "launch/run_local.sh", self.folder / "recipe.yaml", "-n", "2", "--set",
                 f"run.folder={folder}/run"], stdout=log, stderr=log,
                env={**os.environ, "SALA_BUILD": str(Path(BIN_FOLDER).parent),
                     "OMP_NUM_THREADS": "1"})
        self.assertEqual(code, 0, (folder / "log").read_text())
        job = Job.__new__(Job)
        job.folder = folder
        return job.events("step")

    def submit(self, name, partition, *options, **more):
        self.jobs.append(Job(self.cluster, self.folder / name, partition, options, **more))
        return self.jobs[-1]

    def expect_whole(self, job, same_ranks=True):
        """The run of the job is the undisturbed one, step by step."""
        steps, expected = job.events("step"), self.reference.result()
        self.assertEqual(len(expected), toy_recipe.NUM_STEPS)
        if same_ranks:
            self.assertEqual(steps, expected)
            return
        at = [(s["stage"], s["step"], s["tokens"]) for s in steps]
        self.assertEqual(at, [(s["stage"], s["step"], s["tokens"]) for s in expected])
        for step, other in zip(steps, expected):
            self.assertLessEqual(abs(step["loss"] - other["loss"]), 1e-5 * other["loss"])

    def expect_starts(self, job, *ranks):
        """So many starts on so many ranks, each but the first from the last step before it."""
        starts = job.events("start")
        self.assertEqual([s["ranks"] for s in starts], list(ranks))
        return [(s["stage_index"], s["step"]) for s in starts]

    def expect_continued(self, job, *ranks):
        """As expect_starts, after stops that lose nothing: each start is where one ended."""
        starts = self.expect_starts(job, *ranks)
        stages = ["align", "swap", "train"]
        for stage, step in starts[1:]:
            self.assertIn(f"stopped on a signal at stage {stages[stage]} step {step};", job.log())
            self.assertGreater((stage, step), (0, 0))

    def a_run_on_two_nodes_is_the_local_run(self):
        job = self.submit("whole", "whole", "--nodes=2", "--gpus-per-node=1", by_itself=True)
        self.assertEqual(job.end(), "COMPLETED")
        self.expect_whole(job)
        self.expect_starts(job, 2)

    def the_time_limit_checkpoints_and_the_job_goes_on(self):
        # Slurm looks at time limits every 30 s: the signal comes 10 to 40 s after the start.
        job = self.submit("limit", "limit", "--nodes=2", "--time=1",
                          "--signal=B:USR1@20", slow_ms=1000)
        job.wait_for_text("back into the queue")
        self.cluster.call("scontrol", "update", f"JobId={job.id}", "TimeLimit=10")
        job.start_again()
        self.assertRegex(job.log(), "asked to stop after [0-9]+ s; until the time limit: 0:")
        self.assertEqual(job.end(), "COMPLETED")
        self.expect_whole(job)
        self.expect_continued(job, 2, 2)

    def a_lost_node_is_missed_before_slurm_knows(self):
        job = self.submit("lost", "lost", "--nodes=1-2", "--gpus-per-node=1", slow_ms=300,
                          arguments=("--set", "stages.align.save_every=4"))
        job.wait_for_steps(6)
        self.cluster.kill_node("l2")
        job.wait_for_text("lost node(s) l2; waiting for Slurm")
        self.cluster.call("scontrol", "update", "NodeName=l2", "State=DOWN", "Reason=lost")
        job.start_again()
        self.assertEqual(job.end(), "COMPLETED")
        self.expect_whole(job, same_ranks=False)
        self.assertGreaterEqual(self.expect_starts(job, 2, 1)[1], (0, 4))

    def a_lost_first_node_is_put_back_by_slurm(self):
        job = self.submit("host", "host", "--nodes=1-2", "--gpus-per-node=1", slow_ms=300,
                          arguments=("--set", "stages.align.save_every=4"))
        job.wait_for_steps(6)
        self.cluster.kill_node("h1")  # with the script and srun
        self.cluster.call("scontrol", "update", "NodeName=h1", "State=DOWN", "Reason=lost")
        job.start_again()
        self.assertEqual(job.end(), "COMPLETED")
        self.expect_whole(job, same_ranks=False)
        self.assertGreaterEqual(self.expect_starts(job, 2, 1)[1], (0, 4))

    def a_preempted_job_checkpoints_and_goes_on_later(self):
        job = self.submit("preempted", "low", "--nodes=2", slow_ms=300)
        job.wait_for_steps(3)
        urgent = self.cluster.call("sbatch", "--parsable", "--partition=high", "--nodes=2",
                                   "--output=/dev/null", "--wrap=sleep 1").strip()
        self.assertEqual(self.cluster.wait_for_end(urgent), "COMPLETED")
        self.assertLess(len(job.events("step")), toy_recipe.NUM_STEPS)
        job.start_again()
        self.assertEqual(job.end(), "COMPLETED")
        self.expect_whole(job)
        self.expect_continued(job, 2, 2)

    def the_number_of_nodes_may_change_in_the_queue(self):
        job = self.submit("count", "count", "--nodes=2", slow_ms=300)
        job.wait_for_steps(3)
        for steps, nodes in ((3, 1), (12, 2)):
            job.wait_for_steps(steps)
            self.cluster.call("scancel", "--batch", "--signal=USR1", job.id)
            self.cluster.wait_for_requeue(job.id, job.restarts + 1)
            self.cluster.call("scontrol", "update", f"JobId={job.id}", f"NumNodes={nodes}")
            job.start_again()
        self.assertEqual(job.end(), "COMPLETED")
        self.expect_whole(job, same_ranks=False)
        self.expect_continued(job, 2, 1, 2)

    def a_job_of_an_array_is_put_back_alone(self):
        for index in (1, 2):
            text = (self.folder / "recipe.yaml").read_text().replace("seed: 3", f"seed: {index}")
            (self.folder / f"try_{index}.yaml").write_text(text)
        jobs = self.submit("array", "array", "--nodes=1", "--array=1-2",
                           recipe=self.folder / "try_%a.yaml", slow_ms=200,
                           arguments=("--set", f"run.folder={self.folder}/array/run_%a"))
        # The job whose id is the array's is the one whose stop could put all of them back.
        slurm.wait_for("steps of both", lambda: all(
            len(jobs.events("step", f"run_{i}")) >= 3 for i in (1, 2)))
        self.cluster.call("scancel", "--batch", "--signal=USR1", f"{jobs.id}_2")
        self.assertEqual(self.cluster.wait_for_end(f"{jobs.id}_1"), "COMPLETED")
        self.cluster.wait_for_requeue(f"{jobs.id}_2", 1)
        self.cluster.start_again(f"{jobs.id}_2")
        self.assertEqual(self.cluster.wait_for_end(f"{jobs.id}_2"), "COMPLETED")
        self.assertEqual([len(jobs.events("start", f"run_{i}")) for i in (1, 2)], [1, 2])
        losses = [[s["loss"] for s in jobs.events("step", f"run_{i}")] for i in (1, 2)]
        self.assertEqual([len(one) for one in losses], [toy_recipe.NUM_STEPS] * 2)
        self.assertNotEqual(*losses)

    def run_script(self, *arguments):
        """As from a terminal."""
        return subprocess.run([SCRIPT, *arguments], capture_output=True, text=True,
                              cwd=self.folder, env=self.cluster.environment)

    def refusal(self, *arguments):
        """The one line that the script says."""
        result = self.run_script(*arguments)
        self.assertEqual((result.returncode, result.stderr.count("\n")), (2, 1), result.stderr)
        return result.stderr

    def mistakes_of_a_call_are_one_line(self):
        said = self.refusal("--partition=nowhere", "--gpus-per-node=1", "recipe.yaml")
        self.assertRegex(said, "^run_slurm: Slurm refuses the job .*partition name.*whole: 2 node")
        said = self.refusal("--partition=whole", "--gpus-per-node=4", "recipe.yaml")
        self.assertRegex(said, r"Requested node configuration.*whole: 2 node\(s\), .*GPUs gpu:1")
        said = self.refusal("-p", "whole", "recipe.yaml")
        self.assertIn("whole: no such recipe (options of sbatch come before it", said)
        result = self.run_script("--partition=whole", "--nodes=3", "--gpus-per-node=1",
                                 "recipe.yaml")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertRegex(result.stderr, "^run_slurm: job [0-9]+ cannot start as it is .*whole: 2 n")
        self.cluster.call("scancel", result.stdout.split()[-1])
        job = self.submit("gpus", "whole", "--gpus-per-node=1", "--ntasks-per-node=2")
        self.assertEqual(job.end(), "FAILED")
        self.assertIn("2 processes for 1 GPU(s) a node, expected one each: leave", job.log())

    def a_run_that_is_killed_after_a_checkpoint_goes_on(self):
        job = self.submit("killed", "killed", "--nodes=1", slow_ms=300,
                          arguments=("--set", "stages.align.save_every=4"))
        job.wait_for_text(" s, written in ")
        os.kill(json.loads((job.folder / "run/lock").read_text())["pid"], signal.SIGKILL)
        job.wait_for_text("failure 1 in a row without a new checkpoint; back into the queue")
        job.start_again()
        self.assertEqual(job.end(), "COMPLETED")
        self.expect_whole(job, same_ranks=False)
        self.assertGreaterEqual(self.expect_starts(job, 1, 1)[1], (0, 4))

    def a_run_that_fails_is_not_put_back(self):
        job = self.submit("failed", "whole", "--nodes=2", arguments=("--set", "run.sede=1"))
        self.assertEqual(job.end(), "FAILED")
        self.assertIn("unknown key; did you mean 'seed'?", job.log())
        self.assertNotIn("back into the queue", job.log())


SCENARIOS = [name for name in vars(RunSlurmTest) if name.split("_")[0] in ("a", "the", "mistakes")]
for scenario in SCENARIOS:
    setattr(RunSlurmTest, f"test_{scenario}",
            lambda self, scenario=scenario: self.results[scenario].result())


if __name__ == "__main__":
    if slurm.missing():
        print(f"SKIPPED: no Slurm cluster can be started here: {slurm.missing()}")
        sys.exit(EXIT_SKIPPED)
    BIN_FOLDER, FAIL_CALLS = sys.argv[1:3]
    unittest.main(argv=sys.argv[:1] + sys.argv[3:], verbosity=2)
