"""The command line: what it says, what it exits with, and that a mistake leaves nothing behind."""

from __future__ import annotations

import os
import pty
import re
import shlex
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer

from actors.predictor.config import INCLUDED_MODELS
from flows.cli import app
from flows.config import load_config, parse_config
from flows.config_file import commented_toml
from flows.run import engine
from flows.run.observer import Silent
from tests.flows.conftest import Ended, MakeConfig
from tests.support.drivers import REPOSITORY, driver, listing
from tests.support.seaweed import S3Server

pytestmark = pytest.mark.timeout(120)

Cli = Callable[..., Ended]

QUIET = {"--quiet", "-q", "--verbose", "-v"}
OF_RUNS = {
    "--config", "-c", "--source", "--output", "--categories", "--task", "--phrase", "--question", "--caption",
    "--no-caption", "--prompts", "--model", "--replicas", "--gpus-per-replica", "--limit", "--run-id",
    "--incremental", "--same-collection", "--check", "--runner",
}  # fmt: skip
FLAGS = {
    "run": OF_RUNS | {"--prefect", "--no-prefect"},
    "plan": OF_RUNS | {"--json"},
    "init": OF_RUNS | {"--overwrite"},
    "serve": {"--config", "-c", "--cron", "--interval", "--timezone", "--name"},
    "retry": {
        "--reason", "--run-id", "--config", "-c", "--replicas", "--gpus-per-replica", "--runner", "--check",
        "--prefect", "--no-prefect",
    },
    "relabel": {
        "--where", "--images-where", "--config", "-c", "--categories", "--model", "--replicas", "--gpus-per-replica",
        "--runner", "--over-corrections", "--dry-run", "--check", "--prefect", "--no-prefect",
    },
    "status": {"--run-id", "--gpu-price", "--json"},
    "approve": {"--run-id"},
    "verify": {"--run-id", "--quick", "--json"},
    "vacuum": {"--run-id", "--older-than", "--dry-run", "--json"},
    "evaluate": {
        "--ground-truth", "--png-folder", "--run-id", "--count-unasked", "--where", "--score", "--strict", "--json",
        "--to", "--plots", "--overwrite", "--check",
    },
    "audit sample": {
        "--to", "--format", "--score", "--per-band", "--without", "--categories", "--task", "--images-where", "--seed",
        "--image-url", "--overwrite", "--check",
    },
    "audit result": {"--format", "--iou", "--json", "--calibration", "--overwrite"},
    "forget": {"--images-where", "--image-ids", "--dry-run", "--yes"},
    "query": {
        "--to", "--overwrite", "--format", "--columns", "--rows", "--image-id", "--drop-removed", "--check",
    },
    "report": {"--to", "--overwrite", "--drop-removed", "--check"},
    "export": {
        "--to", "--format", "--where", "--images-where", "--task", "--categories", "--split", "--empty", "--no-empty",
        "--copy-images", "--image-url", "--drop-removed", "--overwrite", "--polygons", "--check",
    },
    "compact": {"--json"},
    "publish": {"--delta", "--iceberg", "--json"},
    "diff": {
        "--other", "--where", "--kept-iou", "--json", "--to", "--with-kept", "--page", "--overwrite", "--check",
    },
    "import": {"--format", "--exported", "--reviewed", "--unchanged-iou", "--dry-run"},
    "train": {"--config", "-c", "--output", "--max-minutes", "--processes"},
    "fetch-model": {
        "--output", "--checkpoint", "--checkpoint-file", "--text-model", "--vision-model", "--mask-encoder", "--config",
        "--dtype", "--picture", "--categories", "--no-picture", "--dry-run",
    },
    "demo": {"--scenes", "--photos", "--prompts", "--output", "--prefect", "--no-prefect"},
}  # fmt: skip


def test_commands_and_flags_are_those_promised() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    below = {f"{name} {one}": command for name in commands for one, command in _below(commands[name]).items()}
    flags = {
        name: {
            flag
            for parameter in command.params
            for flag in (*parameter.opts, *parameter.secondary_opts)
            if flag.startswith("-")
        }
        for name, command in {**commands, **below}.items()
        if not _below(command)
    }
    assert flags == {name: own | QUIET for name, own in FLAGS.items()}


