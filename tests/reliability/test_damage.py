"""Damage of every kind to a small output: verify names the object, and no command ends in a traceback or in silence."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fsspec.exceptions import FSTimeoutError

from pipelines.layout import CARD_NAME
from pipelines.planning.registered_runs import registered_problems
from pipelines.storage.store import open_store
from pipelines.table.verify import verify
from tests.reliability.small_run import LONG, RUN, SmallRun, run
from tests.reliability.watched_storage import watched
from tests.support.commands import Ended, command
from tests.support.fakes import half_bright, png
from tests.support.labeled import box, mask, named, write_output

COMMITS = f"_runs/{RUN}/commits"
FIRST = f"{COMMITS}/shard-00000.json"
FLIPS = 10_000 if LONG else 300
# What each command is told besides the output.
READING: Mapping[str, tuple[str, ...]] = {
    "query": ("query", "SELECT image_id, count(*) FROM annotations GROUP BY 1"),
    "query --check": ("query", "SELECT count(*) FROM images", "--check"),
    "export": ("export", "--to", "{new}.json"),
    "export --check": ("export", "--to", "{new}.json", "--check"),
    "report": ("report", "--to", "{new}.html"),
    "report --check": ("report", "--to", "{new}.html", "--check"),
    "evaluate": ("evaluate", "--ground-truth", "{truth}"),
    "evaluate --check": ("evaluate", "--ground-truth", "{truth}", "--check"),
    "status": ("status",),
    "status --json": ("status", "--json"),
}
LOOKING: Mapping[str, tuple[str, ...]] = {
    "verify": ("verify",),
    "verify --quick": ("verify", "--quick"),
    "vacuum --dry-run": ("vacuum", "--dry-run"),
}
WRITING: Mapping[str, tuple[str, ...]] = {
    "retry": ("retry", "--no-prefect"),
    "plan": ("plan",),
    "run": ("run", "--no-prefect"),
    "run --incremental": ("run", "--no-prefect", "--incremental"),
}
TAKES_A_CONFIG = ("run", "plan")


@dataclass(frozen=True)
class Whole:
    """A finished run that nothing has happened to.

    Attributes:
        folder: where it is: ``labels``, its config and a ground truth.
    """

    folder: Path

    @property
    def output(self) -> Path:
        return self.folder / "labels"

    def copy(self, to: Path) -> Path:
        """Copy the output, and return where it is."""
        shutil.copytree(self.output, to / "labels")
        return to / "labels"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Label six images in three shards; one is broken. Shards are alike, so that their files are of one size."""
    folder = tmp_path_factory.mktemp("whole")
    images = folder / "images"
    images.mkdir()
    for number in range(6):
        broken = number == 1
        (images / f"{number:04d}.png").write_bytes(b"no image" if broken else png(half_bright()))
    small = SmallRun(source=str(images), output=str(folder / "labels"), images_per_shard=2)
    assert run(small).ok
    box = {"bbox": [0, 0, 6, 16], "area": 96, "iscrowd": 0, "segmentation": [[0, 0, 6, 0, 6, 16, 0, 16]]}
    truth = {
        "images": [{"id": 1, "file_name": "0002.png", "width": 24, "height": 16}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, **box}],
        "categories": [{"id": 1, "name": "bright"}],
    }
    (folder / "truth.json").write_text(json.dumps(truth))
    return Whole(folder)


def ask(whole: Whole, output: Path, arguments: tuple[str, ...]) -> Ended:
    """Run a command on a copy."""
    new, first = output.parent / f"new-{len(list(output.parent.iterdir()))}", arguments[0]
    words = [word.format(new=new, truth=whole.folder / "truth.json") for word in arguments[1:]]
    if first not in TAKES_A_CONFIG:
        return command(first, output, *words)
    config = output.parent / "run.yaml"
    small = SmallRun(source=str(whole.folder / "images"), output=str(output), images_per_shard=2)
    values = small.config().to_dict()
    values["output"]["run_id"] = None
    config.write_text(json.dumps(values))
    return command(first, "--config", config, *words)


Damage = Callable[[Path], str]
"""Does something to an output, and returns the name of the object that is no longer what it was."""


def replaced(name: str, data: bytes | Callable[[bytes], bytes]) -> Damage:
    def damage(output: Path) -> str:
        path = output / name
        path.write_bytes(data if isinstance(data, bytes) else data(path.read_bytes()))
        return name

    return damage


