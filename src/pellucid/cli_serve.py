"""`pellucid serve`: a model over HTTP."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from pellucid.cli_shared import USUAL_HOLDING, Compiling, HoldingOptions, compile_steps


def serve(
    model: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str | None = None,
    keys: Path | None = None,
    slots: int = 16,
    context: int | None = None,
    queue: int = 256,
    per_key: int = 128,
    timeout: float = 600.0,
    read_timeout: float = 20.0,
    grace: float = 30.0,
    max_body: int = 4_000_000,
    hosts: Annotated[list[str] | None, Parameter(negative=())] = None,
    origins: Annotated[list[str] | None, Parameter(negative=())] = None,
    log_text: Annotated[bool, Parameter(negative=())] = False,
    holding: HoldingOptions = USUAL_HOLDING,
    compile: Compiling = "auto",
) -> None:
    """Serve a model over HTTP, for clients of OpenAI's interface and for people.

        pellucid serve runs/base

    Then http://127.0.0.1:8000 is a page to write and chat on, and http://127.0.0.1:8000/v1 what a client takes as its base
    URL. The paths are /v1/models, /v1/completions, /v1/chat/completions, /v1/responses, /v1/embeddings, /v1/classify,
    /v1/score, /tokenize, /detokenize, /tokenizer_info, /livez, /readyz, /metrics and /openapi.json, which describes them; a
    model answers those that it can.

    Other machines can connect with --host 0.0.0.0, and then clients need an API key. A request with a seed has the same answer
    however much else there is to do. SIGTERM ends the server after what is under way. The log, a line of JSON for every
    request, goes to standard error.

    Parameters
    ----------
    model
        a run folder, a model folder, a .gguf file, a llama2.c .bin file, or a model's name on the hub
    host
        the address to listen at; one that other machines reach needs keys
    port
        the port to listen at; 0 takes any that is free
    name
        what clients call the model; without it the name of its folder
    keys
        a file with an API key on each line; keys are also read from the variable PELLUCID_API_KEYS. They are asked for on
        every path but /livez and the page's own files
    slots
        texts that are written at the same time; others wait
    context
        tokens that a prompt and its continuation may have; without it all that the model takes. Less takes less memory
    queue
        texts that may wait before further ones are refused
    per_key
        requests that may be under way for one key, or for one address where no keys are asked for
    timeout
        seconds that a request may take
    read_timeout
        seconds in which a client must send its request, and in which it must read some of the answer
    grace
        seconds that a server that is told to end has for what is under way
    max_body
        bytes that a request may have
    hosts
        names under which clients may call the server, besides its own
    origins
        web pages that may call the server, such as https://example.org; none by default but its own page
    log_text
        write prompts and answers into the log
    """
    import sys

    from pellucid.serving import ServeSettings, check_extra, create_app
    from pellucid.serving.keys import read_keys

    check_extra()
    settings = ServeSettings(
        host=host,
        port=port,
        name=name,
        slots=slots,
        context=context,
        keys=read_keys(keys),
        origins=tuple(origins or ()),
        hosts=tuple(hosts or ()),
        max_body=max_body,
        queue=queue,
        per_key=per_key,
        timeout=timeout,
        read_timeout=read_timeout,
        grace=grace,
        log_text=log_text,
    )
    from pellucid import api
    from pellucid.serving.log import logging_to
    from pellucid.serving.running import listen, run

    bound = listen(settings)  # before the weights are read: a port in use need not wait for them
    loaded = api.load(model, **asdict(holding))
    settings.context_for(loaded.config)  # before what takes a minute
    compile_steps(loaded, compile)
    app = create_app(loaded, settings)
    address, chosen = bound.getsockname()[:2]
    where = f"http://{f'[{address}]' if ':' in address else address}:{chosen}"

    bound.listen()  # from here on clients can connect
    print(f"{app.state.service.name} at {where}/v1, its page at {where}", flush=True)
    with logging_to(sys.stderr):
        run(app, bound)
