"""`pellucid explain`: why a model says this, and how far the answer can be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from pellucid.cli_shared import show_json
from pellucid.core.errors import ConfigError
from pellucid.core.progress import console

if TYPE_CHECKING:
    from pellucid.explanation.explanation import Explanation

WORDS = 8  # that are printed


def explain(
    model: str,
    text: str,
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

    What is explained is one number, the difference between two answers: of the logits of two tokens or labels, or of the
    log-probabilities of two continuations. Several methods say how much of it each word brings, and each is judged by what
    happens when the words that it names are taken away, beside orders of words drawn at random. The one that is most faithful to
    this text leads. The page also shows what every head and MLP adds, what the model would say after each layer, and where every
    head looks.

    Parameters
    ----------
    model
        a run folder, a model folder, a .gguf file, a llama2.c .bin file, or a model's name on the hub
    text
        the text that the model answers: goes on with, labels, or fills
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
    seed
        of the random orders
    out
        files to write: a page (.html), all figures (.json), a picture (.png, .svg, .pdf); may be given several times
    device
        auto, cpu or cuda
    precision
        of the network: auto takes bf16 where this machine is fast at it; fp32 is exact to the last digits; int8 and int4 explain
        the model that is served so, without the methods that need gradients
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
    from pellucid.core.device import choose
    from pellucid.explanation.explanation import check_kind

    for path in out or ():
        check_kind(path)
        if path.exists() and not force:
            raise ConfigError(f"{path} exists already; pass --force to replace it, or choose another --out")
    if force and not out:
        raise ConfigError("--force has no effect without --out; leave it out")
    few = precision in ("int8", "int4")
    compute = choose(device=device, precision="auto" if few else precision, threads=threads)
    held = api.load(model, device=compute.device, **({"precision": precision} if few else {}))  # type: ignore[arg-type]
    if not few:
        held.network.hold_in(compute.dtype)
    asked: Any = [{"role": "user", "content": text}] if chat else text
    number = int(word) if word is not None and word.isdigit() else word
    options: dict[str, Any] = {"against": against, "word": number, "by": by, "spans": spans or (), "methods": methods}
    options |= {"removal": removal, "samples": samples, "steps": steps, "seed": seed, "progress": console(quiet=quiet)}
    found = api.explain(held, asked, target=target, foil=foil, **options)
    for path in out or ():
        found.save(path, force=force)
    if json:
        return show_json(found.to_json())
    print(*lines(found), sep="\n")
    if out:
        print("written to", ", ".join(map(str, out)))


def lines(found: Explanation) -> list[str]:
    """The answer, the verdict, the words that matter most, and how each method fares."""
    question, best = found.question, found.leading
    said = [f"{question.measure} = {found.difference:+.3f} nats. {found.answer}", found.verdict, ""]
    order = sorted(range(len(question.units)), key=lambda number: -abs(best.values[number]))[:WORDS]
    width = max(len(question.units[number].text[:40]) for number in order)
    for number in order:
        error = "" if best.errors is None or not best.errors.any() else f" ± {best.errors[number]:.3f}"
        said.append(f"  {question.units[number].text[:40]:<{width}}  {best.values[number]:+.3f}{error}")
    low, high = found.attributions.chance.intervals["score"].low, found.attributions.chance.intervals["score"].high
    said += ["", f"{'faithfulness':<22} {'score':>7}   random orders {low:+.2f} to {high:+.2f}"]
    for one in found.attributions.found:
        note = f"   {one.note}" if one.note else ""
        said.append(f"  {one.method:<20} {one.faithfulness.score:+7.2f}{' *' if one.faithfulness.beats_chance else '  '}{note}")
    said += [f"  {method:<20} {'':>7}   {why}" for method, why in found.attributions.left_out.items()]
    if any(one.faithfulness.beats_chance for one in found.attributions.found):
        said.append("  * better than chance")
    if found.patching is not None:
        said += ["", f"against {found.patching.other!r}, where it is {found.patching.after:+.3f}, these places move it most:"]
        said += [f"  {one.place.name}  {one.effect:+.3f}" for one in found.patching.patched[:WORDS]]
    return said
