"""Start a training on several devices of one machine: torchrun's agent runs a process for each, and ends them all.

The stage process holds the devices' locks and runs the agent; each process that it starts, a *rank*, runs the stage
again (`python -m tasks.training.launch <recipe>`), and the first of them alone writes.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from tasks import errors
from tasks.errors import ConfigError, PipelineError, Preempted, StageError
from tasks.recipe import Finetune

log = logging.getLogger(__name__)

STOP_SECONDS = 60
"""How long ranks that were asked to stop may take to checkpoint."""
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""Environment variable: where a rank says why it ended."""


# --- the stage process --------------------------------------------------------------------------------


def pick_devices(section: Finetune) -> list[str]:
    """Return the devices that the recipe asks for: CUDA devices where there are any, else processes on the CPU.

    Raises:
        ConfigError: there are fewer; without CUDA, fewer processors.
    """
    on_cuda = torch.cuda.is_available()
    there = torch.cuda.device_count() if on_cuda else len(os.sched_getaffinity(0))
    if section.devices > there:
        kind = "CUDA device(s): lower it, or look at CUDA_VISIBLE_DEVICES"
        if not on_cuda:
            kind = "processor(s) and no CUDA device: lower it, or train where there are more"
        raise ConfigError(
            f"finetune.devices is {section.devices}, but this machine shows {there} {kind}. "
            "The batch size stays what it is."
        )
    return [f"cuda:{index}" if on_cuda else "cpu" for index in range(section.devices)]


def launch(recipe: str, devices: int) -> None:
    """Run the stage in so many processes, and wait for them; the devices are held by the caller.

    Raises:
        PipelineError: what the first rank that failed says.
        Preempted: SIGTERM came, and has reached all of them.
        KeyboardInterrupt: so did Ctrl-C.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    log.info("training on %d devices", devices)
    with tempfile.TemporaryDirectory(prefix="retain-ranks-") as folder, _signals_kept():
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=devices,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            run_id=uuid.uuid4().hex,
            local_addr="127.0.0.1",
            max_restarts=0,
            monitor_interval=0.1,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            shutdown_timeout=STOP_SECONDS,
        )
        try:
            elastic_launch(config, sys.executable)("-m", "tasks.training.launch", recipe)
        except ChildFailedError as error:
            raise _reason(error.failures) from None
        except SignalException as stop:
            if stop.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            raise Preempted("asked to stop, as were all its processes; run it again to go on") from None


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Put the signal handlers back that the agent replaces."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    kept[signal.SIGQUIT] = signal.getsignal(signal.SIGQUIT)
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _reason(failures: Mapping[int, Any]) -> PipelineError:
    """Return the error of the rank that failed first: the others fail because it has gone."""
    said = {rank: failure.error_file_data.get("message", {}) for rank, failure in failures.items()}
    killed = [
        rank
        for rank, failure in failures.items()
        if failure.exitcode < 0 and not isinstance(said[rank], dict)
    ]
    killed = killed or [rank for rank, failure in failures.items() if failure.exitcode < 0 and not said[rank]]
    if killed:
        number = -failures[killed[0]].exitcode
        reason = "; most often, the machine ran out of memory" if number == signal.SIGKILL else ""
        return StageError(f"process {killed[0]} of those that trained was ended by signal {number}{reason}.")
    told = {rank: words for rank, words in said.items() if isinstance(words, dict) and words}
    if not told:
        rank, failure = next(iter(failures.items()))
        return StageError(f"process {rank} of those that trained exited with status {failure.exitcode}.")
    rank = min(told, key=lambda rank: float(told[rank]["extraInfo"]["when"]))
    kind = getattr(errors, told[rank]["kind"], None)
    if kind is None:
        return StageError(f"process {rank} of those that trained failed: {told[rank]['message']}")
    found: PipelineError = kind(told[rank]["message"], told[rank]["problems"])
    return found


# --- a rank -------------------------------------------------------------------------------------------


def main() -> int:
    """Run the stage as one of several processes; return its exit status."""
    from tasks.stage_log import end_with_parent

    end_with_parent()
    signal.signal(signal.SIGTERM, _stop)
    rank = int(os.environ["RANK"])
    # What the first says, all would say.
    level = logging.INFO if rank == 0 else logging.ERROR
    logging.basicConfig(stream=sys.stdout, level=level, format="%(message)s")
    try:
        return _run(sys.argv[1])
    except PipelineError as error:
        _say_why(error)
        return error.exit_code
    except Exception as error:  # noqa: BLE001  the stage process tells it
        _say_why(error)
        traceback.print_exc()
        return 1
    except _Stopped:
        return Preempted.exit_code
    except KeyboardInterrupt:
        return 130


def _run(recipe: str) -> int:
    from tasks.__main__ import run_stage

    size, on_cuda = int(os.environ["WORLD_SIZE"]), torch.cuda.is_available()
    if on_cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # this is what `cuda` means from here on
    torch.set_num_threads(max(torch.get_num_threads() // size, 1))
    distributed.init_process_group("nccl" if on_cuda else "gloo")
    run_stage("finetune", recipe, Path.cwd())
    return 0


class _Stopped(BaseException):
    """SIGTERM came before, or after, training."""


def _stop(signum: int, frame: object) -> None:
    raise _Stopped


def _say_why(error: Exception) -> None:
    """Leave the error where the agent looks for it."""
    path = os.environ.get(ERROR_FILE)
    if path is None:
        return
    expected = isinstance(error, PipelineError)
    message = {
        "kind": type(error).__name__ if expected else "",
        "message": getattr(error, "message", f"{type(error).__name__}: {error}"),
        "problems": getattr(error, "problems", []) if expected else [],
        "extraInfo": {
            "timestamp": str(int(time.time())),
            "when": time.time(),
            "py_callstack": traceback.format_exc(),
        },
    }
    Path(path).write_text(json.dumps({"message": message}), encoding="utf-8")


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Nothing is left to be done, and DDP's and gloo's threads can wait for each other while they are taken down.
    os._exit(status)
