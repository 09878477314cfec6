"""llama.cpp's rates, for decode.py: run by a Python that has llama-cpp-python, built for this machine from its source.

    python benchmarks/llama_rate.py MODEL.gguf BATCH PROMPT TOKENS THREADS

Prints one JSON object: tokens a second after the first of each sequence, and of the prompt.
"""

import json
import random
import sys
import time

import llama_cpp


def main(path: str, batch: int, prompt: int, tokens: int, threads: int) -> None:
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_seq_max = batch * (prompt + tokens), 2048, batch
    settings.n_threads = settings.n_threads_batch = threads
    context = llama_cpp.llama_init_from_model(model, settings)
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    draw = random.Random(1)

    def decode(rows: list[tuple[int, int, int]], last: set[int]) -> None:
        """Read tokens (token, position, sequence); of those numbered in `last` the next one's scores are wanted."""
        many = llama_cpp.llama_batch_init(len(rows), 0, 1)
        many.n_tokens = len(rows)
        for number, (token, position, sequence) in enumerate(rows):
            many.token[number], many.pos[number] = token, position
            many.n_seq_id[number], many.seq_id[number][0] = 1, sequence
            many.logits[number] = number in last
        assert llama_cpp.llama_decode(context, many) == 0
        llama_cpp.llama_batch_free(many)

    def write(length: int) -> tuple[float, float]:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        begun = time.perf_counter()
        for sequence in range(batch):
            decode([(draw.randrange(1, vocabulary), at, sequence) for at in range(prompt)], {prompt - 1})
        read = time.perf_counter()
        for at in range(prompt, prompt + length - 1):
            decode([(draw.randrange(1, vocabulary), at, sequence) for sequence in range(batch)], {*range(batch)})
        return batch * prompt / (read - begun), batch * (length - 1) / (time.perf_counter() - read)

    write(8)
    read, written = write(tokens)
    print(json.dumps({"prompt": read, "written": written}))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
