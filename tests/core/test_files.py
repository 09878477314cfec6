"""Files are whole or not there, whatever happens while they are written; damage is found and named."""

import errno
import json
import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError

from pellucid.core.errors import CorruptionError, ModelError, ResourceError
from pellucid.core.files import (
    MANIFEST,
    atomic_folder,
    atomic_path,
    disk_errors,
    format_bytes,
    own_file,
    read_json,
    remove_folder,
    seal,
    verify,
    write_json,
    write_text,
)

FILE_EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")


def killed_at(number: int, work) -> bool:
    """Do some work in a child that is killed at its file operation `number`; say whether it was."""
    child = os.fork()
    if child == 0:
        left = number

        def hook(event: str, arguments: object) -> None:
            nonlocal left
            if event in FILE_EVENTS:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        work()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def fill(folder: Path, content: str) -> None:
    with atomic_folder(folder) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "a.txt").write_text(content)
        (temporary / "inner" / "b.txt").write_text(content)


def contents(folder: Path) -> str | None:
    """What a reader finds: nothing, or a whole folder of one writer."""
    if not folder.exists():
        return None
    verify(folder)
    first, second = (folder / "a.txt").read_text(), (folder / "inner" / "b.txt").read_text()
    assert first == second
    return first


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


@pytest.mark.parametrize("old", [False, True])
def test_a_folder_killed_at_any_file_operation_is_the_old_one_the_new_one_or_none(tmp_path, old):
    folder = tmp_path / "folder"
    seen: set[str | None] = set()
    for number in range(200):
        for path in (folder, *tmp_path.glob(".folder*")):
            remove_folder(path)
        if old:
            fill(folder, "old")
        alive = not killed_at(number, lambda: fill(folder, "new"))
        seen.add(contents(folder))
        assert visible(tmp_path) in ([], ["folder"])
        if alive:
            break
        fill(folder, "later")  # what a kill leaves behind is in nobody's way
        assert contents(folder) == "later"
    else:
        pytest.fail("the child never came to its end")
    assert number > 10  # the kill did visit every stage
    assert contents(folder) == "new"
    assert seen == ({"old", None, "new"} if old else {None, "new"})


def test_a_file_killed_at_any_file_operation_is_the_old_one_or_the_new_one(tmp_path):
    path, seen = tmp_path / "file", set()
    for number in range(50):
        write_text(path, "old")
        alive = not killed_at(number, lambda: write_text(path, "new"))
        seen.add(path.read_text())
        assert visible(tmp_path) == ["file"]
        if alive:
            break
    assert path.read_text() == "new"
    assert seen == {"old", "new"}


def interrupted(manager):
    with manager as temporary:
        (temporary / "a.txt" if temporary.is_dir() else temporary).write_text("half")
        raise KeyboardInterrupt


def test_an_exception_leaves_the_old_and_no_rubbish(tmp_path):
    write_text(tmp_path / "file", "old")
    fill(tmp_path / "folder", "old")
    for manager in (atomic_path(tmp_path / "file"), atomic_folder(tmp_path / "folder")):
        with pytest.raises(KeyboardInterrupt):
            interrupted(manager)
    assert (tmp_path / "file").read_text() == "old"
    assert contents(tmp_path / "folder") == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_replacing_a_link_leaves_what_it_points_to(tmp_path):
    fill(tmp_path / "precious", "old")
    (tmp_path / "link").symlink_to("precious")
    fill(tmp_path / "link", "new")
    assert contents(tmp_path / "link") == "new"
    assert contents(tmp_path / "precious") == "old"
    remove_folder(tmp_path / "link")
    (tmp_path / "link").symlink_to("precious")
    remove_folder(tmp_path / "link")
    assert contents(tmp_path / "precious") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_without_replace_an_existing_folder_stays(tmp_path):
    fill(tmp_path / "folder", "old")
    with pytest.raises(OSError, match="not empty"), atomic_folder(tmp_path / "folder", replace=False) as temporary:
        (temporary / "a.txt").write_text("new")
    assert contents(tmp_path / "folder") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_full_disk_is_one_clear_sentence_and_the_old_stays(tmp_path, kind, number):
    write_text(tmp_path / "file", "old")
    fill(tmp_path / "folder", "old")
    manager = atomic_path(tmp_path / "file") if kind == "file" else atomic_folder(tmp_path / "folder")
    with pytest.raises(ResourceError) as caught, manager:
        raise OSError(number, os.strerror(number))
    path, reason = str(caught.value).split(": ", 1)
    assert path == str(tmp_path / kind)
    assert reason.startswith("the disk is full (")
    assert reason.endswith(
        f" free in {tmp_path if kind == 'file' else tmp_path / 'folder'}); make room there, or choose another folder"
    )
    assert caught.value.exit_code == 1
    assert (tmp_path / "file").read_text() == "old"
    assert contents(tmp_path / "folder") == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_device_that_is_really_full_is_recognised():
    full = Path("/dev/full")
    with pytest.raises(ResourceError, match=r"^/dev/full: the disk is full"), disk_errors(full), full.open("w") as file:
        file.write("text")


