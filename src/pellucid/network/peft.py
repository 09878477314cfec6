"""Low-rank adapters in files: the folder that the library peft writes and reads, on the names of transformers' modules."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from pellucid.core.errors import ConfigError, ModelError
from pellucid.core.files import atomic_path, write_json
from pellucid.network.adapters import LowRank, adapted, ends, label_head, plain_layers, put
from pellucid.network.families import Family, Stored, family
from pellucid.network.labels import with_labels
from pellucid.network.network import Network
from pellucid.network.peft_settings import ADAPTER, FINGERPRINT, HEAD, OWN, WEIGHTS, Adapter
from pellucid.network.sources import TYPES, listed, save_tensors, whole
from pellucid.network.weights import names_in, to_file

ROOT = "base_model.model."  # stands before every name
SAMPLE = 256  # numbers of each tensor that the fingerprint is made of
CLASSIFIERS = ("classifier", "score")  # modules that peft saves for tasks with labels, whatever the file says

Task = Literal["CAUSAL_LM", "SEQ_CLS", "TOKEN_CLS", "SEQ_2_SEQ_LM", "FEATURE_EXTRACTION"]
Parts = list[tuple[str, Stored]]  # of ours, that lie in one of theirs


def modules_in(network: Network) -> dict[str, Parts]:
    """Their modules that an adapter can change: which of ours lie in each. GPT-2's c_attn holds three."""
    layers, found = plain_layers(network) | adapted(network), dict[str, Parts]()
    for ours, stored in names_in(network.config, family(network.config.family, "the network")).items():
        if ours.endswith(".weight") and ours.removesuffix(".weight") in layers:
            found.setdefault(module_of(stored), []).append((ours.removesuffix(".weight"), stored))
    return found


def module_of(stored: Stored) -> str:
    """The module whose weight or bias a stored tensor is."""
    return stored.name.rpartition(".")[0]


# ---- writing


def save_adapter(network: Network, folder: Path, *, base: str, task: Task | None = None) -> None:
    """Write the network's adapter, and its head for labels, into a folder, as peft writes them.

    `base` is the path or name of the model without the adapter; a relative path is meant from the working directory or from
    `folder`. `task` is peft's task_type; without it the one that the network's head suggests.
    """
    layers, config = adapted(network), network.config
    if not layers:
        raise ModelError("the network has no adapter to save; attach one first")
    tensors, ranks, alphas, transposed = dict[str, Tensor](), dict[str, float](), dict[str, float](), False
    for module, parts in modules_in(network).items():
        if any(ours in layers for ours, _ in parts):
            a, b, scale = joined(parts, layers)
            tensors |= {f"{ROOT}{module}.lora_A.weight": a, f"{ROOT}{module}.lora_B.weight": b}
            ranks[module], alphas[module] = len(a), scale * len(a)
            transposed = transposed or parts[0][1].transposed
    table = names_in(config, family(config.family, folder))
    head = {ours: stored for ours, stored in table.items() if ours.partition(".")[0] in label_head(network)}
    tensors |= {ROOT + name: weight for name, weight in to_file(network.state_dict(), head).items()}
    names = target_names(
        ranks, {module_of(stored) for stored in table.values()} - {module_of(stored) for stored in head.values()}
    )
    rank, rank_pattern = with_exceptions(ranks, names)
    alpha, alpha_pattern = with_exceptions(alphas, names)
    settings = {
        "peft_type": "LORA",
        "task_type": task or usual_task(network),
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": max(layer.dropout for layer in layers.values()),
        "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern,
        "target_modules": names,
        "modules_to_save": sorted({saved_module(stored) for stored in head.values()}) or None,
        "fan_in_fan_out": transposed,
        "bias": "none",
        "init_lora_weights": True,
    }
    with atomic_path(folder / WEIGHTS) as temporary:
        save_tensors({name: tensor.detach().float() for name, tensor in tensors.items()}, temporary)
    write_json(folder / OWN, {FINGERPRINT: fingerprint(network)} | label_settings(network))
    write_json(folder / ADAPTER, settings)


