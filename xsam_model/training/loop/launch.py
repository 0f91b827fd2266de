"""Start a run in this process, or in several on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from xsam_model.training.loop.config import read_config

STOPPED = 3


def launch(config: Path, output: str | None = None, max_minutes: float | None = None, processes: int = 1) -> int:
    """Run, or go on with, the training that a file describes.

    Args:
        config: TOML file of a `TrainingConfig`.
        output, max_minutes: instead of the file's, unless None.
        processes: with more than one, this starts them by torch's elastic launcher and waits; `accelerate launch`
            or `torchrun` may start them as well.

    Returns:
        0 if the run is complete, `STOPPED` if it stopped before its end and the same call goes on.

    Raises:
        ValueError: if the file holds a mistake.
        OSError: if it cannot be read.
    """
    settings = read_config(config, output=output, max_minutes=max_minutes)
    if processes > 1 and "WORLD_SIZE" not in os.environ:
        if code := _launch_several(config, output, max_minutes, processes, on_cpu=settings.device == "cpu"):
            return code
        return 0 if settings.is_complete else STOPPED
    from xsam_model.training.loop.trainer import train

    finished = train(settings, _say) is not None
    # A launcher takes any other code for a failure.
    return 0 if finished or "TORCHELASTIC_RUN_ID" in os.environ else STOPPED


def _launch_several(config: Path, output: str | None, max_minutes: float | None, processes: int, on_cpu: bool) -> int:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", "xsam_model.training", "--config", str(config)]
    command += [] if output is None else ["--output", output]
    command += [] if max_minutes is None else ["--max-minutes", str(max_minutes)]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    if on_cpu:
        environment["ACCELERATE_USE_CPU"] = "true"
    with subprocess.Popen(command, env=environment) as launcher:
        asked: list[int] = []

        def pass_on(number: int, _: object) -> None:
            asked.append(number)
            launcher.send_signal(signal.SIGTERM)

        # The launcher hands it on: every process saves and stops.
        before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            code = launcher.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    return STOPPED if asked else code


def _say(line: str) -> None:
    """Print a line; who read them may be gone, and training goes on."""
    try:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    except OSError:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


__all__ = ["STOPPED", "launch"]
