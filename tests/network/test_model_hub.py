"""Models by name, against a hub of our own on this machine: what is fetched, what never is, and each way it can fail."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from pellucid.core.errors import MissingExtraError, ModelError
from pellucid.core.files import own_file
from pellucid.network.hub import fetch_model, looks_like_hub_id

COMMIT, OLD_COMMIT = "a" * 40, "b" * 40
WANTED = {
    "config.json": b"{}",
    "model.safetensors": b"new weights",
    "model.safetensors.index.json": b"{}",
    "chat_template.jinja": b"{{ x }}",
    "merges.txt": b"a b",
    "1_Pooling/config.json": b"{}",
}
UNWANTED = {
    "pytorch_model.bin": b"pickle",
    "1_Pooling/weights.pkl": b"pickle",
    "training_args.bin": b"pickle",
    "consolidated.safetensors": b"again",
    "onnx/config.json": b"{}",
    "README.md": b"# Model",
}
REPOSITORIES = {
    "owner/tiny": {COMMIT: WANTED | UNWANTED, OLD_COMMIT: WANTED | {"model.safetensors": b"old weights"}},
    "plain": {COMMIT: WANTED},
    "owner/gated": {COMMIT: WANTED},
    "owner/forbidden": {COMMIT: WANTED},
    "owner/pickled": {COMMIT: {"config.json": b"{}", "pytorch_model.bin": b"pickle"}},
    "owner/broken": {COMMIT: WANTED},
    "owner/cut": {COMMIT: WANTED},
}
REVISIONS = {"main": COMMIT, "v1": OLD_COMMIT, COMMIT: COMMIT, OLD_COMMIT: OLD_COMMIT}


class Hub(BaseHTTPRequestHandler):
    """The few addresses of the Hugging Face hub that a download needs."""

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].removeprefix("/")
        self.server.seen.append(f"{self.command} {path}")
        api, place = path.startswith("api/models/"), path.removeprefix("api/models/")
        repository = next((name for name in REPOSITORIES if place.startswith(f"{name}/")), None)
        if repository is None:
            return self.answer(401 if "secret" in place else 404, X_Error_Code="RepoNotFound")
        kind, revision, *rest = place.removeprefix(f"{repository}/").split("/", 2)
        commit = REVISIONS.get(revision)
        if commit not in REPOSITORIES[repository]:
            return self.answer(404, X_Error_Code="RevisionNotFound")
        files = REPOSITORIES[repository][commit]
        if api and kind == "revision":
            return self.answer(200, json.dumps({"id": repository, "sha": commit, "siblings": []}).encode())
        if api and kind == "tree":
            entries = [{"type": "file", "path": path, "size": len(body), "oid": "0" * 40} for path, body in files.items()]
            return self.answer(200, json.dumps(entries).encode())
        if repository == "owner/gated":
            return self.answer(401, X_Error_Code="GatedRepo")
        if repository == "owner/forbidden":
            return self.answer(403)
        if repository == "owner/broken":
            return self.answer(500)
        body = files[rest[0]]
        if repository == "owner/cut" and rest[0] == "model.safetensors":
            self.close_connection = True
            return self.answer(200, body, Content_Length="99", ETag='"cut"', X_Repo_Commit=commit)
        return self.answer(200, body, ETag=f'"{hashlib.sha1(body).hexdigest()}"', X_Repo_Commit=commit)

    do_HEAD = do_GET

    def log_message(self, *arguments: object) -> None:
        """Nothing on the console."""


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.seen = []
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    """The library turned to our server, as HF_ENDPOINT would turn it, with an empty cache."""
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return server


def offline(monkeypatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def refused(name: str, **options: str) -> str:
    with pytest.raises(ModelError) as caught:
        fetch_model(name, **options)
    return str(caught.value)


def found(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_a_model_needs_is_fetched_and_no_pickle(hub):
    folder = fetch_model("owner/tiny")
    assert found(folder) == WANTED
    assert not [request for request in hub.seen for name in UNWANTED if request.endswith(f"/{COMMIT}/{name}")]
    for name in WANTED:  # links into the cache's blobs, which are the model's own files
        assert own_file(folder, name) == folder / name


def test_a_name_without_an_owner(hub):
    assert found(fetch_model("plain")) == WANTED


def test_the_second_time_nothing_is_downloaded_again(hub):
    first = fetch_model("owner/tiny")
    hub.seen.clear()
    assert fetch_model("owner/tiny") == first
    assert not [request for request in hub.seen if "/resolve/" in request]


def test_offline_the_cache_is_used_and_the_hub_is_not_asked(hub, monkeypatch):
    first = fetch_model("owner/tiny")
    hub.seen.clear()
    offline(monkeypatch)
    assert fetch_model("owner/tiny") == first
    assert hub.seen == []


def test_with_the_hub_gone_the_cache_is_used(hub):
    first = fetch_model("owner/tiny")
    hub.shutdown()
    hub.server_close()
    assert fetch_model("owner/tiny") == first


def test_revisions_by_tag_suffix_and_commit(hub):
    assert (fetch_model("owner/tiny") / "model.safetensors").read_bytes() == b"new weights"
    old = fetch_model("owner/tiny", revision="v1")
    assert (old / "model.safetensors").read_bytes() == b"old weights"
    assert fetch_model("owner/tiny@v1") == old
    assert fetch_model(f"owner/tiny@{OLD_COMMIT}") == old


def test_two_revisions_are_one_too_many(hub):
    assert refused("owner/tiny@v1", revision="main") == ("'owner/tiny@v1' and the revision 'main' are two revisions; give one")


def test_an_unknown_revision(hub):
    assert refused("owner/tiny@v9") == "owner/tiny has no revision 'v9'; give one of its branches, tags or commits"


@pytest.mark.parametrize("name", ["owner/absent", "owner/secret"])
def test_an_absent_or_private_model(hub, name):
    assert refused(name) == f"{constants.ENDPOINT} has no model {name}, or it is private; check the name, or run: hf auth login"


@pytest.mark.parametrize("name", ["owner/gated", "owner/forbidden"])
def test_a_gated_model(hub, name):
    assert refused(name) == (
        f"{name} is given only to those who accept its terms; accept them at {constants.ENDPOINT}/{name}, "
        "and run: hf auth login"
    )


def test_a_model_of_pickles_only(hub):
    assert refused("owner/pickled") == (
        "owner/pickled has no weights as safetensors, and pickles are not read; load it with transformers, "
        "write it with save_pretrained, and give that folder"
    )


def not_cached(name: str) -> str:
    return (
        f"{name} is not (or not in that revision) in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to "
        "download it; unset HF_HUB_OFFLINE, or give a model's folder"
    )


def test_offline_without_a_copy_in_the_cache(hub, monkeypatch):
    offline(monkeypatch)
    assert refused("owner/tiny") == not_cached("owner/tiny")
    assert hub.seen == []


def test_offline_with_another_revision_or_a_part_in_the_cache(hub, monkeypatch):
    folder = fetch_model("owner/tiny")
    offline(monkeypatch)
    assert refused("owner/tiny@v1") == not_cached("owner/tiny")
    (folder / "model.safetensors").unlink()
    assert refused("owner/tiny") == not_cached("owner/tiny")
    other = folder.parents[2].with_name("other")  # as another program leaves it: no list of what there should be
    shutil.copytree(folder.parents[2], other, symlinks=True, ignore=shutil.ignore_patterns("trees"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(other))
    assert refused("owner/tiny") == not_cached("owner/tiny")


@pytest.mark.parametrize(("name", "reason"), [("owner/broken", "500"), ("owner/cut", "peer closed"), ("owner/tiny", "refused")])
def test_a_hub_that_fails_that_hangs_up_or_that_is_not_there(hub, monkeypatch, name, reason):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the library tries again, and waits before it does
    if name == "owner/tiny":
        hub.shutdown()
        hub.server_close()
    message = refused(name)
    assert message.startswith(f"{name} cannot be downloaded from {constants.ENDPOINT} (")
    assert message.endswith("); try again, or give a model's folder")
    assert reason in message
    assert "\n" not in message


NAMES = [
    "gpt2",
    "owner/name",
    "Qwen/Qwen3-0.6B",
    "a/b_c.d-e",
    "owner/name@main",
    "owner/name@refs/pr/1",
    f"gpt2@{COMMIT}",
    "gpt2@a--b",
]
NO_NAMES = ["", "a/b/c", "/etc/passwd", "../x", "a/..", "a--b", "./model", "a/.b", "a b", "café", "a.git", "a@", "a@../x", "@v"]
NO_NAMES += ["a@b@c", "a/b.", "-a", "a/b\n", "a" * 97, "https://huggingface.co/gpt2", "runs/my model"]


@pytest.mark.parametrize(("text", "expected"), [(name, True) for name in NAMES] + [(name, False) for name in NO_NAMES])
def test_what_looks_like_a_name_on_the_hub(text, expected):
    assert looks_like_hub_id(text) is expected


@pytest.mark.parametrize("text", NO_NAMES)
def test_what_is_no_name_is_not_asked_for(hub, text):
    assert refused(text) == (
        f"{text!r} is neither a model's folder nor a name on the hub; use OWNER/NAME or OWNER/NAME@REVISION"
    )
    assert hub.seen == []


def test_a_revision_that_is_none_is_not_asked_for(hub):
    assert refused("owner/tiny", revision="../main") == (
        "'owner/tiny', revision '../main', is neither a model's folder nor a name on the hub; "
        "use OWNER/NAME or OWNER/NAME@REVISION"
    )
    assert hub.seen == []


def test_without_the_library_its_extra_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"^a model from the hub needs the extra `hub`"):
        fetch_model("owner/tiny")


def test_the_librarys_own_environment_is_honoured(server, tmp_path):
    """HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE are read when the library is imported, so in a process of their own."""
    code = "import sys; from pellucid.network.hub import fetch_model; print(fetch_model(sys.argv[1]))"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path)}
    for extra in ({}, {"HF_HUB_OFFLINE": "1"}):
        run = [sys.executable, "-c", code, "owner/tiny@v1"]
        done = subprocess.run(run, env=environment | extra, capture_output=True, text=True, check=True)
        folder = tmp_path / "hub" / "models--owner--tiny" / "snapshots" / OLD_COMMIT
        assert done.stdout.strip() == str(folder)
        server.seen.clear()
    assert (folder / "model.safetensors").read_bytes() == b"old weights"
