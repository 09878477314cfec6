"""From a model and labelled data to a model that does the task, and the grades that say how well."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pellucid.core.errors import ConfigError, CorpusError, RunError
from pellucid.core.files import write_json, write_text
from pellucid.core.progress import Progress
from pellucid.core.run import RunFolder
from pellucid.evaluation import floors as floors_of
from pellucid.evaluation.grading import Grades, grade
from pellucid.evaluation.labelled import grade_rows
from pellucid.evaluation.predict import keep_temperature
from pellucid.evaluation.spread import Spread
from pellucid.generation import generate as writing
from pellucid.generation.settings import Sampling
from pellucid.loading import find_model, open_model, special_ids
from pellucid.network.adapters import adapted
from pellucid.network.network import Network
from pellucid.text.chat import ChatTemplate
from pellucid.text.conversations import Conversation
from pellucid.text.corpus import Corpus
from pellucid.text.labelled import Labelled
from pellucid.text.pairs import Pair
from pellucid.text.preferences import preference_examples
from pellucid.text.tabular import Sources
from pellucid.training.finetune import FinetuneJob, finetune
from pellucid.training.finetune_recipe import FinetuneRecipe
from pellucid.training.finetune_report import title, write_finetune_report
from pellucid.training.lesson import Lesson, Start
from pellucid.training.preference import Preference, with_references
from pellucid.training.running import Sample
from pellucid.training.scores import pair_margins

GRADES = "grades.json"
TOGETHER = 16  # answers that are written at a time


@dataclass(frozen=True)
class Taught:
    """A finished run and its grades, if rows were held out to test it on."""

    run: RunFolder
    grades: Grades | None


def teach(
    recipe: FinetuneRecipe,
    model: str | Path,
    out: Path,
    *,
    sources: Sources | Corpus | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Progress,
) -> Taught:
    """Fine-tune `model`, and grade the result on the test rows beside the floors. Raises a `PellucidError`."""
    run, job = trained(recipe, model, out, sources=sources, resume=resume, force=force, progress=progress)
    return Taught(run, graded(run, job, progress))


def trained(
    recipe: FinetuneRecipe,
    model: str | Path,
    out: Path,
    *,
    sources: Sources | Corpus | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Progress,
) -> tuple[RunFolder, FinetuneJob]:
    """Fine-tune `model`, without grades."""
    opened = open_model(model)
    if adapted(opened.network):
        raise ConfigError(
            f"{model} is an adapter; merge it into its base first, with: pellucid adapter merge {model} --out FOLDER"
        )
    path = find_model(model)
    start = Start(network=lambda: open_model(path).network, config=opened.network.config, tokenizer=opened.tokenizer)
    return finetune(
        recipe,
        start,
        out,
        name=str(model) if not Path(model).exists() else str(path.absolute()),
        ids=special_ids(opened.path, opened.tokenizer),
        sources=sources,
        resume=resume,
        force=force,
        progress=progress,
        sample=sampler,
    )


def teach_seeds(
    recipe: FinetuneRecipe,
    model: str | Path,
    out: Path,
    *,
    seeds: int,
    resume: bool = False,
    force: bool = False,
    progress: Progress,
) -> Spread:
    """`teach` several times, with the seeds from that of the recipe on, into `out`/seed-N; the rows held out are the same."""
    if seeds < 1:
        raise ConfigError(f"--seeds is {seeds}; it must be at least 1")
    if RunFolder(out).is_run():
        raise RunError(f"{out} is a single run, so it cannot hold those of several seeds; choose another --out")
    folders = [out / f"seed-{recipe.training.seed + number}" for number in range(seeds)]
    if out.exists() and not (resume or force):
        raise RunError(
            f"{out} exists already; pass --resume to continue it, --force to replace its runs, or choose another --out"
        )
    runs: dict[str, Grades | None] = {}
    for number, folder in enumerate(folders):
        progress.say(f"run {number + 1} of {seeds}: {folder}")
        seeded = recipe.override({"training": {"seed": recipe.training.seed + number}})
        going_on = resume and RunFolder(folder).is_run()
        replaced = force and folder.exists()
        runs[str(folder)] = teach(seeded, model, folder, resume=going_on, force=replaced, progress=progress).grades
    spread = Spread(runs)
    write_json(out / "seeds.json", spread.to_json())
    write_text(RunFolder(out).report, spread.to_html({str(folder): folder.name for folder in folders}))
    return spread


def sampler(lesson: Lesson, prompt: str) -> Sample:
    """What the network answers to the prompt of the recipe by now."""

    def sample(network: Network) -> str | None:
        if not prompt:
            return None
        [text] = answers(network, lesson, [prompt], max_tokens=120)
        return text

    return sample


def answers(network: Network, lesson: Lesson, prompts: Sequence[str | Conversation], *, max_tokens: int) -> list[str]:
    """What a network that writes answers, greedily, to prompts, to conversations up to their last turn, or to texts."""
    network.eval()
    tokenizer, config = lesson.tokenizer, network.config
    inputs = [lesson.asked(prompt, config) for prompt in prompts]
    if config.architecture == "encoder-decoder":
        rooms = [config.context_length - 1] * len(inputs)
    else:
        rooms = [config.context_length - len(ids) for ids in inputs]
    options: dict[str, Any] = {"sampling": Sampling(temperature=0.0), "ends": lesson.ends}
    order = sorted(range(len(inputs)), key=lambda number: -len(inputs[number]))
    written = [""] * len(inputs)
    for full in (False, True):  # those that may have fewer tokens than asked for fill the context
        chosen = [number for number in order if (rooms[number] >= max_tokens) == full]
        for start in range(0, len(chosen), TOGETHER):
            together = chosen[start : start + TOGETHER]
            limit = max_tokens if full else None
            texts = writing.generate(network, tokenizer, [inputs[number] for number in together], max_tokens=limit, **options)
            for number, text in zip(together, texts, strict=True):
                written[number] = text.text.strip()
    return written


def graded(run: RunFolder, job: FinetuneJob, progress: Progress) -> Grades | None:
    """The grades of a finished run on its test rows, written into its folder; None if there are no such rows."""
    test = job.lesson.rows.get("test", ())
    if not test:
        write_finetune_report(run)
        return None
    progress.say(f"grading on {len(test):,} test rows, beside the floors")
    network = open_model(run.path).network.to(job.compute.device).eval()
    network.compute_in(job.compute.dtype)
    found = GRADERS[job.recipe.task.name or "classify"](network, job)
    fitted = found.calibration.temperature if found.calibration else None
    if fitted is not None and run.model.is_dir():
        keep_temperature(run.model, fitted, len(job.lesson.rows.get("validation", ())))
    write_json(run.path / GRADES, found.to_json())
    write_finetune_report(run, found.section())
    return found


def grade_labels(network: Network, job: FinetuneJob) -> Grades:
    """Classes, several of them, numbers, or tags of words."""
    recipe = job.recipe
    parts: dict[str, list[Labelled]] = {
        part: [row for row in rows if isinstance(row, Labelled)] for part, rows in job.lesson.rows.items()
    }
    return grade_rows(
        network,
        job.lesson.tokenizer,
        parts["test"],
        train=parts["train"],
        validation=parts["validation"] if recipe.task.name == "classify" else (),
        longest=recipe.training.context_length,
        long=recipe.data.long,  # type: ignore[arg-type]
        class_weights=recipe.task.class_weights,
        name=run_name(job),
    )


def grade_answers(network: Network, job: FinetuneJob) -> Grades:
    """Texts that are written: the last answers of conversations, or the targets of pairs."""
    lesson = job.lesson
    config = network.config
    most = config.context_length - (config.architecture != "encoder-decoder")
    rows = [row for row in lesson.rows["test"] if len(lesson.asked(prompt_of(row), config)) <= most]
    if not rows:
        raise CorpusError(f"every test row fills the context of {config.context_length:,} tokens, so no answer can be graded")
    rows = rows[: job.recipe.data.graded_answers]
    prompts = [prompt_of(row) for row in rows]
    asked = [row.source if isinstance(row, Pair) else last_question(row) for row in rows]
    truth = [row.target if isinstance(row, Pair) else last_answer(row) for row in rows]
    written = answers(network, lesson, prompts, max_tokens=128)
    known = floors_of.floors("text", [], [], asked)
    return grade("text", truth, predicted=written, texts=asked, floors=known, name=run_name(job))


def prompt_of(row: Any) -> str | Conversation:
    return str(row.source) if isinstance(row, Pair) else row


def last_answer(row: Any) -> str:
    return last(row.messages)


def last_question(row: Any) -> str:
    return str(row.messages[-2]["content"])


def grade_choices(network: Network, job: FinetuneJob) -> Grades:
    """Choices between two answers."""
    lesson, recipe = job.lesson, job.recipe
    rows: Any = lesson.rows["test"]
    longest = recipe.training.context_length or network.config.context_length
    options: dict[str, Any] = {"longest": longest, "long": recipe.data.long}
    found = preference_examples(lesson.tokenizer, ChatTemplate.of(lesson.tokenizer), rows, **options)
    sizes: dict[str, Any] = {"pad": lesson.tokenizer.pad or 0, "batch_tokens": recipe.training.micro_tokens}
    before = lesson.fit(job.base()).to(network.device).eval()
    before.compute_in(job.compute.dtype)
    examples = with_references(before, found.examples, **sizes)
    margins = pair_margins(network, Preference(recipe.task.beta), examples, **sizes)
    whole = len(rows) == len(margins)  # none was left out as too long
    asked = [(last(row.prompt), last(row.chosen), last(row.rejected)) for row in rows] if whole else []
    known = floors_of.floors("prefer", [], None, [row[1:] for row in asked]) if asked else {}
    return grade("prefer", None, scores=margins.double().numpy(), texts=asked, floors=known, name=run_name(job))


def last(messages: Sequence[Mapping[str, Any]]) -> str:
    """What the last message says."""
    return str(messages[-1]["content"]) if messages else ""


def run_name(job: FinetuneJob) -> str:
    return title(job.name, job.recipe.task.name)


GRADERS: dict[str, Callable[[Network, FinetuneJob], Grades]] = {
    "classify": grade_labels,
    "regress": grade_labels,
    "tag": grade_labels,
    "instruct": grade_answers,
    "seq2seq": grade_answers,
    "prefer": grade_choices,
}