@pytest.mark.parametrize("name", FLAGS)
def test_the_help_of_a_command_ends_with_an_example_that_fits_it(name: str) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    first, _, second = name.partition(" ")
    command = commands[first].commands[second] if second else commands[first]
    program, *words = shlex.split(command.epilog.removeprefix("Example: "))
    assert program == "xsam-label"
    assert words[: len(name.split())] == name.split()
    assert command.make_context(name, words[len(name.split()) :]).params


def test_quiet_prints_warnings_and_problems_alone(cli: Cli, arguments: list[object], tmp_path: Path) -> None:
    ended = cli("run", *arguments, "--no-prefect", "--quiet")
    assert (ended.code, ended.out, ended.err) == (0, "", "")
    next((tmp_path / "output" / "images").glob("*/*")).unlink()
    ended = cli("verify", tmp_path / "output", "-q")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("problem: ")
    assert cli("verify", tmp_path / "output").out.count("problem: ") == ended.err.count("problem: ")


def test_verbose_shows_where_an_error_comes_from(cli: Cli, tmp_path: Path) -> None:
    quiet, verbose = (cli("status", tmp_path / "nowhere", *more) for more in ((), ("-v",)))
    assert quiet.code == verbose.code == 2
    assert "Traceback" not in quiet.err
    assert verbose.err.startswith("Traceback")
    assert verbose.err.endswith(quiet.err)


class TestInit:
    def test_the_file_holds_what_was_given_and_explains_the_rest(self, cli: Cli, tmp_path: Path) -> None:
        file = tmp_path / "new.toml"
        ended = cli("init", file, "--source", "photos", "--output", "labels", "--categories", 'cup, "bowl, glass"')
        assert (ended.code, ended.err) == (0, "")
        assert f"xsam-label plan --config {file}" in ended.out
        assert load_config(file) == parse_config(
            {"source": "photos", "output": "labels", "categories": ["cup", "bowl, glass"]}
        )
        assert "#images_per_shard =    # not set" in file.read_text()
        assert "# Names to segment in every image" in file.read_text()

    def test_what_is_commented_out_is_what_holds_without_it(self, tmp_path: Path) -> None:
        config = parse_config({"source": "photos", "output": "labels", "caption": True})
        text = re.sub(r"^#(?=[a-z_]+ = (?!   # not set))", "", commented_toml(config, "x.toml"), flags=re.MULTILINE)
        assert text.count("\nretries = ") == 1
        assert parse_config(tomllib.loads(text)) == config

    def test_values_survive_the_file(self) -> None:
        options = {"endpoint_url": "http://x", "config_kwargs": {"a b": 1, "c": [True, 0.5]}}
        values = {"source": {"uri": "p", "storage_options": options}, "output": "o", "phrases": ['"\\\n\x7fü😀']}
        config = parse_config(values)
        assert parse_config(tomllib.loads(commented_toml(config, "x.toml"))) == config

    def test_a_file_that_is_there_is_kept(self, cli: Cli, tmp_path: Path) -> None:
        file = tmp_path / "held.toml"
        file.write_text("mine")
        given = ["--source", "photos", "--output", "labels", "--categories", "cup"]
        refused(cli("init", file, *given), None, "held.toml", "exists already")
        assert file.read_text() == "mine"
        assert cli("init", file, *given, "--overwrite").code == 0
        assert load_config(file).categories == ("cup",)

    def test_without_a_terminal_what_is_missing_is_listed(self, cli: Cli, tmp_path: Path) -> None:
        refused(cli("init", tmp_path / "new.toml"), tmp_path / "new.toml", "source: missing", "output: missing")

    def test_a_terminal_is_asked_for_what_is_missing(self, tmp_path: Path) -> None:
        place, terminal = pty.openpty()
        file = tmp_path / "new.toml"
        script = Path(sys.executable).parent / "xsam-label"
        os.write(place, b"photos\nlabels\ncup, dog\n")
        command = [script, "init", file]
        asked = subprocess.run(command, stdin=terminal, capture_output=True, text=True, check=True, timeout=100)
        os.close(terminal)
        os.close(place)
        assert "Names of what to segment" in asked.stdout
        assert load_config(file) == parse_config({"source": "photos", "output": "labels", "categories": ["cup", "dog"]})


def _below(command: Any) -> dict[str, Any]:
    return getattr(command, "commands", {})


def test_before_a_command_come_the_version_and_completion() -> None:
    main = typer.main.get_command(app)
    flags = {flag for parameter in main.params for flag in parameter.opts if flag.startswith("-")}
    assert flags == {"--version", "--install-completion", "--show-completion"}


