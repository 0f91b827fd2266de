"""`xsam-label audit`: draw a sample for a person to check, and print what it says of the whole output."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from rich.console import Console

from flows.commands.comparing.evaluate import MAX_CATEGORIES, figures_table
from flows.commands.console import facts_table, literal, print_json, show_lines
from pipelines.audit.calibration import calibration_table
from pipelines.audit.estimates import Share
from pipelines.audit.record import read_record
from pipelines.audit.result import AuditResult, CategoryResult, read_result
from pipelines.audit.sample import AuditChoice, Sample, write_sample
from pipelines.errors import SourceError
from pipelines.redaction import counted
from pipelines.storage.store import open_store
from pipelines.storage.targets import open_target, write_target


def run_audit_sample(
    output: str, target: str, format_name: str, choice: AuditChoice, console: Console, *, overwrite: bool = False
) -> Sample:
    """Draw the sample of an audit, and print what is in it.

    Args:
        output: path or URI of the output.
        target: path or URI of a new folder.
        format_name: one of pipelines.importing.imports.READERS.
        choice: what is audited.
        console: where to print.
        overwrite: whether to replace an earlier sample.

    Raises:
        SourceError, StorageError: as for ``write_sample``; nothing is written.
    """
    with console.status("drawing images"):
        sample = write_sample(open_store(output), target, format_name, choice, overwrite=overwrite)
    facts, record = sample.record.facts, sample.record
    bands = ["none", *(f"from {edge:g}" for edge in facts.edges)]
    table = figures_table(f"{facts.task}: images drawn, of those whose best mask is in the band", ("category", *bands))
    for name, strata in list(facts.strata.items())[:MAX_CATEGORIES]:
        table.add_row(literal(name), *(f"{one.drawn:,} of {one.images:,}" for one in strata))
    console.print(table)
    if (more := len(facts.strata) - MAX_CATEGORIES) > 0:
        console.print(f"  and {more:,} more categories, in audit.json")
    rows: list[tuple[str, object]] = [
        ("to be checked", f"{counted(record.images.num_rows, 'image')}, {counted(record.masks.num_rows, 'mask')}"),
        *(("note", note) for note in sample.export.notes),
        ("then", f"xsam-label audit result {target} EDITED-FILE"),
    ]
    console.print(facts_table(f"{format_name} in {literal(target)}", rows))
    return sample


def run_audit_result(
    sample: str,
    file: str,
    console: Console,
    *,
    iou: float = 0.5,
    format_name: str = "",
    as_json: bool = False,
    calibration: str | None = None,
    overwrite: bool = False,
) -> AuditResult:
    """Print what a checked sample says of its output, and save it.

    Args:
        sample: the folder of the sample.
        file: path or URI of the file that came back.
        console: where to print.
        iou, format_name: as for `read_result`.
        as_json: whether to print all figures as one JSON document instead.
        calibration: path or URI of a new file for the probabilities of scores.
        overwrite: whether these files may be replaced.

    Raises:
        SourceError, StorageError: sample or file cannot be read or do not fit each other, or a file cannot be written;
            in these cases nothing is written.
    """
    place = partial(open_target, overwrite=overwrite)
    suffixes = tuple(_TABLES)
    fitted = None if calibration is None else place(
        calibration, suffixes=suffixes, what=f"a calibration is written as {' or '.join(suffixes)}"
    )  # fmt: skip
    if fitted is not None and fitted.suffix not in _TABLES:
        raise SourceError(f"{fitted.uri}: name a file {' or '.join(suffixes)}")
    record = read_record(sample)
    with console.status("comparing what came back"):
        result = read_result(record, file, iou=iou, format_name=format_name)
        table = None if fitted is None else calibration_table(result.rated, record.facts.score)
    if fitted is not None and table is not None:
        write_target(fitted, _TABLES[fitted.suffix](table))
    if as_json:
        print_json(console, {"sample": sample, "file": file, "iou": iou, **result.to_dict()})
    else:
        _show_audit(result, console)
    return result


def _parquet_bytes(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _csv_bytes(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pa_csv.write_csv(table, buffer)
    return buffer.getvalue()


_TABLES = {".csv": _csv_bytes, ".parquet": _parquet_bytes}


def _show_audit(result: AuditResult, console: Console) -> None:
    facts = result.record.facts
    columns = ("category", "masks", "checked", "right", "missed", "precision", "95 % of", "recall", "95 % of ")
    title = f"{facts.task} from score {facts.score:g} on, {counted(result.num_images, 'checked image')}, in percent"
    table = figures_table(title, columns)
    rows: Sequence[CategoryResult] = (*result.categories[:MAX_CATEGORIES], result.whole)
    for one in rows:
        counts = (f"{number:,}" for number in (one.masks, one.checked, one.right, one.missed))
        shares = (cell for share in (one.precision, one.recall) for cell in _share_cells(share))
        table.add_row(literal(one.category_name) or "all", *counts, *shares)
    console.print(table)
    if (more := len(result.categories) - MAX_CATEGORIES) > 0:
        console.print(f"  and {more:,} more, which --json has")
    show_lines(console, "[yellow]note:[/]", result.notes)


def _share_cells(share: Share) -> tuple[str, str]:
    if share.estimate is None:
        return "-", "-"
    return f"{100 * share.estimate:.1f}", f"{100 * share.low:.1f} to {100 * share.high:.1f}"
