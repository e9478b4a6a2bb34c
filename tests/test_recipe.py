"""One definition, two ways to write it, and one clear line for whatever is wrong."""

import argparse
import math
import shlex
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_lm.errors import InputError
from chinchilla_lm.recipe import (
    Recipe,
    add_flags,
    command_of,
    field_paths,
    flag_of,
    from_args,
    make_recipe,
    read_yaml,
    require_target,
)

LEAST = {"model": "m", "task": "ranking"}


def parser(*fields: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(allow_abbrev=False)
    add_flags(made, fields or tuple(Recipe.model_fields))
    return made


def parse(*words: str) -> Recipe:
    return from_args(parser().parse_args(words))


def test_every_field_is_documented():
    assert [path for path, field in field_paths() if not field.description] == []


def test_every_field_is_a_flag_and_a_key():
    """Each field's own default (or example), given as a flag and as YAML, makes the same recipe."""
    for path, field in field_paths():
        if path in ("model", "task"):
            continue
        value = (field.examples or [field.default])[0]
        value = "text" if value is None else value
        words = [str(one) for one in value] if isinstance(value, list) else [str(value)]
        nested: object = value
        for name in reversed(path.split(".")):
            nested = {name: nested}
        assert isinstance(nested, dict)
        assert parse("m", "--task", "ranking", flag_of(path), *words) == make_recipe(LEAST | nested), path


@pytest.mark.parametrize(("flags", "expected"), [([], (None, 5.0)), (["--speedup", "1.5"], (1.5, None))])
def test_a_target_takes_the_place_of_the_other_kind_below_it(
    tmp_path: Path, flags: list[str], expected: tuple[float | None, float | None]
):
    file = tmp_path / "r.yaml"
    file.write_text("latency_ms: 5\n")
    recipe = from_args(parser().parse_args(["--recipe", str(file), *flags]), LEAST | {"speedup": 2})
    assert (recipe.speedup, recipe.latency_ms) == expected


def test_the_command_of_a_recipe_asks_for_that_recipe():
    recipe = make_recipe(
        LEAST | {"speedup": 1.5, "data": "my data", "finetune": {"dropout": 0.1}, "recover": {"weights": {"hidden": 0}}}
    )
    words = shlex.split(command_of("compress", recipe))
    assert words[:2] == ["chinchilla", "compress"]
    assert parse(*words[2:]) == recipe
    assert "--finetune-dropout" not in command_of("compress", recipe, without=("finetune",))


def test_a_list_is_several_words_or_one_flag_several_times():
    together = parse("m", "--task", "ranking", "--finetune-teachers", "a", "b")
    apart = parse("m", "--task", "ranking", "--finetune-teachers", "a", "--finetune-teachers", "b")
    assert together.finetune.teachers == apart.finetune.teachers == ["a", "b"]


@pytest.mark.parametrize(
    ("teachers", "line"),
    [
        ([""], "finetune.teachers '' is empty; pass --finetune-teachers out/tagger/model"),
        ([3], "finetune.teachers 3 is not text; pass --finetune-teachers out/tagger/model"),
        ("one", "finetune.teachers one is not a list; pass --finetune-teachers out/tagger/model"),
        ([], "finetune.teachers [] is empty; pass --finetune-teachers out/tagger/model"),
    ],
)
def test_a_list_that_is_wrong_is_told_in_one_line(teachers: object, line: str):
    with pytest.raises(InputError) as refused:
        make_recipe(LEAST | {"finetune": {"teachers": teachers}})
    assert str(refused.value) == line


def test_flags_win_over_the_recipe_which_wins_over_the_base(tmp_path: Path):
    file = tmp_path / "r.yaml"
    file.write_text("model: from-file\nspeedup: 2\nrecover: {epochs: 7, weights: {kl: 0.5}}\n")
    base = {"task": "ranking", "model": "from-base", "margin": 3, "recover": {"epochs": 1, "temperature": 2}}
    flags = ["--recipe", str(file), "--speedup", "1.5", "--speedup", "1.7", "--recover-weights-hidden", "0.25"]
    recipe = from_args(parser().parse_args(flags), base)
    assert (recipe.model, recipe.task, recipe.speedup, recipe.margin) == ("from-file", "ranking", 1.7, 3.0)
    assert (recipe.recover.epochs, recipe.recover.temperature) == (7.0, 2.0)
    assert (recipe.recover.weights.kl, recipe.recover.weights.hidden) == (0.5, 0.25)


def test_output_and_latency_have_the_flags_of_the_design():
    recipe = parse("m", "--task", "ranking", "-o", "out", "--latency", "12.5")
    assert (recipe.output, recipe.latency_ms) == ("out", 12.5)


@given(
    speedup=st.none() | st.floats(1.0, 20, exclude_min=True),
    margin=st.floats(0, 50, exclude_min=True),
    seed=st.integers(0, 2**32 - 1),
    rate=st.floats(0, 1, exclude_min=True),
    text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
)
def test_save_and_load_return_the_same_recipe(tmp_path_factory, speedup, margin, seed, rate, text):
    recipe = make_recipe(
        {"model": text, "task": "ranking", "speedup": speedup, "margin": margin, "seed": seed}
        | {"finetune": {"learning_rate": rate}, "data": text}
    )
    path = tmp_path_factory.mktemp("recipe") / "r.yaml"
    recipe.save(path)
    assert make_recipe(read_yaml(path)) == recipe


def test_a_saved_recipe_holds_plain_keys(tmp_path: Path):
    make_recipe(LEAST | {"recover": {"epochs": 2}}).save(tmp_path / "r.yaml")
    saved = yaml.safe_load((tmp_path / "r.yaml").read_text())
    assert saved["recover"]["epochs"] == 2.0
    assert "speedup" not in saved


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"speedup": 0.5}, "speedup 0.5 is not greater than 1.0; pass --speedup 1.5"),
        ({"speedup": "1"}, "speedup 1 is not greater than 1.0; pass --speedup 1.5"),
        ({"speedup": 21}, "speedup 21 is greater than 20.0; pass --speedup 1.5"),
        ({"speedup": math.nan}, "speedup nan is not a finite number; pass --speedup 1.5"),
        ({"speedup": "fast"}, "speedup fast is not a number; pass --speedup 1.5"),
        ({"latency_ms": math.inf}, "latency_ms inf is not a finite number; pass --latency 20"),
        ({"latency_ms": 0}, "latency_ms 0 is not greater than 0.0; pass --latency 20"),
        ({"margin": 70}, "margin 70 is greater than 50.0; pass --margin 1.0"),
        ({"margin": 0}, "margin 0 is not greater than 0.0; pass --margin 1.0"),
        ({"batch": "1.5"}, "batch 1.5 is not a whole number; pass --batch 1"),
        ({"threads": 0}, "threads 0 is less than 1; pass --threads 4"),
        ({"seed": 2**32}, "seed 4294967296 is not less than 4294967296; pass --seed 0"),
        (
            {"method": "magic"},
            "method magic is not one of race, refine, greedy, dp, top, one-shot, cosine; pass --method race",
        ),
        ({"data": ""}, "data '' is empty; pass --data TEXT"),
        ({"model": 3}, "model 3 is not text; pass MODEL, a folder or a hub id"),
        ({"speedp": 2}, "speedp is not a field of a recipe; did you mean speedup?"),
        ({"recover": {"epoch": 2}}, "recover.epoch is not a field of a recipe; did you mean recover.epochs?"),
        ({"recover": {"epochs": -1}}, "recover.epochs -1 is less than 0.0; pass --recover-epochs 3.0"),
        (
            {"recover": {"weights": {"kl": "x\ny"}}},
            "recover.weights.kl x y is not a number; pass --recover-weights-kl 1.0",
        ),
        (
            {"recover": 3},
            "recover 3 is not a mapping of fields to values; see the fields of a recipe in chinchilla compress --help",
        ),
    ],
)
def test_a_wrong_value_is_one_line_of_field_value_rule_and_remedy(values: dict, line: str):
    with pytest.raises(InputError) as caught:
        make_recipe(LEAST | values)
    assert str(caught.value) == line