def test_safetensors_words_for_a_full_disk_are_recognised(tmp_path):
    error = "Error while serializing: I/O error: No space left on device (os error 28)"
    with pytest.raises(ResourceError), disk_errors(tmp_path / "new" / "file"):
        raise SafetensorError(error)


def test_other_errors_are_not_called_a_full_disk(tmp_path):
    with pytest.raises(PermissionError), disk_errors(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied")


class TestDurability:
    """A power failure cannot be tested, the order of what survives one can: content to the disk first, then the name."""

    @pytest.fixture
    def events(self, monkeypatch):
        """Syncs and renames in their order, with the names of the files."""
        seen = []
        fsync = os.fsync

        def record(kind, call):
            def recorded(source, target):
                seen.append((kind, Path(source).name, Path(target).name))
                return call(source, target)

            return recorded

        def synced(descriptor):
            seen.append(("sync", Path(f"/proc/self/fd/{descriptor}").readlink().name))
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", synced)
        for name in ("rename", "replace"):
            monkeypatch.setattr(os, name, record("name", getattr(os, name)))
        return seen

    def test_a_file_is_on_the_disk_before_it_has_its_name_and_its_name_before_the_end(self, tmp_path, events):
        write_text(tmp_path / "file", "text")
        temporary = f".file.{os.getpid()}.partial"
        assert events == [("sync", temporary), ("name", temporary, "file"), ("sync", tmp_path.name)]

    def test_a_folders_files_are_on_the_disk_before_it_has_its_name(self, tmp_path, events):
        fill(tmp_path / "folder", "content")
        named = events.index(("name", ".folder.partial", "folder"))
        before = {event[1] for event in events[:named] if event[0] == "sync"}
        written = {event[1] for event in events[:named] if event[0] == "name" and event[2] == MANIFEST}
        assert {"a.txt", "b.txt"} <= before
        assert MANIFEST in before or written & before
        assert events[named + 1 :] == [("sync", tmp_path.name)]


class TestVerify:
    @pytest.fixture
    def folder(self, tmp_path):
        fill(tmp_path / "folder", "content")
        return tmp_path / "folder"

    def message(self, folder, **options):
        with pytest.raises(CorruptionError) as caught:
            verify(folder, **options)
        return str(caught.value)

    def test_the_manifest_lists_every_file(self, folder):
        verify(folder)
        manifest = json.loads((folder / MANIFEST).read_text())
        assert {name: facts["bytes"] for name, facts in manifest.items()} == {"a.txt": 7, "inner/b.txt": 7}

    def test_a_flipped_bit_is_found_and_the_file_named(self, folder):
        path = folder / "inner" / "b.txt"
        path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
        verify(folder, hashes=False)  # sizes alone do not see it
        assert (
            self.message(folder)
            == f"{path} is damaged (its SHA-256 is not the one in manifest.json); restore it, or delete {folder}"
        )

    @pytest.mark.parametrize("hashes", [False, True])
    def test_a_truncated_file_is_found_and_named(self, folder, hashes):
        (folder / "a.txt").write_text("conten")
        expected = f"{folder / 'a.txt'} has 6 bytes, but 7 were written; restore it, or delete {folder}"
        assert self.message(folder, hashes=hashes) == expected

    @pytest.mark.parametrize("hashes", [False, True])
    def test_a_missing_file_is_named(self, folder, hashes):
        (folder / "a.txt").unlink()
        assert self.message(folder, hashes=hashes) == f"{folder / 'a.txt'} is missing; restore it, or delete {folder}"

    def test_without_a_manifest_a_folder_was_never_finished(self, folder):
        (folder / MANIFEST).unlink()
        assert self.message(folder) == f"{folder} has no manifest.json, so it was never finished; delete it"

    def test_a_flip_of_any_bit_of_the_manifest_itself_is_found(self, folder):
        path = folder / MANIFEST
        good = path.read_bytes()
        for place in range(len(good)):
            for bit in (1, 32):
                path.write_bytes(good[:place] + bytes([good[place] ^ bit]) + good[place + 1 :])
                if json_or_none(path) == json.loads(good):
                    continue  # a digit of a hash in another case would be one; today there is none
                assert str(folder) in self.message(folder), (place, bit)


def json_or_none(path):
    try:
        return json.loads(path.read_text())
    except ValueError:
        return None


def test_sealing_again_lists_what_is_there_now(tmp_path):
    fill(tmp_path / "folder", "content")
    (tmp_path / "folder" / "c.txt").write_text("more")
    seal(tmp_path / "folder")
    verify(tmp_path / "folder")
    assert "c.txt" in json.loads((tmp_path / "folder" / MANIFEST).read_text())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=8,
)


@given(value=json_values)
def test_json_comes_back_as_it_was(value, tmp_path_factory):
    path = tmp_path_factory.mktemp("json") / "inner" / "value.json"
    write_json(path, value)
    assert read_json(path) == value


