"""POST /v1/completions: what is written is what the library writes, told as clients of OpenAI's interface expect it."""

import asyncio
import math

import pytest
import torch

from pellucid.api import load

PATH = "/v1/completions"
NO_SPECIAL = {"0": -100, "1": -100, "2": -100}


def joined(events):
    """The text and the log-probabilities of a stream, by choice."""
    found = {}
    for event in events:
        for choice in event["choices"]:
            one = found.setdefault(choice["index"], {"text": "", "logprobs": None, "finish_reason": None})
            one["text"] += choice["text"]
            one["finish_reason"] = choice["finish_reason"] or one["finish_reason"]
            if choice["logprobs"] is not None:
                one["logprobs"] = one["logprobs"] or {name: [] for name in choice["logprobs"]}
                for name, values in choice["logprobs"].items():
                    one["logprobs"][name] = None if values is None else one["logprobs"][name] + values
    return found


def test_a_completion_is_what_the_library_writes(with_server, model):
    fields = {"temperature": 0.8, "top_k": 50, "min_p": 0.01, "repetition_penalty": 1.1, "seed": 7}

    async def inside(server):
        return await server.ask(PATH, prompt="Alice was", max_tokens=20, **fields)

    answer = with_server(inside)
    expected = model.generate("Alice was", max_tokens=20, **fields)
    assert answer["choices"] == [{"index": 0, "text": expected.text, "logprobs": None, "finish_reason": expected.finish_reason}]
    assert (answer["object"], answer["model"], answer["seed"]) == ("text_completion", "tiny", 7)
    assert answer["usage"] == {
        "prompt_tokens": len(model.tokenizer.encode("Alice was")),
        "completion_tokens": len(expected.tokens),
        "total_tokens": len(model.tokenizer.encode("Alice was")) + len(expected.tokens),
        "prompt_tokens_details": {"cached_tokens": 0},
    }


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"logprobs": 3},
        {"logprobs": 0, "echo": True},
        {"echo": True},
        {"n": 3},
        {"stop": [" ", "e"]},
        {"stop": ["e", "a", "\ufffd"], "logprobs": 2},
        {"prompt": ["Down", "Well!"], "n": 2, "logprobs": 1, "echo": True},
    ],
    ids=str,
)
def test_the_pieces_of_a_stream_are_the_answer_that_comes_at_once(with_server, fields):
    asked = {"prompt": "Down, down", "max_tokens": 25, "seed": 5, "temperature": 1.3, **fields}

    async def inside(server):
        return await server.ask(PATH, **asked), await server.stream(PATH, **asked, stream_options={"include_usage": True})

    whole, events = with_server(inside)
    assert [event["usage"] for event in events[:-1]] == [None] * (len(events) - 1)
    usage = events[-1]["usage"] | {"prompt_tokens_details": None}
    assert (events[-1]["choices"], usage) == ([], whole["usage"] | {"prompt_tokens_details": None})
    assert {event["id"] for event in events} == {events[0]["id"]}
    pieces = joined(events)
    for choice in whole["choices"]:
        assert pieces[choice["index"]] == {name: choice[name] for name in ("text", "logprobs", "finish_reason")}
    assert len(pieces) == len(whole["choices"])


def test_without_usage_asked_for_a_stream_has_none(with_server):
    async def inside(server):
        return await server.stream(PATH, prompt="Down", max_tokens=3)

    assert all("usage" not in event for event in with_server(inside))


def test_echo_is_exact_enough_for_an_evaluation(with_server, model):
    """lm-evaluation-harness sends ids, reads the prompt's log-probabilities, and compares them with the likeliest."""
    ids = model.tokenizer.encode("Alice was beginning to get very tired of sitting by her sister on the bank.")

    async def inside(server):
        common = {"prompt": [ids, ids[:5]], "temperature": 0, "logprobs": 1, "echo": True}
        return await server.ask(PATH, max_tokens=1, seed=1234, **common), await server.ask(PATH, max_tokens=0, **common)

    one, none = with_server(inside)
    for answer, more in ((one, 1), (none, 0)):
        for choice, prompt in zip(answer["choices"], (ids, ids[:5]), strict=True):
            found = choice["logprobs"]
            lengths = {name: len(values) for name, values in found.items()}
            assert set(lengths.values()) == {len(prompt) + more}
            assert (found["token_logprobs"][0], found["top_logprobs"][0]) == (None, None)
            expected = scored(model, prompt)
            assert found["token_logprobs"][1 : len(prompt)] == pytest.approx(expected.tolist(), abs=1e-5)
            for logprob, top in zip(found["token_logprobs"][1:], found["top_logprobs"][1:], strict=True):
                assert max(top.values()) >= logprob
                assert logprob in top.values()
            assert choice["text"].startswith(model.tokenizer.decode(prompt))
            assert found["text_offset"] == sorted(found["text_offset"])
        assert answer["usage"]["completion_tokens"] == 2 * more
    assert none["choices"][0]["text"] == model.tokenizer.decode(ids)


