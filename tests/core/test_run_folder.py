"""A run folder is never overwritten by accident, and two trainers never share one."""

import os
import signal

import pytest

from pellucid.core.errors import CorruptionError, RunError
from pellucid.core.run import RunFolder


def make(path, content="old", *, force=False, interrupt=False):
    with RunFolder(path).creating(force=force) as new:
        new.recipe.write_text(content)
        if interrupt:
            raise KeyboardInterrupt
    return RunFolder(path)


def refusal(path, *, force):
    with pytest.raises(RunError) as caught:
        RunFolder(path).check_free(force=force)
    return str(caught.value)


def test_a_run_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "run", interrupt=True)
    assert not (tmp_path / "run").exists()
    assert make(tmp_path / "run").is_run()


def test_a_run_is_only_replaced_by_force_and_then_only_by_a_whole_one(tmp_path):
    run = make(tmp_path / "run")
    expected = f"{run.path} exists already; pass --resume to continue it, or --force to delete it and start anew"
    assert refusal(run.path, force=False) == expected
    with pytest.raises(KeyboardInterrupt):
        make(run.path, "new", force=True, interrupt=True)
    assert run.recipe.read_text() == "old"
    assert make(run.path, "new", force=True).recipe.read_text() == "new"


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_that_is_no_run_is_never_deleted(tmp_path, force):
    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "chapter.txt").write_text("years of work")
    reason = (
        "is not a run folder, so --force will not delete it; choose another --out"
        if force
        else "exists already; choose another --out"
    )
    assert refusal(precious, force=force) == f"{precious} {reason}"
    with pytest.raises(RunError):
        make(precious, force=force)
    assert (precious / "chapter.txt").read_text() == "years of work"


@pytest.mark.parametrize("force", [False, True])
def test_a_file_in_the_way_is_never_deleted(tmp_path, force):
    (tmp_path / "notes").write_text("mine")
    assert refusal(tmp_path / "notes", force=force).startswith(f"{tmp_path / 'notes'} ")
    assert (tmp_path / "notes").read_text() == "mine"


def test_an_empty_folder_may_become_a_run(tmp_path):
    (tmp_path / "run").mkdir()
    assert make(tmp_path / "run").is_run()


def test_a_second_trainer_is_refused_and_force_does_not_delete_what_the_first_is_writing(tmp_path):
    run = make(tmp_path / "run")
    expected = f"another process is training in {run.path}; wait for it, or choose another --out"
    with run.locked():
        with pytest.raises(RunError) as caught, run.locked():
            pass
        assert str(caught.value) == expected
        with pytest.raises(RunError) as caught:
            make(run.path, "new", force=True)
        assert str(caught.value) == expected
    assert run.recipe.read_text() == "old"
    with run.locked():  # free again
        pass


def test_a_killed_trainer_leaves_no_lock(tmp_path):
    run = make(tmp_path / "run")
    child = os.fork()
    if child == 0:
        with run.locked():
            os.kill(os.getpid(), signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    with run.locked():
        assert run.is_run()


class TestMetrics:
    def test_rows_come_back_in_order(self, tmp_path):
        run = make(tmp_path / "run")
        assert run.read_metrics() == []
        rows = [{"step": 1, "loss": 0.1 + 0.2}, {"step": 2, "sample": "line\nbreak \u2028 \x85 é 字"}]
        for row in rows:
            run.append_metrics(row)
        assert run.read_metrics() == rows

    def test_a_line_cut_short_by_a_kill_is_dropped(self, tmp_path):
        run = make(tmp_path / "run")
        run.append_metrics({"step": 1})
        with run.metrics.open("a") as file:
            file.write('{"step": 2, "lo')
        assert run.read_metrics() == [{"step": 1}]

    @pytest.mark.parametrize("bad", ['{"step": 2, "lo', "[]", "7", "{}"])
    def test_a_damaged_line_is_named(self, tmp_path, bad):
        run = make(tmp_path / "run")
        run.append_metrics({"step": 1})
        with run.metrics.open("a") as file:
            file.write(f"{bad}\n")
        with pytest.raises(CorruptionError) as caught:
            run.read_metrics()
        assert str(caught.value).startswith(f"{run.metrics}:2 is not a line of metrics")

    def test_rewinding_forgets_later_steps_and_repairs_the_end(self, tmp_path):
        run = make(tmp_path / "run")
        for step in range(1, 6):
            run.append_metrics({"step": step})
        with run.metrics.open("a") as file:
            file.write('{"step": 6, "lo')
        run.rewind_metrics(3)
        run.append_metrics({"step": 4, "again": True})
        assert run.read_metrics() == [{"step": 1}, {"step": 2}, {"step": 3}, {"step": 4, "again": True}]
