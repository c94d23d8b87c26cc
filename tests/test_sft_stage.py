"""The sft stage on a few traces of the calc family: what it reports, keeps, holds out, refuses and publishes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from typer.testing import CliRunner  # noqa: E402

from distill import catalog, pretraining  # noqa: E402
from distill.cli import traces  # noqa: E402
from distill.cli.main import app  # noqa: E402
from distill.families.calc import Calc  # noqa: E402
from distill.modelspec import Model  # noqa: E402
from distill.pretrained import load  # noqa: E402
from distill.stages.sft import SftSettings  # noqa: E402
from distill.stages.supervised import check_positions  # noqa: E402
from distill.store import Store  # noqa: E402
from distill.training.batching import from_tokens  # noqa: E402
from pipeline import config, runner  # noqa: E402
from pipeline.errors import InputError, PipelineError, Stopped  # noqa: E402
from pipeline.events import Listener  # noqa: E402
from pipeline.manifest import Manifest  # noqa: E402
from pipeline.workspace import Workspace  # noqa: E402

STUDENT = str(Path(pretraining.__file__).parent / "models" / "student-base")
DATA = """\
name: p
stages:
  import: {{file: {place}/t.jsonl, prompt: q, thinking: thought, answer: said, reference: a, teacher: author}}
  verify: {{traces: import}}
  select: {{verdicts: verify}}