def scored(model, ids):
    """The log-probability of each token but the first, by one plain forward pass."""
    with torch.no_grad():
        logprobs = model(torch.tensor([ids])).logits[0].float().log_softmax(dim=-1)
    return logprobs[:-1].gather(1, torch.tensor(ids)[1:, None])[:, 0]


def test_an_answer_of_more_log_probabilities_than_anyone_reads_is_refused(with_server, monkeypatch):
    monkeypatch.setattr("pellucid.serving.service.MOST_PLACES", 100)

    async def inside(server):
        common = {"prompt": [5] * 20, "echo": True, "max_tokens": 1}
        return await server.refused(400, PATH, **common, logprobs=4), await server.ask(PATH, **common, logprobs=3)

    error, _ = with_server(inside)
    assert error["param"] == "logprobs"


def test_a_prompt_of_too_many_characters_is_refused_before_it_is_read(with_server, monkeypatch):
    def never(*words):
        raise AssertionError("it was read")

    async def inside(server):
        monkeypatch.setattr("pellucid.serving.service.encode", never)
        return await server.refused(400, PATH, prompt="a " * 100_000)

    assert with_server(inside)["code"] == "context_length_exceeded"


def test_what_cannot_be_repeated_takes_no_place(with_server, model):
    """The network has rows for more tokens than the tokenizer has names."""
    nameless = [model.tokenizer.vocab_size + 1]

    async def inside(server):
        error = await server.refused(400, PATH, prompt=nameless, echo=True)
        return error, await server.ask(PATH, prompt=nameless, max_tokens=2, logprobs=2), server.service.worker.taken

    error, answer, taken = with_server(inside)
    assert "is not a token of this tokenizer" in error["message"]
    assert answer["choices"]
    assert taken == 0


def test_offsets_are_those_of_the_characters(with_server, model):
    async def inside(server):
        return await server.ask(PATH, prompt="Alice was", echo=True, max_tokens=30, logprobs=0, seed=2, logit_bias=NO_SPECIAL)

    [choice] = with_server(inside)["choices"]
    found, text = choice["logprobs"], choice["text"]
    for token, start, end in zip(found["tokens"], found["text_offset"], [*found["text_offset"][1:], len(text)], strict=True):
        assert token.startswith("bytes:") or text[start:end].endswith(token)  # behind a character that never became whole


def test_the_token_that_ends_a_text_has_a_place_of_its_own(with_server, model):
    """Else the last place would be the prompt's, where an evaluation leaves out the last."""
    end = model.tokenizer.end_of_text

    async def inside(server):
        common = {"prompt": "Alice", "max_tokens": 1, "logprobs": 1, "logit_bias": {str(end): 100}}
        return await server.ask(PATH, echo=True, **common), await server.ask(PATH, **common)

    for answer, before in zip(with_server(inside), (len(model.tokenizer.encode("Alice")), 0), strict=True):
        [choice] = answer["choices"]
        assert choice["finish_reason"] == "stop"
        assert choice["text"] == ("Alice" if before else "")
        assert len(choice["logprobs"]["tokens"]) == before + 1
        assert choice["logprobs"]["tokens"][-1] == "<|endoftext|>"
        assert answer["usage"]["completion_tokens"] == 0


def test_what_a_stop_string_cuts_off_has_no_places(with_server):
    async def inside(server):
        whole = await server.ask(PATH, prompt="Down", max_tokens=40, seed=3, logprobs=0)
        text = whole["choices"][0]["text"]
        stop = text[10:13]
        return text, stop, await server.ask(PATH, prompt="Down", max_tokens=40, seed=3, logprobs=0, stop=stop)

    text, stop, answer = with_server(inside)
    [choice] = answer["choices"]
    assert choice["text"] == text[: text.index(stop)]
    assert choice["finish_reason"] == "stop"
    assert all(offset < len(choice["text"]) for offset in choice["logprobs"]["text_offset"])


