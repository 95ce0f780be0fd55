"""A Slurm cluster of its own on this machine: munged, slurmctld and a slurmd for each of its nodes,
all of which are this host. Everything lies in one folder and ends with `stop`.

Requeued jobs wait for two minutes before Slurm starts them again; `start_again` cuts that short.
"""
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "sinfo",
            "scancel", "setpriv")
PATIENCE = 90  # seconds; for whatever a test waits for

# TmpFS: without a folder of its own for each node, their PMIx folders collide.
CONFIGURATION = """\
ClusterName=toy
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
TmpFS={folder}/tmp.%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MpiDefault=pmix
ReturnToService=2
KillWait=10
JobRequeue=1
MailProg=/bin/true
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=2,batch_sched_delay=0
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 " \
       "RealMemory=4000 Gres=gpu:1\n"


def missing():
    """Why there can be no cluster here; empty where there can."""
    if os.geteuid() != 0:
        return "needs root"
    absent = [name for name in PROGRAMS if not shutil.which(name)]
    return f"not installed: {', '.join(absent)} (Debian: slurm-wlm munge)" if absent else ""


def wait_for(what, reached, patience=PATIENCE):
    """The first true value of reached(); an error with `what` after `patience` seconds."""
    end = time.monotonic() + patience
    while True:
        value = reached()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"waited {patience} s for {what}")
        time.sleep(0.2)


def free_ports(count):
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def environment_of(pid):
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # it has ended
        return []


def step_daemon_of(pid):
    """[the slurmstepd] that started a process, which has no variables of its own."""
    try:
        parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
        name = Path(f"/proc/{parent}/cmdline").read_bytes()
        return [int(parent)] if b"slurmstepd" in name else []
    except OSError:
        return []


def processes_with(*variables):
    """Those that Slurm started with these in their environment; first their slurmstepds, which
    would tell of the others' end."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir()
            if entry.name.isdigit() and set(variables) <= set(environment_of(entry.name))]
    daemons = {daemon for pid in pids for daemon in step_daemon_of(pid)}
    return [*daemons, *(pid for pid in pids if pid not in daemons | {os.getpid()})]


def kill_all(pids):
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


class Cluster:
    def __init__(self, folder, partitions):
        """partitions: {name: (nodes, further words of its line in slurm.conf)}."""
        self.folder = folder
        self.nodes = sorted({node for nodes, _ in partitions.values() for node in nodes})
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self.mark = f"SLURM_CONF={folder}/slurm.conf".encode()
        host = socket.gethostname().split(".")[0]
        ports = free_ports(len(self.nodes) + 1)
        text = CONFIGURATION.format(folder=folder, host=host, port=ports[0])
        for node, port in zip(self.nodes, ports[1:]):
            text += NODE.format(name=node, host=host, port=port)
            for kind in ("spool", "tmp"):
                (folder / f"{kind}.{node}").mkdir(parents=True)
        for name, (nodes, words) in partitions.items():
            text += f"PartitionName={name} Nodes={','.join(nodes)} {words}\n"
        (folder / "state").mkdir()
        (folder / "slurm.conf").write_text(text)
        (folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")  # a name is all it needs
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o600)

    def start(self):
        place = [f"--{what}={self.folder}/munge.{end}" for what, end in
                 (("socket", "socket"), ("key-file", "key"), ("pid-file", "pid"),
                  ("log-file", "log"), ("seed-file", "seed"))]
        self.daemons = {"munged": self.daemon("munged", "--force", "--foreground", *place)}
        wait_for("munged", (self.folder / "munge.socket").exists)
        self.daemons["slurmctld"] = self.daemon("slurmctld", "-D")
        for node in self.nodes:
            self.daemons[node] = self.daemon("slurmd", "-D", "-N", node)
        wait_for("the nodes", lambda: set(
            self.call("sinfo", "-h", "-N", "-o", "%T", check=False).split()) == {"idle"})

    def daemon(self, *command):
        """It dies with this process, whatever happens to that."""
        return subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *command],
                                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                stderr=subprocess.DEVNULL, env=self.environment)

    def stop(self):
        self.call("scancel", "--user=root", check=False)
        for daemon in self.daemons.values():
            daemon.kill()
            daemon.wait()
        kill_all(processes_with(self.mark))

    def call(self, *command, check=True, **environment):
        """What a program of Slurm says on both streams."""
        result = subprocess.run(list(map(str, command)), text=True, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT,
                                env={**self.environment, **environment})
        if check and result.returncode != 0:
            raise AssertionError(f"{command} ended with {result.returncode}: {result.stdout}")
        return result.stdout

    def kill_node(self, node):
        """As a power failure does: slurmd and everything that it started, at once."""
        daemon = self.daemons[node]
        kill_all([daemon.pid, *processes_with(self.mark, f"SLURMD_NODENAME={node}".encode())])
        daemon.wait()

    def state(self, job):
        """Fields of `scontrol show job`, by name."""
        words = self.call("scontrol", "show", "job", job, check=False).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def told_of(self, job):
        """The lines on a job in the logs of the cluster."""
        return "\n".join(f"{log.stem}: {line}" for log in sorted(self.folder.glob("slurm*.log"))
                         for line in log.read_text(errors="replace").split("\n")
                         if re.search(rf"\b(Job|JobId=|job |StepId=){job}\b", line))

    def wait_for_requeue(self, job, restarts):
        wait_for(f"start {restarts + 1} of job {job} to be planned",
                 lambda: (s := self.state(job)).get("JobState") == "PENDING"
                 and int(s.get("Restarts", 0)) >= restarts)

    def start_again(self, job):
        """A job in the queue. Not within the second in which its nodes ended it: they would refuse
        it. Said again where Slurm, not done with its last end, forgets it."""
        time.sleep(2)

        def has_begun():
            state = self.state(job)
            if state.get("JobState") == "PENDING" and state.get("Reason") == "BeginTime":
                self.call("scontrol", "update", f"JobId={job}", "StartTime=now")
            return state.get("JobState") not in ("PENDING", "COMPLETING")
        wait_for(f"job {job} to start again", has_begun)

    def wait_for_end(self, job):
        """Its last state."""
        running = ("PENDING", "RUNNING", "COMPLETING")
        return wait_for(f"the end of job {job}",
                        lambda: (s := self.state(job).get("JobState")) not in running and s)
