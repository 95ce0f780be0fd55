"""Tokenizing processes. Each has one unit at a time, sent when it is idle, so nobody waits for a
full pipe; one that dies (memory that ran out, as a rule) ends the work with a line that says so."""
import contextlib
import multiprocessing
import os
import signal
import threading
from multiprocessing import resource_tracker
from multiprocessing.connection import wait

from . import UserError


def attempt(call, *args):
    """(result, None) or (None, an error that can be sent to another process)."""
    try:
        return call(*args), None
    except (UserError, OSError) as error:
        return None, error
    except MemoryError:
        return None, MemoryError()
    except Exception as error:  # raised again where it is seen, without a way to send it whole
        return None, UserError(f"a worker process failed ({type(error).__name__}: {error})")


def serve(pipe, make_part, make_vocabulary):
    """A worker's life."""
    def end_with_parent():  # a killed parent must not leave writers behind
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    vocabulary, error = attempt(make_vocabulary)
    while True:
        unit = pipe.recv()
        pipe.send((None, error) if error else attempt(make_part, vocabulary, *unit))


@contextlib.contextmanager
def held_back(number):
    """A signal that comes meanwhile is raised afterwards: an interrupted start would leave a process
    without its first words. What is started here inherits it blocked: Ctrl-C is the parent's to
    handle. (The mask alone would not do, other threads of this process take the signal.)"""
    resource_tracker.ensure_running()  # it lifts the mask when it starts
    came = []
    handler = signal.signal(number, lambda *_: came.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(number, handler)
    if came:
        signal.raise_signal(number)


class Worker:
    def __init__(self, *args):
        context = multiprocessing.get_context("spawn")
        self.pipe, other_end = context.Pipe()
        self.process = context.Process(target=serve, args=(other_end, *args), daemon=True)
        with held_back(signal.SIGINT):
            self.process.start()
        other_end.close()

    def died(self, count, kept):
        self.process.join()
        code = self.process.exitcode
        how = f"ended with code {code}"
        if code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        return UserError(
            f"a tokenizing process {how}, which happens when memory runs out; {kept}: call again, "
            f"with fewer than {count} --workers if it was memory")


class Workers:
    """Calls make_part(vocabulary, *unit) for each unit given, and `done` with what it returned, in
    no order. Every process makes its own vocabulary. One worker means this process. `kept` says
    what a call that ends early leaves. Use inside a `with`."""

    def __init__(self, count, make_part, make_vocabulary, done, kept="finished parts are kept"):
        self.count, self.make_part, self.make_vocabulary = count, make_part, make_vocabulary
        self.done, self.kept = done, kept
        self.idle, self.busy = [], []
        self.vocabulary = None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for worker in self.idle + self.busy:
            worker.process.kill()  # a part has its name only when it is whole
            worker.process.join()

    def give(self, *unit):
        """Returns when a process has begun the unit."""
        if self.count == 1:
            self.vocabulary = self.vocabulary or self.make_vocabulary()
            self.done(self.make_part(self.vocabulary, *unit))
            return
        self.collect(block=False)
        if not self.idle and len(self.busy) < self.count:
            self.idle.append(Worker(self.make_part, self.make_vocabulary))
        while not self.idle:
            self.collect(block=True)
        worker = self.idle.pop()
        self.busy.append(worker)
        try:
            worker.pipe.send(unit)
        except OSError as error:
            raise worker.died(self.count, self.kept) from error

    def finish(self):
        while self.busy:
            self.collect(block=True)

    def collect(self, block):
        """Takes what finished workers sent; blocks until there is something, if asked to."""
        pipes = {worker.pipe: worker for worker in self.busy}
        for pipe in wait(list(pipes), None if block else 0):
            worker = pipes[pipe]
            try:
                result, error = pipe.recv()
            except (EOFError, OSError) as end:
                raise worker.died(self.count, self.kept) from end
            if error:
                raise error
            self.busy.remove(worker)
            self.idle.append(worker)
            self.done(result)
