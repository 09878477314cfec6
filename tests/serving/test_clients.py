"""The clients that people have, each against a server behind a socket: they get their answers, and their own errors."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Literal

import openai
import pytest
import tiny
from llama_cpp import smollm2
from pydantic import BaseModel
from served import listening, slowed, wait

import pellucid
from pellucid.core.progress import Silent
from pellucid.evaluation.harness_model import adapter

KEY = "the-key-of-these-clients"
BIN = Path(sys.executable).parent
TALK = [{"role": "system", "content": "You are Alice."}, {"role": "user", "content": "Where are you?"}]
LONG = {"model": "tiny", "prompt": "Alice", "max_tokens": 200, "logit_bias": {"0": -100}}


@pytest.fixture(scope="module")
def server(model):
    with listening(model, keys=(KEY,), slots=8) as (port, app):
        yield f"http://127.0.0.1:{port}/v1", app


@pytest.fixture(scope="module")
def base(server):
    return server[0]


@pytest.fixture
def client(base):
    with openai.OpenAI(base_url=base, api_key=KEY, max_retries=0) as client:
        yield client


class TestOpenai:
    def test_it_finds_the_model(self, client):
        [found] = client.models.list()
        assert (found.id, client.models.retrieve("tiny").owned_by) == ("tiny", "pellucid")

    def test_completions(self, client, model):
        prompts = ["Alice", "The White Rabbit"]
        answer = client.completions.create(model="tiny", prompt=prompts, max_tokens=12, seed=3, n=2, logprobs=2, stop="zz")
        expected = [one for prompt in prompts for one in model.generate(prompt, max_tokens=12, seed=3, n=2, stop="zz")]
        assert [choice.text for choice in answer.choices] == [one.text for one in expected]
        assert answer.choices[3].logprobs.token_logprobs == expected[3].logprobs
        assert answer.usage.completion_tokens == sum(len(one.tokens) for one in expected)

    def test_a_stream_of_a_completion(self, client, model):
        with client.completions.create(model="tiny", prompt="Down", max_tokens=30, seed=1, stream=True) as stream:
            text = "".join(chunk.choices[0].text for chunk in stream)
        assert text == model.generate("Down", max_tokens=30, seed=1).text

    def test_chats_with_log_probabilities(self, client, model):
        answer = client.chat.completions.create(
            model="tiny", messages=TALK, max_completion_tokens=15, seed=2, logprobs=True, top_logprobs=3, temperature=0.7
        )
        expected = model.chat(TALK, max_tokens=15, seed=2, top_logprobs=3, temperature=0.7)
        [choice] = answer.choices
        assert (choice.message.content, choice.finish_reason) == (expected.text, expected.finish_reason)
        assert [place.logprob for place in choice.logprobs.content] == expected.logprobs
        assert all(len(place.top_logprobs) == 3 for place in choice.logprobs.content)

    def test_a_stream_of_a_chat_ends_with_the_usage(self, client, model):
        asked = {"model": "tiny", "messages": TALK, "max_tokens": 15, "seed": 2}
        chunks = [*client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == model.chat(TALK, max_tokens=15, seed=2).text
        assert chunks[-1].usage == client.chat.completions.create(**asked).usage.model_copy(
            update={"prompt_tokens_details": chunks[-1].usage.prompt_tokens_details}  # the second finds more remembered
        )

    def test_its_helper_for_streams_gathers_the_answer(self, client):
        asked = {"model": "tiny", "messages": TALK, "logprobs": True, "extra_body": {"choices": ["down the hole"]}}
        with client.chat.completions.stream(**asked) as stream:
            for event in stream:
                assert event.type != "error"
            answer = stream.get_final_completion()
        assert answer.choices[0].message.content == "down the hole"
        assert "".join(place.token for place in answer.choices[0].logprobs.content) == "down the hole"

    def test_answers_of_a_given_form_are_parsed(self, client):
        class Answer(BaseModel):
            animal: Literal["rabbit", "cat"]
            times: Literal[1, 2]

        asked = {"model": "tiny", "temperature": 0.8, "extra_body": {"seed": 1}}
        chat = client.chat.completions.parse(
            **asked, messages=TALK, response_format=Answer, max_tokens=100, logit_bias={"0": -100}
        )
        response = client.responses.parse(**asked, input="Which animal?", text_format=Answer, max_output_tokens=100)
        assert isinstance(chat.choices[0].message.parsed, Answer)
        assert isinstance(response.output_parsed, Answer)

    def test_responses(self, client, model):
        asked = {"model": "tiny", "input": TALK[1]["content"], "instructions": TALK[0]["content"], "max_output_tokens": 15}
        answer = client.responses.create(**asked, extra_body={"seed": 2})
        events = [*client.responses.create(**asked, stream=True, extra_body={"seed": 2})]
        expected = model.chat(TALK, max_tokens=15, seed=2).text
        assert answer.output_text == expected
        assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == expected
        assert events[-1].response.output_text == expected

    def test_embeddings(self, client, model):
        answer = client.embeddings.create(model="tiny", input=["Alice", "the Rabbit"])  # which it asks for as bytes
        for found, expected in zip(answer.data, model.embed(["Alice", "the Rabbit"]).tolist(), strict=True):
            assert found.embedding == pytest.approx(expected, abs=1e-5)

    def test_many_at_once(self, base, model):
        async def ask(client, number):
            asked = {"model": "tiny", "messages": [{"role": "user", "content": f"number {number}"}], "max_tokens": 10}
            if number % 2:
                answer = await client.chat.completions.create(**asked, seed=number)
                return answer.choices[0].message.content
            stream = await client.chat.completions.create(**asked, seed=number, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        async def inside():
            async with openai.AsyncOpenAI(base_url=base, api_key=KEY) as client:
                return await asyncio.gather(*(ask(client, number) for number in range(12)))

        expected = [
            model.chat([{"role": "user", "content": f"number {number}"}], max_tokens=10, seed=number).text
            for number in range(12)
        ]
        assert asyncio.run(inside()) == expected

    def test_who_leaves_a_stream_frees_its_place(self, model):
        with listening(model) as (port, app), openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x") as client:
            engine = slowed(app, 0.02)
            with client.completions.create(**LONG, stream=True) as stream:
                next(iter(stream))
                assert engine.places
            wait(lambda: not engine.places and not app.state.service.worker.taken, 2)  # what was left would take four seconds

    @pytest.mark.parametrize(
        ("kind", "fields", "code", "param"),
        [
            (openai.NotFoundError, {"model": "gpt-4"}, "model_not_found", "model"),
            (openai.BadRequestError, {"max_tokens": 10_000}, "context_length_exceeded", "max_tokens"),
            (openai.BadRequestError, {"temperature": -1}, "invalid_value", "temperature"),
            (
                openai.BadRequestError,
                {"tools": [{"type": "function", "function": {"name": "f"}}]},
                "unknown_parameter",
                "tools",
            ),
            (openai.APIStatusError, {"messages": [{"role": "user", "content": "x" * 5_000_000}]}, "body_too_large", None),
        ],
    )
    def test_errors_are_its_exceptions(self, client, kind, fields, code, param):
        with pytest.raises(kind) as caught:
            client.chat.completions.create(**{"model": "tiny", "messages": TALK, **fields})
        assert (caught.value.code, caught.value.param) == (code, param)
        assert caught.value.request_id.startswith("req-")
        assert len(str(caught.value)) < 500

    def test_a_wrong_key_is_an_authentication_error(self, client):
        with pytest.raises(openai.AuthenticationError, match="the API key is not known"):
            client.with_options(api_key="some-other-key-that-is-long").models.list()

    def test_an_error_in_the_middle_of_a_stream_is_an_exception(self, model):
        with listening(model) as (port, app), openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x") as client:
            slowed(app, 0.02)
            stream = iter(client.completions.create(**LONG, stream=True))
            next(stream)
            app.state.service.worker.engine.step = lambda: 1 / 0
            with pytest.raises(openai.APIError, match="the server failed on this request"):
                list(stream)
            with pytest.raises(openai.InternalServerError, match="the engine has died"):
                client.with_options(max_retries=0).completions.create(**LONG)

    def test_what_is_refused_for_a_moment_is_asked_again(self, model):
        """429 while another request of the same client is under way, 503 while the server takes nothing: both say how long."""
        with listening(model, per_key=1) as (port, app):
            client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=3)
            with client.completions.create(**LONG, stream=True) as stream:
                next(iter(stream))
                slowed(app, 0.02)
                with pytest.raises(openai.RateLimitError, match="1 requests of yours"):
                    client.with_options(max_retries=0).completions.create(**LONG)
                threading.Timer(0.3, stream.close).start()
                begun = time.monotonic()
                assert client.completions.create(**LONG | {"max_tokens": 2}).choices
                assert time.monotonic() - begun >= 1  # so long it was told to wait
            worker = app.state.service.worker
            worker.draining = True
            with pytest.raises(openai.InternalServerError, match="shutting down") as caught:
                client.with_options(max_retries=0).completions.create(**LONG)
            assert caught.value.response.headers["retry-after"] == "5"
            threading.Timer(0.3, setattr, (worker, "draining", False)).start()
            assert client.completions.create(**LONG | {"max_tokens": 2}).choices


@pytest.fixture(scope="module")
def litellm():
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or it asks another server for prices
    import litellm

    return litellm


class TestLitellm:
    @pytest.fixture
    def to(self, base):
        return {"model": "openai/tiny", "api_base": base, "api_key": KEY, "num_retries": 0, "max_retries": 0}

    def test_chats_and_streams(self, litellm, to, model):
        asked = {"messages": TALK, "max_tokens": 15, "seed": 2, "temperature": 0.7, "top_p": 0.9}
        expected = model.chat(TALK, max_tokens=15, seed=2, temperature=0.7, top_p=0.9).text
        assert litellm.completion(**to, **asked).choices[0].message.content == expected
        pieces = [chunk.choices[0].delta.content or "" for chunk in litellm.completion(**to, **asked, stream=True)]
        assert "".join(pieces) == expected
        answer = asyncio.run(litellm.acompletion(**to, **asked))
        assert answer.choices[0].message.content == expected
        assert answer.usage.completion_tokens > 0

    def test_completions_and_embeddings(self, litellm, to, model):
        to = to | {"model": "text-completion-openai/tiny"}
        answer = litellm.text_completion(**to, prompt="Alice", max_tokens=12, seed=1)
        assert answer.choices[0].text == model.generate("Alice", max_tokens=12, seed=1).text
        found = litellm.embedding(**to | {"model": "openai/tiny"}, input=["Alice"])
        assert found.data[0]["embedding"] == pytest.approx(model.embed("Alice")[0].tolist(), abs=1e-5)

    def test_errors_are_its_exceptions(self, litellm, to):
        for kind, changes in (
            ("NotFoundError", {"model": "openai/other"}),
            ("AuthenticationError", {"api_key": "some-other-key-that-is-long"}),
            ("BadRequestError", {"temperature": -1}),
            ("ContextWindowExceededError", {"max_tokens": 10_000}),
        ):
            with pytest.raises(getattr(litellm, kind)):
                litellm.completion(**{**to, "messages": TALK, **changes})


class TestLlm:
    @pytest.fixture
    def llm(self, base, tmp_path):
        """The command `llm`, which knows the server by its own file of further models."""
        (tmp_path / "keys.json").write_text(json.dumps({"ours": KEY}))
        lines = [
            line
            for name, more in (("served", ""), ("text", "  completion: true"))
            for line in (f"- model_id: {name}", "  model_name: tiny", f"  api_base: {base}", "  api_key_name: ours", more)
        ]
        (tmp_path / "extra-openai-models.yaml").write_text("\n".join(lines))
        environment = os.environ | {"LLM_USER_PATH": str(tmp_path), "LLM_LOAD_PLUGINS": ""}

        def run(*words):
            return subprocess.run(
                [BIN / "llm", *map(str, words)], env=environment, capture_output=True, timeout=60, check=False
            )

        return run

    def test_it_chats(self, llm, model):
        done = llm("-m", "served", "-s", "You are Alice.", "-o", "seed", 2, "-o", "max_tokens", 15, "Where are you?")
        assert done.returncode == 0, done.stderr
        assert done.stdout.decode() == model.chat(TALK, max_tokens=15, seed=2).text + "\n"

    def test_it_goes_on_with_a_text_without_a_stream(self, llm, model):
        done = llm("-m", "text", "--no-stream", "-o", "temperature", 0, "-o", "top_p", 0.9, "-o", "max_tokens", 12, "Alice")
        assert done.returncode == 0, done.stderr
        assert done.stdout.decode() == model.generate("Alice", max_tokens=12, temperature=0).text + "\n"

    def test_it_tells_what_the_server_says(self, llm):
        done = llm("-m", "served", "-o", "max_tokens", 10_000, "Hi")
        assert done.returncode == 1
        assert b"this model's maximum context length is 256 tokens" in done.stderr


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_curl_shows_a_stream_as_it_comes(model):
    with listening(model) as (port, app):
        slowed(app, 0.02)
        body = json.dumps(LONG | {"max_tokens": 40, "stream": True})
        words = ["curl", "-sN", f"http://127.0.0.1:{port}/v1/completions", "-H", "Content-Type: application/json", "-d", body]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
            times = [(time.monotonic(), line) for line in process.stdout if line.strip()]
    assert process.returncode == 0
    assert times[-1][1] == b"data: [DONE]\n"
    assert len(times) > 20
    assert times[-1][0] - times[0][0] > 0.4


# What has no effect, exceeds the context or is not for this model is refused too, and no schema can say so.
NOT_CHECKED = "positive_data_acceptance"
EXPECTED = """
[checks.negative_data_rejection]
expected-statuses = ["400", "404", "405", "406", "413", "415"]
"""


def schemathesis(base, folder, *words):
    """The command `schemathesis`: whatever its requests are, valid or not, they are answered as the document says."""
    (folder / "schemathesis.toml").write_text(EXPECTED)
    command = [
        BIN / "schemathesis",
        "--config-file",
        folder / "schemathesis.toml",
        "run",
        f"{base.removesuffix('/v1')}/openapi.json",
    ]
    command += ["--header", f"Authorization: Bearer {KEY}", "--checks", "all", "--exclude-checks", NOT_CHECKED, "--mode", "all"]
    command += ["--no-color", "--continue-on-failure", "--request-timeout", "300", "--max-response-time", "300", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=540, check=False, cwd=folder)
    said = re.sub(r"\S{300,}", "...", done.stdout)
    assert done.returncode == 0, said[-20_000:] + done.stderr[-2000:]
    return int(re.search(r"(\d+) generated", said)[1])


def test_every_request_that_schemathesis_makes_of_the_description(base, tmp_path):
    assert schemathesis(base, tmp_path, "--phases", "fuzzing", "--max-examples", "4", "--seed", "1") > 50


@pytest.mark.slow
def test_more_requests_of_schemathesis(base, tmp_path):
    count = schemathesis(base, tmp_path, "--phases", "examples,coverage,fuzzing", "--max-examples", "15")
    print(f"{count:,} requests of schemathesis")
    assert count > 1000


BLIMP = """
task: pairs
dataset_path: json
dataset_kwargs:
  data_files: {file}
