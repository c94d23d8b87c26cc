"""Curves in other people's loggers, by their own libraries: told once a step, over any number of attempts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from distill.store import Store
from distill.training.logs import Logger, Logs
from distill.training.metrics import Recorder
from pipeline.errors import InputError
from pipeline.fingerprint import FileHashes
from pipeline.workspace import StageContext


@dataclass
class Told:
    step: int
    total: int
    loss: float


def recorder(place: Path, *log_to: Logger) -> Recorder:
    context = StageContext("sft", "sft", "f" * 32, place, {}, place / "a", place / "w", FileHashes(place / "h"))
    return Recorder(Store(place), context, ("loss",), log_to)


def attempts(place: Path, name: Logger) -> None:
    """Killed after step 4 where the last checkpoint was of step 2, and gone on."""
    for steps in (range(1, 5), range(3, 7)):
        with recorder(place, name) as told:
            for step in steps:
                told(Told(step, 6, 1 / step))
                if step % 2 == 0:  # measured when the rest has been told
                    told.log(step, {"heldout": step / 6})


EXPECTED = [(step, pytest.approx(1 / step)) for step in range(1, 7)]


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (extra: tensorboard)")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    attempts(tmp_path, "tensorboard")
    (place,) = tmp_path.glob("logs/sft-*/tensorboard")
    found = EventAccumulator(str(place)).Reload()  # type: ignore[no-untyped-call]
    assert [(e.step, e.value) for e in found.Scalars("loss")] == EXPECTED
    assert [(e.step, e.value) for e in found.Scalars("heldout")] == [(n, pytest.approx(n / 6)) for n in (2, 4, 6)]


def test_tensorboard_drops_a_step_that_a_kill_made_twice(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (extra: tensorboard)")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logs = Logs(["tensorboard"], tmp_path, "sft", "f" * 32)
    for step in (1, 2, 3):
        logs.write(step, {"loss": 9.0})
    (tmp_path / "tensorboard.step").write_text("2")  # it was killed before it could note the third
    again = Logs(["tensorboard"], tmp_path, "sft", "f" * 32)
    again.write(3, {"loss": 1.0})
    again.close()
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()  # type: ignore[no-untyped-call]
    assert [(e.step, e.value) for e in found.Scalars("loss")] == [(1, 9.0), (2, 9.0), (3, 1.0)]


def test_trackio(tmp_path: Path) -> None:
    """In a process of its own, for where trackio keeps its runs is read when it is imported."""
    pytest.importorskip("trackio", reason="trackio is not installed (extra: trackio)")
    code = (
        "import json, sys; from pathlib import Path; from test_logs import attempts\n"
        "from trackio.sqlite_storage import SQLiteStorage\n"
        "attempts(Path(sys.argv[1]), 'trackio')\n"
        f"rows = SQLiteStorage.get_logs('distill', 'sft-{'f' * 12}')\n"
        "print(json.dumps([[(row['step'], row[name]) for row in rows if name in row] for name in ('loss', 'heldout')]))\n"
    )
    here = Path(__file__).parent
    where = {"TRACKIO_DIR": str(tmp_path / "trackio"), "PYTHONPATH": os.pathsep.join(map(str, (here, here.parent)))}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=os.environ | where, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    losses, measured = ([tuple(row) for row in rows] for rows in json.loads(done.stdout.splitlines()[-1]))
    assert losses == EXPECTED and measured == [(n, pytest.approx(n / 6)) for n in (2, 4, 6)]


def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed (extra: wandb)")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    attempts(tmp_path, "wandb")
    assert len(list(tmp_path.glob(f"logs/sft-*/wandb/offline-run-*-{'f' * 12}/*.wandb"))) == 2


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb"])
def test_a_missing_library_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: Logger) -> None:
    for module in (name, "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"log_to: {name} is not installed .*distill-reasoning\[{name}\]") as error:
        recorder(tmp_path, name)
    assert "\n" not in str(error.value)


def test_small_rates_are_told_to_four_digits(tmp_path: Path) -> None:
    heard: list[dict[str, float]] = []
    with recorder(tmp_path) as told:
        told._context.progress = lambda done, total, **figures: heard.append(figures)  # type: ignore[attr-defined]
        told(Told(1, 1, 0.000062347))
    assert heard == [{"loss": 6.235e-05}]


def test_nothing_is_imported_or_written_unless_asked_for(tmp_path: Path) -> None:
    with recorder(tmp_path) as told:
        told(Told(1, 1, 0.5))
    assert not (tmp_path / "logs").exists()