"""
COMMON = "kind: sft, data: select, batch_size: 8, threads: 1"
LORA = "lora: {rank: 8, alpha: 16}"
STAGES = {
    "plain": f"student: {STUDENT}, {LORA}, epochs: 2, max_tokens: 160",
    "watched": f"student: {STUDENT}, {LORA}, learning_rate: 3e-3, epochs: 4, schedule: constant, "
    "heldout: {share: 0.3, every: 2, patience: 2, measure: pass_at_1}",
    "hurt": f"student: {STUDENT}, {LORA}, learning_rate: 3, heldout: {{share: 0.3, every: 1, patience: 1}}, stop_test: null",
    "normed": f"student: {STUDENT}, {LORA}, epochs: 2, max_tokens: 160, norm_learning_rate: 5e-2",
    "whole": f"student: {STUDENT}, lora: null, learning_rate: 1e-3, gradient_checkpointing: true, export_precision: bf16",
}


class RecordingListener(Listener):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.steps: list[int] = []

    def note(self, stage: str, text: str) -> None:
        self.notes.append(f"{stage}: {text}")

    def progress(self, stage: str, done: int, total: int | None, figures: Any) -> None:
        if "loss" in figures:
            self.steps.append(done)


def worked(count: int) -> Iterator[dict[str, str]]:
    """Two traces of each problem; those of the first are needlessly long."""
    family = Calc()
    for index in range(count):
        problem = family.generate(0, index, "train")
        thinking, answer = family.solve(problem)
        for extra in ("", "\n" + thinking.splitlines()[-1]):
            thought = thinking + extra + ("\n" + thinking) * (4 if index == 0 else 0)
            yield {"q": problem.prompt, "thought": thought, "said": answer, "a": problem.reference}


def write(place: Path, stages: dict[str, str]) -> Path:
    text = DATA.format(place=place) + "".join(f"  {name}: {{{COMMON}, {how}}}\n" for name, how in stages.items())
    (place / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in worked(20)))
    (place / "p.yaml").write_text(text)
    return place / "p.yaml"


def run(
    yaml: Path, listener: Listener, overrides: tuple[str, ...] = (), stopping: Callable[[], bool] = lambda: False
) -> dict[str, Manifest]:  # fmt: skip
    workspace = Workspace(yaml.parent / "run")
    spec = config.load(yaml, catalog.stage, workspace=workspace.path, overrides=list(overrides))
    return {done.manifest.stage: done.manifest for done in runner.run(spec, workspace, listener, stopping)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Manifest], list[str], Workspace]:
    yaml, listener = write(tmp_path_factory.mktemp("sft"), STAGES), RecordingListener()
    manifests = run(yaml, listener)
    return manifests, listener.notes, Workspace(yaml.parent / "run")


def test_overlong_traces_are_dropped_and_their_share_is_reported(made: Any) -> None:
    manifests, notes, _ = made
    figures = manifests["plain"].figures
    assert (figures["examples"], figures["dropped"], figures["dropped_share"]) == (38, 2, 0.05)
    (reported,) = [note for note in notes if note.startswith("plain: dropped")]
    assert "dropped 2 of 40 examples (5.0%; the first is trace " in reported and reported.endswith("raise max_tokens")


def test_the_learning_rate_comes_from_the_hidden_size_and_is_reported(made: Any) -> None:
    manifests, notes, workspace = made
    assert manifests["plain"].figures["learning_rate"] == 0.00062  # 5e-4 x (2000 / 128)^0.0775
    assert "plain: learning_rate 0.00062 for LoRA, from the model's hidden size of 128" in notes
    assert "| `learning_rate` | 0.00062 (from the model's hidden size) |" in card(manifests["plain"], workspace)
    assert not any("watched: learning_rate" in note for note in notes)
    assert "| `learning_rate` | 0.003 |" in card(manifests["watched"], workspace)


def test_the_final_norm_is_trained_only_with_a_learning_rate_of_its_own(made: Any) -> None:
    manifests, _, workspace = made
    norms = {
        name: load(Model(str(workspace.path / name / "model"), ""))[0].model.norm.weight for name in ("plain", "normed")
    }
    start = load(Model(STUDENT, ""))[0].model.norm.weight
    assert torch.equal(norms["plain"], start) and (norms["normed"] - start).abs().max() > 0.05
    assert manifests["normed"].figures["loss"] < manifests["plain"].figures["loss"]
    assert "norm_learning_rate" not in manifests["plain"].identity.settings  # so earlier results stay cached


def card(manifest: Manifest, workspace: Workspace) -> str:
    return (workspace.path / str(manifest.artifact) / "model/README.md").read_text()


def test_every_trace_s_loss_in_every_epoch_is_stored(made: Any, capsys: pytest.CaptureFixture[str]) -> None:
    manifests, _, workspace = made
    store, plain = Store(workspace.path), manifests["plain"]
    rows = store.rows("SELECT trace_key, epoch, loss FROM trace_losses WHERE run = ?", [plain.fingerprint])
    assert len(rows) == 2 * 38 and {row["epoch"] for row in rows} == {1, 2}
    (mean,) = store.rows("SELECT value FROM metrics WHERE run = ? AND name = 'loss' AND step = 1", [plain.fingerprint])
    assert min(row["loss"] for row in rows) < mean["value"] < max(row["loss"] for row in rows)
    (lesson,) = store.rows("SELECT * FROM lessons WHERE run = ? ORDER BY learned DESC LIMIT 1", [plain.fingerprint])
    assert lesson["epochs"] == 2 and lesson["learned"] == lesson["first_loss"] - lesson["last_loss"] > 0
    traces.show(lesson["trace_key"], Path("unused"), workspace.path, False)
    shown = capsys.readouterr().out
    assert (
        f"loss {plain.fingerprint[:12]}" in shown and f"{lesson['first_loss']:.4f}, {lesson['last_loss']:.4f}" in shown
    )


def test_the_queries_in_the_documentation_work(made: Any) -> None:
    page = (Path(__file__).parents[1] / "docs/store.md").read_text()
    least, mislabelled, _ = (part.partition("```")[0] for part in page.split("```sql\n")[1:])
    store = Store(made[2].path)
    found = store.rows(least)
    assert len(found) == 10 and found[0]["first_loss"] == min(row["first_loss"] for row in store.rows("FROM lessons"))
    assert all(row["last_loss"] > 0 for row in store.rows(mislabelled))


def test_whole_problems_are_held_out_and_the_best_weights_are_kept(made: Any) -> None:
    manifests, notes, workspace = made
    store, figures, run = Store(workspace.path), manifests["watched"].figures, manifests["watched"].fingerprint
    of = {row["trace_key"]: row["prompt_key"] for row in store.rows("SELECT trace_key, prompt_key FROM traces")}
    taught = {row["trace_key"] for row in store.rows("SELECT trace_key FROM trace_losses WHERE run = ?", [run])}
    assert len(taught) == figures["examples"] == 28 and figures["heldout"] == 12
    assert not {of[key] for key in taught} & {of[key] for key in of.keys() - taught}
    curves = "SELECT step, value FROM metrics WHERE run = ? AND name = ? ORDER BY step"
    solved = {row["step"]: row["value"] for row in store.rows(curves, [run, "heldout_pass_at_1"])}
    assert solved.keys() == {row["step"] for row in store.rows(curves, [run, "heldout_loss"])}
    assert solved[figures["best_step"]] == max(solved.values()) and figures["steps"] == max(solved)
    assert figures["steps"] in (figures["best_step"] + 4, 16)  # two measurements without a better one, or the end
    assert figures["steps"] < 16
    assert f"watched: stopped early, after step {figures['steps']} of 16: " in "\n".join(notes)


def test_the_figures_of_a_watched_run_are_those_of_the_kept_step(made: Any) -> None:
    manifests, _, workspace = made
    rows = "SELECT name, value FROM metrics WHERE run = ? AND step = ? AND name IN ('loss', 'heldout_loss', 'heldout_pass_at_1')"
    for name, many in (("watched", 3), ("hurt", 1)):
        run, figures = manifests[name].fingerprint, manifests[name].figures
        kept = {row["name"]: row["value"] for row in Store(workspace.path).rows(rows, [run, figures["best_step"]])}
        assert len(kept) == many and kept.items() <= figures.items() and ("loss" in figures) == (many == 3)
    assert manifests["watched"].figures["best_step"] < manifests["watched"].figures["steps"]


def test_a_student_that_only_got_worse_keeps_its_initial_weights(made: Any) -> None:
    manifests, notes, workspace = made
    assert (manifests["hurt"].figures["best_step"], manifests["hurt"].figures["steps"]) == (0, 1)
    found = [note for note in notes if note.startswith("hurt: ") and "nothing was learned: " in note]
    assert len(found) == 1 and "lower learning_rate" in found[0]
    start, end = (load(Model(place, ""))[0] for place in (STUDENT, str(workspace.path / "hurt/model")))
    assert all(map(torch.equal, start.state_dict().values(), end.state_dict().values()))


def test_a_stopped_and_resumed_watched_run_ends_with_the_same_student(made: Any, tmp_path: Path) -> None:
    """Stopped while training and while sampling for pass@1."""
    yaml, stops = write(tmp_path, {"watched": STAGES["watched"]}), 0
    for patience in (3, 12, 10**9):
        listener, asked = RecordingListener(), count()

        def stopping(listener: RecordingListener = listener, asked: Any = asked, patience: int = patience) -> bool:
            return bool(listener.steps) and next(asked) > patience

        try:
            manifests = run(yaml, listener, stopping=stopping)
        except Stopped:
            stops += 1
    assert stops == 2 and manifests["watched"].figures == made[0]["watched"].figures
    assert manifests["watched"].digest == made[0]["watched"].digest


def test_a_student_is_written_in_the_precision_asked_for(made: Any) -> None:
    from safetensors import safe_open

    manifests, _, workspace = made
    for name, dtype in (("plain", torch.float32), ("whole", torch.bfloat16)):
        directory = workspace.path / str(manifests[name].artifact)
        with safe_open(directory / "model/model.safetensors", "pt") as file:
            assert file.get_tensor("model.norm.weight").dtype == dtype
        assert (directory / "adapter").exists() == (name == "plain")


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    """A student with random weights, which never emits the end token."""
    _, tokenizer = load(Model(STUDENT, ""))
    shape = {"hidden": 32, "layers": 1, "heads": 2, "kv_heads": 1, "intermediate": 32}
    pretraining.network_of(tokenizer, shape, 0).save_pretrained(tmp_path / "random")
    tokenizer.save_pretrained(tmp_path / "random")
    return tmp_path / "random"


def test_a_student_that_never_ends_is_not_published_but_kept(endless: Path, tmp_path: Path) -> None:
    yaml = write(tmp_path, {"sft": f"student: {endless}, {LORA}, epochs: 1"})
    message = (
        r'does not end \d+ of 20 answers .* within \d+ tokens, .* lower stop_test .* `distill ask "..." --model (.*)`'
    )
    with pytest.raises(PipelineError, match=message) as refused:
        run(yaml, RecordingListener())
    left = re.search(message, str(refused.value))
    assert left and not (tmp_path / "w/sft").exists()
    asked = CliRunner().invoke(app, ["ask", "2 + 3", "--model", left[1], "--max-tokens", "5", "--json"])
    assert asked.exit_code == 0 and json.loads(asked.stdout)["finish"] == "length"
    listener = RecordingListener()
    manifests = run(yaml, listener, ("sft.stop_test=null",))
    assert listener.steps == [] and manifests["sft"].artifact  # nothing is trained again
    assert not Path(left[1]).exists()


def test_impossible_trainings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="quantize: 4-bit weights cannot be trained themselves"):
        SftSettings(data="s", student=STUDENT, lora=None, quantize="nf4")
    with pytest.raises(InputError, match=r"all 40 examples are longer than 10 tokens \(the shortest has \d+\)"):
        run(write(tmp_path, {"sft": f"student: {STUDENT}, max_tokens: 10"}), RecordingListener())
    rows = (tmp_path / "t.jsonl").read_text().splitlines()[2:4]
    yaml = write(tmp_path, {"sft": f"student: {STUDENT}, heldout: {{share: 0.5}}"})
    (tmp_path / "t.jsonl").write_text("\n".join(rows))
    with pytest.raises(InputError, match="heldout: all examples answer one problem"):
        run(yaml, RecordingListener())
    with pytest.raises(InputError, match="stage sft: select kept no trace to train on"):
        run(yaml, RecordingListener(), ("select.min_tokens=100000",))


def test_unverifiable_held_out_answers_are_refused_as_a_measure(tmp_path: Path) -> None:
    """Nothing to judge is no pass@1: read as 0, it would end training early with the initial weights."""
    yaml = write(tmp_path, {"sft": f"student: {STUDENT}, {LORA}, heldout: {{share: 0.5, measure: pass_at_1}}"})
    rows = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()[2:8]]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row | {"a": ""}) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"none of \d+ held-out answers can be judged \(.*use `measure: loss`"):
        run(yaml, RecordingListener(), ("select.keep=all", "import.reference=null"))


def test_a_trace_longer_than_the_students_positions_is_refused() -> None:
    network, _ = load(Model(STUDENT, ""))
    longest = network.config.max_position_embeddings
    check_positions("sft", network, [from_tokens("a", [5], [5] * (longest - 1))])
    with pytest.raises(InputError, match=f"trace b has {longest + 1} tokens, .* only {longest} positions .* lower"):
        check_positions("sft", network, [from_tokens("a", [5], [5]), from_tokens("b", [5], [5] * longest)])


@pytest.mark.parametrize(
    ("max_tokens", "remedy"), [(40, "raise max_tokens"), (4096, "this student has only 4096 positions")]
)
def test_the_advice_never_exceeds_the_student_s_positions(max_tokens: int, remedy: str, tmp_path: Path) -> None:
    yaml = write(tmp_path, {"sft": f"student: {STUDENT}, {LORA}, max_tokens: {max_tokens}"})
    row = json.loads((tmp_path / "t.jsonl").read_text().splitlines()[0])
    long = row | {"thought": row["thought"] + "\n7" * (2 * max_tokens)}
    (tmp_path / "t.jsonl").write_text(json.dumps(long) + "\n")
    with pytest.raises(InputError, match=rf"all 1 examples are longer than {max_tokens} tokens .*; {remedy}$"):
        run(yaml, RecordingListener())