def joined(parts: Parts, layers: Mapping[str, LowRank]) -> tuple[Tensor, Tensor, float]:
    """A, B and the scale of one of their modules: of several of ours, one below another in A and on the diagonal of B."""
    there = [(stored, layers[ours]) for ours, stored in parts if ours in layers]
    (_, first), count = there[0], there[0][0].parts
    a = torch.cat([layer.lora_a for _, layer in there])
    b = a.new_zeros(count * first.out_features, len(a))
    column = 0
    for stored, layer in there:
        outputs, rank = layer.lora_b.shape
        block = layer.lora_b * (layer.scale / first.scale)
        b[stored.part * outputs : (stored.part + 1) * outputs, column : column + rank] = block
        column += rank
    return a.detach(), b.detach(), first.scale


def target_names(modules: Mapping[str, object], there: set[str]) -> list[str]:
    """Endings that name these modules and no others that are there; whole names where there are none."""

    def tail(name: str) -> str:
        return re.sub(r"^.*\.\d+\.", "", name)

    found = set[str]()
    for module in modules:
        last, whole_tail = module.rpartition(".")[2], tail(module)
        alike = {tail(name) for name in there if ends(name, last)}
        short = last if len(alike) == 1 and not last.isdigit() else whole_tail
        only = short != module and all(name in modules for name in there if ends(name, short))
        found.add(short if only else module)
    return sorted(found)


def with_exceptions(values: Mapping[str, float], names: list[str]) -> tuple[int | float, dict[str, int | float]]:
    """The value that most modules have, and the others under the endings of the modules that have them."""

    def plain(value: float) -> int | float:
        return int(value) if float(value).is_integer() else value

    [(usual, _)] = Counter(values.values()).most_common(1)
    pattern = dict[str, int | float]()
    for name in names:
        those = {module: value for module, value in values.items() if ends(module, name)}
        if len(set(those.values())) == 1:
            those = {name: next(iter(those.values()))}
        pattern |= {module: plain(value) for module, value in those.items() if value != usual}
    return plain(usual), pattern


def usual_task(network: Network) -> Task | None:
    """peft's name for what the network does; it has none for filling masks."""
    config = network.config
    if config.labels:
        return "TOKEN_CLS" if config.head == "tag" else "SEQ_CLS"
    if config.head == "lm":
        return "SEQ_2_SEQ_LM" if config.architecture == "encoder-decoder" else "CAUSAL_LM"
    return "FEATURE_EXTRACTION" if config.head == "none" else None


def saved_module(stored: Stored) -> str:
    """The module that peft is told to save whole: its own classifier, or a part by its full name."""
    module = module_of(stored)
    return next((name for name in CLASSIFIERS if module.partition(".")[0] == name), module)


def label_settings(network: Network) -> dict[str, Any]:
    """What a head for labels is made of; nothing without one."""
    config = network.config
    made_of = {"head": config.head, "labels": list(config.labels), "problem": config.problem, "pooling": config.pooling}
    return {HEAD: made_of} if config.labels else {}


def fingerprint(network: Network) -> str:
    """SHA-256 of names, shapes and the first numbers, in bf16, of all weights that an adapter leaves as they are.

    Rounded, so that a base opened in another type is the same base. Heads and poolers may have been exchanged for others.
    """
    digest, own = hashlib.sha256(), {f"{name}.{part}" for name in adapted(network) for part in ("lora_a", "lora_b")}
    for name, weight in sorted(network.named_parameters()):
        if name not in own and not re.search(r"(^|\.)(head|pooler)\.", name):
            digest.update(f"{name} {tuple(weight.shape)} ".encode())
            first = weight.detach().flatten()[:SAMPLE].to("cpu", torch.bfloat16)
            digest.update(first.view(torch.int16).numpy().astype("<i2").tobytes())
    return digest.hexdigest()


# ---- reading