output_type: multiple_choice
validation_split: train
doc_to_text: ""
doc_to_target: 0
doc_to_choice: "{{{{[sentence_good, sentence_bad]}}}}"
num_fewshot: 0
metric_list:
  - metric: acc
metadata:
  version: 1.0
"""


def asked_by_the_harness(subject, tmp_path, monkeypatch, rows, **options):
    """lm-evaluation-harness' samples and score of a task of these pairs of sentences."""
    import datasets
    import lm_eval
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    folder = tmp_path / "tasks"
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "pairs.yaml").write_text(BLIMP.format(file=folder / "rows.jsonl"))
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = lm_eval.simple_evaluate(subject, tasks=["pairs"], task_manager=manager, bootstrap_iters=0, **options)
    samples = sorted(found["samples"]["pairs"], key=lambda sample: sample["doc_id"])
    return found["results"]["pairs"]["acc,none"], [response for sample in samples for [response] in sample["resps"]]


def largest_difference(model, base, tmp_path, monkeypatch, rows):
    """The same task through the server, which makes the tokens too, and in this process.

    The score and the likeliest tokens are the same, and log-likelihoods bit for bit those of the engine in this process: HTTP,
    JSON and tokens change nothing. Evaluation in this process reads many texts at once and not in tiles, so that sums of
    float32 are rounded in another order: returned is by which share of themselves log-likelihoods then differ at most.
    """
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with openai.OpenAI(base_url=base, api_key=KEY) as client:
        [one] = client.models.list()
    own = adapter(model.network, model.tokenizer, ends=frozenset(), batch_tokens=1000, progress=Silent())
    options = {"model": one.id, "base_url": f"{base}/completions", "auth_token": KEY, "batch_size": 8}
    options["max_length"] = model.config.context_length
    score, served = asked_by_the_harness("local-completions", tmp_path, monkeypatch, rows, model_args=options)
    score_here, here = asked_by_the_harness(own, tmp_path, monkeypatch, rows)
    assert score == score_here
    texts = [row[name] for row in rows for name in ("sentence_good", "sentence_bad")]
    differences = []
    for text, (found, greedy), (expected, greedy_here) in zip(texts, served, here, strict=True):
        ids = [own.prefix_token_id, *model.tokenizer.encode(f" {text}")]  # it puts a space between question and answer
        assert float(found) == sum(model.generate(ids, max_tokens=1, prompt_logprobs=True).prompt_logprobs)
        assert greedy == greedy_here
        differences.append(abs(float(found) - float(expected)) / abs(float(expected)))
    print(f"{len(rows)} items, score {score}, log-likelihoods within {max(differences):.1e} of themselves")
    return max(differences)


