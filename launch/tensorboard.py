#!/usr/bin/env python3
"""Turns the metrics of a run into TensorBoard events.

RUN_FOLDER/metrics.jsonl has one JSON object a line: `stage`, `step`, `event`, and numbers, possibly
nested. Each stage becomes one run (steps start anew with each stage), each number a curve
"event/name/inner name". A later call rewrites the events; a line still being written waits for it.

usage: launch/tensorboard.py RUN_FOLDER    then: tensorboard --logdir RUN_FOLDER/tensorboard
"""
import argparse
import json
import math
import shutil
import sys
import time
from pathlib import Path

from project_python import require

# This file has the library's name: without our own folder in the path, the library is found.
sys.path = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent]
require("tensorboard")

OWN_KEYS = {"stage", "step", "event", "time"}


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


def read_metrics(file):
    lines = file.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines[:-1], 1):  # what follows the last newline is unfinished
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise RuntimeError(f"{file}:{number}: expected one JSON object a line ({error})")
        if not isinstance(record, dict):
            raise RuntimeError(f"{file}:{number}: expected a JSON object")
        yield record


def convert(run_folder):
    """Writes the events; returns how many numbers in how many stages."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter
    target = run_folder / "tensorboard"
    partial = run_folder / "tensorboard.partial"
    shutil.rmtree(partial, ignore_errors=True)
    writers, num_points = {}, 0
    for record in read_metrics(run_folder / "metrics.jsonl"):
        stage = str(record.get("stage") or "run").replace("/", "_")
        if stage not in writers:
            writers[stage] = EventFileWriter(str(partial / stage))
        numbers = {k: v for k, v in record.items() if k not in OWN_KEYS}
        step, wall_time = record.get("step") or 0, record.get("time")
        values = [Summary.Value(tag=name, simple_value=number)
                  for name, number in flatten(numbers, str(record.get("event") or ""))]
        writers[stage].add_event(Event(step=step, summary=Summary(value=values),
                                       wall_time=wall_time if wall_time else time.time()))
        num_points += len(values)
    for writer in writers.values():
        writer.close()
    if writers:
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    return num_points, len(writers)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run_folder", type=Path, help="folder with metrics.jsonl")
    run_folder = parser.parse_args().run_folder
    try:
        num_points, num_stages = convert(run_folder)
    except (RuntimeError, OSError) as error:
        print(f"tensorboard: {error}", file=sys.stderr)
        return 1
    print(f"{run_folder / 'tensorboard'}: {num_points} numbers, {num_stages} stages; "
          f"look at them with: tensorboard --logdir {run_folder / 'tensorboard'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
