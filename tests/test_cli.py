"""Every argument of the command line reaches what it is said to set, and no heavy library is loaded to be refused."""

from pathlib import Path

import pytest

from pfberxit.cli import main

COMPARE = [
    "compare", "--systems", "pabee", "deebert", "--tasks", "mrpc", "here:mixatis", "--dataset", "glue", "--backbone",
    "encoder", "--seeds", "4", "5", "--rows", "6", "--epochs", "1.5", "--batch-size", "8", "--no-dropout", "--saved",
    "0.3", "--output", "out",
]  # fmt: skip


def called(monkeypatch, place: str, arguments: list[str]) -> tuple[tuple, dict]:
    """What a command's function is called with."""
    seen = []
    monkeypatch.setattr(place, lambda *values, **named: seen.append((values, named)))
    main(arguments)
    (call,) = seen
    return call


def test_compare_is_told_all_that_was_asked(monkeypatch):
    values, _ = called(monkeypatch, "modeling_pfberxit.studies.compare.compare", COMPARE)
    systems, tasks, backbone, seeds, budget, goals, output, _ = values
    assert (systems, tasks) == (["pabee", "deebert"], [("glue", "mrpc"), ("here", "mixatis")])
    assert (backbone, seeds, goals, output) == ("encoder", [4, 5], [0.3], "out")
    assert (budget.rows, budget.epochs, budget.batch_size, budget.dropout) == (6, 1.5, 8, False)


def test_a_folder_of_files_is_one_task_and_one_that_declares_configurations_is_the_usual_ones(monkeypatch, tmp_path):
    for readme, tasks in ((False, ["default"]), (True, ["mrpc", "rte", "sst2"])):
        if readme:
            (tmp_path / "README.md").write_text("---\nconfigs: []\n---\n")
        asked = ["compare", "--dataset", str(tmp_path), "--backbone", "encoder"]
        values, _ = called(monkeypatch, "modeling_pfberxit.studies.compare.compare", asked)
        assert values[1] == [(str(tmp_path), task) for task in tasks]


def test_reproduce_is_told_all_that_was_asked(monkeypatch):
    asked = "reproduce table1 points --dataset glue --tasks rte --backbone encoder --seeds 7 --rows 9 --epochs 2"
    asked = [*asked.split(), "--no-dropout", "--output", "out"]
    seen = []
    monkeypatch.setattr("modeling_pfberxit.studies.reproduce.reproduce", lambda *values: seen.append(values) or [])
    main(asked)
    ((items, study),) = seen
    assert items == ["table1", "points"]
    assert (study.dataset, study.tasks, study.backbone, study.seeds) == ("glue", ("rte",), "encoder", (7,))
    assert (study.budget.rows, study.budget.epochs, study.budget.dropout, study.folder) == (9, 2.0, False, Path("out"))


def test_the_table_trains_every_task_mode_and_seed_that_was_asked(monkeypatch, tmp_path, capsys):
    asked = (
        "table --dataset support_desk --tasks intent urgency --backbone encoder --modes trained frozen --seeds 3 4 "
        f"--rows 9 --epochs 2 --saved 0.1 0.2 --set exit_pooling=cls adapter_dim=16 --output {tmp_path}"
    )
    seen = []

    def measured(folder, run, mode, knobs, saved, say):
        seen.append((run.source.config, mode, run.seed))
        assert (folder, run.backbone, saved) == (tmp_path, "encoder", [0.1, 0.2])
        assert knobs == {"exit_pooling": "cls", "adapter_dim": 16}
        assert (run.budget.rows, run.budget.epochs) == (9, 2.0)
        points = [{"score": 0.7, "saved": 0.1}]
        return {**run.facts(), "mode": mode, "majority": 0.5, "layers": [0.6], "points": points}

    monkeypatch.setattr("modeling_pfberxit.studies.layer_table.measured", measured)
    main(asked.split())
    assert seen == [(t, m, s) for t in ("intent", "urgency") for m in ("trained", "frozen") for s in (3, 4)]
    assert capsys.readouterr().out.rstrip().splitlines()[-1].startswith("| urgency | frozen | 0.500 | 0.600 |")
    assert (tmp_path / "results.json").read_text().count('"majority"') == 8


