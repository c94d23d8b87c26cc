"""``distill run``: bring stages up to date under a lock, show the progress, and end with a summary."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from distill.cli import display
from distill.cli.dated import dated
from distill.cli.open import load, workspace_of
from distill.cli.table import render
from distill.report.rows import contaminated
from distill.store import Store
from pipeline import runner
from pipeline.config import PipelineSpec
from pipeline.errors import InputError, PipelineError, Stopped
from pipeline.files import disk_is_full
from pipeline.lock import workspace_lock
from pipeline.runner import Done
from pipeline.stopping import Stopper, parse_duration


def run(*asked: Any) -> None:
    """Run the command. Under torchrun, rank 0 runs it and the other ranks take part in its training."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        _run(*asked)
        return
    from distill.training.launch import run_of_several

    with run_of_several() as first:
        if first:
            _run(*asked)


def _run(
    stages: Sequence[str], pipeline: Path, workspace: Path | None, overrides: Sequence[str], limit: int | None,
    force: Sequence[str], max_time: str | None, wait: bool, dry_run: bool, as_json: bool,
) -> None:  # fmt: skip
    began = time.monotonic()
    spec = load(pipeline, overrides, limit, workspace)
    named = [stage.name for stage in spec.closure(stages)]  # reports a misspelt stage before any work
    if missed := [name for name in force if name in spec.stages and name not in named]:
        raise InputError(f"--force {missed[0]}: is not among the stages to run: {', '.join(named)}")
    spec.closure(force)
    stopper = Stopper(parse_duration(max_time) if max_time else None)
    if dry_run:
        from distill.cli.plan import plan

        plan(stages, pipeline, workspace, overrides, limit, as_json, force)
        return
    space = workspace_of(spec)
    listener = display.choose(as_json, stopper)
    waiting = partial(listener.note, "waiting")
    command = shlex.join(["distill", *sys.argv[1:]])
    with (
        stopper.listening(),
        workspace_lock(spec.workspace, wait=wait, stopping=stopper, command=command, waiting=waiting),
    ):
        try:
            space.sweep()
            Store(spec.workspace, partial(listener.note, "store")).mend()
            done = runner.run(spec, space, listener, stopper, stages, force)
        except Stopped as stopped:
            raise Stopped(f"{stopped} ({stopper.reason})" if stopper.reason else str(stopped)) from None
        except PipelineError:
            raise
        except Exception as error:
            if disk_is_full(error):
                raise InputError(_disk_full_message(spec.workspace)) from None
            raise
        finally:
            listener.close()
    if as_json:
        found = {
            m.stage: {"fingerprint": m.fingerprint, "figures": m.figures, "seconds": m.seconds, "cached": cached}
            for m, cached in done
        }
        display.say(json.dumps({"event": "done", "seconds": round(time.monotonic() - began, 3), "stages": found}))
        return
    _summary(spec, done, time.monotonic() - began, log=isinstance(listener, display.PlainLines))


def _disk_full_message(workspace: Path) -> str:
    """The message for a full disk. Libraries do not say which one it is: that of the workspace, or if that has space,
    the one for temporary files, or a quota."""
    free = shutil.disk_usage(workspace).free / 1e6
    return (
        f"no space left on the disk, or in your quota (the disk of {workspace} has {free:,.0f} MB free); free some and "
        "run the same command again"
    )


def _summary(spec: PipelineSpec, done: Sequence[Done], seconds: float, log: bool) -> None:
    """Print each stage with its seconds, and each model with its scores. In a ``log`` the last line has a date."""
    stages = [
        {"stage": m.stage, "": "cached" if cached else "run", "seconds": f"{m.seconds:.1f}"} for m, cached in done
    ]
    display.say("")
    display.say(render(stages))
    scored = [manifest for manifest, _ in done if "subjects" in manifest.figures]
    for manifest in scored:
        display.say("")
        display.say(render(_scores(manifest.figures["subjects"])))
        of = f" of {manifest.stage}" if len(scored) > 1 else ""
        display.say(f"protocol {manifest.figures['protocol']}{of}: compare scores only within the same protocol")
    spent = sum(manifest.seconds for manifest, _ in done)
    now, all_told = display.duration(seconds), display.duration(spent)
    noun = "stage" if len(done) == 1 else "stages"
    ended = f"{len(done)} {noun} up to date in {spec.workspace} ({now} now, {all_told} in all)"
    display.say("")
    display.say(dated(ended) if log else ended)
    for manifest, _ in done:
        if manifest.identity.kind == "report":
            display.say(f"report: {spec.workspace / manifest.stage}.html")


def _scores(subjects: dict[str, Any]) -> list[dict[str, str]]:
    """The table of scores: each model's pass@1 with its interval. ``seen`` is the share of the problems that overlap
    with its training data. Samples that could not be judged are shown if there are any: the scores are without them."""
    rows, some_unjudged = [], any(s["unverifiable"] for s in subjects.values())
    for name, s in subjects.items():
        low, high = s["ci95"]
        rows.append(
            {
                "model": name,
                "pass@1": "n/a" if s["pass_at_1"] is None else f"{100 * s['pass_at_1']:.1f}%",
                "95% interval": f"{100 * low:.1f} to {100 * high:.1f}",
                "greedy": "" if s.get("greedy") is None else f"{100 * s['greedy']:.1f}%",
                "tokens/answer": f"{s['tokens_per_answer']:.1f}",
                "seen": contaminated(s),
                "problems": str(s["problems"]),
                "samples": str(s["samples"]),
                **({"unverifiable": str(s["unverifiable"])} if some_unjudged else {}),
            }
        )
    return rows
