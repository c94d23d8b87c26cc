"""Curves in third-party loggers, read back with their libraries: one value per step, over any number of attempts."""

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
class Step:
    step: int
    total: int
    loss: float


def recorder(place: Path, *log_to: Logger) -> Recorder:
    context = StageContext("sft", "sft", "f" * 32, place, {}, place / "a", place / "w", FileHashes(place / "h"))
    return Recorder(Store(place), context, ("loss",), log_to)


def attempts(place: Path, name: Logger) -> None:
    """A run killed after step 4, whose last checkpoint is of step 2, and its resumption."""
    for steps in (range(1, 5), range(3, 7)):
        with recorder(place, name) as record:
            record.heldout(steps[0] - 1, {"heldout": 1 - steps[0]})  # before the first step, and again when it resumes
            for step in steps:
                record(Step(step, 6, 1 / step))
                if step % 2 == 0:
                    record.heldout(step, {"heldout": -step})


EXPECTED = [(step, pytest.approx(1 / step)) for step in range(1, 7)]


def test_tensorboard_curves_survive_a_kill(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (extra: tensorboard)")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    attempts(tmp_path, "tensorboard")
    (place,) = tmp_path.glob("logs/sft-*/tensorboard")
    found = EventAccumulator(str(place)).Reload()  # type: ignore[no-untyped-call]
    assert [(e.step, e.value) for e in found.Scalars("loss")] == EXPECTED
    assert [(e.step, e.value) for e in found.Scalars("heldout")] == [(step, -step) for step in (0, 2, 4, 6)]


def test_tensorboard_drops_a_step_that_a_kill_made_it_log_twice(tmp_path: Path) -> None:
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


def test_trackio_curves_survive_a_kill(tmp_path: Path) -> None:
    """In a separate process, because trackio reads on import where it keeps its runs."""
    pytest.importorskip("trackio", reason="trackio is not installed (extra: trackio)")
    code = (
        "import json, sys; from pathlib import Path; from test_logs import attempts\n"
        "from trackio.sqlite_storage import SQLiteStorage\n"
        "attempts(Path(sys.argv[1]), 'trackio')\n"
        f"rows = SQLiteStorage.get_logs('distill', 'sft-{'f' * 12}')\n"
        "print(json.dumps([(row['step'], row['loss']) for row in rows if 'loss' in row]))\n"
    )
    here = Path(__file__).parent
    where = {"TRACKIO_DIR": str(tmp_path / "trackio"), "PYTHONPATH": os.pathsep.join(map(str, (here, here.parent)))}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=os.environ | where, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert [tuple(row) for row in json.loads(done.stdout)] == EXPECTED  # trackio's own lines are not on stdout


def test_each_attempt_is_an_offline_wandb_run_of_the_same_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_progress_figures_are_rounded_to_four_digits(tmp_path: Path) -> None:
    shown: list[dict[str, float]] = []
    with recorder(tmp_path) as record:
        record._context.progress = lambda done, total, **figures: shown.append(figures)  # type: ignore[attr-defined]
        record(Step(1, 1, 0.000062347))
    assert shown == [{"loss": 6.235e-05}]


def test_nothing_is_imported_or_written_unless_asked_for(tmp_path: Path) -> None:
    with recorder(tmp_path) as record:
        record(Step(1, 1, 0.5))
    assert not (tmp_path / "logs").exists()