@pytest.mark.parametrize(
    ("place", "arguments", "expected"),
    [
        ("quickstart.run",
         "quickstart --backbone e --dataset d --config c --system pabee --output o --epochs 2 --held-out 7 --seed 3",
         {"backbone": "e", "dataset": "d", "config": "c", "system": "pabee", "output": "o", "epochs": 2.0,
          "held_out": 7, "seed": 3}),
        ("calibrate.run",
         "calibrate m --dataset d --config c --split s --rows 5 --speed-up 2 --max-drop 0.1 --milliseconds 3 "
         "--agreement 0.9 --criteria entropy --seed 4",
         {"model": "m", "dataset": "d", "config": "c", "split": "s", "rows": 5, "speed_up": [2.0], "max_drop": [0.1],
          "milliseconds": [3.0], "agreement": [0.9], "criteria": ["entropy"], "seed": 4}),
        ("frontier.run",
         "frontier m --dataset d --config c --split s --rows 5 --output o --batch-sizes 1 2 --lengths 8",
         {"model": "m", "dataset": "d", "config": "c", "split": "s", "rows": 5, "output": "o", "batch_sizes": [1, 2],
          "lengths": [8]}),
        ("precision.run",
         "precision m --dataset d --config c --split s --rows 5 --precisions float16 --policy fast",
         {"model": "m", "dataset": "d", "config": "c", "split": "s", "rows": 5, "precisions": ["float16"],
          "policy": "fast"}),
        ("benchmark.run",
         "benchmark --preset p --layers 2 --paper --pooling mean --sublearner conv --batch-sizes 2 --lengths 4 "
         "--saved 0.5 --recordings r --mix-rows 3 --no-rivals --compiled --repeats 2 --device cuda --dtype bfloat16 "
         "--output o --rows 7 --exits 3",
         {"preset": "p", "layers": 2, "paper": True, "pooling": "mean", "sublearner": "conv", "batch_sizes": [2],
          "lengths": [4], "saved": [0.5], "recordings": ["r"], "mix_rows": 3, "rivals": False, "compiled": True,
          "repeats": 2, "device": "cuda", "dtype": "bfloat16", "output": "o", "rows": 7, "exits": 3}),
    ],
    ids=["quickstart", "calibrate", "frontier", "precision", "benchmark"],
)  # fmt: skip
def test_other_commands_are_told_all_that_was_asked(monkeypatch, place, arguments, expected):
    values, named = called(monkeypatch, f"pfberxit.{place}", arguments.split())
    assert values == () and {name: named[name] for name in expected} == expected
    assert set(named) - set(expected) <= {"replay", "training", "profile", "exported", "columns", "rows", "exits"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["frontier", "m", "--lengths", "64"], r"lengths=\[64\]: must be given together with --batch-sizes"),
        (["elue", "p.csv", "--policy", '{"threshold": 1}'], "policy=.*given together with --dynamic-flops"),
        (["suitability", "e", "--rows", "0"], "rows=0: must be a whole number >= 1"),
        (["benchmark", "--training", "--dtype", "bfloat16"], "dtype='bfloat16': must be left out.*--training"),
        (["benchmark", "--replay", "--training"], "training=True: must be left out.*--replay"),
        (["benchmark", "--exported", "--compiled"], "compiled=True: must be left out.*--exported"),
        (["benchmark", "--paper", "--pooling", "mean"], "pooling='mean': must be left out"),
        (["benchmark", "--mix-rows", "4"], "mix_rows=4: must be left out"),
        (["benchmark", "--rows", "4"], "rows=4: must be left out"),
    ],
)
def test_an_option_that_nothing_would_read_is_refused_by_name(words, message):
    with pytest.raises(SystemExit, match=f"pfberxit: {message}"):
        main(words)


def test_what_is_asked_of_training_steps_reaches_them(monkeypatch):
    asked = "benchmark --training --preset p --layers 2 --repeats 2 --sublearner conv --device cuda"
    _, named = called(monkeypatch, "modeling_pfberxit.benchmark.training_step.benchmark_training", asked.split())
    assert named.pop("say")
    assert named == {"preset": "p", "layers": 2, "repeats": 2, "sublearner": "conv", "device": "cuda"}


@pytest.mark.parametrize(("module", "extra"), [("pyarrow.parquet", "train"), ("matplotlib", "quickstart")])
def test_what_is_not_installed_is_named_with_what_installs_it(module, extra, monkeypatch):
    def run(**options):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr("pfberxit.predict.run", run)
    with pytest.raises(SystemExit, match=rf"{module} is missing: pip install 'modeling-pfberxit\[{extra}\]'"):
        main(["predict", "model", "texts.csv", "--output", "answers.csv"])
