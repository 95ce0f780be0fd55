"""One call at a time makes one output. flock is the lock; the file's text only tells people who
holds it. A dead process holds no flock, so what it left is taken over. Where the file system has
no locks, the text decides."""
import fcntl
import json
import os
import socket
import stat

from . import UserError

BATCH_JOBS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID")
MAX_BYTES = 1024


class Lock:
    """Held inside a `with`; `what` is named when another process holds it."""

    def __init__(self, path, what):
        self.path, self.what = str(path), what

    def __enter__(self):
        while True:
            self.file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            try:
                self.take()
                if self.is_still_there():
                    self.write_holder()
                    return self
            except BaseException:
                os.close(self.file)
                raise
            os.close(self.file)  # another process finished and removed it: take the one there now

    def __exit__(self, *exception):
        os.unlink(self.path)  # while it is held, so that nobody's newer one is removed
        os.close(self.file)

    def take(self):
        holder = self.read_holder()
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.refuse(holder, "wait for it, stop it, or choose another --out")
        except OSError:
            self.check_without_locks(holder)

    def is_still_there(self):
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self.file))
        except FileNotFoundError:
            return False

    def read_holder(self):
        """What the file says, {} if nothing. A file of somebody else's is not ours to write."""
        if not stat.S_ISREG(os.fstat(self.file).st_mode):
            raise UserError(f"{self.path}: expected a lock file; choose another --out")
        text = os.pread(self.file, MAX_BYTES, 0)
        try:
            holder = json.loads(text) if text.strip() else {}
        except ValueError:
            holder = None
        if not isinstance(holder, dict) or (holder and "pid" not in holder):
            raise UserError(f"{self.path}: this file is no lock of data/prepare; choose another "
                            "--out or move it away")
        return holder

    def check_without_locks(self, holder):
        if not holder:
            return
        if holder.get("host") != socket.gethostname():
            self.refuse(holder, "this file system has no locks: delete "
                                f"{self.path} if that process is dead")
        if os.path.exists(f"/proc/{holder['pid']}") and holder["pid"] != os.getpid():
            self.refuse(holder, "wait for it, stop it, or choose another --out")

    def refuse(self, holder, advice):
        raise UserError(f"{self.what} is being made by process {holder.get('pid', 'unknown')} on "
                        f"{holder.get('host', 'an unknown host')} (batch job "
                        f"{holder.get('job', 'unknown')}); {advice}")

    def write_holder(self):
        job = next((os.environ[name] for name in BATCH_JOBS if name in os.environ), "none")
        text = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "job": job}) + "\n"
        os.ftruncate(self.file, 0)
        os.pwrite(self.file, text.encode(), 0)
