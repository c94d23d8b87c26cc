"""``distill verify``: judge a file of answers. Rows go to stdout or --output, the summary to stderr.

The file is read twice: once to check and count its rows, once to judge them. If the verifier fails on every answer, the
exit code is 1 after all lines are written. With --output, the lines first go to a temporary file beside it, whose name
is made from everything that they depend on; it is renamed once complete. After a stop or a kill, the same command
continues after the last complete line.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.answers import AnswerColumns, Tally, check_rows, judge_rows
from distill.cli.display import Rate, duration
from distill.cli.lines import Output, Rows, Stdout
from distill.cli.open import aside
from distill.cli.traces import printable
from distill.sources import tables
from distill.types import Failure, Outcome
from distill.verifiers import VerifierPool, build
from distill.verifiers.asking import holds_opened
from distill.verifiers.compose import Spec
from pipeline.document import parse_value
from pipeline.errors import InputError, PipelineError, Stopped
from pipeline.fingerprint import FileHashes, content_hash
from pipeline.stopping import Stopper

if TYPE_CHECKING:
    from rich.console import Console

PLAIN_SECONDS = 10.0
NAMES = {"timeout": "timeouts", "memory": "out of memory", "crash": "crashes", "error": "errors", "input": "bad rows"}


def verify(
    file: Path, verifier: str, columns: AnswerColumns, output: Path | None, workers: int | None, limit: int | None,
    on_bad_row: str, as_json: bool,
) -> None:  # fmt: skip
    spec = spec_of(verifier)
    built = build(spec)
    if on_bad_row not in ("stop", "skip"):
        raise InputError(f"--on-bad-row {on_bad_row}: expected stop or skip")
    if output is not None and output.resolve() == file.resolve():
        raise InputError(f"--output {output}: is the file to be judged; name another")
    if columns.prompt is None and holds_opened(built):
        raise InputError(f"verifier {built.name}: needs the problem too; name its column with --prompt-key")
    began = time.monotonic()
    total = _count(file, limit, columns, skip=on_bad_row == "skip")
    tally = Tally()
    stopper = Stopper()
    with stopper.listening(), _rows(output, file, [spec, built.version, asdict(columns), limit, on_bad_row]) as rows:
        for line in rows.kept():
            tally.add(line["verdict"], line["evidence"].get("failure"), line["reason"])
        kept = tally.rows
        with VerifierPool(workers=workers, note=aside) as pool, _progress(total, kept, as_json, output) as progress:
            left = islice(tables.read(file), kept, limit)
            for judged in judge_rows(left, columns, spec, pool, stopper, kept + 1):
                rows.write(judged.line())
                tally.add(judged.verdict.outcome, judged.verdict.failure, judged.verdict.reason)
                progress(tally)
        if stopper.reason and tally.rows < total:
            again = "; run the same command again to go on" if output else ""
            raise Stopped(f"stopped cleanly after {tally.rows:,} of {total:,} rows ({stopper.reason}){again}")
        rows.complete()
    _summary(
        {
            "file": str(file), "output": str(output) if output else None, "rows": tally.rows, "kept": kept,
            "verifier": built.name, "version": built.version, **{outcome: tally[outcome] for outcome in Outcome},
            "shares": {outcome: round(tally[outcome] / max(tally.rows, 1), 4) for outcome in Outcome},
            "abstained": tally.abstained, **{key.replace(" ", "_"): tally[failure] for failure, key in NAMES.items()},
            "unverifiable_reasons": dict(tally.reasons.most_common(3)),
            "restarts": pool.restarts, "seconds": round(time.monotonic() - began, 3),
        },
        as_json,
    )  # fmt: skip
    _refuse_if_all_failed(tally, built.name)


def spec_of(text: str) -> Spec:
    """Parse a verifier: a name, a ``module:attribute``, or a spec in YAML or JSON."""
    spec: Spec = parse_value(text) if text.lstrip().startswith("{") else text
    return spec


def _count(file: Path, limit: int | None, columns: AnswerColumns, skip: bool) -> int:
    if (total := check_rows(islice(tables.read(file), limit), columns, skip)) == 0:
        raise InputError(f"{file}: has no rows")
    return total


def _refuse_if_all_failed(tally: Tally, name: str) -> None:
    """Raise `PipelineError` if the verifier failed on every answer, so that the exit code is not 0."""
    asked = tally.rows - tally[Failure.INPUT]
    failed = sum(tally[failure] for failure in Failure) - tally[Failure.INPUT]
    if asked and failed == asked:
        why = next(reason for failure, reason in tally.failures.items() if failure != Failure.INPUT)
        raise PipelineError(f"verifier {name}: failed on every answer ({asked:,}) and judged none; the first: {why}")


def _rows(output: Path | None, file: Path, depends_on: list[Any]) -> AbstractContextManager[Rows]:
    if output is None:
        return Stdout.open()
    return Output.open(output, content_hash([FileHashes().of(file), *depends_on]))


@contextmanager
def _progress(total: int, kept: int, as_json: bool, output: Path | None) -> Iterator[Callable[[Tally], None]]:
    """Show a bar on a terminal (unless the rows themselves go there), and an occasional line elsewhere."""
    if as_json or (output is None and sys.stdout.isatty()):
        yield lambda tally: None
    elif sys.stderr.isatty():
        with _bar(total, kept) as show:
            yield show
    else:
        rate, printed_at = Rate(), time.monotonic()
        rate.left(kept, total)

        def say(tally: Tally) -> None:
            nonlocal printed_at
            if time.monotonic() - printed_at >= PLAIN_SECONDS:
                printed_at, left = time.monotonic(), rate.left(tally.rows, total)
                eta = f", {duration(left)} left" if left is not None else ""
                print(f"{tally.rows:,}/{total:,} rows{eta}: {_counts(tally)}", file=sys.stderr, flush=True)

        yield say


@contextmanager
def _bar(total: int, kept: int, console: Console | None = None) -> Iterator[Callable[[Tally], None]]:
    from rich import console as rich_console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"),
        console=console or rich_console.Console(stderr=True), transient=True, redirect_stdout=False,
    )  # fmt: skip
    with bar:
        task = bar.add_task("", total=total, completed=kept)
        yield lambda tally: bar.update(task, completed=tally.rows, description=_shares(tally))


def _shares(tally: Mapping[str, int]) -> str:
    """The shares in short form, to leave space in 80 columns for the count and the time left."""
    total = max(sum(tally[outcome] for outcome in Outcome), 1)
    shares = {"right": Outcome.CORRECT, "wrong": Outcome.INCORRECT, "none": Outcome.UNVERIFIABLE}
    return " ".join(f"{name} {100 * tally[outcome] / total:.0f}%" for name, outcome in shares.items())


def _counts(tally: Mapping[str, int]) -> str:
    total = max(sum(tally[outcome] for outcome in Outcome), 1)
    return ", ".join(f"{outcome} {tally[outcome]:,} ({100 * tally[outcome] / total:.1f}%)" for outcome in Outcome)


def _summary(found: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(found), file=sys.stderr)
        return
    kept = f" ({found['kept']:,} of them in earlier attempts)" if found["kept"] else ""
    print(f"{found['verifier']} {found['version']}: {found['rows']:,} rows in {duration(found['seconds'])}{kept}\n"
          f"{_counts(found)}", file=sys.stderr)  # fmt: skip
    if found[Outcome.UNVERIFIABLE]:
        why = {"abstained": found["abstained"]} | {name: found[name.replace(" ", "_")] for name in NAMES.values()}
        print(f"unverifiable: {', '.join(f'{name} {n:,}' for name, n in why.items() if n)}; "
              f"worker restarts {found['restarts']}", file=sys.stderr)  # fmt: skip
        for reason, count in found["unverifiable_reasons"].items():
            print(f"  {count:,} x {printable(reason)}", file=sys.stderr)
    if found["output"]:
        print(f"wrote {found['output']}", file=sys.stderr)
    sys.stderr.flush()
