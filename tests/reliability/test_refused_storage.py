"""A store that says no in the middle of a run: no permission, or no room. What is committed is told, kept and resumed.

The command line as it is shipped, on a real S3 server behind a proxy that refuses in its place, and on a disk that is
really full.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from pipelines.layout import KINDS
from pipelines.storage.store import open_store
from pipelines.table.commits import committed_shards
from tests.reliability.forked_command import command_server, forked
from tests.reliability.slow_proxy import Rule, SlowProxy, slow_proxy
from tests.reliability.small_run import RUN, raw_rows, rows
from tests.support.drivers import Command, Ended, command_line
from tests.support.fakes import write_images
from tests.support.seaweed import S3Server

pytestmark = pytest.mark.timeout(180)

NUM_SHARDS = 5


@pytest.fixture
def command(s3: S3Server, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run a command in this process, with the server's address in the environment."""
    return command_line(capfd, monkeypatch)


@pytest.fixture(scope="module")
def processes() -> Iterator[ForkServerContext]:
    with command_server() as processes:
        yield processes


@pytest.fixture
def proxy(s3: S3Server) -> Iterator[SlowProxy]:
    with slow_proxy(s3.endpoint) as running:
        yield running


@pytest.fixture
def config(tmp_path: Path, proxy: SlowProxy) -> Path:
    """Five pictures, shard by shard, to the server behind the proxy."""
    write_images(tmp_path / "images", NUM_SHARDS)
    path = tmp_path / "run.toml"
    path.write_text(
        f"""
        source = "{tmp_path}/images"
        categories = ["car"]
        plan = {{ images_per_shard = 1 }}
        label = {{ batch_size = 1, load_threads = 1 }}
        pool = {{ runner = "in_process", shards_in_flight_per_replica = 1, max_attempts_per_shard = 1 }}
        [output]
        uri = "s3://bkt/refused-{secrets.token_hex(4)}"
        run_id = "{RUN}"
        storage_options = {{ endpoint_url = "{proxy.endpoint}" }}
        """
    )
    return path


@pytest.fixture
def output(config: Path) -> str:
    return next(line.split('"')[1] for line in config.read_text().splitlines() if "uri =" in line)


@pytest.fixture
def run(command: Command, config: Path) -> Callable[[], Ended]:
    return lambda: command("run", "-c", config, "--no-prefect")


Run = Callable[[], Ended]


def check_whole(command: Command, output: str) -> None:
    """The table is whole, and a glob reads what the commits name."""
    verified = command("verify", output)
    assert verified.code == 0, verified
    store = open_store(output)
    assert len(committed_shards(store, RUN)) == NUM_SHARDS
    assert raw_rows(store) == rows(store)


def told(ended: Ended, committed: str) -> bool:
    """Whether it says how many shards are committed."""
    return f"{committed} of {NUM_SHARDS}" in ended.out + ended.err


def test_commits_that_are_refused_leave_the_ones_before(
    run: Run, proxy: SlowProxy, command: Command, output: str
) -> None:
    refused = proxy.add(Rule("PUT", "*/commits/*", "refuse", after=2))
    ended = run()
    assert ended.code == 1, ended
    assert told(ended, "2"), ended
    assert "access denied" in ended.out
    proxy.remove(refused)
    again = run()
    assert (again.code, told(again, "5")) == (0, True), again
    check_whole(command, output)


def test_a_leftover_that_may_not_be_removed_is_a_warning(
    run: Run, proxy: SlowProxy, command: Command, output: str
) -> None:
    """Rights without that to delete are common."""
    deletions = proxy.add(Rule("DELETE", "*", "refuse"))
    refused = proxy.add(Rule("PUT", "*/commits/*", "refuse", after=2))
    assert run().code == 1
    proxy.remove(refused)
    store = open_store(output)
    (loser,) = plant_losers(output, "images")
    ended = run()
    assert ended.code == 0, ended
    (warning,) = [line for line in ended.out.replace("\n", " ").split("warning: ")[1:] if loser in line]
    assert "access denied" in warning
    assert loser in store.find("images")
    assert run().code == 0
    verified = command("verify", output)
    assert verified.code == 0, verified

    proxy.remove(deletions)
    assert command("vacuum", output, "--older-than", 0).code == 0
    check_whole(command, output)


def plant_losers(output: str, *kinds: str) -> list[str]:
    """Leave files of another attempt at a shard that is committed."""
    store, names = open_store(output), []
    shard_id = min(committed_shards(store, RUN))
    for kind in kinds:
        (held,) = [name for name in store.find(f"{kind}/{RUN}") if f"/{shard_id}-" in name]
        names.append(f"{kind}/{RUN}/{shard_id}-{secrets.token_hex(4)}-0.parquet")
        store.write(names[-1], store.read(held))
    return names