def removed(name: str) -> Damage:
    def damage(output: Path) -> str:
        (output / name).unlink()
        return name

    return damage


def changed(name: str, change: Callable[[Any], object]) -> Damage:
    """Change what a JSON object says, and leave its checksum as it is."""

    def damage(output: Path) -> str:
        document = json.loads((output / name).read_bytes())
        change(document)
        (output / name).write_text(json.dumps(document, indent=1))
        return name

    return damage


def of_file(folder: str, damage: Callable[[Path], object], number: int = 0) -> Damage:
    """Do something to a Parquet file of a folder."""

    def damaged(output: Path) -> str:
        path = sorted(path for path in (output / folder).iterdir() if path.suffix == ".parquet")[number]
        damage(path)
        return f"{folder}/{path.name}"

    return damaged


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    changed = bytearray(data)
    changed[len(data) // 3] ^= 16
    return bytes(changed)


def rewrite(how: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(how(path.read_bytes()))


def swap_with_next(path: Path) -> None:
    """Exchange a file with that of the next shard, made as long as it: rows are timed, so sizes may differ a little."""
    files = sorted(path.parent.iterdir())
    other = files[files.index(path) + 1]
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs[: len(mine)].ljust(len(mine), b"\0"))
    other.write_bytes(mine[: len(theirs)].ljust(len(theirs), b"\0"))


def other_commit(output: Path) -> str:
    shutil.copy(output / COMMITS / "shard-00002.json", output / FIRST)
    return FIRST


COMMIT_DAMAGE: Mapping[str, Damage] = {
    "a commit that is {}": replaced(FIRST, b"{}"),
    "a commit that is []": replaced(FIRST, b"[]"),
    "a commit that is a number": replaced(FIRST, b"7"),
    "a commit that is null": replaced(FIRST, b"null"),
    "a commit of no bytes": replaced(FIRST, b""),
    "a commit of zeros": replaced(FIRST, lambda data: bytes(len(data))),
    "a commit cut short": replaced(FIRST, half),
    "a commit nested without end": replaced(FIRST, b"[" * 100_000),
    "a commit with another hash": changed(FIRST, lambda commit: commit["images"].update(sha256="0" * 64)),
    "a commit with another number of rows": changed(FIRST, lambda commit: commit["annotations"].update(rows=1)),
    "a commit with rows in words": changed(FIRST, lambda commit: commit["images"].update(rows="two")),
    "a commit with counts in a list": changed(FIRST, lambda commit: commit.update(status_counts=["ok"])),
    "a commit with a file that is none of its": changed(FIRST, lambda commit: commit["images"].update(name="../plan")),
    "a commit without images": changed(FIRST, lambda commit: commit.pop("images")),
    "a commit with another time": changed(FIRST, lambda commit: commit.update(elapsed_s=7)),
    "the commit of another shard": other_commit,
}
PLAN = f"_runs/{RUN}/plan.json"
PLAN_DAMAGE: Mapping[str, Damage] = {
    "a plan that is gone": removed(PLAN),
    "a plan that is {}": replaced(PLAN, b"{}"),
    "a plan that is []": replaced(PLAN, b"[]"),
    "a plan cut short": replaced(PLAN, half),
    "a plan of another run": changed(PLAN, lambda plan: plan.update(run_id="run-2")),
    "a plan with a shard more": changed(PLAN, lambda plan: plan.update(num_shards=4)),
    "a plan with parts in words": changed(PLAN, lambda plan: plan.update(parts="none")),
    "a plan of an unknown format": changed(PLAN, lambda plan: plan.update(format="two")),
}
PART_DAMAGE: Mapping[str, Damage] = {
    "a plan part that is gone": of_file(f"_runs/{RUN}", os.unlink),
    "a plan part that is {}": of_file(f"_runs/{RUN}", rewrite(lambda _: b"{}")),
    "a plan part cut short": of_file(f"_runs/{RUN}", rewrite(half)),
    "a plan part with a flipped bit": of_file(f"_runs/{RUN}", rewrite(flipped)),
}
FILE_DAMAGE: Mapping[str, Damage] = {
    f"{what} of {kind}": of_file(f"{kind}/{RUN}", how)
    for kind in ("annotations", "images")
    for what, how in (
        ("a file that is gone", os.unlink),
        ("a file cut short", rewrite(half)),
        ("an empty file", rewrite(lambda _: b"")),
    )
}
CONTENT_DAMAGE: Mapping[str, Damage] = {
    "a flipped bit in annotations": of_file(f"annotations/{RUN}", rewrite(flipped)),
    "a flipped bit in images": of_file(f"images/{RUN}", rewrite(flipped)),
    "zeros instead of annotations": of_file(f"annotations/{RUN}", rewrite(lambda data: bytes(len(data)))),
    "zeros instead of images": of_file(f"images/{RUN}", rewrite(lambda data: bytes(len(data)))),
    "annotations of another shard": of_file(f"annotations/{RUN}", swap_with_next, 1),
    "images of another shard": of_file(f"images/{RUN}", swap_with_next, 1),
}
SUMMARY = f"_runs/{RUN}/summary.json"
SUMMARY_DAMAGE: Mapping[str, Damage] = {
    "a summary cut short": replaced(SUMMARY, half),
    "a summary that is {}": replaced(SUMMARY, b"{}"),
    "a summary that is []": replaced(SUMMARY, b"[]"),
    "a summary with counts in words": changed(SUMMARY, lambda summary: summary.update(ledger="all")),
    "a summary with another number": changed(SUMMARY, lambda summary: summary.update(num_annotations=7_000)),
}
REGISTERED = "_runs/.run-000001"
REGISTERED_DAMAGE: Mapping[str, Damage] = {
    "a registered run that is {}": replaced(REGISTERED, b"{}"),
    "a registered run cut short": replaced(REGISTERED, half),
    "a registered run of another name": changed(REGISTERED, lambda held: held.update(run_id="run-2")),
}


def shown(damage: Mapping[str, Damage], every: int = 1) -> Any:
    """Try each, or every so manieth in the short form."""
    found = [pytest.param(one, id=name) for name, one in damage.items()]
    return pytest.mark.parametrize("damage", found if LONG else found[::every])


@shown({**COMMIT_DAMAGE, **PLAN_DAMAGE, **PART_DAMAGE, **FILE_DAMAGE, **CONTENT_DAMAGE})
def test_verify_names_each_damaged_object_and_what_is_wrong_with_it(
    damage: Damage, whole: Whole, tmp_path: Path
) -> None:
    output = whole.copy(tmp_path)
    assert command("verify", output).code == 0
    name = damage(output)
    ended = command("verify", output)
    assert ended.code == 1, ended
    lines = [line for line in ended.out.splitlines() if line.startswith("problem:") and name in line]
    assert lines, ended
    assert "not whole" in ended.out


@shown(REGISTERED_DAMAGE)
def test_verify_names_a_registered_run_that_cannot_be_read(damage: Damage, whole: Whole, tmp_path: Path) -> None:
    """Its rows are whole, and the next run would be refused."""
    output = whole.copy(tmp_path)
    name = damage(output)
    ended = command("verify", output)
    assert ended.code == 1, ended
    assert any(line.startswith("problem:") and name in line for line in ended.out.splitlines()), ended
    assert name in ask(whole, output, ("run", "--no-prefect")).errors


SEES_SIZES = ("query", "export", "report", "evaluate")


@shown({**COMMIT_DAMAGE, **PLAN_DAMAGE, **FILE_DAMAGE, **CONTENT_DAMAGE}, every=2)
def test_commands_that_read_name_the_damaged_object_in_one_line(damage: Damage, whole: Whole, tmp_path: Path) -> None:
    output = whole.copy(tmp_path)
    name = damage(output)
    is_file = not name.startswith("_runs/")
    is_seen_by_size = not is_file or (output / name).is_file() is False or damage in FILE_DAMAGE.values()
    for command_name, arguments in READING.items():
        before = set(tmp_path.iterdir())
        ended = ask(whole, output, arguments)
        assert ended.code in (0, 2), (command_name, ended)
        if ended.code == 2:
            assert ended.is_refusal, (command_name, ended)
            assert len(ended.errors.splitlines()) == 1, (command_name, ended)
        if "--check" in command_name or (is_seen_by_size and (not is_file or command_name in SEES_SIZES)):
            assert ended.code == 2, (command_name, ended)
            assert name in ended.errors, (command_name, ended)
            assert set(tmp_path.iterdir()) == before


@shown({**PART_DAMAGE, **SUMMARY_DAMAGE, **REGISTERED_DAMAGE})
def test_commands_that_read_do_without_what_they_do_not_need(damage: Damage, whole: Whole, tmp_path: Path) -> None:
    output = whole.copy(tmp_path)
    name = damage(output)
    for command_name, arguments in READING.items():
        ended = ask(whole, output, arguments)
        # What was asked of single images is in the plan, and evaluate reads that.
        if command_name.startswith("evaluate") and damage in PART_DAMAGE.values():
            assert ended.is_refusal, (command_name, ended)
            assert name in ended.errors
        else:
            assert ended.code == 0, (command_name, ended)


EVERY_DAMAGE = {
    **COMMIT_DAMAGE,
    **PLAN_DAMAGE,
    **PART_DAMAGE,
    **FILE_DAMAGE,
    **CONTENT_DAMAGE,
    **SUMMARY_DAMAGE,
    **REGISTERED_DAMAGE,
}
GRID = [
    pytest.param(damage, command_name, id=f"{command_name}, {name}")
    for name, damage in EVERY_DAMAGE.items()
    for command_name in (*LOOKING, *WRITING)
]


@pytest.mark.parametrize(("damage", "command_name"), GRID if LONG else GRID[::9])
def test_no_command_ends_in_a_traceback_over_a_damaged_output(
    damage: Damage, command_name: str, whole: Whole, tmp_path: Path
) -> None:
    output = whole.copy(tmp_path)
    name = damage(output)
    ended = ask(whole, output, {**LOOKING, **WRITING}[command_name])
    assert ended.code in (0, 1, 2), ended
    if ended.code == 2:
        assert ended.is_refusal, ended
        assert name in ended.errors


@pytest.mark.parametrize("command_name", [*READING, *LOOKING, *WRITING])
def test_no_command_takes_an_output_whose_plan_is_gone_for_an_empty_one(
    command_name: str, whole: Whole, tmp_path: Path
) -> None:
    output = whole.copy(tmp_path)
    name = PLAN_DAMAGE["a plan that is gone"](output)
    ended = ask(whole, output, {**READING, **LOOKING, **WRITING}[command_name])
    assert ended.code in (1, 2)
    assert f"{name}: missing, although there are commits" in ended.out + ended.errors


@shown({**COMMIT_DAMAGE, **FILE_DAMAGE, **CONTENT_DAMAGE}, every=4)
def test_a_run_that_checks_labels_again_what_is_damaged_and_that_alone(
    damage: Damage, whole: Whole, tmp_path: Path
) -> None:
    output = whole.copy(tmp_path)
    name = damage(output)
    ended = ask(whole, output, ("run", "--no-prefect", "--check"))
    assert ended.code == 0, ended
    shards = 2 if damage is CONTENT_DAMAGE["annotations of another shard"] else None
    shards = shards or (2 if damage is CONTENT_DAMAGE["images of another shard"] else 1)
    assert f"3 of 3, {shards} labeled now" in ended.out, ended
    assert Path(name).name.partition("-d")[0].removesuffix(".json")[:11] in ended.out
    assert ask(whole, output, ("verify",)).code == 0
    for arguments in READING.values():
        assert ask(whole, output, arguments).code == 0, arguments


@shown(FILE_DAMAGE)
@pytest.mark.parametrize("more", [(), ("--incremental",)], ids=["run", "incremental"])
def test_the_same_command_labels_a_shard_again_whose_files_are_gone(
    damage: Damage, more: tuple[str, ...], whole: Whole, tmp_path: Path
) -> None:
    output = whole.copy(tmp_path)
    damage(output)
    ended = ask(whole, output, ("run", "--no-prefect", *more))
    assert ended.code == 0, ended
    assert "3 of 3, 1 labeled now" in ended.out
    assert ask(whole, output, ("verify",)).code == 0


@shown({**COMMIT_DAMAGE, **FILE_DAMAGE}, every=3)
@pytest.mark.parametrize("more", [(), ("--incremental",)], ids=["run", "incremental"])
def test_plan_says_of_a_damaged_shard_that_it_would_be_labeled_again(
    damage: Damage, more: tuple[str, ...], whole: Whole, tmp_path: Path
) -> None:
    output = whole.copy(tmp_path)
    name = damage(output)
    ended = ask(whole, output, ("plan", *more))
    assert ended.code == 0, ended
    is_seen = "3 of 3, 1 labeled now" in ask(whole, output, ("run", "--no-prefect", *more)).out
    assert is_seen == ("would be labeled again" in ended.out), ended
    if not is_seen:  # a commit that is as long as it was, which only --check reads
        assert damage in COMMIT_DAMAGE.values()
        return
    assert "3, 2 committed, 1 to label" in ended.out
    assert name in ended.out
    assert "no model call" not in ended.out
    assert "to label" not in ask(whole, output, ("plan", "--incremental")).out
    assert "3, 3 committed, 0 to label" in ask(whole, output, ("plan",)).out


def test_plan_of_an_update_says_which_shards_an_interrupted_run_has_left(whole: Whole, tmp_path: Path) -> None:
    output = whole.copy(tmp_path)
    removed(FIRST)(output)
    ended = ask(whole, output, ("plan", "--incremental"))
    assert ended.code == 0, ended
    assert "3, 2 committed, 1 to label" in ended.out
    assert "new images can be counted once these runs are finished" in ended.out


@shown(COMMIT_DAMAGE, every=4)
def test_vacuum_names_a_damaged_commit_and_leaves_its_files(damage: Damage, whole: Whole, tmp_path: Path) -> None:
    output = whole.copy(tmp_path)
    name = damage(output)
    files = sorted(path for path in output.rglob("*") if path.is_file())
    for more in (("--dry-run",), ("--older-than", "0")):
        ended = ask(whole, output, ("vacuum", *more))
        assert ended.code == 0, ended
        warnings = [line for line in ended.out.splitlines() if line.startswith("warning:")]
        assert len(warnings) == 1, ended
        assert name in warnings[0]
    assert sorted(path for path in output.rglob("*") if path.is_file()) == files


@shown(SUMMARY_DAMAGE)
def test_a_damaged_summary_is_written_again_and_is_no_damage_to_the_table(
    damage: Damage, whole: Whole, tmp_path: Path
) -> None:
    output = whole.copy(tmp_path)
    name = damage(output)
    ended = command("verify", output)
    assert ended.code == 0, ended
    assert any(line.startswith("note:") and name in line for line in ended.out.splitlines()), ended
    assert "0 labeled now" in ask(whole, output, ("run", "--no-prefect")).out
    assert "note:" not in command("verify", output).out


@pytest.mark.parametrize("kind", ["annotations", "images"])
def test_two_whole_files_of_one_size_in_each_others_place_are_found(kind: str, tmp_path: Path) -> None:
    (bright,) = named("ovseg", "bright")
    found = {f"{number:04d}.png": [mask(bright, box(0, 0, 5, 5))] for number in range(4)}
    write_output(tmp_path / "labels", found, common=[bright])
    one, other = sorted((tmp_path / "labels" / kind / RUN).iterdir())
    assert one.stat().st_size == other.stat().st_size
    one.rename(tmp_path / "one")
    other.rename(one)
    (tmp_path / "one").rename(other)
    verified = command("verify", tmp_path / "labels")
    checked = command("query", tmp_path / "labels", "FROM runs", "--check")
    assert (verified.code, checked.code, checked.is_refusal) == (1, 2, True)
    for path in (one, other):
        words = f"{kind}/{RUN}/{path.name} does not have the committed SHA-256"
        assert words in verified.out
        assert words in checked.errors


FOREIGN = (
    "annotations/.DS_Store",
    "annotations/_SUCCESS",
    f"annotations/{RUN}/part-0.parquet",
    f"annotations/{RUN}/.DS_Store",
    f"annotations/{RUN}/old/shard-00000-d1-0.parquet",
    "images/.DS_Store",
    f"images/{RUN}/._shard-00000-d1-0.parquet",
    f"images/{RUN}/shard-00000.parquet",
    "images/notes/readme.txt",
    "_runs/.DS_Store",
    "_runs/_SUCCESS",
    "_runs/notes/readme.txt",
    f"_runs/{RUN}/.DS_Store",
    f"_runs/{RUN}/notes.txt",
    f"{COMMITS}/.DS_Store",
    f"{COMMITS}/._shard-00000.json",
    f"{COMMITS}/_SUCCESS",
    f"{COMMITS}/part-0.parquet",
    f"{COMMITS}/shard-00000.json.bak",
    f"{COMMITS}/shard-00000 (1).json",
    f"{COMMITS}/old/shard-00000.json",
)


def test_files_of_others_are_left_alone_by_every_command_and_counted_by_verify(whole: Whole, tmp_path: Path) -> None:
    output = whole.copy(tmp_path)
    expected = {name: ask(whole, output, arguments).out for name, arguments in READING.items() if "status" in name}
    for name in FOREIGN:
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_bytes(b"not ours")
    (output / "images" / RUN / "folder.parquet").mkdir()
    for name, arguments in {**READING, **WRITING, **LOOKING}.items():
        ended = ask(whole, output, arguments)
        assert ended.code == 0, (name, ended)
        assert expected.get(name) in (None, ended.out)
    assert f"{len(FOREIGN)} files that are not ours" in command("verify", output).out
    command("vacuum", output, "--older-than", "0")
    assert all((output / name).read_bytes() == b"not ours" for name in FOREIGN)


@pytest.mark.timeout(1800)
def test_verify_finds_every_flipped_bit(whole: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = whole.copy(tmp_path)
    store, chance = open_store(str(output)), random.Random(20261129)
    # But in the card, which people may edit.
    paths = sorted(path for path in output.rglob("*") if path.is_file() and path.name != CARD_NAME)
    sizes = [path.stat().st_size for path in paths]
    for _ in range(FLIPS):
        (path,) = chance.choices(paths, sizes)
        data = path.read_bytes()
        damaged = bytearray(data)
        place = chance.randrange(len(data))
        damaged[place] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        report, name = verify(store, RUN), str(path.relative_to(output))
        told = (*report.problems, *report.notes, *registered_problems(store))
        assert any(name in one for one in told), (name, place, told)
        assert report.ok == (name in (SUMMARY, REGISTERED))
        path.write_bytes(data)
    assert verify(store, RUN).ok
    with capsys.disabled():
        print(f"\n{FLIPS:,} of {FLIPS:,} flipped bits found in {len(paths)} objects of {sum(sizes):,} bytes")


@dataclass
class Failing:
    """A Watcher whose every access of one kind fails from a certain one on.

    Attributes:
        error: what is raised.
        of: names of accesses that fail, such as "read" or "delete"; all by default.
        begin: how many of them go well before.
    """

    error: Callable[[], Exception]
    of: tuple[str, ...] = ()
    begin: int = 0
    failed: int = 0

    def effect(self, name: str, do: Callable[[], Any]) -> Any:
        if self.of and name.partition(" ")[0] in self.of:
            self._fail()
        return do()

    def reading(self, name: str, do: Callable[[], Any]) -> Any:
        return self.effect(name, do)

    def _fail(self) -> None:
        self.failed += 1
        if self.failed > self.begin:
            raise self.error()


READINGS, WRITINGS = ("read", "find", "ls", "exists"), ("begin", "create", "write")
STORAGE_ERRORS: Mapping[str, tuple[tuple[str, ...], Callable[[], Exception]]] = {
    "reading is denied": (READINGS, lambda: PermissionError(13, "Permission denied")),
    "reading takes too long": (READINGS, FSTimeoutError),
    "the server is overloaded": (READINGS, lambda: OSError(5, "SlowDown")),
    "the disk is full": (WRITINGS, lambda: OSError(28, "No space left on device")),
    "writing is denied": (WRITINGS, lambda: PermissionError(13, "Permission denied")),
    "removing is denied": (("delete", "unlink"), lambda: PermissionError(13, "Permission denied")),
}
ERROR_GRID = [
    pytest.param(error, command_name, begin, id=f"{command_name}, {error}, {begin}")
    for error in STORAGE_ERRORS
    for command_name in (*READING, *LOOKING, *WRITING)
    for begin in (0, 1, 3, 8)
]


@pytest.mark.parametrize(("error", "command_name", "begin"), ERROR_GRID if LONG else ERROR_GRID[::15])
def test_no_command_ends_in_a_traceback_over_a_storage_error(
    error: str, command_name: str, begin: int, whole: Whole, tmp_path: Path
) -> None:
    output = whole.copy(tmp_path)
    # Something is left to label.
    next((output / f"images/{RUN}").iterdir()).unlink()
    of, make = STORAGE_ERRORS[error]
    arguments = {**READING, **LOOKING, **WRITING}[command_name]
    with watched(str(output), Failing(make, of, begin)):
        ended = ask(whole, output, arguments)
    assert ended.code in ((2,) if of == READINGS and begin == 0 else (0, 1, 2)), ended
    if ended.code == 2:
        assert ended.is_refusal, ended
    mended = ask(whole, output, ("run", "--no-prefect"))
    assert mended.code == 0, (ended, mended)