def test_the_version_is_that_of_the_package(cli: Cli) -> None:
    ended = cli("--version")
    assert (ended.code, ended.out, ended.err) == (0, f"xsam-label {version('xsam-label')}\n", "")


def test_help_names_the_included_models_and_says_which_runs_are_retried() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    helps = {(name, one.name): one.help for name, command in commands.items() for one in command.params}
    for command in ("run", "plan"):
        assert all(name in helps[command, "model"] for name in INCLUDED_MODELS)
    assert "`run`" not in helps["retry", "run_id"]
    assert "all" in helps["retry", "run_id"]


@pytest.mark.parametrize(("words", "completed"), [("ex", "export"), ("export --imag", "--image-url")])
def test_a_shell_completes_commands_and_options(words: str, completed: str) -> None:
    asked = {"_XSAM_LABEL_COMPLETE": "complete_bash", "COMP_WORDS": f"xsam-label {words}"}
    asked["COMP_CWORD"] = str(len(words.split()))
    script = Path(sys.executable).parent / "xsam-label"
    ended = subprocess.run([script], env=dict(os.environ) | asked, capture_output=True, text=True, check=True)
    assert completed in ended.stdout.split()


@pytest.mark.parametrize(("module", "more"), [("flows.cli", ["xsam_model"]), ("flows.commands.launch", [])])
def test_what_every_command_imports_is_light(module: str, more: list[str]) -> None:
    heavy = ["torch", "ray", "prefect", "transformers", "pandas", "duckdb", "jinja2", *more]
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


def test_help_names_the_commands() -> None:
    with driver("--help", env=dict(os.environ)) as help_text:
        code, out, _ = help_text.end()
    assert code == 0
    assert all(name.split()[0] in out for name in FLAGS)