def test_stop_tokens_end_a_text(with_server, model):
    async def inside(server):
        first = await server.ask(PATH, prompt="Down", max_tokens=10, seed=3)
        tokens = model.generate("Down", max_tokens=10, seed=3).tokens
        return first, tokens, await server.ask(PATH, prompt="Down", max_tokens=10, seed=3, stop_token_ids=[tokens[4]])

    first, tokens, ended = with_server(inside)
    at = tokens.index(tokens[4])
    assert ended["choices"][0]["finish_reason"] == "stop"
    assert ended["usage"]["completion_tokens"] == at
    assert first["choices"][0]["text"].startswith(ended["choices"][0]["text"].rstrip("\ufffd"))


def test_a_seed_says_the_same_under_any_load(with_server):
    asked = {"prompt": "The White Rabbit", "max_tokens": 30, "seed": 11, "logprobs": 2}

    async def inside(server):
        alone = await server.ask(PATH, **asked)
        others = [server.ask(PATH, prompt="Alice" * n, max_tokens=5 + 3 * n, temperature=2.0) for n in range(1, 12)]
        [together, *rest] = await asyncio.gather(server.ask(PATH, **asked), *others)
        return alone, together, rest

    alone, together, rest = with_server(inside)
    assert together["choices"] == alone["choices"]
    assert len({answer["seed"] for answer in rest}) == len(rest)


def test_an_answer_without_a_seed_tells_the_one_that_was_drawn(with_server):
    async def inside(server):
        first = await server.ask(PATH, prompt="Down", max_tokens=12)
        return first, await server.ask(PATH, prompt="Down", max_tokens=12, seed=first["seed"])

    first, again = with_server(inside)
    assert first["choices"] == again["choices"]
    assert first["system_fingerprint"] == again["system_fingerprint"]


def test_the_fingerprint_tells_in_how_many_bits_weights_are_held(with_server, model, tmp_path):
    model.save(tmp_path / "alice")

    async def inside(server):
        return (await server.ask(PATH, prompt="Down", max_tokens=1))["system_fingerprint"]

    held = [load(tmp_path / "alice", precision=precision) for precision in ("fp32", "bf16")]
    assert len({with_server(inside, model=one) for one in (model, *held)}) == 3


def test_cached_tokens_are_those_remembered(with_server):
    prompt = list(range(10, 150))

    async def inside(server):
        first = await server.ask(PATH, prompt=prompt, max_tokens=1)
        return first, await server.ask(PATH, prompt=prompt, max_tokens=1)

    first, second = with_server(inside)
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == 128


@pytest.mark.parametrize(
    ("fields", "check"),
    [
        ({"choices": ["yes", "no"]}, lambda text: text in ("yes", "no")),
        ({"regex": "[0-9]{3}-[a-f]{2}"}, lambda text: text[3] == "-" and text[:3].isdigit()),
    ],
)
def test_a_text_of_a_given_form(with_server, fields, check):
    async def inside(server):
        return await server.ask(PATH, prompt="Answer:", max_tokens=30, **fields)

    [choice] = with_server(inside)["choices"]
    assert check(choice["text"])
    assert choice["finish_reason"] == "stop"


def test_an_empty_prompt_begins_where_documents_do(with_server, model):
    async def inside(server):
        return await server.ask(PATH, prompt="", max_tokens=4, temperature=0)

    assert with_server(inside)["choices"][0]["text"] == model.generate("", max_tokens=4, temperature=0).text


def test_logprobs_of_what_is_written_are_the_models(with_server, model):
    async def inside(server):
        return await server.ask(PATH, prompt="Alice", max_tokens=6, logprobs=20, seed=1)

    found = with_server(inside)["choices"][0]["logprobs"]
    expected = model.generate("Alice", max_tokens=6, top_logprobs=20, seed=1)
    assert found["token_logprobs"] == expected.logprobs
    assert all(20 <= len(top) <= 21 or len(set(top)) < 20 for top in found["top_logprobs"])
    assert all(math.isfinite(value) for top in found["top_logprobs"] for value in top.values())


@pytest.mark.parametrize(
    "fields", [{"top_p": 0.3}, {"top_k": 3}, {"min_p": 0.9}, {"typical_p": 0.2}, {"top_p": 0.5, "top_k": 2}], ids=str
)
def test_at_temperature_0_a_filter_keeps_the_likeliest_token(with_server, model, fields):
    """Clients of OpenAI's interface send both. Nothing is lost: near 0 the filters are applied."""

    async def inside(server):
        asked = {"prompt": "Alice", "max_tokens": 12, "seed": 1}
        return [await server.ask(PATH, **asked, temperature=temperature, **fields) for temperature in (0, 1e-6)]

    expected = model.generate("Alice", max_tokens=12, temperature=0).text
    assert [answer["choices"][0]["text"] for answer in with_server(inside)] == [expected] * 2
