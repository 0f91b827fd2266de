"""Launches a training run in this process, or in several processes on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from xsam_model.training.loop.config import read_config

STOPPED = 3  # exit code of a run that saved, stopped, and can be resumed


def launch(config: Path, output: str | None = None, max_minutes: float | None = None, processes: int = 1) -> int:
    """Run or resume the training that a file describes.

    Args:
        config: TOML file of a `TrainingConfig`.
        output, max_minutes: replace the file's values, unless None.
        processes: if more than one, they are started by torch's elastic launcher and waited for; `accelerate launch`
            or `torchrun` may start them instead.

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
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", "xsam_model.training", "--config", str(config)]
    command += [] if output is None else ["--output", output]
    command += [] if max_minutes is None else ["--max-minutes", str(max_minutes)]
    # One thread for each process unless the user says otherwise: two processes of one are faster than one of two.
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    if on_cpu:
        environment["ACCELERATE_USE_CPU"] = "true"
    with subprocess.Popen(command, env=environment) as launcher:
        asked: list[int] = []

        def pass_on(number: int, _: object) -> None:
            asked.append(number)
            launcher.send_signal(signal.SIGTERM)

        # The launcher forwards SIGTERM, upon which every process saves and stops.
        before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            code = launcher.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    return STOPPED if asked else code


def _say(line: str) -> None:
    """Print a line. If standard output is closed, as when a terminal goes away, training continues silently."""
    try:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    except OSError:
        # Otherwise later lines, and the interpreter's last flush, would fail again.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