def test_a_run_is_planned_without_torch(tmp_path: Path) -> None:
    arguments = ["plan", "--source", str(REPOSITORY / "examples/photos"), "--output", str(tmp_path), "--categories"]
    code = (
        f"import sys, flows.cli; sys.argv = ['xsam-label', *{[*arguments, 'cat, dog']}]\n"
        "try: flows.cli.main()\n"
        "finally: print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert re.search(r"images +16\b", ended.stdout)
    assert ended.stdout.splitlines()[-1] == "[]"


@pytest.fixture
def arguments(model: Path, photographs: Path, tmp_path: Path) -> list[object]:
    """What a correct run needs; flags but --categories count as given last."""
    return [
        "--source", photographs, "--output", tmp_path / "output", "--model", model, "--categories", "car, tree",
        "--runner", "in_process",
    ]  # fmt: skip


def refused(ended: Ended, output: Path | None, *words: str) -> None:
    """Check for one clear message, no traceback, a code of 2, and no trace of an output."""
    assert ended.code == 2, ended
    assert ended.err.startswith("error: ")
    assert "Traceback" not in ended.err + ended.out
    # What is started may be what fails.
    assert not ended.out or ended.out.startswith("starting ")
    missing = [word for word in words if word not in ended.err]
    assert not missing, ended.err
    assert output is None or not output.exists()


class TestMistakes:
    @pytest.mark.parametrize(
        ("words", "told"), [(["run", "--bogus"], "No such option"), (["status"], "Missing argument"), ([], "Usage")]
    )
    def test_arguments_that_do_not_fit_are_told_with_the_usage(self, cli: Cli, words: list[str], told: str) -> None:
        ended = cli(*words)
        assert (ended.code, "Traceback" in ended.err) == (2, False)
        assert told in ended.err + ended.out
        assert "Usage" in ended.err + ended.out

    def test_an_unknown_key_is_named(self, cli: Cli, arguments: list[object], tmp_path: Path) -> None:
        (tmp_path / "run.toml").write_text("[label]\nbatchsize = 4\n")
        ended = cli("run", "-c", tmp_path / "run.toml", *arguments)
        refused(ended, tmp_path / "output", "run.toml", "label.batchsize", "unknown key")

    def test_a_wrong_value_is_named_with_what_is_allowed(
        self, cli: Cli, arguments: list[object], tmp_path: Path
    ) -> None:
        ended = cli("run", *arguments, "--replicas", 0)
        refused(ended, tmp_path / "output", "replicas is 0; allowed: 1 or more")

    def test_missing_settings_are_all_listed(self, cli: Cli) -> None:
        refused(cli("run"), None, "source: missing", "output: missing")

    @pytest.mark.parametrize("categories", ["", " , "])
    def test_an_empty_list_of_categories(
        self, cli: Cli, arguments: list[object], tmp_path: Path, categories: str
    ) -> None:
        refused(cli("run", *arguments, "--categories", categories), tmp_path / "output", "categories")

    def test_toml_that_cannot_be_parsed_names_the_line(self, cli: Cli, arguments: list[object], tmp_path: Path) -> None:
        (tmp_path / "run.toml").write_text('source = "photos"\ncategories = car, tree\n')
        refused(cli("run", "-c", tmp_path / "run.toml", *arguments), tmp_path / "output", "run.toml", "line 2")

    def test_a_config_file_that_is_not_there(self, cli: Cli, tmp_path: Path) -> None:
        refused(cli("run", "-c", tmp_path / "no.toml"), None, "no.toml", "No such file")

    def test_a_source_without_images_says_what_was_looked_for(
        self, cli: Cli, arguments: list[object], tmp_path: Path
    ) -> None:
        (tmp_path / "empty").mkdir()
        (tmp_path / "empty" / "letter.md").touch()
        ended = cli("run", *arguments, "--source", tmp_path / "empty")
        refused(ended, tmp_path / "output", str(tmp_path / "empty"), "no images found", ".jpg", "1 other file")

    def test_a_source_that_does_not_exist(self, cli: Cli, arguments: list[object], tmp_path: Path) -> None:
        ended = cli("run", *arguments, "--source", tmp_path / "nowhere")
        refused(ended, tmp_path / "output", str(tmp_path / "nowhere"))

    def test_brackets_in_a_path_are_shown_as_they_are(self, cli: Cli, arguments: list[object], tmp_path: Path) -> None:
        ended = cli("run", *arguments, "--source", tmp_path / "[bold]x")
        refused(ended, tmp_path / "output", "[bold]x")

    @pytest.mark.parametrize(("make", "words"), [(False, "does not exist"), (True, "has no config.json")])
    def test_a_model_folder_that_holds_no_model(
        self, cli: Cli, arguments: list[object], tmp_path: Path, make: bool, words: str
    ) -> None:
        if make:
            (tmp_path / "model").mkdir()
        ended = cli("run", *arguments, "--model", tmp_path / "model")
        refused(ended, tmp_path / "output", str(tmp_path / "model"), words, *INCLUDED_MODELS)

    def test_a_model_folder_without_weights(
        self, cli: Cli, arguments: list[object], model: Path, tmp_path: Path
    ) -> None:
        broken = tmp_path / "model"
        broken.mkdir()
        for path in model.iterdir():
            if path.suffix != ".safetensors":
                (broken / path.name).write_bytes(path.read_bytes())
        ended = cli("run", *arguments, "--model", broken, "--no-prefect")
        assert ended.code == 2
        assert ended.err.count("\n") == 1
        assert str(broken) in ended.err

    def test_more_categories_than_the_models_text_holds_says_how_many_fit(
        self, cli: Cli, arguments: list[object], tmp_path: Path
    ) -> None:
        names = ",".join(f"category number {number}" for number in range(2000))
        started = time.monotonic()
        # One label of every pixel: all categories compete, so that they cannot be asked in several conversations.
        ended = cli("run", *arguments, "--categories", names, "--task", "ovseg_semantic")
        refused(ended, tmp_path / "output", "2002", "fit")
        assert time.monotonic() - started < 30

    def test_a_bucket_that_cannot_be_read(
        self, cli: Cli, arguments: list[object], s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        import s3fs

        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        s3fs.S3FileSystem.clear_instance_cache()
        ended = cli("run", *arguments, "--source", "s3://bkt/photos")
        refused(ended, tmp_path / "output", "s3://bkt/photos", "access denied")
        ended = cli("run", *arguments, "--output", "s3://bkt/table")
        refused(ended, None, "s3://bkt/table", "access denied")

    def test_a_bucket_that_does_not_exist(
        self, cli: Cli, arguments: list[object], s3: S3Server, tmp_path: Path
    ) -> None:
        ended = cli("run", *arguments, "--source", "s3://no-such-bucket/photos")
        refused(ended, tmp_path / "output", "s3://no-such-bucket")

    def test_a_prefect_server_that_does_not_answer(self, cli: Cli, arguments: list[object], tmp_path: Path) -> None:
        from prefect.settings import PREFECT_API_URL, temporary_settings

        with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
            ended = cli("run", *arguments)
        refused(ended, tmp_path / "output", "http://127.0.0.1:9/api", "does not answer", "--no-prefect")

    def test_a_prefect_home_that_cannot_be_written(self, cli: Cli, arguments: list[object], tmp_path: Path) -> None:
        from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

        (tmp_path / "file").touch()
        with temporary_settings({PREFECT_HOME: tmp_path / "file"}, restore_defaults={PREFECT_API_URL}):
            ended = cli("run", *arguments)
        refused(ended, tmp_path / "output", str(tmp_path / "file"), "PREFECT_HOME", "--no-prefect")

    def test_an_output_that_holds_another_configuration_names_the_fields(
        self, cli: Cli, arguments: list[object], make_config: MakeConfig, tmp_path: Path
    ) -> None:
        engine.run_directly(make_config(), Silent())
        before = listing(tmp_path / "output")
        for command in ("run", "plan"):
            at = arguments.index("--runner")
            ended = cli(command, *(arguments if command == "run" else arguments[:at]))
            refused(ended, None, "categories: planned", "traffic light", "model.max_masks_per_image: planned 10")
        assert listing(tmp_path / "output") == before

    def test_more_gpus_than_there_are(self, cli: Cli, ray: str, arguments: list[object], tmp_path: Path) -> None:
        ended = cli("run", *arguments, "--runner", "ray", "--gpus-per-replica", 2, "--replicas", 3)
        refused(ended, tmp_path / "output", "3 replicas", "2 GPUs", "0 GPUs")


def test_plan_shows_what_would_run_and_writes_nothing(cli: Cli, arguments: list[object], tmp_path: Path) -> None:
    ended = cli("plan", *arguments[: arguments.index("--runner")])
    assert ended.code == 0
    assert "10, " in ended.out
    assert "2 categories" in ended.out
    assert not (tmp_path / "output").exists()


@pytest.fixture
def table(make_config: MakeConfig, tmp_path: Path) -> Path:
    """A labeled table."""
    engine.run_directly(make_config(), Silent())
    return tmp_path / "output"


def test_status_counts_images_and_shards(cli: Cli, table: Path) -> None:
    ended = cli("status", table)
    assert ended.code == 0
    lines = {line.split()[0]: line.split()[1] for line in ended.out.splitlines() if len(line.split()) > 1}
    assert (lines["listed"], lines["shards"], lines["done"]) == ("10", "5", "100.0")


def test_status_of_an_unfinished_run_says_how_much_is_left(cli: Cli, table: Path) -> None:
    for path in sorted(table.glob("_runs/*/commits/*.json"))[3:]:
        path.unlink()
    ended = cli("status", table)
    assert "3 of 5 committed" in ended.out
    assert "problem" not in ended.out
    assert "60.0 %" in ended.out
    assert "left at that rate" in ended.out


def test_a_report_is_written_once_and_replaced_only_when_asked(cli: Cli, table: Path, tmp_path: Path) -> None:
    page, before = tmp_path / "page.html", listing(table)
    ended = cli("report", table, "--to", page)
    assert (ended.code, ended.err) == (0, "")
    assert page.read_text().count("<img ") > 10
    page.write_text("mine")
    ended = cli("report", table, "--to", page)
    assert (ended.code, page.read_text()) == (2, "mine")
    assert "exists already" in ended.err
    assert cli("report", table, "--to", page, "--overwrite").code == 0
    assert page.read_text() != "mine"
    assert cli("report", table, "--to", tmp_path / "new" / "page.html").code == 0
    ended = cli("report", table, "--to", tmp_path / "new", "--overwrite")
    assert ended.code == 2
    assert "new holds page.html, which is no part of such a result" in ended.err
    for more in ([], ["--overwrite"]):
        ended = cli("export", table, "--to", table, *more)
        refused(ended, None, f"{table} is an output of runs", "name another place")
        assert "--overwrite" not in ended.err
    assert listing(table) == before
    assert {path.name for path in tmp_path.iterdir()} <= {"page.html", "new", "output", "prefect"}


def test_a_folder_without_a_run_is_refused(cli: Cli, tmp_path: Path) -> None:
    for command in ("retry", "status", "verify", "vacuum", "report"):
        refused(cli(command, tmp_path / "nothing"), tmp_path / "nothing", "holds no run")


def test_a_retry_without_quarantined_images_says_so_and_writes_nothing(cli: Cli, table: Path) -> None:
    before = listing(table)
    ended = cli("retry", table, "--reason", "out_of_memory")
    assert (ended.code, ended.out) == (0, "no image is quarantined for out_of_memory\n")
    refused(
        cli("retry", table, "--reason", "oom"),
        table / "tmp",
        "error: --reason: no such reason: oom; allowed: ",
        "out_of_memory",
    )
    assert listing(table) == before


def test_verify_finds_a_whole_table_whole(cli: Cli, table: Path) -> None:
    for flags in ([], ["--quick"]):
        ended = cli("verify", table, *flags)
        assert ended.code == 0
        assert ended.out.endswith("whole\n")


@pytest.mark.parametrize("damage", ["flipped byte", "removed"])
def test_verify_names_a_damaged_file_and_exits_with_1(cli: Cli, table: Path, damage: str) -> None:
    victim = sorted(table.glob("annotations/*/*.parquet"))[1]
    if damage == "removed":
        victim.unlink()
    else:
        data = bytearray(victim.read_bytes())
        data[len(data) // 2] ^= 1
        victim.write_bytes(data)
    ended = cli("verify", table)
    assert ended.code == 1
    assert str(victim.relative_to(table)) in ended.out
    assert "not whole" in ended.out


def test_vacuum_removes_what_no_commit_names_and_nothing_else(cli: Cli, table: Path) -> None:
    before = listing(table)
    committed = sorted(table.glob("annotations/*/shard-00001-*.parquet"))[0]
    planted = committed.with_name("shard-00001-deadbeef-0.parquet")
    planted.write_bytes(committed.read_bytes())
    name = str(planted.relative_to(table))
    ended = cli("vacuum", table, "--dry-run")
    assert (ended.code, name in ended.out, planted.exists()) == (0, True, True)
    ended = cli("vacuum", table)
    assert (ended.code, name in ended.out) == (0, True)
    assert listing(table) == before


def test_toml_and_yaml_give_the_same_config(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(
        'source = "photos"\noutput = "table"\ncategories = ["car", "tree"]\n'
        '[model]\npath = "m"\nmin_score = 0.2\n[pool]\nreplicas = 3\nnum_gpus_per_replica = 0.5\n'
    )
    (tmp_path / "run.yaml").write_text(
        "source: photos\noutput: {uri: table}\ncategories: [car, tree]\n"
        "model: {path: m, min_score: 0.2}\npool: {replicas: 3, num_gpus_per_replica: 0.5}\n"
    )
    assert load_config(tmp_path / "run.toml") == load_config(tmp_path / "run.yaml")


def test_a_flag_outweighs_the_file(
    cli: Cli, arguments: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def note(config: Any, *_: object, **__: object) -> Any:
        seen.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr("flows.commands.launch.launch", note)
    (tmp_path / "run.toml").write_text('source = "elsewhere"\n[pool]\nreplicas = 2\nshards_in_flight_per_replica = 1\n')
    asked = ["--phrase", "a man, in red", "--phrase", "the dog", "--question", "Why, then?", "--caption"]
    ended = cli("run", "-c", tmp_path / "run.toml", *arguments, "--replicas", 5, "--task", "genseg", *asked)
    assert (ended.code, ended.out) == (130, "")
    assert ended.err == "interrupted; what is committed is kept, and the same command resumes the run\n"
    (config,) = seen
    assert config.source.uri == str(arguments[1])
    assert config.pool.replicas == 5
    assert config.pool.shards_in_flight_per_replica == 1
    assert (config.task, config.phrases, config.questions) == ("genseg", ("a man, in red", "the dog"), ("Why, then?",))
    assert config.caption


def test_an_error_that_nobody_foresaw_is_a_traceback_without_secrets(
    cli: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("https://me:canary@host/a.png?X-Amz-Signature=canary is gone")

    monkeypatch.setattr("flows.commands.query.open_database", fail)
    ended = cli("query", tmp_path, "FROM images")
    assert ended.code == 1
    assert ended.err.endswith("RuntimeError: https://host/a.png is gone\n")
    assert ended.err.startswith("Traceback")
