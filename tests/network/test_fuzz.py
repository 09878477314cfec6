"""Damaged model folders: each loads a network of the same shapes, or is one `PellucidError`. Never a crash, a hang or a flood.

Where the weights are whole and the configuration says the same, the network has the same weights too.

The mutations run in a process of their own (this file as a program), with a limit on its memory and on the time of each.
"""

from __future__ import annotations

import json
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from safetensors.torch import load_file, save_file
from tiny import randomised

from pellucid.core.errors import PellucidError
from pellucid.network.families import FAMILIES
from pellucid.network.network import Network
from pellucid.network.weights import load_network, save_network

SMALL: dict[str, Any] = {"vocab_size": 11, "context_length": 8, "d_model": 8, "layers": 1, "d_mlp": 6}
HEADS = {"heads": 2, "kv_heads": 2, "d_head": 4}
LABELLED = {"head": "classify", "labels": ("no", "yes", "perhaps")}
MODELS = {
    "gpt2": SMALL | HEADS,
    "llama": SMALL | HEADS,
    "mistral": SMALL | HEADS | {"layers": 2},  # in two shards
    "qwen3": SMALL | HEADS | {"tied": False},
    "bert": SMALL | HEADS | {"token_types": 2, "pooler": True},
    "roberta": SMALL | HEADS | {"token_types": 1, "tied": False},
    "distilbert": SMALL | HEADS,
    "t5": SMALL | HEADS | {"decoder_layers": 1, "tied": False},
    "lstm": SMALL,
    "bag-of-words": SMALL | LABELLED,
    "gpt2 with labels": SMALL | HEADS | LABELLED | {"pooling": "last"},
    "distilbert with labels": SMALL | HEADS | LABELLED | {"pooling": "first", "pooler": True},
    "qwen2 with tags": SMALL | HEADS | LABELLED | {"head": "tag"},
}
SHARDED = ("mistral",)
MEMORY = 1_000_000_000  # bytes of address space beyond what the process has at the start
SECONDS = 10  # for one mutation; a few milliseconds are usual
NASTY: list[Any] = [
    None, True, False, "", "abc", "../../etc/passwd", "/etc/passwd", "\ud800", "model.safetensors", -1, 0, 1, 2, 3, 7, 0.5,
    1e308, -1e308, float("nan"), float("inf"), 2**31, 2**63, 2**64, 10**12, 10**400, [], [1], {}, {"a": 1}, [[[[]]]], "F8_E4M3",
    "I32", "BF16", "yarn", "llama3", "relu", "gelu", "bert", "llama",
]  # fmt: skip


def make(folder: Path) -> dict[str, Path]:
    """One small model of each family."""
    folders = {}
    for family, fields in MODELS.items():
        folders[family] = folder / family
        folders[family].mkdir()
        save_network(randomised(FAMILIES[family.split()[0]].new(**fields)), folders[family])
        if family in SHARDED:
            shard(folders[family])
    return folders


def shard(folder: Path) -> None:
    """Two files and an index instead of one file."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = {name: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(names.values()):
        save_file({name: tensors[name] for name in names if names[name] == file}, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": names}))


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip bits, cut off, cut out, insert, copy one part over another; half of the time near the beginning."""
    changed, end = bytearray(data), len(data) if rng.random() < 0.5 else min(len(data), 600)
    at, length = rng.randrange(end), rng.choice([1, 2, 8, 40, 300])
    kind = rng.choice(["flip", "flip", "cut off", "cut out", "insert", "splice", "overwrite"])
    if kind == "flip":
        for _ in range(rng.choice([1, 1, 2, 8])):
            changed[rng.randrange(end)] ^= 1 << rng.randrange(8)
    elif kind == "cut off":
        del changed[at:]
    elif kind == "cut out":
        del changed[at : at + length]
    elif kind == "insert":
        changed[at:at] = rng.randbytes(length)
    elif kind == "splice":
        other = rng.randrange(len(data))
        changed[at : at + length] = data[other : other + length]
    else:
        changed[at : at + length] = bytes([rng.choice([0, 0x7F, 0xFF])]) * length
    return bytes(changed)


