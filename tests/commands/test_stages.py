"""The one-stage verbs: each works on the files of the run folder, edited by hand where a person likes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from chinchilla_lm.console import Console
from chinchilla_lm.files import sha256_of
from chinchilla_lm.models.batch import Batch
from chinchilla_lm.models.checkpoint import load
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.pipeline import recovery, stages
from chinchilla_lm.pipeline.recovery import Recovery
from chinchilla_lm.pipeline.stages import Stages
from chinchilla_lm.plan import CostTable, Plan
from chinchilla_lm.plan.links import Norm
from chinchilla_lm.recipe import make_recipe, read_yaml
from chinchilla_lm.score.measure import Measure
from chinchilla_lm.shorten.surgery import without
from chinchilla_lm.train.loop import FitResult, FitSettings, fit
from tests.commands.conftest import SHORTENING, TAGGING, leftovers


def edit(plan: Path, dropped: dict[str, str]) -> None:
    """Change choices in the file as a person would."""
    data = json.loads(plan.read_text())
    for row in data["choices"]:
        row.pop("norm", None)
        row["action"] = "drop" if row["link"] in dropped else "keep"
        if row["link"] in dropped:
            row["norm"] = dropped[row["link"]]
    plan.write_text(json.dumps(data, indent=1))


def test_the_stages_one_by_one_with_a_plan_edited_by_hand(tagger: Path, tags: Path, tmp_path: Path, chinchilla):
    out = tmp_path / "run"
    scored = chinchilla("score", tagger, *TAGGING, "--data", tags, *SHORTENING[4:], "-o", out, "--json")
    assert scored.status == 0, scored.err
    table = CostTable.load(out / "costs.json")
    assert scored.result["costs"] == json.loads((out / "costs.json").read_text())
    assert len(table.entries) == 9
    assert min(entry.high for entry in table.entries) > 0
    searched = chinchilla("search", "-o", out, "--speedup", 1.2, "--method", "race", "--json")
    assert searched.status == 0, searched.err
    assert searched.result["plan"] == json.loads((out / "plan.json").read_text())
    edit(out / "plan.json", {"1.mlp": "keep", "2.attn": "lose"})
    shortened = chinchilla("shorten", "-o", out, "--json")
    assert shortened.status == 0, shortened.err
    assert shortened.result["links"] == ["0.attn", "0.mlp", "1.attn", "2.mlp"]
    short, original = load(out / "shortened").model, load(tagger).model
    assert shortened.result["parameters"] == sum(parameter.numel() for parameter in short.parameters())
    ids = torch.arange(5, 20)[None]
    with torch.no_grad():
        wanted = without(original, {"1.mlp": "keep", "2.attn": "lose"}, share=True)(Batch(ids))
        assert torch.equal(short(Batch(ids)), wanted)
    recovered = chinchilla("recover", "-o", out)
    assert recovered.status == 0, recovered.err
    assert "shorten: unchanged, not run again" in recovered.out
    assert "recover: step 0, dev" in recovered.out
    assert load(out).model.link_names == ["0.attn", "0.mlp", "1.attn", "2.mlp"]
    assert leftovers(tmp_path) == []


def test_a_frontier_of_another_layout_is_searched_for_again(run_folder: Path, chinchilla):
    assert "search: unchanged, not run again" in chinchilla("search", "-o", run_folder).out
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "LAYOUT", stages.LAYOUT - 1)
        done = chinchilla("search", "-o", run_folder)
    assert (done.status, "search: unchanged" in done.out) == (0, False)


def test_a_stage_remembers_what_was_asked_and_a_flag_wins(run_folder: Path, chinchilla):
    before = (run_folder / "model" / "model.safetensors").stat().st_ino
    same = chinchilla("recover", "-o", run_folder)
    assert same.status == 0
    assert "recover: unchanged, not run again" in same.out
    assert (run_folder / "model" / "model.safetensors").stat().st_ino == before
    changed = chinchilla("recover", "-o", run_folder, "--recover-epochs", 1)
    assert changed.status == 0
    assert "recover: unchanged" not in changed.out
    assert (run_folder / "model" / "model.safetensors").stat().st_ino != before
    assert "epochs: 1" in (run_folder / "recipe.yaml").read_text()


def test_without_a_rate_the_width_of_the_model_decides(run_folder: Path, chinchilla, monkeypatch):
    """Four times 1e-4, as for every model of half the base's width or less; another rate is another training."""
    rates = []

    def noting(
        model: Transformer, batches: Any, loss: Any, settings: FitSettings, *rest: Any, **named: Any
    ) -> FitResult:
        rates.append(settings.learning_rate)
        return fit(model, batches, loss, settings, *rest, **named)

    monkeypatch.setattr(recovery, "fit", noting)
    recipe = run_folder / "recipe.yaml"
    asked = recipe.read_text()
    line = next(line for line in asked.splitlines() if line.startswith("  learning_rate: 0.003"))
    for rate in ("", "  learning_rate: 0.0001"):
        recipe.write_text(asked.replace(line, rate))
        assert chinchilla("recover", "-o", run_folder).status == 0
    assert rates == [4e-4, 1e-4]