def load_adapter(network: Network, adapter: Adapter, *, base: str) -> Network:
    """The network that `adapter` was trained on, with it: frozen, ready to use (evaluation mode). `base` is its name in errors.

    The weights of `network` are shared, not copied, and its head is exchanged for the adapter's if that scores labels.
    Raises `ModelError` for an adapter that belongs to another network, or whose tensors are damaged.
    """
    if adapted(network):
        raise ConfigError(f"{base} has an adapter already; merge it first, with: pellucid adapter merge")
    known, tensors = family(network.config.family, base), read_tensors(adapter)
    pairs, others = sorted_out(adapter, tensors, known.prefix)
    labelled = with_head(network, adapter, others, known)
    layers = fitting_layers(labelled, adapter, pairs, known, base)
    said = adapter.own.get(FINGERPRINT)
    if said is not None and said != fingerprint(labelled):
        raise ModelError(
            f"{belongs(adapter)} as it was in training, and the weights of {base} are others; put back that base, "
            "or name it with: pellucid adapter merge --base"
        )
    load_head(labelled, adapter, others, known, fresh_in(labelled, network))
    for ours, layer in layers.items():
        put(labelled, ours, layer)
    return labelled.requires_grad_(False).eval()


def belongs(adapter: Adapter) -> str:
    """How errors begin that name both bases."""
    return f"{adapter.folder} is an adapter for {adapter.base}"


def read_tensors(adapter: Adapter) -> dict[str, Tensor]:
    """The adapter's tensors in fp32."""
    with whole(adapter.path):
        tensors: dict[str, Tensor] = load_file(adapter.path)
    if odd := [f"{name} is of type {tensor.dtype}" for name, tensor in tensors.items() if tensor.dtype not in TYPES.values()]:
        raise ModelError(f"{adapter.path}: {listed(odd)}; weights are read of the types {', '.join(TYPES)}")
    if damaged := sorted(name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()):
        raise ModelError(f"{adapter.path}: values that are not finite in {listed(damaged)}")
    return {name: tensor.float() for name, tensor in tensors.items()}


