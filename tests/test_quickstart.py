"""`pfberxit quickstart`: what it chooses it chooses on rows held out of training, and tells what the others then do."""

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from tiny import save_backbone

from modeling_pfberxit import ExitPolicy, PFBerxitForSequenceClassification
from modeling_pfberxit.data.tasks import encode, load_task
from modeling_pfberxit.evaluation.frontier import sweep
from modeling_pfberxit.evaluation.recording import Recording, record
from modeling_pfberxit.model.exit_policy import POLICY_CHECKS
from modeling_pfberxit.studies import quickstart
from modeling_pfberxit.training.finetuning import new_tokenizer

HELD_OUT, SEED = 30, 5


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> tuple[dict[str, dict], Recording, Recording]:
    """The points a quickstart stored, and what its model says of the held-out rows and of those it reports on."""
    folder = tmp_path_factory.mktemp("quickstart")
    encoder, data = save_backbone(folder / "encoder"), folder / "data"
    data.mkdir()
    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    for split, length in (("train", 2), ("test", 30)):  # so that their scores lie apart
        count = 40 if split == "train" else 16
        texts = [" ".join(f"w{(7 * i + k * (i % 5 + 1)) % 110}" for k in range(length)) for i in range(count)]
        rows = {"text": texts, "label": [i % 2 for i in range(count)]}
        Dataset.from_dict(rows, features=features).to_parquet(data / f"{split}.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quickstart, "classify_in_a_fresh_process", lambda *_: "")
        output = str(folder / "out")
        quickstart.quickstart(encoder, str(data), None, "pf-berxit", output, 1, HELD_OUT, SEED, None, print)
    (saved,) = (folder / "out").glob("pfberxit-*")
    model = PFBerxitForSequenceClassification.from_pretrained(saved).eval()
    task, splits = load_task(str(data))
    held_out = splits["train"].shuffle(seed=SEED).select(range(HELD_OUT))
    parts = (encode(task, part, new_tokenizer(encoder)) for part in (held_out, splits["test"]))
    return model.config.operating_points, *(record(model, part) for part in parts)


def policy_of(point: dict) -> ExitPolicy:
    return ExitPolicy(**{name: value for name, value in point.items() if name in POLICY_CHECKS})


def test_points_save_on_the_held_out_rows_what_their_names_stand_for(told):
    points, held_out, reported = told
    assert set(points) == set(quickstart.POINTS)
    told_apart = []
    for name, goal in quickstart.POINTS.items():
        policies = [policy_of(points[name])]
        saved, elsewhere = (sweep(part, policies, "accuracy")[0].saved for part in (held_out, reported))
        assert goal <= saved + 1e-6 and saved < goal + 0.05, name
        told_apart.append(abs(elsewhere - saved) > 0.05)
    assert any(told_apart), "or these rows could not tell"


def test_points_say_what_they_do_on_the_rows_reported_on(told):
    points, held_out, reported = told
    apart, one_row = [], 1 / len(reported) + 1e-4  # one may stand on the very edge of a threshold
    for point in points.values():
        found, elsewhere = (sweep(part, [policy_of(point)], "accuracy")[0] for part in (reported, held_out))
        assert point["score"] == pytest.approx(found.score, abs=one_row)
        assert point["layers_saved"] == pytest.approx(found.saved, abs=one_row)
        apart.append(abs(point["layers_saved"] - elsewhere.saved))
    assert max(apart) > 2 * one_row, "or these rows could not tell"
    assert len({point["threshold"] for point in points.values()}) == len(points)
