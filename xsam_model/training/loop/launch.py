"""Launches a training run in this process, or in several processes on this machine."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, start_processes

from xsam_model.training.loop.config import read_config

STOPPED = 3  # exit code of a run that saved, stopped, and can be resumed


def launch(config: Path, output: str | None = None, max_minutes: float | None = None, processes: int = 1) -> int:
    """Run or resume the training that a file describes.

    Args:
        config: TOML file of a `TrainingConfig`.
        output, max_minutes: replace the file's values, unless None.
        processes: if more than one, they are started on this machine and waited for, on the CPU as forks of this one,
            which should not have computed anything before; `accelerate launch` or `torchrun` may start them instead.

    Returns:
        0 if the run is complete, `STOPPED` if it stopped early; the same call then resumes it.

    Raises:
        ValueError: if the file holds a mistake.
        OSError: if it cannot be read.
    """
    settings = read_config(config, output=output, max_minutes=max_minutes)
    # With WORLD_SIZE set, this is one of the processes that a launcher has started.
    if processes > 1 and "WORLD_SIZE" not in os.environ:
        if code := _launch_several(config, output, max_minutes, processes, on_cpu=settings.device == "cpu"):
            return code
        return 0 if settings.is_complete else STOPPED
    from xsam_model.training.loop.trainer import train

    finished = train(settings, _say) is not None
    # Elastic launchers treat every other code as a failure.
    return 0 if finished or "TORCHELASTIC_RUN_ID" in os.environ else STOPPED


def _launch_several(config: Path, output: str | None, max_minutes: float | None, processes: int, on_cpu: bool) -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    environment = {**address, "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    if on_cpu:
        environment["ACCELERATE_USE_CPU"] = "true"
    # A fork has imported all that this process has, which takes seconds, but could not use a GPU.
    running = start_processes(
        _train_beside_others,
        args=(config, output, max_minutes, environment),
        nprocs=processes,
        join=False,
        start_method="fork" if on_cpu else "spawn",
    )
    asked: list[int] = []

    def pass_on(number: int, _: object) -> None:
        asked.append(number)
        for process in running.processes:
            process.terminate()

    # Upon SIGTERM every process saves and stops.
    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        while not running.join():
            pass
    except (ProcessRaisedException, ProcessExitedException) as error:
        if not asked:
            sys.stderr.write(f"error: {error}\n")
            return 2 if isinstance(error, ProcessExitedException) and error.exit_code == 2 else 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return STOPPED if asked else 0


def _train_beside_others(
    place: int, config: Path, output: str | None, max_minutes: float | None, environment: Mapping[str, str]
) -> None:
    os.environ.update(environment, RANK=str(place), LOCAL_RANK=str(place))
    if "OMP_NUM_THREADS" not in os.environ:
        # One thread for each process unless the user says otherwise: two of one are faster than one of two.
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)
    try:
        launch(config, output, max_minutes)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)


def _say(line: str) -> None:
    """Print a line. If standard output is closed, as when a terminal goes away, training continues silently."""
    try:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    except OSError:
        # Otherwise later lines, and the interpreter's last flush, would fail again.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
