"""data/prepare when the machine is against it: full disks, killed processes, two calls at once.
Every call ends with a whole store or with one line, and the next one goes on."""
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from prepare_case import PrepareCase, sample_texts  # noqa: E402
from preparation import UserError, lock, tokens  # noqa: E402
from preparation.lock import Lock  # noqa: E402

TMPFS = "unshare --mount --map-root-user true"


class ProcessesTest(PrepareCase):
    COPIES = 190  # of 24K characters: a part is made while there is work left

    def setUp(self):
        super().setUp()
        self.path = self.write_jsonl("a.jsonl", sample_texts(60) * self.COPIES)

    def begun(self, *args):
        """A call that has processes, and a part."""
        process = self.start(self.path, "--workers", "2", "--out", self.folder / "out", *args)
        self.addCleanup(process.kill)
        while process.poll() is None and not (self.children(process) and list(
                self.folder.glob("out.parts/part-*.h5"))):
            time.sleep(0.01)
        return process

    def children(self, process):
        """Ids of its tokenizing processes."""
        found = []
        try:
            for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
                if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text():
                    found.append(int(pid))
        except (FileNotFoundError, ProcessLookupError):  # one has just ended
            pass
        return found

    def test_a_killed_worker_ends_the_call_with_a_line_and_the_next_call_goes_on(self):
        process = self.begun()
        os.kill(self.children(process)[0], signal.SIGKILL)
        code, _, err = self.ended(process)
        self.assertEqual((code, err.count("\n")), (1, 1), err)
        self.assertIn("a tokenizing process was killed by SIGKILL, which happens when memory", err)
        process = self.begun()
        process.send_signal(signal.SIGINT)
        code, _, err = self.ended(process)
        self.assertEqual((code, err), (130, "data/prepare: interrupted; the same call goes on from "
                                            "here\n"))
        code, out, err = self.ended(self.start(self.path, "--out", self.folder / "out"))
        self.assertEqual(code, 0, err)
        self.assertIn("parts of an earlier call", out)
        self.assertEqual(len(self.stores("out")[0]), 60 * self.COPIES)

    def test_a_call_that_writes_one_file_ends_as_well_and_promises_nothing(self):
        for number, code, expected in (
                (signal.SIGKILL, 1, "a tokenizing process was killed by SIGKILL, which happens "
                 "when memory runs out; nothing was written: call again, with fewer than 2 "
                 "--workers if it was memory"),
                (signal.SIGINT, 130,
                 "interrupted; the same call begins anew, nothing was written")):
            process = self.start("--lengths", "30K", "--count", 200, "--workers", "2", "--out",
                                 self.folder / "tasks.h5", command=["ruler"])
            self.addCleanup(process.kill)
            while process.poll() is None and len(self.children(process)) < 2:
                time.sleep(0.01)
            os.kill(self.children(process)[1] if number == signal.SIGKILL else process.pid, number)
            self.assertEqual(self.ended(process), (code, "", f"data/prepare: {expected}\n"))
            self.assertEqual(list(self.folder.glob("tasks*")), [])

    def test_a_second_call_with_the_same_out_is_refused_and_the_first_keeps_its_documents(self):
        process = self.begun()
        os.kill(process.pid, signal.SIGSTOP)
        other = self.write_jsonl("b.jsonl", ["of the other call"])
        message = self.refused_tokens(other, out="out")
        self.assertIn(f"out is being made by process {process.pid} on ", message)
        os.kill(process.pid, signal.SIGCONT)
        code, _, err = self.ended(process)
        self.assertEqual(code, 0, err)
        self.assertEqual(len(self.stores("out")[0]), 60 * self.COPIES)
        self.assertFalse((self.folder / "out.lock").exists())


class LockTest(PrepareCase):
    def held(self):
        return Lock(self.folder / "out.lock", "out")

    def test_one_holder_at_a_time_and_nothing_left_behind(self):
        with self.held():
            with self.assertRaisesRegex(UserError, f"process {os.getpid()} on"):
                self.held().__enter__()
        self.assertFalse((self.folder / "out.lock").exists())

    def test_without_locks_in_the_file_system_the_text_decides(self):
        real = lock.fcntl.flock
        self.addCleanup(setattr, lock.fcntl, "flock", real)

        def no_locks(*args):
            raise OSError(errno.ENOLCK, "No locks available")

        lock.fcntl.flock = no_locks
        dead = subprocess.Popen(["true"])
        dead.wait()
        host = lock.socket.gethostname()
        for holder, refused in (({"host": "another", "pid": 1}, True),
                                ({"host": host, "pid": os.getppid()}, True),
                                ({"host": host, "pid": dead.pid}, False)):
            (self.folder / "out.lock").write_text(json.dumps(holder))
            if refused:
                with self.assertRaisesRegex(UserError, "being made by process"):
                    self.held().__enter__()
            else:
                with self.held():
                    pass

    def test_somebody_elses_file_is_not_taken_for_a_lock(self):
        (self.folder / "out.lock").write_text("versions: 1\n")
        with self.assertRaisesRegex(UserError, "no lock of data/prepare"):
            self.held().__enter__()
        self.assertEqual((self.folder / "out.lock").read_text(), "versions: 1\n")


