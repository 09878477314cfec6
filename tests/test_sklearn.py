"""`TextClassifier` among scikit-learn's own tools, which judge it: clone, pipelines, cross-validation, grid search, checks."""

import pickle
import subprocess
import sys
import warnings

import labellers
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks, get_tags

import pellucid
from pellucid.core.errors import ConfigError, CorpusError, ModelError, PellucidError
from pellucid.sklearn import TextClassifier

GOOD = ["a good cat", "good Alice", "the good book", "so good", "good, good", "was good"]
BAD = ["a sad cat", "sad Alice", "the sad book", "so sad", "sad, sad", "was sad"]
X, Y = GOOD + BAD, ["fine"] * 6 + ["poor"] * 6


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model to begin with; nobody may change it."""
    words = labellers.tokenizer()
    network = labellers.randomised(labellers.FAMILIES["gpt2"].new(vocab_size=words.vocab_size, **labellers.SIZE))
    folder = tmp_path_factory.mktemp("base") / "model"
    pellucid.Model(network, words).save(folder)
    return str(folder)


def classifier(base, **changes):
    return TextClassifier(base, **{"steps": 3, "batch_size": 6, "threads": 1, "precision": "fp32", "device": "cpu"} | changes)


@pytest.fixture(scope="module")
def fitted(base):
    return classifier(base, steps=60, learning_rate=3e-3).fit(X, Y)


def test_it_learns_and_scores(fitted):
    assert fitted.classes_.tolist() == ["fine", "poor"]
    assert fitted.score(X, Y) == accuracy_score(Y, fitted.predict(X)) == 1.0
    found = fitted.predict_proba(X)
    assert found.shape == (12, 2)
    assert found.sum(axis=1) == pytest.approx(1)
    assert (fitted.classes_[found.argmax(axis=1)] == fitted.predict(X)).all()
    said = fitted.model_.predict(X)
    assert found[:, 0] == pytest.approx([one.probabilities["fine"] for one in said], abs=1e-6)


@pytest.mark.parametrize(
    "labels",
    [
        np.array([10, 9, 100, 9, 10, 100] * 2),
        np.array([True, False] * 6),
        np.array(["b", "a", "c"] * 4, dtype=object),
        np.array([-1.0, 1.0] * 6, dtype=np.float32),
    ],
    ids=["ints", "bools", "objects", "floats"],
)
def test_classes_are_sorted_and_of_the_type_of_y_before_and_after_saving(base, tmp_path, labels):
    fitted = classifier(base, steps=1).fit(X, labels)
    assert fitted.classes_.dtype == np.unique(labels).dtype
    assert fitted.classes_.tolist() == np.unique(labels).tolist()
    predicted = fitted.predict(X)
    assert predicted.dtype == labels.dtype
    fitted.save(tmp_path / "kept")
    loaded = TextClassifier.load(tmp_path / "kept")
    assert loaded.classes_.dtype == fitted.classes_.dtype
    assert loaded.get_params() == fitted.get_params()
    assert (loaded.predict(X) == predicted).all()
    assert (loaded.predict_proba(X) == fitted.predict_proba(X)).all()


def test_lists_arrays_and_series_are_the_same_texts(fitted):
    expected = fitted.predict(X).tolist()
    for texts in (np.array(X), np.array(X, dtype=object), pd.Series(X, index=range(5, 17)), tuple(X)):
        assert fitted.predict(texts).tolist() == expected


def test_the_same_seed_gives_the_same_model_and_clones_are_not_fitted(base):
    one = classifier(base, random_state=3).fit(X, Y)
    copy = clone(one)
    assert copy.get_params() == one.get_params()
    with pytest.raises(NotFittedError):
        copy.predict(X)
    assert (copy.fit(X, Y).predict_proba(X) == one.predict_proba(X)).all()
    other = copy.set_params(random_state=4).fit(X, Y)
    assert (other.predict_proba(X) != one.predict_proba(X)).any()


def test_a_loaded_model_is_read_and_shared_but_not_changed(base):
    model = pellucid.load(base)
    before = {name: weight.clone() for name, weight in model.network.state_dict().items()}
    copy = clone(classifier(model))
    assert copy.model is model
    copy.fit(X, Y)
    assert all((weight == before[name]).all() for name, weight in model.network.state_dict().items())


def test_cross_validation_pipelines_and_grids(base):
    pipeline = Pipeline(
        [("lower", FunctionTransformer(lambda texts: [text.lower() for text in texts])), ("model", classifier(base))]
    )
    with pytest.raises(PellucidError, match=r"'c' \(U\+0063|not among"):
        Pipeline([("x", FunctionTransformer(lambda texts: ["€" for _ in texts])), ("model", classifier(base))]).fit(X, Y)
    scores = cross_val_score(pipeline, X, Y, cv=2)
    assert scores.shape == (2,)
    assert np.isfinite(scores).all()
    grid = GridSearchCV(pipeline, {"model__steps": [1, 2]}, cv=2).fit(X, Y)
    assert grid.best_estimator_["model"].steps == grid.best_params_["model__steps"]
    assert set(grid.predict(X)) <= {"fine", "poor"}


def test_the_folder_goes_with_the_estimator(base):
    fitted = classifier(base, steps=1).fit(X, Y)
    first = fitted.model_.path
    fitted.fit(X, Y)
    second = fitted.model_.path
    assert (first.exists(), second.exists()) == (False, True)
    del fitted
    assert not second.exists()


def test_only_what_is_not_fitted_is_pickled(base, fitted):
    assert pickle.loads(pickle.dumps(classifier(base))).get_params() == classifier(base).get_params()
    with pytest.raises(ModelError, match=r"keep it with save\(folder\), and open it with TextClassifier.load\(folder\)$"):
        pickle.dumps(fitted)
    with pytest.raises(ModelError, match=r"that holds a loaded Model is not pickled or copied; give it the model's path$"):
        pickle.dumps(classifier(pellucid.load(base)))


def test_any_classifier_opens_and_what_is_none_does_not(base, tmp_path):
    folder = labellers.saved(tmp_path / "any")
    opened = TextClassifier.load(folder)
    assert opened.classes_.tolist() == sorted(labellers.LABELS)
    said = pellucid.load(folder).predict(labellers.TEXTS)
    assert opened.predict(labellers.TEXTS).tolist() == [one.label for one in said]
    with pytest.raises(ModelError, match="gives texts no single class"):
        TextClassifier.load(base)
    for text in ('{"classes": [1, 2]}', '{"labels": ["no", "yes", "never"]}', "[]", '{"parameters": {"nonsense": 1}}'):
        (folder / "text_classifier.json").write_text(text)
        with pytest.raises(ModelError, match=r"text_classifier.json (is damaged|does not fit)"):
            TextClassifier.load(folder)
    with pytest.raises(NotFittedError):
        classifier(base).save(tmp_path / "nothing")


BAD_DATA = [
    ("a text", Y, "X is str; give a list, an array or a Series of texts"),
    ([], [], "X has no texts; give some"),
    ([1.0] * 12, Y, "text 0 of X is float, not a string; give texts"),
    ([*X[:-1], None], Y, "text 11 of X is NoneType, not a string; give texts"),
    (np.zeros((12, 2)), Y, "X has the shape [12, 2]; give texts in one dimension, such as one column of a table"),
    (pd.DataFrame({"text": X}), Y, "X has the shape [12, 1]; give texts in one dimension, such as one column of a table"),
    (X, None, "y is None, but a classifier learns from labels; give one for each text"),
    (X, ["fine"] * 12, "y has one class only ('fine'); a classifier needs two or more to tell apart"),
    (["", *X[1:]], Y, "the given texts: row 1: the text is empty; give it text, or pass --on-empty drop"),
]


@pytest.mark.parametrize(("texts", "labels", "message"), BAD_DATA)
def test_what_cannot_be_learnt_from_is_one_sentence(base, texts, labels, message):
    with pytest.raises(CorpusError) as error:
        classifier(base).fit(texts, labels)
    assert str(error.value) == message


def test_labels_that_are_no_classes(base):
    for labels in (np.linspace(0, 1, 12), [float("nan")] * 12, [[0, 1]] * 12, [1, "a"] * 6):
        with pytest.raises(CorpusError, match=r"^y holds no classes"):
            classifier(base).fit(X, np.array(labels, dtype=object) if labels[0] == 1 else labels)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        classifier(base).fit(X, Y[:-1])


def test_parameters_that_make_no_sense(base):
    for changes, message in (
        ({"model": ""}, "the model is ''; give a path"),
        ({"class_weight": {"fine": 2}}, "class_weight is"),
        ({"patience": 2}, "patience has no effect"),
        ({"epochs": 1.0}, "epochs and steps"),
    ):
        with pytest.raises((ConfigError, ValueError), match=message):
            classifier(base).set_params(**changes).fit(X, Y)


CHECKS = (
    estimator_checks.check_estimator_cloneable,
    estimator_checks.check_estimator_tags_renamed,
    estimator_checks.check_valid_tag_types,
    estimator_checks.check_estimator_repr,
    estimator_checks.check_no_attributes_set_in_init,
    estimator_checks.check_do_not_raise_errors_in_init_or_set_params,
    estimator_checks.check_mixin_order,
    estimator_checks.check_estimators_unfitted,
    estimator_checks.check_parameters_default_constructible,
    estimator_checks.check_get_params_invariance,
    estimator_checks.check_set_params,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_checks_of_scikit_learn_that_need_no_matrix_of_numbers(base, check):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check("TextClassifier", classifier(base)) is None


def test_check_estimator_passes_and_knows_that_its_matrices_do_not_apply(base):
    tags = get_tags(classifier(base)).input_tags
    assert (tags.string, tags.one_d_array, tags.two_d_array) == (True, True, False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", estimator_checks.SkipTestWarning)
        found = estimator_checks.check_estimator(classifier(base), on_fail=None)
    assert {one["status"] for one in found} == {"passed"}


def test_torch_comes_with_the_first_fit_only():
    code = "import sys, pellucid.sklearn as s; s.TextClassifier('x').get_params(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
