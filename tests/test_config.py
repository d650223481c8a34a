from __future__ import annotations

from pathlib import Path

import pytest

from cxr_spark.backbones import BACKBONES
from cxr_spark.config import Experiment, load_experiment
from cxr_spark.errors import UserError
from tests.conftest import ROOT


def write(tmp_path: Path, text: str) -> str:
    file = tmp_path / "experiment.yaml"
    file.write_text(text)
    return str(file)


@pytest.mark.parametrize("name", ["paper", "demo", "systems", "three_classes"])
def test_the_experiments_that_we_ship_are_valid(name: str) -> None:
    experiment = load_experiment(str(ROOT / "conf" / f"{name}.yaml"), {})
    assert experiment.name == name


def test_the_papers_experiment_is_the_papers() -> None:
    paper = load_experiment(str(ROOT / "conf" / "paper.yaml"), {})
    assert len(paper.backbones) * len(paper.heads) == 12
    assert (paper.seeds, paper.split.seed, paper.split.unit) == ([0], 0, "image")
    assert (paper.training.epochs, paper.training.learning_rate) == (10, 0.001)
    assert (paper.preprocessing, paper.standardise) == (["none"], False)


def test_the_systems_of_one_table_are_all_there() -> None:
    """The paper's grid, what it cites, what it left to do, and what goes beyond."""
    systems = load_experiment(str(ROOT / "conf" / "systems.yaml"), {})
    assert set(systems.backbones) == set(BACKBONES)
    classifiers = {
        "logistic", "linear_svm", "rbf_svm", "random_forest", "gradient_boosting",
        "nearest_neighbours",
    }  # fmt: skip
    plain = {"gap", "fc1024", "dnn3", "gap_balanced", *classifiers}
    tuned = {f"tuned_{head}" for head in (*classifiers, "gap", "dnn3")}
    assert set(systems.heads) == plain | tuned
    assert systems.tuning is not None
    assert systems.tuning.trials >= 50
    assert systems.concatenations
    assert systems.averages
    three = load_experiment(str(ROOT / "conf" / "three_classes.yaml"), {})
    assert three.task == "normal-bacteria-virus"


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "backbones: [ResNet50]\nseeds: [3]\nlimit: 5\n")
    experiment = load_experiment(file, {"seeds": [0, 1], "limit": None, "weights": "random"})
    assert (experiment.seeds, experiment.limit, experiment.weights) == ([0, 1], 5, "random")


def test_one_number_is_a_square_and_two_are_height_and_width(tmp_path: Path) -> None:
    for text, size in (("128", (128, 128)), ("[96, 128]", (96, 128))):
        file = write(tmp_path, f"backbones: [ResNet50]\nimage_size: {text}\n")
        assert load_experiment(file, {}).image_size == size


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("backbones: [Resnet51]", "backbones to be one of ResNet50.*Did you mean 'ResNet50'"),
        ("backbones: [ResNet50]\nheads: [gapp]", "heads to be one of gap, fc1024.*mean 'gap'"),
        ("backbones: [ResNet50]\nheds: [gap]", "only known keys.*heds.*mean 'heads'"),
        ("backbones: [ResNet50]\nsplit: {unti: image}", "split.unti.*mean 'unit'"),
        ("backbones: [ResNet50]\nphantoms: {images: 9}", "phantoms.images.*mean 'n_images'"),
        ("backbones: [ResNet50]\nsplit: {unit: patients}", "split.unit.*mean 'patient'"),
        ("backbones: [ResNet50]\ntask: pneumona", "task.*mean 'pneumonia'"),
        ("backbones: [ResNet50]\nseeds: [a]", "seeds in .*integer.*Received: 'a'"),
        ("backbones: [ResNet50]\nseeds: [-1]", "seeds"),
        ("backbones: [ResNet50]\nseeds: [3000000000]", "seeds.*less than 2147483648"),
        ("backbones: [ResNet50]\nrun: ''", "run in .*at least 1 character"),
        ("backbones: [ResNet50]\n1: x", "keys of .* to be names. Received: 1"),
        ("backbones: [ResNet50]\ntraining: {learning_rate: 1e-3}", "learning_rate.*write 0.001"),
        ("backbones: [ResNet50]\ntraining: {epochs: '10'}", "training.epochs.*Received: '10'"),
        ("backbones: [ResNet50]\nimage_size: [96]", "image_size.*pixels, or .height, width"),
        ("backbones: [ResNet50]\nimage_size: 16", "image_size of at least 32 for ResNet50"),
        ("backbones: [Xception]\nimage_size: 64", "image_size of at least 71 for Xception"),
        ("backbones: [ResNet50, ResNet50]", "named twice"),
        ("backbones: []", "backbones"),
        ("heads: [gap]", "the key backbones"),
        ("- a\n- b", "keys and values"),
        ("a: [", "to be a YAML file"),
        ("backbones: [ResNet50]\ndataset: {adapter: folder}", "patient_pattern"),
        ("backbones: [ResNet50]\nsplit: {validation_fraction: 1.5}", "validation_fraction"),
    ],
)
def test_mistakes_are_one_line_that_names_the_place(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(UserError, match=message) as raised:
        load_experiment(write(tmp_path, text), {})
    assert "\n" not in str(raised.value)


def test_a_wrong_flag_is_named_as_a_flag(tmp_path: Path) -> None:
    file = write(tmp_path, "backbones: [ResNet50]")
    with pytest.raises(UserError, match="valid --limit.*Received: -3"):
        load_experiment(file, {"limit": -3})
    with pytest.raises(UserError, match="--config to be a YAML file"):
        load_experiment(str(tmp_path / "none.yaml"), {})


@pytest.mark.parametrize("rule", ["youden", "sensitivity=0.95", "specificity=.9", "sensitivity=1"])
def test_threshold_rules_are_known(rule: str) -> None:
    stated = Experiment(backbones=["ResNet50"], evaluation={"threshold": rule})  # type: ignore[arg-type]
    assert stated.evaluation.threshold == rule


def test_an_unknown_threshold_rule_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("backbones: [ResNet50]\nevaluation: {threshold: best}\n")
    with pytest.raises(UserError, match="evaluation.threshold.*youden, sensitivity=SHARE"):
        load_experiment(str(file), {})


def test_heads_of_ones_own_are_checked(tmp_path: Path) -> None:
    for text, told in (
        ("heads: [mine]\ncustom_heads: {mine: {dense: [8], droput: 0.1}}", "droput"),
        ("heads: [gap]\ncustom_heads: {gap: {dense: [8]}}", "Received: 'gap'"),
        ("heads: [gap]\ncustom_heads: {'a/b': {dense: [8]}}", "Received: 'a/b'"),
        ("heads: [mine]\ncustom_heads: {min: {dense: [8]}}", "Did you mean 'min'"),
        ("heads: [mine]\ncustom_heads: {mine: {dense: [0]}}", "custom_heads.mine.dense"),
    ):
        file = tmp_path / "x.yaml"
        file.write_text(f"backbones: [ResNet50]\n{text}\n")
        with pytest.raises(UserError, match=told):
            load_experiment(str(file), {})
