"""A fine-tuned classifier as scikit-learn has them: in pipelines, cross-validation and grid search."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import assert_all_finite, check_consistent_length, check_is_fitted, column_or_1d

from pellucid.core.errors import ConfigError, CorpusError, ModelError
from pellucid.core.files import own_file, read_json, write_json

if TYPE_CHECKING:
    from pellucid.model import Model

SETTINGS = "text_classifier.json"  # beside the model: the classes in their own type, and the parameters


class TextClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A language model that learns to classify texts. `X` is a list, an array or a Series of strings.

    `fit` fine-tunes `model` (a path, a name on the hub, or a `Model` that was loaded from one), as `pellucid.finetune` does, in
    a temporary folder that goes away with the estimator: `save(folder)` keeps the result, `TextClassifier.load(folder)` opens
    it. A fitted estimator is not pickled, since Pickle can run code; one that is not fitted yet may travel to the processes of
    a cross-validation. All rows are learnt from, unless `validation_fraction` holds some out to choose the best checkpoint by,
    and `patience` to stop early.

    Attributes: `classes_`, sorted and of the type of `y`; `model_`, a `Model`.
    """

    def __init__(
        self,
        model: str | Path | Model = "",
        *,
        method: Literal["full", "lora", "head"] = "full",
        epochs: float | None = None,
        steps: int | None = None,
        learning_rate: float | None = None,
        batch_size: int = 32,
        class_weight: Literal["balanced"] | None = None,
        validation_fraction: float = 0.0,
        patience: int | None = None,
        long: Literal["error", "cut", "split"] = "error",
        random_state: Any = 0,
        device: str = "auto",
        precision: Literal["auto", "fp32", "bf16"] = "auto",
        threads: int | Literal["auto"] = "auto",
        verbose: bool = False,
    ) -> None:
        self.model = model
        self.method = method
        self.epochs = epochs
        self.steps = steps
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.class_weight = class_weight
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.long = long
        self.random_state = random_state
        self.device = device
        self.precision = precision
        self.threads = threads
        self.verbose = verbose

    def fit(self, X: Any, y: Any) -> Self:
        """Learn the classes `y` of the texts `X`. Raises a `PellucidError` for what cannot be learnt from."""
        from pellucid import api
        from pellucid.core.progress import Silent, console
        from pellucid.text.tabular import given
        from pellucid.training.finetune_recipe import FinetuneRecipe

        if not isinstance(self.model, str | Path | api.Model) or self.model == "":
            raise ConfigError(f"the model is {self.model!r}; give a path, a name on the hub, or a loaded Model")
        if self.class_weight not in (None, "balanced"):
            raise ConfigError(f"class_weight is {self.class_weight!r}; it must be None or 'balanced'")
        texts, labels = texts_of(X), classes_of(y)
        check_consistent_length(texts, labels)
        classes = np.unique(labels)
        if len(classes) < 2:
            raise CorpusError(f"y has one class only ({classes.tolist()[0]!r}); a classifier needs two or more to tell apart")
        names = {label: str(label) for label in classes.tolist()}
        rows: Any = given(texts, [names[label] for label in labels.tolist()])
        recipe = FinetuneRecipe().override(self._recipe(len(classes)))
        progress = console() if self.verbose else Silent()
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pellucid-"))
            self._open(api.finetune(self.model, rows, out=Path(folder) / "run", recipe=recipe, progress=progress).path)
            release = stack.pop_all().close
        getattr(self, "_release", lambda: None)()  # what an earlier fit left
        self._release = weakref.finalize(self, release)
        order = {name: number for number, name in enumerate(self.model_.config.labels)}
        self._columns = [order[name] for name in names.values()]
        self.classes_ = classes
        return self

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """The likeliest class of each text, of the type of `y`, [texts]."""
        scores = self._scores(X)
        return np.asarray(self.classes_[scores.argmax(axis=1)])

    def predict_proba(self, X: Any) -> npt.NDArray[np.float64]:
        """The probability of each class, in the order of `classes_`, [texts classes]."""
        from pellucid.evaluation.calibration import probabilities
        from pellucid.evaluation.predict import known_temperature

        scores = self._scores(X)
        return probabilities(scores / (known_temperature(self.model_.path) or 1.0), multi=False)

    def save(self, folder: str | Path, *, force: bool = False) -> None:
        """Write the model, in Hugging Face's layout, with the classes and the parameters beside it."""
        check_is_fitted(self)
        parameters = {name: value for name, value in self.get_params(deep=False).items() if plain(value)}
        kind = "object" if self.classes_.dtype.kind == "O" else self.classes_.dtype.str
        self.model_.save(folder, force=force)
        write_json(
            Path(folder) / SETTINGS,
            {
                "classes": self.classes_.tolist(),
                "type": kind,
                "labels": [self.model_.config.labels[at] for at in self._columns],
                "parameters": parameters,
            },
        )

    @classmethod
    def load(cls, folder: str | Path, *, device: str | None = None) -> Self:
        """What `save` wrote; or any other classifier, whose classes are then its labels. Raises a `PellucidError`."""
        path = Path(folder)
        file = own_file(path, SETTINGS) if path.is_dir() else None
        said = {} if file is None else read_json(file)
        try:
            loaded = cls(**{"model": str(folder)} | said.get("parameters", {}) | ({} if device is None else {"device": device}))
            loaded._open(path)
            labels = list(loaded.model_.config.labels)
            classes = np.array(said.get("classes", sorted(labels)), dtype=said.get("type"))
            loaded._columns = [labels.index(name) for name in said.get("labels", sorted(labels))]
        except (AttributeError, TypeError, ValueError) as error:
            raise ModelError(f"{path / SETTINGS} is damaged ({error}); restore it, or delete it") from None
        if sorted(loaded._columns) != list(range(len(labels))) or classes.shape != (len(labels),):
            raise ModelError(f"{path / SETTINGS} does not fit the model's labels; restore it, or delete it")
        loaded.classes_ = classes
        return loaded

    def _open(self, path: Path) -> None:
        from pellucid import api
        from pellucid.core.device import choose

        compute = choose(device=self.device, precision=self.precision, threads=self.threads)
        opened = api.load(path, device=compute.device)
        if opened.config.head != "classify" or opened.config.problem != "single":
            raise ModelError(f"{path} gives texts no single class, so it is no TextClassifier; use pellucid.load(...).predict")
        opened.network.eval().compute_in(compute.dtype)
        self.model_ = opened

    def _scores(self, X: Any) -> npt.NDArray[np.float64]:
        """The scores of texts in the order of `classes_`."""
        from pellucid.evaluation.predict import label_scores

        check_is_fitted(self)
        scores = label_scores(self.model_.network, self.model_.tokenizer, texts_of(X), long=self.long)
        return scores[:, self._columns].astype(np.float64)

    def _recipe(self, classes: int) -> dict[str, dict[str, Any]]:
        """The parameters as sections of a recipe."""
        fixed = isinstance(self.random_state, int | np.integer)
        seed = int(self.random_state) if fixed else int(check_random_state(self.random_state).randint(2**31 - 1))
        training: dict[str, Any] = {"epochs": self.epochs, "steps": self.steps, "patience": self.patience}
        training |= {"batch_size": self.batch_size, "seed": seed}
        training |= {"device": self.device, "precision": self.precision, "threads": self.threads}
        held_out = {"validation_fraction": self.validation_fraction, "test_fraction": 0.0}
        return {
            "task": {"name": "classify", "class_weights": self.class_weight or "none"},
            "data": held_out | {"split_seed": seed, "long": self.long, "max_labels": max(2, classes)},
            "method": {"name": self.method},
            "optimizer": {} if self.learning_rate is None else {"learning_rate": self.learning_rate},
            "training": {name: value for name, value in training.items() if value is not None},
        }

    def __getstate__(self) -> dict[str, Any]:
        if hasattr(self, "classes_"):
            raise ModelError(
                "a fitted TextClassifier is not pickled, since Pickle can run code; keep it with save(folder), and open it "
                "with TextClassifier.load(folder)"
            )
        if not isinstance(self.model, str | Path):
            raise ModelError("a TextClassifier that holds a loaded Model is not pickled or copied; give it the model's path")
        return dict(super().__getstate__())

    def __sklearn_clone__(self) -> Self:
        """The same parameters, not fitted; a loaded `Model`, which `fit` only reads, is shared."""
        return type(self)(**self.get_params(deep=False))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.target_tags.required = True
        return tags