class DisksTest(PrepareCase):
    def test_a_limit_on_the_size_of_files_is_one_line_in_any_process(self):
        path = self.write_jsonl("a.jsonl", sample_texts() * 40)
        for workers in ("1", "2"):
            call = self.start(path, "--out", self.folder / "out", "--workers", workers,
                              before="ulimit -f 8")
            code, _, err = self.ended(call)
            self.assertEqual((code, err.count("\n")), (1, 1), err)
            self.assertIn("File too large; the size of files is limited (ulimit -f)", err)
            self.assertEqual([p.name for p in self.folder.glob("out*")], ["out.parts"])

    def test_a_full_disk_at_any_moment_is_one_line_and_no_shard(self):
        if not shutil.which("unshare") or subprocess.run(TMPFS.split(), capture_output=True
                                                         ).returncode:
            self.skipTest("no mount namespaces for this user")
        path = self.write_jsonl("a.jsonl", sample_texts() * 80)  # parts and shards: 340 KB each
        disk = self.folder / "disk"
        disk.mkdir()
        call = ["data/prepare", "tokens", "--tokenizer", self.folder / "model", "--source", "toy",
                "--workers", "1", "--out", disk / "out", path]
        for kilobytes in (4, 100, 500):  # no folder of parts; no part; no shard
            script = (f'mount -t tmpfs -o size={kilobytes}k tmpfs "{disk}" || exit 99; "$@"; '
                      f'code=$?; ls "{disk}"; exit $code')
            done = subprocess.run(["unshare", "--mount", "--map-root-user", "bash", "-c", script,
                                   "bash", *map(str, call)], text=True, capture_output=True,
                                  cwd=Path(__file__).resolve().parents[2], timeout=60)
            self.assertEqual((done.returncode, done.stderr.count("\n")), (1, 1), done.stderr)
            self.assertIn("No space left on device; free space and call again", done.stderr)
            self.assertNotIn("out-", done.stdout)

    def test_outputs_that_cannot_be_made(self):
        path = self.write_jsonl("a.jsonl", ["text"])
        (self.folder / "file").write_text("mine")
        (self.folder / "folder").mkdir()
        (self.folder / "own.parts").mkdir()
        (self.folder / "own.parts/notes").write_text("mine")
        (self.folder / "torn.json").write_text('{"settings": {"fi')
        (self.folder / "list.json").write_text("[1]")
        cases = [("file/x", "Not a directory"), ("", "expected a prefix"),
                 ("folder/..", "expected a prefix"), ("folder/", "say {}/folder/NAME"),
                 ("new/", "names a folder, expected a prefix"),
                 ("own", "was not made by data/prepare"),
                 ("torn", "expected the listing of a token store, found something else or a"),
                 ("list", "expected the listing"), ("n" * 300, "File name too long")]
        for name, expected in cases:
            with self.subTest(name[:20]):
                out = f"{self.folder}/{name}" if name else ""
                message = self.prepare("--source", "toy", "--workers", "1", "--out", out, path,
                                       expect=1)
                self.assertIn(expected.format(self.folder), message)
        self.assertEqual(list(self.folder.glob("*.h5")), [])
        self.assertEqual((self.folder / "own.parts/notes").read_text(), "mine")
        self.assertEqual((self.folder / "torn.json").read_text(), '{"settings": {"fi')

    def test_an_input_that_changes_while_it_is_read_makes_no_store(self):
        path = self.write_jsonl("a.jsonl", ["text"])
        real = tokens.write_shards
        self.addCleanup(setattr, tokens, "write_shards", real)

        def written_to_meanwhile(*args):
            with open(path, "a") as file:
                file.write('{"text": "late"}\n')
            return real(*args)

        tokens.write_shards = written_to_meanwhile
        self.assertIn("a.jsonl: was changed while it was read", self.refused_tokens(path))
        tokens.write_shards = real
        self.prepare_tokens("bad", path)
        self.assertEqual(self.texts_in("bad"), ["text", "late"])

    def test_many_parts_need_few_open_files(self):
        from preparation import parts
        before = parts.UNIT_SIZE
        self.addCleanup(setattr, parts, "UNIT_SIZE", before)
        parts.UNIT_SIZE = 1
        import resource
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, limits[1]))
        texts = [f"text {i}" for i in range(60)]
        self.prepare_tokens("out", self.write_jsonl("a.jsonl", texts), "--shuffle", "3")
        self.assertEqual(sorted(self.texts_in("out")), sorted(texts))

    def test_nobody_reading_the_report_costs_no_store(self):
        path = self.write_jsonl("a.jsonl", ["text"])
        process = self.start(path, "--out", self.folder / "out")
        process.stdout.close()
        self.assertEqual((process.wait(60), process.stderr.read()), (0, ""))
        process.stderr.close()
        self.assertEqual(self.texts_in("out"), ["text"])


if __name__ == "__main__":
    unittest.main()
