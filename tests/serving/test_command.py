"""`pellucid serve`: what it says when it starts, when it cannot, and how it ends."""

import json
import logging
import signal
import socket
import threading
import time

import httpx
import pytest
import tiny
from served import error_of

from pellucid.serving.log import logging_to

KEY = "a-key-of-sixteen-letters"


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "alice"
    model.save(path)
    return path


@pytest.fixture
def serve(folder):
    """A server of its own as a process: its address, once it is there, and the process."""
    running = []

    def start(*words, **changes):
        process = tiny.command("serve", folder, "--port", 0, "--compile", "no", *words, **changes)
        running.append(process)
        line = process.stdout.readline()
        assert " at http://" in line, process.stderr.read()
        return line, line.split()[2].removesuffix("/v1,"), process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def test_it_says_what_it_serves_and_where(serve, folder):
    line, address, process = serve()
    assert line == f"alice at {address}/v1, its page at {address}\n"
    [served] = httpx.get(f"{address}/v1/models").json()["data"]
    assert served["id"] == folder.name
    assert httpx.get(address).headers["content-type"].startswith("text/html")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "")
    assert [json.loads(line)["status"] for line in err.splitlines()] == [200, 200]


def test_a_log_that_nobody_reads_holds_up_nobody(serve):
    """A pipe holds 64 kB, some 400 lines."""
    _, address, process = serve()
    with httpx.Client(base_url=address, timeout=10) as client:
        for _ in range(1000):
            assert client.get("/livez").status_code == 200
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0


def test_lines_for_which_there_is_no_room_are_counted(monkeypatch):
    reading, written = threading.Event(), []

    class Slow:
        def write(self, line):
            reading.wait(20)
            written.append(line)

        def flush(self):
            pass

    with logging_to(Slow(), lines=3):
        logger = logging.getLogger("pellucid.serving")
        for number in range(50):
            logger.info("line %s", number)
        reading.set()
    assert written[0] == "line 0\n"
    assert 3 <= len(written) - 1 <= 4  # one was being written, and three waited
    assert json.loads(written[-1]) == {"lost_lines": 50 - (len(written) - 1)}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_it_finishes_what_is_under_way_and_takes_nothing_new(serve, number):
    _, address, process = serve("--slots", 1)
    body = {"model": "alice", "prompt": "Alice", "max_tokens": 250, "logit_bias": {"0": -100}}
    answers = []

    def ask():
        answers.append(httpx.post(f"{address}/v1/completions", json=body | {"n": 8}, timeout=60))

    with httpx.Client(base_url=address) as client:
        client.get("/livez")
        asking = threading.Thread(target=ask)
        asking.start()
        while client.get("/readyz").json()["running"] == 0:
            time.sleep(0.01)
        process.send_signal(number)
        time.sleep(0.1)
        assert error_of(client.get("/readyz"), 503)["code"] == "shutting_down"
        refused = client.post("/v1/completions", json=body)
        assert error_of(refused, 503)["code"] == "shutting_down"
        assert refused.headers["retry-after"]
    asking.join(60)
    assert len(answers[0].json()["choices"]) == 8
    assert process.wait(20) == 0


def test_after_the_grace_period_the_rest_is_told(serve):
    _, address, process = serve("--slots", 1, "--grace", 0.3)
    body = {"model": "alice", "prompt": "Alice", "max_tokens": 250, "logit_bias": {"0": -100}, "n": 100, "stream": True}
    with httpx.stream("POST", f"{address}/v1/completions", json=body, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        *_, error, done = [line for line in lines if line]
    assert json.loads(error[6:])["error"]["code"] == "shutting_down"
    assert done == "data: [DONE]"
    assert process.wait(20) == 0


def test_keys_come_from_a_file_and_from_the_environment(serve, tmp_path, monkeypatch):
    file = tmp_path / "keys"
    file.write_text(f"# for the web site\n\n{KEY}\n")
    monkeypatch.setenv("PELLUCID_API_KEYS", "another-key-of-many-letters, third-key-of-many-letters")
    _, address, process = serve("--keys", file, "--host", "0.0.0.0", "--name", "mine")
    assert address.startswith("http://0.0.0.0:")
    for key in (KEY, "another-key-of-many-letters", "third-key-of-many-letters"):
        answer = httpx.get(f"{address}/v1/models", headers={"authorization": f"Bearer {key}"})
        assert answer.json()["data"][0]["id"] == "mine"
    error_of(httpx.get(f"{address}/v1/models"), 401)
    process.terminate()
    assert KEY not in process.communicate(timeout=20)[1]


def refused(cli, *words):
    code, out, err = cli("serve", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    return err.removeprefix("pellucid: ").rstrip("\n")


def test_what_cannot_be_served_is_one_sentence(cli, folder, tmp_path):
    empty = tmp_path / "empty"
    empty.write_text("# nothing\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert refused(cli, folder, "--port", port) == (
            f"127.0.0.1:{port} cannot be listened at (Address already in use); choose another --port, or 0 for any that is free"
        )
    assert refused(cli, tmp_path / "nothing", "--port", 0).startswith(f"{tmp_path / 'nothing'} ")
    assert refused(cli, folder, "--host", "0.0.0.0") == (
        "host 0.0.0.0 lets other machines connect, so clients must show a key; "
        "give a file of keys with --keys FILE, or leave --host out"
    )
    assert refused(cli, folder, "--keys", tmp_path / "none") == (
        f"the file of keys {tmp_path / 'none'} cannot be read: no such file or directory; give one with a key on each line"
    )
    assert refused(cli, folder, "--keys", empty) == f"the file of keys {empty} holds no key; write one on each line"
    assert refused(cli, folder, "--context", 5000, "--port", 0).startswith("context 5,000 exceeds the model's own, 256")
    assert refused(cli, folder, "--slots", 0) == "slots must be at least 1, not 0"


def test_without_the_extra_it_says_what_to_install(cli, folder, monkeypatch):
    monkeypatch.setattr("pellucid.serving.find_spec", lambda name: None if name == "uvicorn" else object())
    assert refused(cli, folder) == (
        "serving a model needs the extra `serve`, which is not installed; run: pip install 'pellucid[serve]'"
    )


def test_importing_needs_no_extra():
    code = "import pellucid.cli, pellucid.cli_serve, pellucid.serving, sys; "
    code += "assert not {'starlette', 'uvicorn', 'prometheus_client', 'llguidance'} & {*sys.modules}"
    import subprocess
    import sys

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_help_teaches(cli):
    code, out, _ = cli("serve", "--help")
    assert code == 0
    for word in ("/v1/chat/completions", "PELLUCID_API_KEYS", "--origins", "--grace", "SIGTERM"):
        assert word in out