@pytest.mark.parametrize("bad", [b"{", b"\xff\xfe", b"", b"[" * 100_000 + b"]" * 100_000, b"9" * 5000])
def test_damaged_json_names_its_file(tmp_path, bad):
    (tmp_path / "x.json").write_bytes(bad)
    with pytest.raises(CorruptionError) as caught:
        read_json(tmp_path / "x.json")
    assert str(caught.value).startswith(f"{tmp_path / 'x.json'} is not valid JSON (")
    assert str(caught.value).endswith("); restore it, or delete the folder it is in")


def test_json_above_the_limit_is_not_read(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('"' + "x" * 998 + '"')
    assert read_json(path, limit=1000) == "x" * 998
    with pytest.raises(CorruptionError) as caught:
        read_json(path, limit=999)
    assert str(caught.value) == f"{path} has 1.0 kB, but JSON is read up to 999 B; restore the file"


def test_not_a_number_and_infinity_are_read_as_they_are(tmp_path):
    (tmp_path / "x.json").write_text("[NaN, -Infinity]")
    assert str(read_json(tmp_path / "x.json")) == "[nan, -inf]"


class TestOwnFile:
    """A model folder comes from strangers: what it names or links to must not be somebody else's file."""

    @pytest.fixture
    def folder(self, tmp_path):
        folder = tmp_path / "models--owner--name" / "snapshots" / "abc"
        (folder / "inner").mkdir(parents=True)
        (folder / "inner" / "a.txt").write_text("ours")
        (tmp_path / "secret").write_text("theirs")
        (tmp_path / "models--owner--name" / "blobs").mkdir()
        (tmp_path / "models--owner--name" / "blobs" / "hash").write_text("ours")
        return folder

    def refused(self, folder, name):
        with pytest.raises(ModelError) as caught:
            own_file(folder, name)
        return str(caught.value)

    def test_a_file_inside_is_found_and_an_absent_one_is_none(self, folder):
        assert own_file(folder, "inner/a.txt") == folder / "inner" / "a.txt"
        assert own_file(folder, "b.txt") is None
        assert own_file(folder, "inner/a.txt/b.txt") is None
        assert own_file(folder / "absent", "b.txt") is None
        assert own_file(folder, "nul\0byte") is None

    @pytest.mark.parametrize("name", ["../../../secret", "inner/../inner/a.txt", "/etc/passwd", ".."])
    def test_a_name_that_leads_out_is_refused(self, folder, name):
        assert self.refused(folder, name) == f"{folder}: the file name {name!r} leads out of the folder; name a file inside it"

    @pytest.mark.parametrize(("link", "target"), [("link", "../../../secret"), ("link", "/etc/passwd"), ("way", "../../..")])
    def test_a_link_that_leads_out_is_refused(self, folder, link, target):
        (folder / link).symlink_to(target)
        name = "way/secret" if link == "way" else link
        real = os.path.realpath(folder / name)
        expected = f"{folder / name} is a link to {real}, outside its folder; replace it by a copy of the file"
        assert self.refused(folder, name) == expected

    def test_a_link_inside_or_into_the_blobs_of_the_same_cache_is_followed(self, folder):
        (folder / "same").symlink_to("inner/a.txt")
        (folder / "blob").symlink_to("../../blobs/hash")
        (folder / "inner" / "blob").symlink_to("../../../blobs/hash")
        for name in ("same", "blob", "inner/blob"):
            assert own_file(folder, name) == folder / name
        assert own_file(folder / "inner", "blob") == folder / "inner" / "blob"

    def test_a_folder_that_is_itself_a_link_is_at_home_where_it_points(self, folder, tmp_path):
        (folder / "blob").symlink_to("../../blobs/hash")
        (tmp_path / "model").symlink_to(folder)
        assert own_file(tmp_path / "model", "blob") == tmp_path / "model" / "blob"

    def test_the_blobs_of_another_cache_and_of_no_cache_are_refused(self, folder, tmp_path):
        other = tmp_path / "models--owner--other" / "blobs"
        plain = tmp_path / "plain" / "snapshots" / "abc"
        for place in (other, tmp_path / "plain" / "blobs", plain):
            place.mkdir(parents=True)
        for blobs in (other, tmp_path / "plain" / "blobs"):
            (blobs / "hash").write_text("theirs")
        (folder / "blob").symlink_to("../../../models--owner--other/blobs/hash")
        (plain / "blob").symlink_to("../../blobs/hash")
        for place in (folder, plain):
            assert "outside its folder" in self.refused(place, "blob")

    def test_what_is_no_regular_file_is_refused(self, folder):
        os.mkfifo(folder / "fifo")
        (folder / "loop").symlink_to("loop")
        (folder / "broken").symlink_to("nothing")
        for name in ("inner", "fifo", "loop", "broken"):
            path = folder / name
            expected = f"{path} is a folder, a device or a broken link; replace it by a regular file"
            assert self.refused(folder, name) == expected


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_400_000_000, "1.4 GB"), (2.5e12, "2.5 TB"), (7e15, "7000.0 TB")],
)
def test_sizes_read_as_people_say_them(count, text):
    assert format_bytes(count) == text