def test_vacuum_that_may_not_delete_names_each_file_and_ends_with_1(
    run: Run, proxy: SlowProxy, command: Command, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run().code == 0
    losers = plant_losers(output, *KINDS)
    refused = proxy.add(Rule("DELETE", "*.parquet", "refuse"))
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        forget_clients()
        ended = command("vacuum", output)
        forget_clients()
    assert ended.code == 1, ended
    assert all(name in ended.out.replace("\n", "") for name in losers), ended
    assert "access denied" in ended.out.replace("\n", " ")
    proxy.remove(refused)
    assert command("vacuum", output).code == 0
    check_whole(command, output)


def test_vacuum_looks_at_the_clock_of_a_store_that_lets_nothing_be_removed(
    run: Run, proxy: SlowProxy, output: str, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = proxy.add(Rule("PUT", "*/commits/*", "refuse", after=2))
    assert run().code == 1
    store, unknown = open_store(output), f"images/{RUN}/shard-00004-{secrets.token_hex(4)}-0.parquet"
    store.write(unknown, b"of an attempt whose commit may be on its way")
    proxy.add(Rule("DELETE", "*", "refuse"))
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        forget_clients()
        ended = command("vacuum", output)
        forget_clients()
    assert ended.code == 0, ended
    assert "7 younger than 24 h left" in ended.out  # with two of each shard whose commit was refused
    assert store.exists(unknown)
    proxy.remove(refused)
    assert run().code == 0


def forget_clients() -> None:
    """Have the next one look at the environment."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()


def test_a_summary_that_cannot_be_written_ends_a_labeled_run_with_1(
    run: Run, proxy: SlowProxy, command: Command, output: str
) -> None:
    refused = proxy.add(Rule("PUT", "*/summary.json", "refuse"))
    for _ in range(2):
        ended = run()
        assert ended.code == 1, ended
        assert told(ended, "5"), ended
        assert "summary.json" in ended.out.replace("\n", ""), ended
    proxy.remove(refused)
    again = run()
    assert (again.code, "0 labeled now" in again.out) == (0, True), again
    assert open_store(output).exists(f"_runs/{RUN}/summary.json")
    check_whole(command, output)


@pytest.mark.parametrize("code", ["ExpiredToken", "AccessDenied"])
def test_a_store_that_refuses_all_from_now_on(
    code: str,
    run: Run,
    proxy: SlowProxy,
    command: Command,
    output: str,
    config: Path,
    processes: ForkServerContext,
) -> None:
    """Credentials that have expired: neither listings nor the summary are to be had at the end."""
    config.write_text("report = true\n" + config.read_text())
    third = proxy.add(Rule("PUT", "*/commits/*", "hold", after=2))
    arguments = ("run", "-c", config, "--no-prefect")
    with forked(processes, config.parent / "printed", *arguments, env=dict(os.environ)) as running:
        running.wait_until(lambda: third.keys)
        refused = proxy.add(Rule("*", "*", "refuse", code=code))
        proxy.remove(third)
        assert proxy.land(third) == [200]
        ended = running.end()
    assert ended.code == 1, ended
    assert told(ended, "2") or told(ended, "3"), ended
    assert "Traceback" not in ended.out + ended.err
    proxy.remove(refused)
    again = run()
    assert again.code == 0, again
    assert "3 committed before" in again.out
    check_whole(command, output)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", "size=4m", "none", str(folder)]
    if mount is None or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("a disk of its own takes the right to mount one")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(small_disk: Path, config: Path, command: Command) -> None:
    """Others write to it too: what the run frees is gone at once."""
    unbroken, output = str(config.parent / "unbroken"), str(small_disk / "out")
    arguments = ("run", "-c", config, "--no-prefect", "--output")
    assert command(*arguments, unbroken).code == 0
    files = [path for path in Path(unbroken).rglob("*") if path.is_file()]
    plan = [path for path in files if path.name.startswith("plan")]
    shards = [path for path in files if path.name.startswith("shard-")]
    # Room for the plan, for what is probed, and for two shards and a half.
    room = pages(plan) + 8 * 4096 + pages(shards) * 5 // (2 * NUM_SHARDS)
    with others_write(small_disk, keep=room, until=lambda: len(committed_shards(open_store(output), RUN)) >= 2):
        ended = command(*arguments, output)
    assert ended.code == 1, ended
    assert "No space left on device" in ended.out.replace("\n", " "), ended
    before = committed_shards(open_store(output), RUN)
    assert 0 < len(before) < NUM_SHARDS
    assert told(ended, str(len(before))), ended

    again = command(*arguments, output)
    assert (again.code, f"{len(before)} committed before" in again.out) == (0, True), again
    check_whole(command, output)
    assert rows(open_store(output)) == rows(open_store(unbroken))


@contextmanager
def others_write(disk: Path, *, keep: int, until: Callable[[], bool]) -> Iterator[None]:
    """Fill a disk but for so many bytes, and then, once something is so, all of it, again and again."""
    ended = threading.Event()

    def fill() -> None:
        while not until() and not ended.wait(0.01):
            pass
        while not ended.wait(0.001):
            with suppress(OSError):
                file.write(bytes(4096))

    with open(disk / "filler", "wb", buffering=0) as file:
        file.write(bytes(shutil.disk_usage(disk).free - keep))
        thread = threading.Thread(target=fill)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
    (disk / "filler").unlink()


def pages(paths: list[Path]) -> int:
    """Return what files take on a disk."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in paths)
