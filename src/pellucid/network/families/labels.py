"""The labels that a network scores in `config.json`, both ways, as transformers has them."""

from typing import Any, get_args

from pellucid.core.errors import ConfigError
from pellucid.network.config import LARGEST, ModelConfig, Pooling

PROBLEMS = {
    "single": "single_label_classification",
    "multi": "multi_label_classification",
    "regression": "regression",
}
POOLING = "classifier_pooling"  # no field of these families in transformers: written where its class pools otherwise


def labels_to_file(config: ModelConfig, usual: Pooling) -> dict[str, Any]:
    """The fields of a network with labels; `usual` is the pooling of transformers' class."""
    fields: dict[str, Any] = {
        "id2label": {str(id): label for id, label in enumerate(config.labels)},
        "label2id": {label: id for id, label in enumerate(config.labels)},
    }
    if config.head == "tag":
        return fields
    other = {POOLING: config.pooling} if config.pooling != usual else {}
    return fields | {"problem_type": PROBLEMS[config.problem]} | other


def labels_from_file(file: dict[str, Any], head: str, usual: Pooling) -> dict[str, Any]:
    """Our fields for them; `head` is classify or tag. Raises `ConfigError` for what contradicts itself."""
    labels = read_names(file)
    if head == "tag":
        return {"head": head, "labels": labels}
    problem, pooling = file.get("problem_type"), file.get(POOLING)
    if problem is None:
        problem = PROBLEMS["single" if len(labels) > 1 else "regression"]
    if problem not in list(PROBLEMS.values()):
        raise ConfigError(f"problem_type must be one of {', '.join(PROBLEMS.values())}, not {problem!r:.80}")
    pooling = usual if pooling is None else pooling
    if pooling not in get_args(Pooling):
        raise ConfigError(f"{POOLING} must be one of {', '.join(get_args(Pooling))}, not {pooling!r:.80}")
    ours = next(name for name, theirs in PROBLEMS.items() if theirs == problem)
    return {"head": head, "labels": labels, "problem": ours, "pooling": pooling, "pooler": pooling == "first"}


def read_names(file: dict[str, Any]) -> tuple[str, ...]:
    """The names of the labels in their order; LABEL_0, LABEL_1 ... where a file says only how many there are."""
    names, count, ids = file.get("id2label"), file.get("num_labels"), file.get("label2id")
    if names is None:
        count = 2 if count is None else count
        if type(count) is not int or not 1 <= count <= LARGEST["labels"]:
            raise ConfigError(f"num_labels must be a whole number from 1 to {LARGEST['labels']:,}, not {count!r:.80}")
        return tuple(f"LABEL_{id}" for id in range(count))
    if not isinstance(names, dict) or not names:
        raise ConfigError(f"id2label must be a table of ids and labels, not {names!r:.80}")
    missing = next((id for id in range(len(names)) if str(id) not in names), None)
    if missing is not None:
        raise ConfigError(f"id2label must name the labels 0 to {len(names) - 1}, and has no {missing}")
    labels = [names[str(id)] for id in range(len(names))]
    if count is not None and count != len(labels):
        raise ConfigError(f"num_labels = {count!r:.80} contradicts id2label, which has {len(labels)} labels")
    if strange := [label for label in labels if not isinstance(label, str)]:
        raise ConfigError(f"id2label must have names as labels, not {strange[0]!r:.80}")
    if ids is not None:
        check_ids(ids, labels)
    return tuple(labels)


def check_ids(ids: Any, labels: list[str]) -> None:
    """Refuse a label2id that is not id2label backwards. Some files have its numbers as texts."""
    if not isinstance(ids, dict):
        raise ConfigError(f"label2id must be a table of labels and ids, not {ids!r:.80}")
    for id, label in enumerate(labels):
        if label not in ids or isinstance(ids[label], bool) or ids[label] not in (id, str(id)):
            said = f"says {ids[label]!r:.80}" if label in ids else "does not have it"
            raise ConfigError(f"label2id contradicts id2label: {label!r:.80} is label {id}, but label2id {said}")
    if len(ids) > len(labels):
        stranger = next(label for label in ids if label not in set(labels))
        raise ConfigError(f"label2id has the label {stranger!r:.80}, which id2label does not have")
