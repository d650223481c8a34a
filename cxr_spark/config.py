"""An experiment: what YAML file and flags ask for, typed and validated before anything starts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from cxr_spark.errors import UserError, nearest, one_of
from cxr_spark.files import local_path, root, without_secret

Fraction = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(gt=0)]
Text = Annotated[str, Field(min_length=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Precision = Literal["float32", "float16", "bfloat16"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class DatasetConfig(_Section):
    """How paths are read: the adapter, and for ``folder`` where the patient stands in them."""

    adapter: Literal["kermany", "folder"] = "kermany"
    patient_pattern: str | None = None


class SplitConfig(_Section):
    """How validation images, and test images where no official ones exist, are chosen."""

    unit: Literal["patient", "image"] = "patient"
    validation_fraction: Fraction = 0.1
    test_fraction: Fraction | None = None
    seed: Seed = 0


class TrainingConfig(_Section):
    """How each head is trained.

    Attributes:
        early_stopping: the patience in epochs, null for none.
        memory_gb: features that take more, in 10^9 bytes, are streamed in every epoch.
    """

    epochs: Count = 10
    batch_size: Count = 64
    learning_rate: Annotated[float, Field(gt=0)] = 0.001
    early_stopping: Count | None = None
    memory_gb: Annotated[float, Field(gt=0)] = 2.0


class CrossValidationConfig(_Section):
    """Repeated cross-validation on training images, by which a configuration is selected.

    Attributes:
        folds: parts that are held out in turn, patients whole.
        repeats: how often images are divided anew.
        feature_maps: whether heads that take feature maps are cross-validated as well, which may
            take hours.
    """

    folds: Annotated[int, Field(ge=2)] = 5
    repeats: Count = 2
    feature_maps: bool = False


class TuningConfig(_Section):
    """How the heads ``tuned_...`` are searched for.

    Attributes:
        trials: sets of parameters that are tried of each, on each backbone.
    """

    trials: Annotated[int, Field(ge=2)] = 50


class EvaluationConfig(_Section):
    """How measures are made; a change of it trains nothing again.

    Attributes:
        threshold: the rule by which validation images choose the threshold of a two-class task:
            'youden', 'sensitivity=SHARE' or 'specificity=SHARE'.
        calibration: how validation images scale scores before calibration is measured, null for
            not at all.
    """

    threshold: str = "youden"
    calibration: Literal["temperature", "platt"] | None = None

    @field_validator("threshold")
    @classmethod
    def _is_a_rule(cls, value: str) -> str:
        from cxr_spark.evaluation.rules import THRESHOLD_RULE

        if THRESHOLD_RULE.fullmatch(value) is None:
            raise ValueError("youden, sensitivity=SHARE or specificity=SHARE")
        return value


class HeadConfig(_Section):
    """A head of the experiment's own; its fields are those of ``training.heads.Head``."""

    takes: Literal["pooled", "feature_map"] = "pooled"
    dense: list[Count] = []
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    class_weights: Literal["balanced"] | None = None
    epochs: Count | None = None
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    early_stopping: Count | None = None


class PhantomConfig(_Section):
    """How many phantoms a demonstration draws, and how large they are in pixels."""

    n_images: Annotated[int, Field(ge=60)] = 720
    image_size: Annotated[int, Field(ge=32)] = 128
    seed: Seed = 0