def texts_of(X: Any) -> list[str]:
    """The texts as a list. Raises `CorpusError` for what are no texts."""
    if isinstance(X, str | bytes) or not (isinstance(X, Sequence) or hasattr(X, "__array__")):
        raise CorpusError(f"X is {type(X).__name__}; give a list, an array or a Series of texts")
    if getattr(X, "ndim", 1) != 1:
        raise CorpusError(f"X has the shape {list(X.shape)}; give texts in one dimension, such as one column of a table")
    texts = list(X)
    if not texts:
        raise CorpusError("X has no texts; give some")
    if strange := [number for number, text in enumerate(texts) if not isinstance(text, str)]:
        raise CorpusError(f"text {strange[0]} of X is {type(texts[strange[0]]).__name__}, not a string; give texts")
    return [str(text) for text in texts]


def classes_of(y: Any) -> npt.NDArray[Any]:
    """The classes as an array. Raises `CorpusError` for what are none."""
    if y is None:
        raise CorpusError("y is None, but a classifier learns from labels; give one for each text")
    try:
        labels = np.asarray(column_or_1d(y))
        assert_all_finite(labels, input_name="y")
        check_classification_targets(labels)
        np.unique(labels)
    except (TypeError, ValueError) as error:
        raise CorpusError(f"y holds no classes ({error}); give one class for each text") from None
    return labels


def plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)
