"""`pellucid explain`: why a model says this, and how far the answer can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from pellucid.cli_shared import dashes, show_json
from pellucid.core.errors import ConfigError
from pellucid.core.progress import console

if TYPE_CHECKING:
    from pellucid.explanation.explanation import Explanation
    from pellucid.explanation.parts import Parts, Story
    from pellucid.explanation.probes import Probes
    from pellucid.model import Model

SHORT = 64  # tokens of a text that is explained exactly, since that costs little
OPTIONS = {"spans": "span", "methods": "method", "neurons": "neuron"}  # names that are said once for each


def explain(
    model: str,
    text: str | None = None,
    *,
    target: str | None = None,
    foil: str | None = None,
    word: str | None = None,
    against: str | None = None,
    chat: Annotated[bool, Parameter(negative=())] = False,
    by: Literal["auto", "words", "tokens", "sentences"] = "auto",
    spans: Annotated[list[str] | None, Parameter(name="--span", negative=())] = None,
    methods: Annotated[list[str] | None, Parameter(name="--method", negative=())] = None,
    removal: Literal["auto", "delete", "mask", "mean"] = "auto",
    samples: int | None = None,
    steps: int | None = None,
    corpus: Annotated[list[str] | None, Parameter(negative=())] = None,
    over_training: Annotated[bool, Parameter(negative=())] = False,
    neurons: Annotated[list[str] | None, Parameter(name="--neuron", negative=())] = None,
    ablate: Annotated[list[str] | None, Parameter(negative=())] = None,
    how: Literal["zero", "mean", "resample"] | None = None,
    probe: Annotated[list[str] | None, Parameter(negative=())] = None,
    seed: int = 0,
    out: Annotated[list[Path] | None, Parameter(negative=())] = None,
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16", "int8", "int4"] = "auto",
    threads: int | Literal["auto"] = "auto",
    force: bool = False,
    quiet: bool = False,
    json: bool = False,
) -> None:
    """Say why a model answers a text as it does, and how far that can be trusted.

        pellucid explain runs/mine "The nurse said that" --target " she" --foil " he" --out why.html
        pellucid explain runs/reviews "A fine film." --target positive --out why.html
        pellucid explain runs/mine --corpus my_texts/ --out heads.html

    What is explained is one number, the difference between two answers: of the logits of two tokens or labels, or of the
    log-probabilities of two continuations. Several methods say how much of it each word brings, and each is judged by what
    happens when the words that it names are taken away, beside orders of words drawn at random. The one that is most faithful
    to this text leads. The page also shows what every head and MLP adds, what the model would say after each layer, and where
    every head looks.

    Without a text, every attention head of a decoder gets a card: what it looks at, whether it finds and copies what it has
    seen before, and what is lost without it. With --over-training this is followed through the checkpoints that a run has kept.

    Parameters
    ----------
    model
        a run folder, a model folder, a .gguf file, a llama2.c .bin file, or a model's name on the hub
    text
        the text that the model answers: goes on with, labels, or fills; without it, its heads are described
    target
        the answer to explain: a token with the space before it, several tokens, or a label; without it the likeliest
    foil
        the answer that it is held against; without it the likeliest other one
    word
        of a tagger, the word that is asked about; of a masked language model, the number of the mask
    against
        another prompt of as many tokens, such as the same with one word changed: shows which places cause the difference
    chat
        the text is a message to the assistant: put the model's chat template around it
    by
        what is taken away at a time; auto takes sentences for texts of more than 160 words
    spans
        a part of the text that counts as one word; may be given several times
    methods
        shapley, occlusion, integrated gradients, gradient x input, attention rollout or attention; may be given several times
    removal
        what happens to words that are taken away: deleted, replaced by the mask token, or by the mean of all vectors
    samples
        random orders for Shapley values; more are surer and take longer
    steps
        steps of integrated gradients, instead of as many as they need
    corpus
        files on which heads are watched; without them on what the model itself writes
    over_training
        the model is a run: follow its heads through the checkpoints that it has kept
    neurons
        a neuron that gets a card too, as LAYER.NUMBER; may be given several times
    ablate
        a site, or a head such as blocks.3.attn.head.5, without which the loss is measured; may be given several times
    how
        what stands in its place: its mean unless given, zeros, or what passed in another text
    probe
        rows of tagged words: how well a linear rule reads the tags off each layer, beside labels drawn at random
    seed
        of the random orders, or of the random tokens on which heads are watched
    out
        files to write: a page (.html), all figures (.json), a picture (.png, .svg, .pdf); may be given several times
    device
        auto, cpu or cuda
    precision
        of the network: fp32 is exact to the last digits, bf16 is faster on some machines; auto takes it there for texts of
        more than 64 tokens; int8 and int4 explain the model that is served so, without the methods that need gradients
    threads
        CPU threads
    force
        replace OUT
    quiet
        show no progress
    json
        print all figures as JSON
    """
    from pellucid import api
    from pellucid.explanation.neurons import parsed

    check_out(out or (), whole=text is not None, force=force)
    of_text: dict[str, Any] = {"target": target, "foil": foil, "word": word, "against": against, "by": by, "spans": spans}
    of_text |= {"methods": methods, "removal": removal, "samples": samples, "steps": steps}
    of_parts: dict[str, Any] = {"corpus": corpus, "over_training": over_training, "neurons": neurons, "probe": probe}
    of_parts |= {"ablate": ablate, "how": how}
    if how is not None and not ablate:
        raise ConfigError("--how has no effect without --ablate SITE; leave it out")
    check_effect(text, of_text | {"chat": chat}, of_parts, {"device": device, "precision": precision, "threads": threads})
    paths, progress = dashes(corpus or ()), console(quiet=quiet)
    found: Explanation | Parts | Story | Probes
    if over_training:
        if not paths:
            raise ConfigError("--over-training needs a text on which every checkpoint is watched; give --corpus FILE")
        found = api.explain_training(model, paths, seed=seed, progress=progress)
    elif probe:
        found = api.explain_labels(opened(model, device, precision, threads), dashes(probe), seed=seed, progress=progress)
    elif text is None:
        held = opened(model, device, precision, threads)
        found = api.explain_parts(
            held,
            paths or None,
            neurons=parsed(neurons or []),
            sites=ablate or (),
            how=how or "mean",
            seed=seed,
            progress=progress,
        )
    else:
        held = opened(model, device, precision, threads, text)
        asked, other = (as_asked(one, chat=chat) for one in (text, against))
        of_text |= {"against": other}
        of_text |= {"word": int(word) if word is not None and word.isdecimal() else word, "spans": spans or ()}
        found = api.explain(held, asked, seed=seed, progress=progress, **of_text)
    for path in out or ():
        found.save(path, force=force)
    if json:
        return show_json(found.to_json())
    print(*found.lines(), sep="\n")
    if out:
        print("written to", ", ".join(map(str, out)))


def as_asked(text: str | None, *, chat: bool) -> Any:
    """A text, or the message to the assistant that it is."""
    return [{"role": "user", "content": text}] if chat and text is not None else text


def opened(model: str, device: str, precision: str, threads: int | Literal["auto"], text: str | None = None) -> Model:
    """The model in the precision that it is explained in: left to auto, exactly for a text of few tokens."""
    from pellucid import api
    from pellucid.core.device import choose

    if precision in ("int8", "int4"):
        compute = choose(device=device, precision="auto", threads=threads)
        return api.load(model, device=compute.device, precision=precision)  # type: ignore[arg-type]
    compute = choose(device=device, precision=precision, threads=threads)
    held = api.load(model, device=compute.device)
    if precision != "auto" or text is None or len(held.tokenizer.encode(text)) > SHORT:
        held.network.hold_in(compute.dtype)
    return held


def check_out(out: Sequence[Path], *, whole: bool, force: bool) -> None:
    """Refuse files that cannot be written before the work begins."""
    from pellucid.explanation.explanation import KINDS
    from pellucid.explanation.saving import check_path

    for path in out:
        if list(out).count(path) > 1:
            raise ConfigError(f"--out {path} is given twice; leave one out")
        check_path(path, KINDS if whole else (".html", ".json"), force=force)
    if force and not out:
        raise ConfigError("--force has no effect without --out; leave it out")


def check_effect(text: str | None, of_text: dict[str, Any], of_parts: dict[str, Any], of_model: dict[str, Any]) -> None:
    """Refuse options that have no effect on what is explained."""
    chosen = [name for name in ("over_training", "probe") if of_parts[name]]
    if text is not None:
        idle, what = of_parts, "on the answer to a text"
    elif not chosen:
        idle, what = of_text, "without a text"
    else:
        others = {name: value for name, value in of_parts.items() if name != chosen[0]}
        idle, what = of_text | others, f"with {option(chosen[0])}"
        if chosen[0] == "over_training":
            idle = idle | of_model
            del idle["corpus"]
    for name, value in idle.items():
        if value is not None and value is not False and value != "auto":
            raise ConfigError(f"{option(name)} has no effect {what}; leave it out")


def option(name: str) -> str:
    return f"--{OPTIONS.get(name, name).replace('_', '-')}"
