"""What a family is: how its `config.json` and its tensors are called, and what all its members share."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pellucid.core.errors import ConfigError
from pellucid.network.config import ModelConfig, Pooling
from pellucid.network.families.labels import labels_from_file, labels_to_file

Fields = dict[str, Any]

ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu", "silu": "silu"}
ACTIVATION_NAMES = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
NEUTRAL: dict[str, tuple[Any, ...]] = {  # theirs, which other networks have: at what values, besides null, they change nothing
    "num_local_experts": (),
    "num_experts": (),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "residual_multiplier": (1,),
    "embedding_multiplier": (1,),
    "logits_scaling": (1,),
    "attention_multiplier": (1,),
    "sliding_window": (),
}


def activation(file: Fields, name: str) -> str:
    """What we call the activation that a file names."""
    if (theirs := file[name]) not in list(ACTIVATIONS):
        raise ConfigError(f"{name} = {theirs!r:.80} is not supported; known are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[theirs]


def refusal(name: str, value: object) -> str:
    """What is said of a field whose value is known, and asks for another network than ours."""
    return f"{name} = {value!r:.80} is not supported, and leaving it out would change the model's answers"


@dataclass(frozen=True)
class Stored:
    """Where one of our tensors lies in a file: in which tensor, and in what form."""

    name: str
    part: int = 0  # which of `parts` equal parts along the outputs
    parts: int = 1
    transposed: bool = False  # [inputs outputs] instead of [outputs inputs]
    copy: str = ""  # the name of a second copy, which some files have and others have alone
    paired: int = 0  # heads whose rotary pairs are neighbours (i, i + 1) instead of (i, i + d_head / 2)


def stored(
    names: Mapping[str, str], ours: str = "", theirs: str = "", kinds: tuple[str, ...] = ("weight",)
) -> dict[str, Stored]:
    """A table of module names as one of tensors, with what stands before each name."""
    return {f"{ours}{mine}.{kind}": Stored(f"{theirs}{name}.{kind}") for mine, name in names.items() for kind in kinds}


@dataclass(frozen=True, kw_only=True)
class Family:
    """A mapping of names and fields, both ways. Names on the other side are those of Hugging Face transformers."""

    name: str  # `model_type`
    classes: Mapping[str, str]  # our head: the class in `architectures`
    fields: Mapping[str, str]  # ours: theirs
    tensors: Callable[[ModelConfig], dict[str, Stored]]  # ours: theirs, with the head for tokens
    labelled: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # classify, tag: what is where in such a network
    pooling: Pooling = "last"  # of transformers' class for classifying
    shape: Fields  # our fields that are the same for all members
    fresh: Fields = field(default_factory=dict)  # our fields in new networks, where members differ
    grouped: bool = False  # whether there may be fewer key/value heads than heads
    read: Callable[[Fields], Fields] = lambda _: {}  # our fields that take more than a name to find
    write: Callable[[ModelConfig], Fields] = lambda _: {}  # and theirs
    made_from: Mapping[str, str] = field(default_factory=dict)  # ours: theirs that `read` takes it from, for errors
    fixed: Fields = field(default_factory=dict)  # theirs: the only value that our network computes; others are refused
    defaults: Fields = field(default_factory=dict)  # theirs: what a file means that leaves the field out
    prefix: str = ""  # what stands before the names of a model with a head, and not of one without
    ignored: str = r"(?!)"  # names of tensors that are no weights: masks and tables which follow from the configuration
    repeated: Mapping[str, str] = field(default_factory=dict)  # names under which files repeat one of our tensors

    def new(self, **dimensions: Any) -> ModelConfig:
        """A configuration of this family."""
        return ModelConfig(family=self.name, **self.shape | self.fresh | dimensions)

    @property
    def gated(self) -> bool:
        """Whether the MLP of a new network is gated."""
        return bool((self.shape | self.fresh).get("gated", True))

    def in_their_words(self, message: str) -> str:
        """What `ModelConfig` says about our fields, in the names of the file; what follows "not" is the value."""
        names = {**self.fields, **self.made_from}
        said, cut, value = message.partition(", not ")
        return re.sub(r"\w+", lambda word: names.get(word[0], word[0]), said) + cut + value

    def config_to_file(self, config: ModelConfig) -> Fields:
        """The fields of `config.json` that describe the network."""
        fields = {theirs: getattr(config, ours) for ours, theirs in self.fields.items()}
        if config.head not in self.classes:
            raise ConfigError(f"no {self.name} model has a head that is {config.head}; known are {', '.join(self.classes)}")
        labels = labels_to_file(config, self.pooling) if config.scores_labels else {}
        return (
            {"model_type": self.name, "architectures": [self.classes[config.head]]}
            | self.fixed
            | fields
            | self.write(config)
            | labels
        )

    def all_tensors(self, config: ModelConfig) -> dict[str, Stored]:
        """Where each tensor of the network lies, whatever its head.

        What scores a text from a pooling that transformers' class does not have goes by another name than its, so that it says
        that its own is missing, instead of answering wrongly.
        """
        if config.head in ("lm", "mlm"):
            return self.tensors(config)
        names = {ours: stored for ours, stored in self.tensors(config).items() if not ours.startswith("head.")}
        if not config.scores_labels:
            return names
        modules = dict(self.labelled[config.head])
        if config.head == "classify" and config.pooling != self.pooling:
            modules = {"head": f"{config.pooling}_classifier"}
        kinds = ("weight", "bias") if config.head_bias else ("weight",)
        return names | stored(modules, kinds=kinds)

    def head_in(self, file: Fields) -> str | None:
        """Which head for labels the class has that `architectures` names; None: none."""
        classes = file.get("architectures")
        classes = [name for name in classes if isinstance(name, str)] if isinstance(classes, list) else []
        for name in classes:
            if name in self.classes.values():
                return next((head for head in ("classify", "tag") if self.classes.get(head) == name), None)
            if name.endswith(("ForSequenceClassification", "ForTokenClassification")):
                known = ", ".join(self.classes.values())
                raise ConfigError(f"architectures = {name!r:.80} is not supported for {self.name}; known are {known}")
        return None

    def config_from_file(self, file: Fields) -> Fields:
        """Our fields from the parsed `config.json`. Raises `ConfigError` for what it lacks and what the network cannot do."""
        file = self.defaults | file
        needed = [theirs for theirs in self.fields.values() if theirs not in self.defaults]
        if missing := [theirs for theirs in needed if file.get(theirs) is None]:
            raise ConfigError(f"{', '.join(missing)} must be given")
        for name, value in self.fixed.items():
            if file.get(name, value) != value:
                raise ConfigError(refusal(name, file[name]))
        for name, neutral in NEUTRAL.items():
            if name not in self.defaults and file.get(name) not in (None, *neutral):
                raise ConfigError(refusal(name, file[name]))
        kinds = file.get("layer_types")
        if kinds is not None and not (isinstance(kinds, list) and all(kind == "full_attention" for kind in kinds)):
            raise ConfigError(refusal("layer_types", kinds))
        if (quantized := file.get("quantization_config")) is not None:
            raise ConfigError(
                f"the weights are quantised (quantization_config = {quantized!r:.80}), of which only GGUF's kinds can be read; "
                "take the model as it was before, or as a GGUF file"
            )
        given = self.defaults | {name: value for name, value in file.items() if value is not None}
        found = {ours: given[theirs] for ours, theirs in self.fields.items() if given.get(theirs) is not None}
        head = self.head_in(file)
        labels = {} if head is None else labels_from_file(file, head, self.pooling)
        return {"family": self.name} | self.shape | found | self.read(file) | labels


def classes(stem: str, head: str, scored: str) -> dict[str, str]:
    """The classes of a family in transformers: without a head, with the one for tokens, and with those for labels."""
    return {
        "none": f"{stem}Model",
        head: f"{stem}{scored}",
        "classify": f"{stem}ForSequenceClassification",
        "tag": f"{stem}ForTokenClassification",
    }
