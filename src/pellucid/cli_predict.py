"""`pellucid predict`: what a classifier or a tagger says of the texts in files."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from pellucid.cli_shared import STDIN, dashes, show_json, show_table
from pellucid.core.errors import ConfigError
from pellucid.core.progress import console


def predict(
    model: str,
    *,
    data: Annotated[list[str], Parameter(negative=())],
    out: Path | None = None,
    text_column: str | None = None,
    column_names: str | None = None,
    probabilities: Annotated[bool, Parameter(negative=())] = False,
    temperature: float | None = None,
    long: Literal["error", "cut", "split"] = "error",
    on_empty: Literal["error", "skip"] = "error",
    encoding: str | None = None,
    on_bad_bytes: Literal["error", "replace"] = "error",
    batch_tokens: int = 2048,
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    threads: int | Literal["auto"] = "auto",
    force: bool = False,
    quiet: bool = False,
    json: bool = False,
) -> None:
    """Label every text of a file with a classifier or a tagger.

        pellucid predict runs/reviews --data new.csv --out labelled.csv

    OUT has the rows of the data in their order, with all their columns, and behind these label and probability; of a model that
    gives several labels, labels and probabilities; of one that gives a number, value; of a tagger, words, tags and spans. If
    the data has a column of such a name already, the new ones begin with predicted_. Files of any size are read a part at a
    time.

    Parameters
    ----------
    model
        a run folder, a model folder, or a model's name on the hub, of a classifier or a tagger
    data
        csv, tsv, jsonl, json or parquet files, folders or globs, or - for standard input: a text or a JSON object a line
    out
        the file to write: .csv, .tsv, .jsonl or .parquet; without it, or with -, JSON lines are printed
    text_column
        column of the text; without it recognised by its name (text, sentence, review ...)
    column_names
        names of the columns of csv and tsv files without a header row, with commas between
    probabilities
        add a column for each label, probability_LABEL
    temperature
        divide the scores by this number before they become probabilities; labels stay as they are. Without it the temperature
        that fine-tuning found on validation data and left beside the model (calibration.json), if there is one; 1: as it is
    long
        what to do with texts that exceed the context: error, cut their end, or split them into parts whose scores are averaged
    on_empty
        what to do with empty texts: error, or skip them, so that their row has no prediction
    encoding
        encoding of text files; without it UTF-8, or UTF-16 by its mark
    on_bad_bytes
        what to do with other bytes
    batch_tokens
        tokens that are read at once; a GPU likes more, such as 16384
    device
        auto, cpu or cuda
    precision
        of matrix products: bf16 is faster on some machines, with about two digits less; auto tries it
    threads
        CPU threads
    force
        replace OUT
    quiet
        show no progress
    json
        print the counts as JSON
    """
    from pellucid.core.device import choose
    from pellucid.evaluation.predict import check_labels, known_temperature
    from pellucid.evaluation.prediction_files import predict_file
    from pellucid.loading import open_model
    from pellucid.text.columns import Columns
    from pellucid.text.decoding import Decoding
    from pellucid.text.labelled import Reading
    from pellucid.text.standard_input import standard_input

    target = None if out is None or str(out) == STDIN else out
    for name, given in (("--json", json), ("--force", force)):
        if given and target is None:
            raise ConfigError(f"{name} has no effect without --out FILE: the predictions are printed; leave it out")
    opened = open_model(model)
    check_labels(opened.network, "classify", "tag")
    compute = choose(device=device, precision=precision, threads=threads)
    network = opened.network.to(compute.device).eval()
    network.hold_in(compute.dtype)
    names = tuple(name.strip() for name in column_names.split(",")) if column_names else ()
    stdin = [standard_input(Decoding(encoding=encoding, on_bad_bytes=on_bad_bytes))] if "-" in dashes(data) else []
    found = predict_file(
        network,
        opened.tokenizer,
        [*stdin, *(path for path in dashes(data) if path != "-")],
        target,
        columns=Columns(text=text_column, names=names),
        reading=Reading(encoding=encoding, on_bad_bytes=on_bad_bytes),
        long=long,
        on_empty=on_empty,
        probabilities=probabilities,
        temperature=known_temperature(opened.path) if temperature is None else temperature,
        batch_tokens=batch_tokens,
        force=force,
        progress=console(quiet=quiet),
    )
    if json:
        return show_json({"out": str(target), **asdict(found)})
    if target is not None:
        table = {"rows": found.rows, "added": ", ".join(found.columns[:4]) + (", ..." if len(found.columns) > 4 else "")}
        table |= {"without text": found.empty} if found.empty else {}
        table |= {"cut" if long == "cut" else "in parts": found.long} if found.long else {}
        show_table(table | {"written to": target})