def test_another_window_is_another_training(run_folder: Path, chinchilla):
    """The plan is the same, but what the model reads is not, nor what it remembers of it."""
    done = chinchilla("recover", "-o", run_folder, "--max-tokens", 9, "--recover-epochs", 1)
    assert done.status == 0
    assert "unchanged" not in done.out
    for name in ("shortened", "model"):
        meta = json.loads((run_folder / name / "chinchilla.json").read_text())
        assert meta["window"] == {"context": "sentence", "max_tokens": 9}


def test_a_new_target_takes_the_place_of_the_other(run_folder: Path, chinchilla):
    done = chinchilla("search", "-o", run_folder, "--latency", 10_000)
    assert done.status == 0, done.err
    assert Plan.load(run_folder / "plan.json").dropped == ()
    assert "speedup" not in (run_folder / "recipe.yaml").read_text()


@pytest.mark.parametrize(
    ("verb", "missing", "first"),
    [("search", "costs.json", "score"), ("shorten", "plan.json", "search"), ("recover", "plan.json", "search")],
)
def test_a_stage_without_the_one_before_names_it(run_folder: Path, chinchilla, verb: str, missing: str, first: str):
    (run_folder / missing).unlink()
    done = chinchilla(verb, "-o", run_folder, "--quiet")
    done.refused(f"{run_folder / missing} is missing; run chinchilla {first} -o {run_folder} first")


@pytest.mark.parametrize("verb", ["score", "search", "shorten", "recover"])
def test_a_stage_without_a_run_folder_is_one_line(tmp_path: Path, chinchilla, verb: str):
    chinchilla(verb, "-o", tmp_path / "new").refused("model is missing; pass MODEL")
    chinchilla(verb).refused("is missing")
    assert not (tmp_path / "new").exists()


def test_a_plan_for_another_model_is_refused(run_folder: Path, chinchilla):
    Plan.from_dropped(5, ["4.attn"]).save(run_folder / "plan.json")
    chinchilla("shorten", "-o", run_folder, "--quiet").refused("the plan has 5 blocks, the model 3; search again")


def test_a_lost_product_is_made_again(run_folder: Path, chinchilla):
    before = sha256_of(run_folder / "model" / "model.safetensors")
    shutil.rmtree(run_folder / "model")
    done = chinchilla("recover", "-o", run_folder)
    assert done.status == 0
    assert sha256_of(run_folder / "model" / "model.safetensors") == before


def test_what_was_measured_is_not_measured_again(run_folder: Path, chinchilla, monkeypatch: pytest.MonkeyPatch):
    before = CostTable.load(run_folder / "costs.json")
    (run_folder / "costs.json").unlink()
    monkeypatch.setattr(Measure, "_measured", lambda *_: pytest.fail("measured again"))
    assert chinchilla("score", "-o", run_folder, "--quiet").status == 0
    after = CostTable.load(run_folder / "costs.json")
    assert [entry.cost for entry in after.entries] == [entry.cost for entry in before.entries]


def test_a_race_that_was_stopped_does_not_train_a_finished_contender_again(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    real, trained = Recovery.train, list[str]()

    def train(self: Recovery, short: Transformer, label: str, **options: Any) -> None:
        trained.append(label)
        if trained == ["race: top", "race: refine"]:
            raise KeyboardInterrupt
        real(self, short, label, **options)

    monkeypatch.setattr(Recovery, "train", train)
    names = ("2.attn", "2.mlp")
    norms: dict[str, Norm] = dict.fromkeys(names, "lose")
    plans = [Plan.from_dropped(3, [name], norms, method) for name, method in zip(names, ("refine", "top"), strict=True)]
    recipe = make_recipe(read_yaml(run_folder / "recipe.yaml")).model_copy(update={"output": str(run_folder)})
    with pytest.raises(KeyboardInterrupt):
        Stages(recipe, Console(quiet=True)).planner._race(plans)
    winner = Stages(recipe, Console(quiet=True)).planner._race(plans)
    assert trained == ["race: top", "race: refine", "race: refine"]
    assert [run["method"] for run in winner.origin["race"]] == ["top", "refine"]
