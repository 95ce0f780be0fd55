#!/usr/bin/env python3
"""Turns the metrics of runs into TensorBoard events, once or for as long as the runs go on.

RUN_FOLDER/metrics.jsonl has one JSON object a line: `event`, mostly `stage`, `step` and `tokens`,
and numbers, possibly nested. Each number becomes a curve "event/name/inner name" in
RUN_FOLDER/tensorboard, on two axes:
  steps/<stage>    by the step of its stage
  tokens/<stage>   by the training tokens of the whole run; evaluations are in tokens/teacher and
                   tokens/student, where held-out loss goes on from stage to stage
Verdicts, checkpoints and what else is told in words is text of steps/<stage>. A later call rewrites
its own events; a line still being written waits for it.

usage: launch/tensorboard.py RUN_FOLDER... [--follow] [--wandb PROJECT]
"""
import argparse
import contextlib
import json
import math
import os
import sys
import time
from pathlib import Path

from project_python import require

# This file has the library's name: without our own folder in the path, the library is found.
sys.path = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent]
require("tensorboard")

OWN_KEYS = {"stage", "step", "event", "time", "tokens", "options", "label", "model"}
FACTS = {"start", "fork", "origin"}  # their numbers are no curves
IN_WORDS = {"verdict", "divergence", "spike", "error", "checkpoint", "swap", "export",
            "step_without_targets"}
AXES = ("steps", "tokens")
POLL_SECONDS = 2


