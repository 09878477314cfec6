"""The settings of an adapter: what `adapter_config.json` of the library peft says, and what of it is computed here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pellucid.core.errors import ModelError
from pellucid.core.files import own_file, read_json
from pellucid.network.adapters import ends
from pellucid.network.config import is_number

ADAPTER, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
OWN = "pellucid.json"  # what peft does not know of: a field of ours in its file would make it warn
FINGERPRINT, HEAD = "base_fingerprint", "head"  # of the base's weights; what a head for labels is made of


READ = {
    "base_model_name_or_path",
    "exclude_modules",
    "init_lora_weights",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "modules_to_save",
    "peft_type",
    "r",
    "revision",
    "rank_pattern",
    "alpha_pattern",
    "target_modules",
    "task_type",
}
WITHOUT_EFFECT = {  # on the answers: settings of how training began, and of programs
    "auto_mapping",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "runtime_config",
}
BEGINNINGS = ("gaussian", "eva", "orthogonal")  # init_lora_weights that leave the base as it is; others change it


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter on disk, its settings read and its tensors not yet."""

    folder: Path
    settings: Mapping[str, Any]
    own: Mapping[str, Any]  # of `pellucid.json`; empty without

    @property
    def path(self) -> Path:
        return self.folder / WEIGHTS

    @property
    def base(self) -> str:
        """The model it belongs to: a path, or a name on the hub."""
        return str(self.settings["base_model_name_or_path"])

    @property
    def revision(self) -> str | None:
        revision = self.settings.get("revision")
        return None if revision is None else str(revision)

    def of(self, module: str, name: Literal["r", "lora_alpha"]) -> float:
        """Rank or alpha of a module: that of the first pattern which its name ends in, or else of all."""
        patterns = self.settings.get("rank_pattern" if name == "r" else "alpha_pattern") or {}
        found = [value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module)]
        return float(found[0] if found else self.settings[name])

    def targets(self, module: str) -> bool:
        """Whether the settings say that the module is adapted; where a pattern says it, the tensors alone do."""
        wanted, without = self.settings.get("target_modules"), self.settings.get("exclude_modules") or []
        if not isinstance(wanted, list) or not isinstance(without, list) or any(ends(module, name) for name in without):
            return False
        saved = self.settings.get("modules_to_save") or []
        if any(re.match(rf"(^|.*\.){re.escape(str(name))}($|\..*)", module) for name in saved):
            return False
        layers, layer = self.settings.get("layers_to_transform"), re.match(r".*?\.[^.]*\.(\d+)\.", module)
        chosen = layers is None or (layer is not None and int(layer[1]) in (layers if isinstance(layers, list) else [layers]))
        return chosen and any(ends(module, name) for name in wanted)


def is_adapter(path: Path) -> bool:
    """Whether a path is an adapter's folder."""
    return (path / ADAPTER).is_file()


def read_adapter(folder: Path) -> Adapter:
    """The adapter in a folder. Raises `ModelError` for one that is none, or asks for what is not computed here."""
    path = own_file(folder, ADAPTER)
    if path is None:
        raise ModelError(f"{folder} is not an adapter: it has no {ADAPTER}")
    settings = read_json(path)
    if not isinstance(settings, dict):
        raise ModelError(f"{path} is not a table of settings; put back the adapter's own {ADAPTER}")
    if (problem := refused(settings)) is not None:
        raise ModelError(f"{path}: {problem}")
    if own_file(folder, WEIGHTS) is None:
        if (folder / PICKLE).exists():
            raise ModelError(
                f"{folder / PICKLE} is a pickle, which can run any code when it is read, so it is not; "
                "save the adapter again with peft: model.save_pretrained(FOLDER, safe_serialization=True)"
            )
        raise ModelError(f"{folder} has no {WEIGHTS}")
    own = {} if (beside := own_file(folder, OWN)) is None else read_json(beside)
    if not isinstance(own, dict):
        raise ModelError(f"{beside} is not a table; put back the adapter's own {OWN}, or delete it")
    return Adapter(folder=folder, settings=settings, own=own)


def refused(settings: Mapping[str, Any]) -> str | None:
    """What is wrong with an adapter's settings, or cannot be computed here."""
    kind, base = settings.get("peft_type"), settings.get("base_model_name_or_path")
    if kind != "LORA":
        return f"peft_type = {kind!r:.80} is not supported; adapters of type LORA are"
    if not isinstance(base, str) or not base:
        return f"base_model_name_or_path = {base!r:.80} names no model; write there the one that the adapter was trained on"
    beginning = settings.get("init_lora_weights")
    if not isinstance(beginning, bool | None) and beginning not in BEGINNINGS:
        return (
            f"init_lora_weights = {beginning!r:.80} changed the base model too; save the adapter as a plain one with peft: "
            "model.save_pretrained(FOLDER, path_initial_model_for_weight_conversion=...)"
        )
    if settings.get("bias", "none") != "none":
        return f"bias = {settings['bias']!r:.80} is not supported: an adapter with biases of its own cannot be read"
    for name in sorted(settings.keys() - READ - WITHOUT_EFFECT - {"bias"}):
        if settings[name] not in (None, False, [], {}):
            return f"{name} = {settings[name]!r:.80} is not supported, and leaving it out would change the model's answers"
    return refused_numbers(settings)


def refused_numbers(settings: Mapping[str, Any]) -> str | None:
    """The same of rank and alpha, and of who has others."""
    if type(settings.get("r")) is not int or settings["r"] < 1:
        return f"r = {settings.get('r')!r:.80} is no rank: a whole number of at least 1"
    if not is_number(settings.get("lora_alpha")):
        return f"lora_alpha = {settings.get('lora_alpha')!r:.80} is not a number"
    dropout = settings.get("lora_dropout", 0.0)
    if not is_number(dropout) or not 0 <= dropout < 1:
        return f"lora_dropout = {dropout!r:.80} is not a number of at least 0 and below 1"
    for name in ("rank_pattern", "alpha_pattern"):
        table = settings.get(name) or {}
        if not isinstance(table, dict) or not all(is_number(value) and value > 0 for value in table.values()):
            return f"{name} = {table!r:.80} is no table of numbers above 0"
        if odd := [pattern for pattern in table if not re.fullmatch(r"\^?(\\[.d-]|[\w.-])+\$?", pattern)]:
            return f"{name} has the pattern {odd[0]!r:.80}; write out the names that it stands for"
    for name in ("target_modules", "modules_to_save", "exclude_modules"):
        value = settings.get(name)
        if not isinstance(value, str | None) and not (isinstance(value, list) and all(isinstance(one, str) for one in value)):
            return f"{name} = {value!r:.80} is no list of names"
    layers = settings.get("layers_to_transform")
    if not isinstance(layers, int | None) and not (isinstance(layers, list) and all(isinstance(one, int) for one in layers)):
        return f"layers_to_transform = {layers!r:.80} is no list of layers"
    return None
