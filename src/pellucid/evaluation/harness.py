"""Tasks of lm-evaluation-harness (extra `eval`): found by their names, loaded, asked in this process, and their figures."""

from __future__ import annotations

import difflib
import fnmatch
import logging
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from pellucid.core.errors import ConfigError, CorpusError, MissingExtraError
from pellucid.core.progress import Progress, Silent
from pellucid.evaluation.harness_model import adapter
from pellucid.evaluation.likelihood import BATCH_TOKENS, check_batch, check_scores_text
from pellucid.network.network import Network
from pellucid.text.tables import first_line
from pellucid.text.tokenizer import Tokenizer

SEED = 1234  # lm-eval's own


@dataclass(frozen=True, kw_only=True)
class Score:
    """One figure of a task."""

    task: str
    metric: str
    filter: str  # what lm-eval did to the answers first; "none" as a rule
    value: float
    stderr: float | None
    shots: int | None
    samples: int | None


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What lm-eval found."""

    scores: list[Score]
    shortened: int  # requests that were longer than the context, and lost their beginning
    versions: dict[str, Any]  # of the tasks
    harness: str  # version of lm-eval
    limit: int | None


def run_tasks(
    network: Network,
    tokenizer: Tokenizer,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    include_path: Path | None = None,
    batch_tokens: int = BATCH_TOKENS,
    ends: frozenset[int] = frozenset(),
    progress: Progress | None = None,
) -> Scores:
    """What lm-eval finds on tasks of its own, by their names, groups or patterns, and on those of the files in `include_path`.

    `limit` takes the first documents of each task only. Task files in `include_path` are programs: their templates and
    functions run. Raises `PellucidError` for a task that there is not, or whose data is not here and cannot be fetched.
    """
    progress = progress or Silent()
    check_scores_text(network)
    check_batch(batch_tokens)
    if not tasks:
        raise ConfigError("no task was given; name one of lm-eval's, such as --tasks blimp")
    for name, number, least in (("limit", limit, 1), ("num_fewshot", num_fewshot, 0)):
        if number is not None and number < least:
            raise ConfigError(f"{name} must be at least {least}, not {number}")
    if include_path is not None and not any(include_path.rglob("*.yaml")):
        raise ConfigError(f"{include_path} holds no task files (.yaml); give --include-path a folder of lm-eval's task files")
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise MissingExtraError("evaluating on tasks", "eval") from None
    with quiet(progress), seeded():
        manager = None if include_path is None else TaskManager(include_path=str(include_path), include_defaults=False)
        if manager is None or not all(name in manager.all_subtasks for name in tasks):  # lm-eval's own take seconds to list
            manager = TaskManager(include_path=include_path and str(include_path))
        loaded = load(manager, find(tasks, manager.all_tasks))
        chosen = {name: task for found in loaded for name, task in found["tasks"].items()}
        for name, task in chosen.items():
            usual = task.get_config("num_fewshot")
            if num_fewshot and usual == 0:
                raise ConfigError(f"num_fewshot {num_fewshot} has no effect on {name}, which has no examples; leave it out")
            task.set_config(key="num_fewshot", value=usual or 0 if num_fewshot is None else num_fewshot)
            task.set_fewshot_seed(seed=SEED)
        asked = adapter(network, tokenizer, ends=ends, batch_tokens=batch_tokens, progress=progress)
        everything = {part: {name: one for found in loaded for name, one in found.get(part, {}).items()} for part in loaded[0]}
        found = lm_eval.evaluate(asked, everything, limit=limit, log_samples=False)
    return Scores(
        scores=list(figures(found)),
        shortened=asked.shortened,
        versions={name: version for name, version in found["versions"].items() if version is not None},
        harness=lm_eval.__version__,
        limit=limit,
    )


def find(asked: Sequence[str], known: Sequence[str]) -> list[str]:
    """The tasks, groups and tags that names and patterns mean, each once."""
    found: dict[str, None] = {}
    for name in asked:
        matching = [name] if name in known else fnmatch.filter(known, name)
        if not matching:
            close = difflib.get_close_matches(name, known, n=3)
            hint = f"did you mean {', '.join(close)}?" if close else "`lm-eval ls tasks` lists them"
            raise ConfigError(f"lm-eval has no task {name!r}; {hint}")
        found |= dict.fromkeys(matching)
    return list(found)


def load(manager: Any, names: Sequence[str]) -> list[dict[str, dict[str, Any]]]:
    """For each name its tasks and groups, with their data."""
    from datasets.exceptions import DatasetsError

    loaded: list[dict[str, dict[str, Any]]] = []
    owner: dict[str, str] = {}
    for name in names:
        for member in sorted(members(manager.task_index, name)):
            if (manager.task_index[member].cfg or {}).get("unsafe_code"):
                raise ConfigError(f"task {member} runs code that the model writes, which is never done here; leave it out")
        try:
            found = manager.load([name])
        except (OSError, DatasetsError) as error:
            raise CorpusError(
                f"the data of task {name} cannot be fetched ({first_line(error)}); check the network, or describe local files "
                "in a task file of your own and give its folder: --include-path FOLDER"
            ) from error
        except ImportError as error:
            raise ConfigError(f"task {name} needs a package that is not installed ({first_line(error)}); install it") from error
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:  # whatever its file says wrong
            raise ConfigError(f"task {name} cannot be used ({first_line(error)}); leave it out, or correct its file") from error
        for task in found["tasks"]:
            if owner.setdefault(task, name) != name:
                raise ConfigError(f"task {task} is asked for twice, by {owner[task]} and by {name}; leave one of them out")
        loaded.append(found)
    return loaded


def members(index: dict[str, Any], name: str) -> set[str]:
    """The tasks that a name stands for, groups in groups included; nothing is loaded."""
    entry = index.get(name)
    if entry is None:
        return set()
    if entry.kind.name == "TAG":
        return set().union(*(members(index, task) for task in entry.tags))
    if entry.kind.name != "GROUP":
        return {name}
    found, waiting = set[str](), [entry.cfg]
    while waiting:
        for part in as_list(waiting.pop().get("task")):
            if isinstance(part, dict) and isinstance(part.get("task"), list):
                waiting.append(part)
            elif (inner := part.get("task") if isinstance(part, dict) else part) != name:
                found |= members(index, str(inner))
    return found


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def figures(found: dict[str, Any]) -> Iterator[Score]:
    """The figures in lm-eval's results, whose names are `metric,filter` and `metric_stderr,filter`."""
    for task, row in found["results"].items():
        for key, value in row.items():
            metric, comma, chosen = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            stderr = row.get(f"{metric}_stderr,{chosen}")
            yield Score(
                task=task,
                metric=metric,
                filter=chosen,
                value=float(value),
                stderr=float(stderr) if isinstance(stderr, int | float) else None,
                shots=found["n-shot"].get(task),
                samples=found["n-samples"].get(task, {}).get("effective"),
            )


@contextmanager
def quiet(progress: Progress) -> Iterator[None]:
    """Only errors from lm-eval, its bars where bars are shown, and nothing of it among the results."""
    logger, heard = logging.getLogger("lm_eval"), StringIO() if isinstance(progress, Silent) else sys.stderr
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(heard), redirect_stderr(heard):
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def seeded() -> Iterator[None]:
    """The seeds that lm-eval itself gives to tasks which draw; afterwards all is as before."""
    before, numbers = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(SEED)
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(numbers)