def mutate_json(value: Any, rng: random.Random) -> Any:
    """Replace, remove, rename or exchange values somewhere inside."""
    places = [value]
    for place in places:
        places += [x for x in (place.values() if isinstance(place, dict) else place) if isinstance(x, dict | list) and x]
    place = rng.choice(places)
    keys = list(place) if isinstance(place, dict) else list(range(len(place)))
    key, other, kind = rng.choice(keys), rng.choice(keys), rng.random()
    if kind < 0.6:
        place[key] = rng.choice(NASTY)
    elif kind < 0.75:
        place[key], place[other] = place[other], place[key]
    elif kind < 0.85:
        del place[key]
    elif isinstance(place, dict):
        place[rng.choice([f"{key}x", "", str(other)])] = place.pop(key)
    else:
        place.append(rng.choice(NASTY))
    return value


def mutate(path: Path, rng: random.Random) -> None:
    """Damage one file, as bytes or as what it means."""
    data = path.read_bytes()
    if rng.random() < 0.5:
        path.write_bytes(mutate_bytes(data, rng))
    elif path.suffix == ".json":
        path.write_text(json.dumps(mutate_json(json.loads(data), rng)))
    else:  # a header that is well-formed JSON, but lies
        length = int.from_bytes(data[:8], "little")
        header = json.dumps(mutate_json(json.loads(data[8 : 8 + length]), rng)).encode()
        header += b" " * (-len(header) % 8)
        path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])


def try_one(folder: Path, original: Network, path: Path) -> str:
    """What comes of loading the folder, and of a forward pass if it loads."""
    try:
        network = load_network(folder)
    except PellucidError:
        return "refused"
    found, expected = network.state_dict(), original.state_dict()
    assert {name: weight.shape for name, weight in found.items()} == {name: weight.shape for name, weight in expected.items()}
    if path.suffix == ".json" and network.config == original.config:
        assert all(torch.equal(weight, expected[name]) for name, weight in found.items()), "other weights"
    ids = torch.zeros(1, 2, dtype=torch.long)
    network(ids, **({"decoder_ids": ids} if network.config.family == "t5" else {}))
    return "loaded"


def too_slow(signum: int, frame: object) -> None:
    raise TimeoutError(f"took over {SECONDS} s")


def fuzz(first: int, count: int) -> dict[str, Any]:
    """Mutations first, first + 1, ...: how many were refused and loaded, and what went wrong."""
    torch.set_num_threads(1)
    outcomes, failures = Counter[str](), []
    with tempfile.TemporaryDirectory() as parent:
        models = make(Path(parent))
        originals = {family: load_network(models[family]) for family in models}
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        signal.signal(signal.SIGALRM, too_slow)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(first, first + count):
            rng, folder = random.Random(number), Path(parent) / "mutated"
            family = rng.choice(list(models))
            shutil.copytree(models[family], folder)
            path = rng.choice(sorted(folder.iterdir()))
            mutate(path, rng)
            signal.alarm(SECONDS)
            try:
                outcomes[try_one(folder, originals[family], path)] += 1
            except Exception as error:  # that none comes is what is tested
                failures.append(f"{number} ({family}, {path.name}): {type(error).__name__}: {str(error)[:300]}")
            finally:
                signal.alarm(0)
            shutil.rmtree(folder)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000
    return {"outcomes": outcomes, "failures": failures, "grown_mb": grown}


def run(first: int, count: int) -> dict[str, Any]:
    """`fuzz` in a process of its own."""
    command = [sys.executable, __file__, str(first), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stderr[-3000:]}"
    return json.loads(done.stdout)


def check(first: int, count: int) -> None:
    found = run(first, count)
    assert not found["failures"], "\n".join(found["failures"])
    assert sum(found["outcomes"].values()) == count
    assert found["outcomes"]["refused"] > count / 3  # the mutations do damage
    assert found["outcomes"]["loaded"] > count / 20  # and not always so much that nothing behind the header is reached
    assert found["grown_mb"] < 100


def test_a_few_hundred_damaged_folders_load_or_are_refused():
    check(0, 400)


@pytest.mark.slow
def test_thousands_of_damaged_folders_load_or_are_refused():
    check(1000, 5000)


if __name__ == "__main__":
    print(json.dumps(fuzz(int(sys.argv[1]), int(sys.argv[2]))))