def test_what_is_missing_is_named():
    with pytest.raises(InputError, match=r"^model is missing; pass MODEL, a folder or a hub id$"):
        make_recipe({"task": "ranking"})
    with pytest.raises(InputError, match=r"^task is missing; pass --task language-modeling$"):
        parse("m")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("speedup: [1", r"is not valid YAML: .* at line 1; mend that line$"),
        ("a: 1\n b: 2", r"is not valid YAML: .* at line 2; mend that line$"),
        ("- a\n- b", "is not a mapping of fields to values"),
        ("", "is not a mapping of fields to values"),
        ("1: 2", "is not a mapping of fields to values"),
        ("model: !!python/object:os.system x", "is not valid YAML"),
        ("when: 2024-13-45", "is not valid YAML"),
        ("a: \x00", "is not valid YAML"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path: Path, text: str, message: str):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        make_recipe(read_yaml(tmp_path / "r.yaml"))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path: Path):
    with pytest.raises(InputError, match=r"^recipe .*none.yaml does not exist; check the path$"):
        parse("m", "--task", "ranking", "--recipe", str(tmp_path / "none.yaml"))


@pytest.mark.parametrize("targets", [{}, {"speedup": 2, "latency_ms": 5}])
def test_exactly_one_target(targets: dict):
    with pytest.raises(InputError, match=r"--speedup .*--latency"):
        require_target(make_recipe(LEAST | targets))
    require_target(make_recipe(LEAST | {"speedup": 2}))
    require_target(make_recipe(LEAST | {"latency_ms": 5}))


def test_a_verb_takes_only_the_fields_it_names(capsys):
    few = parser("model", "finetune", "recover.weights")
    assert from_args(few.parse_args(["m", "--finetune-epochs", "2"]), {"task": "ranking"}).finetune.epochs == 2.0
    with pytest.raises(SystemExit):
        few.parse_args(["m", "--recover-epochs", "2"])
    assert "--recover-epochs" in capsys.readouterr().err
    with pytest.raises(KeyError, match="speed"):
        add_flags(argparse.ArgumentParser(), ["speed"])


def test_help_shows_units_choices_and_defaults():
    text = " ".join(parser().format_help().split())
    assert "--latency MS time for one request in milliseconds" in text
    assert "{race,refine,greedy,dp,top,one-shot,cosine}" in text
    assert "percent of perplexity or of bits per byte" in text
    assert "at 3 nats a token (default 1.0)" in text