def sorted_out(
    adapter: Adapter, tensors: Mapping[str, Tensor], prefix: str
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """A and B of every module, and what else the file holds. Names are without what a model without a head has not."""
    pairs, others = dict[str, dict[str, Tensor]](), dict[str, Tensor]()
    for name, tensor in tensors.items():
        short = name.removeprefix(ROOT).removeprefix(prefix)
        if found := re.fullmatch(r"(.+)\.lora_([AB])\.weight", short):
            pairs.setdefault(found[1], {})[found[2]] = tensor
        else:
            others[short] = tensor
    if halves := sorted(
        f"{module} has no lora_{'B' if 'A' in pair else 'A'}" for module, pair in pairs.items() if len(pair) < 2
    ):
        raise ModelError(f"{adapter.path} is not whole: {listed(halves)}; copy it again")
    return pairs, others


def fitting_layers(
    network: Network, adapter: Adapter, pairs: Mapping[str, Mapping[str, Tensor]], known: Family, base: str
) -> dict[str, LowRank]:
    """What takes the place of our linear layers, once all modules and shapes have been found to be the network's."""
    there = {module.removeprefix(known.prefix): parts for module, parts in modules_in(network).items()}
    if unknown := sorted(pairs.keys() - there.keys()):
        raise ModelError(f"{belongs(adapter)}, and changes layers that {base} has not, or that take none: {listed(unknown)}")
    forms = {module: (module, known.prefix + module) for module in there}
    wanted = {module for module, names in forms.items() if any(adapter.targets(name) for name in names)}
    if missing := sorted(wanted - pairs.keys()):
        raise ModelError(f"{adapter.path} lacks the tensors of {len(missing)} layers that {ADAPTER} names: {listed(missing)}")
    plain, wrong = plain_layers(network), list[str]()
    for module, pair in pairs.items():
        ours, stored = there[module][0]
        rank, outputs = adapter.of(known.prefix + module, "r"), plain[ours].out_features * stored.parts
        for which, shape in (("A", (rank, plain[ours].in_features)), ("B", (outputs, rank))):
            if pair[which].shape != shape:
                wrong.append(f"{module}.lora_{which} has shape {tuple(pair[which].shape)}, not {tuple(map(int, shape))}")
    if wrong:
        raise ModelError(f"{belongs(adapter)}, and does not fit {base}: {listed(wrong, '; ')}")
    layers = dict[str, LowRank]()
    for module, pair in pairs.items():
        scale = adapter.of(known.prefix + module, "lora_alpha") / len(pair["A"])
        for ours, stored in there[module]:
            layers[ours] = LowRank(plain[ours], len(pair["A"]), scale, float(adapter.settings.get("lora_dropout", 0.0)))
            with torch.no_grad():
                layers[ours].lora_a.copy_(pair["A"])
                layers[ours].lora_b.copy_(pair["B"].chunk(stored.parts)[stored.part])
    return layers


def with_head(network: Network, adapter: Adapter, others: Mapping[str, Tensor], known: Family) -> Network:
    """The network with the head for labels that the adapter speaks of; itself, if it speaks of none or has that one."""
    said, task = adapter.own.get(HEAD), adapter.settings.get("task_type")
    if said is None and task in ("SEQ_CLS", "TOKEN_CLS") and not network.config.labels:
        said = their_head("classify" if task == "SEQ_CLS" else "tag", adapter, others, known)
    if said is None:
        return network
    names = said.get("labels") if isinstance(said, dict) and said.keys() == {"head", "labels", "problem", "pooling"} else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ModelError(f"{adapter.folder / OWN}: {HEAD} = {said!r:.80} does not describe a head for labels")
    if len(names) > max((len(tensor) for tensor in others.values() if tensor.ndim), default=0):
        raise ModelError(f"{adapter.path} has no scores for the {len(names):,} labels that {OWN} names")
    try:
        return with_labels(network, seed=0, **said)
    except ConfigError as error:
        raise ModelError(f"{adapter.folder / OWN}: {error}") from None


def their_head(
    head: Literal["classify", "tag"], adapter: Adapter, others: Mapping[str, Tensor], known: Family
) -> dict[str, Any]:
    """The head of transformers' class for such a task, whose labels only their number is known of."""
    name = f"{known.labelled[head]['head']}.weight" if head in known.labelled else ""
    if name.removeprefix(known.prefix) not in others:
        task = adapter.settings["task_type"]
        raise ModelError(f"{adapter.path} lacks the head for labels, {name or 'any'}, that task_type = {task!r} speaks of")
    count = len(others[name.removeprefix(known.prefix)])
    problem = "regression" if head == "classify" and count == 1 else "single"
    pooling = known.pooling if head == "classify" else "mean"
    return {"head": head, "labels": [f"LABEL_{i}" for i in range(count)], "problem": problem, "pooling": pooling}


def load_head(network: Network, adapter: Adapter, others: Mapping[str, Tensor], known: Family, fresh: set[str]) -> None:
    """Put the adapter's head for labels into the network; `fresh` are the parameters that the base does not have."""
    parts = label_head(network)
    table = {ours: stored for ours, stored in names_in(network.config, known).items() if ours.partition(".")[0] in parts}
    places = {ours: stored.name.removeprefix(known.prefix) for ours, stored in table.items()}
    if surplus := sorted(others.keys() - set(places.values())):
        raise ModelError(f"{adapter.path} has {len(surplus)} tensors for which there is no place here: {listed(surplus)}")
    given = {ours.partition(".")[0] for ours, name in places.items() if name in others}  # a part is there whole, or not at all
    needed = {ours: name for ours, name in places.items() if ours in fresh or ours.partition(".")[0] in given}
    if missing := sorted(name for name in needed.values() if name not in others):
        raise ModelError(f"{adapter.path} lacks {len(missing)} tensors of the head for labels: {listed(missing)}")
    mine, dtype = network.state_dict(), network.embedding.weight.dtype
    wrong = [
        f"{name} has shape {tuple(others[name].shape)}, not {tuple(mine[ours].shape)}"
        for ours, name in needed.items()
        if others[name].shape != mine[ours].shape
    ]
    if wrong:
        raise ModelError(f"{adapter.path}: {listed(wrong, '; ')}")
    found = {ours: others[name].to(mine[ours].device, dtype) for ours, name in needed.items()}
    network.load_state_dict(found, strict=False, assign=True)


def fresh_in(network: Network, before: Network) -> set[str]:
    """The parameters that two networks do not share."""
    shared = {name: weight.data_ptr() for name, weight in before.named_parameters()}
    return {name for name, weight in network.named_parameters() if shared.get(name) != weight.data_ptr()}