def flatten(value, name):
    """(name, number) for every number inside; levels are joined by '/'."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flatten(inner, f"{name}/{key}" if name else key)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from flatten(inner, f"{name}/{index}")
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        yield name, float(value)


class MetricsReader:
    """The lines of a metrics.jsonl that are new since the last look."""

    def __init__(self, file):
        self.file = file
        self.start_over()

    def start_over(self):
        self.offset, self.number, self.last_line = 0, 0, b""

    def was_cut(self, stream):
        """A run that goes on from a checkpoint first takes back the lines after it."""
        stream.seek(self.offset - len(self.last_line))
        return stream.read(len(self.last_line)) != self.last_line

    def read(self):
        """(records, whether they replace all earlier ones)."""
        try:
            stream = open(self.file, "rb")
        except (FileNotFoundError, NotADirectoryError):
            raise RuntimeError(
                f"{self.file.parent}: expected a run folder, found no {self.file.name} there")
        with stream:
            anew = self.was_cut(stream)
            if anew:
                self.start_over()
            stream.seek(self.offset)
            whole, newline, _ = stream.read().rpartition(b"\n")  # the rest is still being written
        records = [self.parse(line) for line in whole.split(b"\n")] if newline else []
        if newline:
            self.offset += len(whole) + 1
            self.last_line = whole.split(b"\n")[-1] + b"\n"
        return [record for record in records if record], anew

    def parse(self, line):
        self.number += 1
        if not line.strip():
            return None
        try:
            record = json.loads(line)
        except ValueError as error:
            raise RuntimeError(
                f"{self.file}:{self.number}: expected one JSON object a line ({error})")
        if not isinstance(record, dict):
            raise RuntimeError(f"{self.file}:{self.number}: expected a JSON object")
        return record


def in_words(record):
    """What a record says to people; empty when it is numbers only."""
    if record.get("event") == "step":
        return "" if record.get("finite", True) else "loss or gradient not finite: step skipped"
    if record.get("event") not in IN_WORDS:
        return ""
    said = {k: v for k, v in record.items() if k not in ("event", "stage", "time")}
    return said.get("text") or ", ".join(f"{key} {value}" for key, value in said.items())


class TensorBoardEvents:
    """The event files of one run."""

    def __init__(self, folder):
        self.folder = folder
        self.writers = {}
        self.clear()

    def clear(self):
        self.close()
        for axis in AXES:  # what else people keep there is theirs
            for events in self.folder.glob(f"{axis}/*/events.out.tfevents.*"):
                events.unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # where there is something else
                    events.parent.rmdir()
        self.writers, self.tokens, self.num_points = {}, 0, 0

    def add(self, record):
        from tensorboard.compat.proto.summary_pb2 import Summary
        event, step = str(record.get("event") or ""), record.get("step")
        self.tokens = record.get("tokens", self.tokens)
        numbers = {k: v for k, v in record.items() if k not in OWN_KEYS and event not in FACTS}
        values = [Summary.Value(tag=name, simple_value=number)
                  for name, number in flatten(numbers, event)]
        stage = str(record.get("stage") or "run").replace("/", "_")
        on_tokens = str(record.get("model") or stage) if event == "evaluate" else stage
        if step is not None or event != "evaluate":
            self.write(f"steps/{stage}", step or 0, values + self.text(record), record)
        self.write(f"tokens/{on_tokens}", self.tokens, values, record)
        self.num_points += len(values)

    @staticmethod
    def text(record):
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.plugins.text.metadata import create_summary_metadata
        words = in_words(record)
        if not words:
            return []
        return [Summary.Value(
            tag=f"{record['event']}/text", metadata=create_summary_metadata(record["event"], ""),
            tensor=TensorProto(dtype="DT_STRING", string_val=[words.encode()]))]

    def write(self, name, step, values, record):
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
        if not values:
            return
        if name not in self.writers:
            self.writers[name] = EventFileWriter(str(self.folder / name))
        self.writers[name].add_event(Event(step=step, summary=Summary(value=values),
                                           wall_time=record.get("time") or time.time()))

    def flush(self):
        for writer in self.writers.values():
            writer.flush()

    def close(self):
        for writer in self.writers.values():
            writer.close()


class WandbRun:
    """The same numbers in Weights & Biases: one of its runs per run folder, tokens as its axis."""

    def __init__(self, folder, project):
        import wandb
        self.run = wandb.init(project=project, name=folder.name, dir=str(folder),
                              reinit="create_new")
        self.run.define_metric("*", step_metric="tokens")
        self.tokens = 0

    def clear(self):
        pass  # W&B keeps what it has; the lines that are made again follow it

    def add(self, record):
        event = str(record.get("event") or "")
        self.tokens = record.get("tokens", self.tokens)
        prefix = "/".join(str(p) for p in (record.get("model") or record.get("stage"), event) if p)
        numbers = {k: v for k, v in record.items() if k not in OWN_KEYS and event not in FACTS}
        values = dict(flatten(numbers, prefix))
        if values:
            self.run.log({"tokens": self.tokens, **values})
        if event in ("verdict", "divergence"):
            self.run.alert(title=event, text=in_words(record))

    def flush(self):
        pass

    def close(self):
        self.run.finish()


class FollowedRun:
    def __init__(self, folder, wandb_project):
        self.folder = folder
        self.reader = MetricsReader(folder / "metrics.jsonl")
        self.events = None
        self.wandb_project = wandb_project
        self.ended = False

    def look(self):
        records, anew = self.reader.read()  # an error leaves what earlier calls made
        if self.events is None:
            self.events = [TensorBoardEvents(self.folder / "tensorboard")]
            if self.wandb_project:
                self.events.append(WandbRun(self.folder, self.wandb_project))
        for events in self.events:
            if anew:
                events.clear()
            for record in records:
                events.add(record)
            events.flush()
        if records:
            self.ended = records[-1].get("event") == "end"

    def close(self):
        for events in self.events or []:
            events.close()


def follow(runs):
    """Until every run has ended, or Ctrl-C."""
    try:
        while not all(run.ended for run in runs):
            time.sleep(POLL_SECONDS)
            for run in runs:
                run.look()
    except KeyboardInterrupt:
        pass


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run_folders", type=Path, nargs="+", metavar="RUN_FOLDER",
                        help="folder with metrics.jsonl")
    parser.add_argument("--follow", action="store_true",
                        help="go on while the runs do; ends with them, or with Ctrl-C")
    parser.add_argument("--wandb", metavar="PROJECT",
                        help="also send the numbers to Weights & Biases, by its own library")
    args = parser.parse_args()
    if args.wandb:
        # Not among what the project installs; into the Python that looked for it.
        require("wandb", advice=f"`{sys.executable} -m pip install wandb` installs it")
    runs = [FollowedRun(folder, args.wandb) for folder in args.run_folders]
    try:
        for run in runs:
            run.look()
            board = run.events[0]
            print(f"{board.folder}: {board.num_points} numbers")
        parent = os.path.commonpath([run.events[0].folder.resolve() for run in runs])
        print(f"look at them with: tensorboard --logdir {os.path.relpath(parent)}", flush=True)
        if args.follow:
            follow(runs)
    except (RuntimeError, OSError) as error:
        print(f"tensorboard: {error}", file=sys.stderr)
        return 1
    finally:
        for run in runs:
            run.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