def test_lm_evaluation_harness_finds_through_the_server_what_it_finds_in_this_process(model, base, tmp_path, monkeypatch):
    rows = []
    for number in range(200):
        words = tiny.DOCUMENTS[number % len(tiny.DOCUMENTS)].split()[: 4 + number % 7]
        good, bad = [*words, str(number)], [*words[::-1], str(number)]
        rows.append({"sentence_good": " ".join(good), "sentence_bad": " ".join(bad)})
    assert largest_difference(model, base, tmp_path, monkeypatch, rows) <= 1e-6


@pytest.fixture(scope="module")
def chatting():
    """SmolLM2-135M-Instruct behind the real command, in a process of its own."""
    os.environ["PELLUCID_API_KEYS"] = KEY
    words = ("--port", 0, "--name", "smollm2", "--precision", "fp32", "--compile", "no", "--context", 2048)
    process = tiny.command("serve", smollm2(), *words, stderr=subprocess.DEVNULL)  # a log that nobody reads would fill a pipe
    try:
        line = process.stdout.readline()
        yield line.split()[2].removesuffix(",")
    finally:
        del os.environ["PELLUCID_API_KEYS"]
        process.terminate()
        process.communicate(timeout=60)


@pytest.mark.slow
def test_a_real_model_is_chatted_with(chatting):
    with openai.OpenAI(base_url=chatting, api_key=KEY, timeout=300) as client:
        [one] = client.models.list()
        assert (one.model_extra["chat_template"], one.model_extra["parameters"] // 10**6) == (True, 134)
        talk = [{"role": "user", "content": "What is the capital of France? Answer in one short sentence."}]
        asked = {"model": "smollm2", "temperature": 0, "top_p": 0.9, "max_tokens": 40}
        first = client.chat.completions.create(messages=talk, **asked).choices[0]
        assert "Paris" in first.message.content
        assert first.finish_reason == "stop"
        talk += [first.message.model_dump(exclude_none=True), {"role": "user", "content": "And of Italy?"}]
        stream = client.chat.completions.create(messages=talk, stream=True, **asked)
        assert "Rome" in "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


@pytest.mark.slow
def test_the_harness_on_a_real_model(chatting, data, tmp_path, monkeypatch):
    lines = (data / "blimp/principle_A_c_command.jsonl").read_text("utf-8").splitlines()[:200]
    rows = [{name: json.loads(line)[name] for name in ("sentence_good", "sentence_bad")} for line in lines]
    model = pellucid.load(smollm2(), precision="fp32")
    assert (
        largest_difference(model, chatting, tmp_path, monkeypatch, rows) <= 1e-5
    )  # measured: 2.1e-6, short of the aim of 1e-6