class Experiment(_Section):
    """Everything a run depends on; each field may stand in the YAML, a flag of its name wins."""

    name: str = "experiment"
    images: Text | None = None
    features: Text | None = None
    run: Text | None = None
    mlflow: Text | None = None
    phantoms: PhantomConfig | None = None
    limit: Count | None = None
    dataset: DatasetConfig = DatasetConfig()
    task: Literal["pneumonia", "normal-bacteria-virus", "findings"] = "pneumonia"
    positive: str | None = None
    split: SplitConfig = SplitConfig()
    backbones: Annotated[list[str], Field(min_length=1)]
    weights: Text = "imagenet"
    preprocessing: Annotated[list[Literal["none", "keras"]], Field(min_length=1)] = ["none"]
    image_size: tuple[Count, Count] = (224, 224)
    precision: Precision = "float32"
    feature_maps: bool = False
    extraction: list[str] = []
    heads: Annotated[list[str], Field(min_length=1)] = ["gap", "fc1024"]
    custom_heads: dict[str, HeadConfig] = {}
    concatenations: list[str] = []
    averages: dict[str, Annotated[list[Text], Field(min_length=1)]] = {}
    standardise: bool = False
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0]
    training: TrainingConfig = TrainingConfig()
    cross_validation: CrossValidationConfig | None = CrossValidationConfig()
    tuning: TuningConfig = TuningConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    distribute_heads: bool = False
    overwrite: bool = False
    refresh: bool = False
    max_error_fraction: Annotated[float, Field(ge=0, le=1)] = 0.01

    @field_validator("images", "features")
    @classmethod
    def _a_root(cls, value: str | None) -> str | None:
        return None if value is None else root(value)

    @field_validator("run")
    @classmethod
    def _a_folder(cls, value: str | None) -> str | None:
        return None if value is None else local_path(value)

    @field_validator("image_size", mode="before")
    @classmethod
    def _square(cls, value: object) -> object:
        sides = [value, value] if isinstance(value, int) else value
        if not isinstance(sides, list | tuple) or len(sides) != 2:
            raise ValueError("a whole number of pixels, or [height, width]")
        return tuple(sides)

    @field_validator("preprocessing", mode="before")
    @classmethod
    def _one_preprocessing(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @field_validator("backbones", "heads", "seeds", "preprocessing", "extraction", "concatenations")
    @classmethod
    def _no_duplicates(cls, value: list[Any]) -> list[Any]:
        if len(set(value)) != len(value):
            raise ValueError("nothing may be named twice")
        return value

    @model_validator(mode="after")
    def _names_are_known(self) -> Experiment:
        # The tables import nothing heavy; they are imported here so that each name has one home.
        from cxr_spark.backbones import BACKBONES, check_image_size
        from cxr_spark.dataset.adapters import make_adapter
        from cxr_spark.training.head_table import TABLE, head_table

        for backbone in self.backbones:
            if backbone not in BACKBONES:
                raise one_of("each of backbones", backbone, BACKBONES)
            check_image_size(backbone, self.image_size)
        for name in self.custom_heads:
            if name in TABLE or not re.fullmatch(r"[A-Za-z0-9_.]+", name):
                raise UserError(
                    "Expected names of custom_heads of letters, digits, _ and . that are not "
                    f"{', '.join(TABLE)}. Received: {name!r}"
                )
        for head in self.heads:
            if head not in head_table(self):
                raise one_of("each of heads", head, head_table(self))
        self._check_concatenations()
        self._check_averages()
        self._check_tuned()
        make_adapter(self.dataset.adapter, self.dataset.patient_pattern)
        if (
            self.dataset.adapter == "folder"
            and self.dataset.patient_pattern is None
            and self.split.unit == "patient"
        ):
            raise UserError(
                "Expected dataset.patient_pattern, from which split.unit: patient knows the "
                "patients. Received: none. Give the pattern, or set split.unit: image."
            )
        return self

    @property
    def tuned_heads(self) -> list[str]:
        """The heads whose parameters are searched for."""
        from cxr_spark.training.spaces import TUNED

        return [name for name in self.heads if name in TUNED]

    def _check_concatenations(self) -> None:
        from cxr_spark.backbones import BACKBONES

        for name in self.concatenations:
            parts = name.split("+")
            if len(parts) < 2 or len(set(parts)) < len(parts) or not {*parts} <= {*BACKBONES}:
                raise UserError(
                    "Expected each of concatenations to be two or more different backbones with "
                    f"'+' between them, of {', '.join(BACKBONES)}. Received: {name!r}"
                )

    def _check_averages(self) -> None:
        for name in self.averages:
            if not re.fullmatch(r"[A-Za-z0-9_.]+", name):
                raise UserError(
                    "Expected names of averages of letters, digits, _ and . alone. "
                    f"Received: {name!r}"
                )

    def _check_tuned(self) -> None:
        from cxr_spark.training.spaces import TUNED

        tuned, settings = self.tuned_heads, self.cross_validation
        if tuned and settings is None:
            raise UserError(
                f"Expected cross_validation, by which {tuned[0]} is tuned. Received: null"
            )
        if tuned and settings and settings.folds < 3:
            raise UserError(
                f"Expected cross_validation.folds of 3 or more, of which {tuned[0]} leaves out two "
                f"at a time. Received: {settings.folds}"
            )
        on_maps = [name for name in tuned if TUNED[name].takes == "feature_map"]
        if on_maps and settings and not settings.feature_maps:
            raise UserError(
                f"Expected cross_validation.feature_maps: true for {on_maps[0]}, which takes "
                f"more than {self.tuning.trials} times as long as its folds. Received: false"
            )


def load_experiment(path: str, flags: dict[str, Any]) -> Experiment:
    """Read a YAML file, let ``flags`` that are not None win over it, and validate the whole.

    Args:
        path: a YAML file whose keys are the fields of ``Experiment``.
        flags: values by the name of the field they replace.

    Raises:
        UserError: the file cannot be read, a key is unknown, or a value has the wrong type or name.
    """
    try:
        stated = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise UserError(
            f"Expected --config to be a YAML file. Received: {path} ({error.strerror})"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"Expected --config to be a YAML file. Received: {path} ({error})"
        ) from error
    if not isinstance(stated, dict):
        raise UserError(f"Expected keys and values in {path}. Received: a {type(stated).__name__}")
    if not all(isinstance(key, str) for key in stated):
        odd = next(key for key in stated if not isinstance(key, str))
        raise UserError(f"Expected keys of {path} to be names. Received: {odd!r}")
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return Experiment.model_validate({**stated, **given})
    except ValidationError as error:
        raise UserError(_first_problem(error, path, given)) from None


def _first_problem(error: ValidationError, path: str, flags: dict[str, Any]) -> str:
    problem = error.errors()[0]
    keys = [key for key in problem["loc"] if not isinstance(key, int)]
    name = ".".join(str(key) for key in keys)
    place = f"--{keys[0]}".replace("_", "-") if keys and keys[0] in flags else f"{name} in {path}"
    if problem["type"] == "extra_forbidden":
        section: Any = Experiment
        path_to = iter(keys[:-1])
        for key in path_to:
            section = section.model_fields[str(key)].annotation
            if get_origin(section) is dict:
                next(path_to, None)  # a name of the user's own
            parts = getattr(section, "__args__", ())
            section = next((part for part in parts if hasattr(part, "model_fields")), section)
        known = list(section.model_fields)
        return (
            f"Expected only known keys in {path}. Received: {name}."
            f"{nearest(keys[-1], known) or ' Known: ' + ', '.join(known) + '.'}"
        )
    if problem["type"] == "missing":
        return f"Expected the key {name} in {path}. Received: none"
    hint = ""
    if problem["type"] == "literal_error":
        hint = nearest(
            problem["input"],
            str(problem["ctx"]["expected"]).replace("'", "").replace(" or ", ", ").split(", "),
        )
    if problem["type"] == "float_type" and str(problem["input"])[:1].isdigit():
        hint = " In YAML write 0.001 or 1.0e-3: it takes 1e-3 for text."
    message = problem["msg"].removeprefix("Value error, ")
    received = problem["input"]
    if name in ("images", "features", "run") and isinstance(received, str):
        received = without_secret(received)
    return f"Expected a valid {place}: {message}. Received: {received!r}.{hint}"
