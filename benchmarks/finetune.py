"""Fine-tuning speed, peak memory and result: `pellucid.finetune` against transformers' Trainer, with peft for adapters.

The same model, data, batches, rates and schedule on both sides, both in bf16, with all cores. The Trainer has the settings that
suit it best (fused AdamW, filling to the longest of a batch; with and without rows of like length together, frozen weights in
fp32 or bf16): its fastest counts. Every run is a process of its own; they go in turns; the figures are medians over the turns.
Timed is the loop alone; the peak is that of the whole process, up to the end of the loop.

- full: all-MiniLM-L6-v2 learns sentences of Rotten Tomatoes; accuracy on sentences that are held out
- lora: the same with adapters of rank 16 in all linear layers of the blocks
- instruct: SmolLM2-135M-Instruct learns Alpaca conversations with such adapters; loss on conversations that are held out

    python benchmarks/finetune.py [--cases full lora instruct] [--turns 3] [--train 1000] [--conversations 200]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from alone import DATA, NAMES, alone, minilm, quiet, sentences, smollm2, write_csv

from pellucid.core.machine import cpu_cores, peak_memory

VARIANTS = {  # of the Trainer: the order of rows, and the type of weights that stay as they are
    "full": {"random": ("random", "float32"), "by_length": ("group_by_length", "float32")},
    "lora": {"by_length": ("group_by_length", "float32"), "by_length_bf16_base": ("group_by_length", "bfloat16")},
    "instruct": {"by_length": ("group_by_length", "float32"), "by_length_bf16_base": ("group_by_length", "bfloat16")},
}
BERT_LAYERS = r".*encoder\.layer.*\.(query|key|value|dense)"
LLAMA_LAYERS = r".*layers.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is learnt, and how; the folder holds the model and the data."""

    name: str
    folder: Path
    epochs: float
    batch: int
    rate: float
    threads: int
    rank: int = 16
    alpha: int = 32

    @property
    def adapted(self) -> bool:
        return self.name != "full"


@dataclass(frozen=True)
class Figures:
    """What a run took, and what it reached: the accuracy, or the loss in nats per target, on what was held out."""

    seconds: float
    peak_bytes: int
    result: float


def prepare_sentences(folder: Path, train: int, test: int) -> None:
    """all-MiniLM-L6-v2 with a head that both sides begin with, and the sentences."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    quiet()
    torch.manual_seed(0)
    names = dict(enumerate(NAMES))
    options: dict[str, Any] = {"id2label": names, "label2id": {name: at for at, name in names.items()}}
    model = AutoModelForSequenceClassification.from_pretrained(minilm(), attention_probs_dropout_prob=0.0, **options)
    model.save_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(minilm())
    tokenizer.save_pretrained(folder / "model")
    for part, rows in zip(("train", "test"), sentences(train, test), strict=True):
        write_csv(folder / f"{part}.csv", rows)
        coded = tokenizer([text for text, _ in rows], truncation=False)["input_ids"]
        examples = [{"input_ids": ids, "labels": NAMES.index(label)} for ids, (_, label) in zip(coded, rows, strict=True)]
        (folder / f"{part}.json").write_text(json.dumps(examples), encoding="utf-8")


def prepare_conversations(folder: Path, train: int, test: int, data: Path) -> None:
    """SmolLM2 as others open it, and conversations: as they are, and as tokens with those to learn."""
    import pellucid
    from pellucid.text.chat import ChatTemplate, encode_conversation
    from pellucid.text.conversations import read_conversations

    pellucid.convert(smollm2(), folder / "model", to="hf", dtype="f32")
    rows = json.loads(data.read_text(encoding="utf-8"))
    tokenizer = pellucid.load(folder / "model").tokenizer
    for part, chosen in (("train", rows[:train]), ("test", rows[train : train + test])):
        path = folder / f"{part}.rows.json"
        path.write_text(json.dumps(chosen), encoding="utf-8")
        examples = []
        for conversation in read_conversations(path):
            ids, learnt = encode_conversation(tokenizer, ChatTemplate.of(tokenizer), conversation.messages)
            labels = [int(token) if learn else -100 for token, learn in zip(ids, learnt, strict=True)]
            examples.append({"input_ids": ids.tolist(), "labels": labels})
        (folder / f"{part}.json").write_text(json.dumps(examples), encoding="utf-8")


def ours(case: Case) -> Figures:
    """`pellucid.finetune`; nothing is held out, so that the loop only learns."""
    import pellucid

    instruct, folder = case.name == "instruct", case.folder
    run = pellucid.finetune(
        folder / "model",
        {"train": [str(folder / ("train.rows.json" if instruct else "train.csv"))]}
        | {"validation_fraction": 0.0, "test_fraction": 0.0},
        out=folder / "run",
        task={"name": "instruct", "pack": False} if instruct else {"name": "classify", "pooling": "first"},
        method={"name": "lora", "rank": case.rank, "alpha": float(case.alpha)} if case.adapted else {"name": "full"},
        optimizer={"learning_rate": case.rate, "weight_decay": 0.0},
        training={
            "epochs": case.epochs,
            "batch_size": case.batch,
            "precision": "bf16",
            "threads": case.threads,
            "checkpoint_every": 10**6,
        },
        force=True,
    )
    seconds, peak = float(run.metrics[-1]["seconds"]), peak_memory()
    return Figures(seconds, peak, our_loss(run.model, case) if instruct else our_accuracy(run.model, case))


def our_accuracy(model: Any, case: Case) -> float:
    import csv

    with (case.folder / "test.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found = model.predict([row["text"] for row in rows])
    return sum(one.label == row["label"] for one, row in zip(found, rows, strict=True)) / len(rows)


def our_loss(model: Any, case: Case) -> float:
    import torch
    import torch.nn.functional as F

    total, count = 0.0, 0
    with torch.inference_mode():
        for example in json.loads((case.folder / "test.json").read_text(encoding="utf-8")):
            ids, labels = torch.tensor([example["input_ids"]]), torch.tensor(example["labels"])[1:]
            total += F.cross_entropy(model(ids).logits[0, :-1].float(), labels, reduction="sum").item()
            count += int((labels != -100).sum())
    return total / count


def theirs(case: Case, order: str, dtype: str) -> Figures:
    """transformers' Trainer."""
    import peft
    import torch
    import transformers

    quiet()
    torch.set_num_threads(case.threads)
    transformers.set_seed(0)
    train, test = (json.loads((case.folder / f"{part}.json").read_text(encoding="utf-8")) for part in ("train", "test"))
    kind = transformers.AutoModelForCausalLM if case.name == "instruct" else transformers.AutoModelForSequenceClassification
    model = kind.from_pretrained(case.folder / "model", dtype=getattr(torch, dtype))
    if case.adapted:
        bert = case.name == "lora"
        settings = peft.LoraConfig(
            task_type="SEQ_CLS" if bert else "CAUSAL_LM",
            r=case.rank,
            lora_alpha=case.alpha,
            target_modules=BERT_LAYERS if bert else LLAMA_LAYERS,
            modules_to_save=["classifier", "pooler"] if bert else None,
        )
        model = peft.get_peft_model(model, settings)
    tokenizer = transformers.AutoTokenizer.from_pretrained(case.folder / "model")
    collate = (
        transformers.DataCollatorForSeq2Seq(tokenizer)
        if case.name == "instruct"
        else transformers.DataCollatorWithPadding(tokenizer)
    )
    clock = Clock()

    class Timed(transformers.TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            clock.begin()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            clock.end()

    arguments = transformers.TrainingArguments(
        output_dir=str(case.folder / "theirs"),
        num_train_epochs=case.epochs,
        per_device_train_batch_size=case.batch,
        learning_rate=case.rate,
        lr_scheduler_type="linear",
        warmup_steps=0.1,
        weight_decay=0.0,
        bf16=True,
        use_cpu=True,
        optim="adamw_torch_fused",
        train_sampling_strategy=order,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=train, data_collator=collate, processing_class=tokenizer, callbacks=[Timed()]
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    peak = peak_memory()
    model = trainer.model.eval()
    found = their_loss(model, test) if case.name == "instruct" else their_accuracy(model, test, collate)
    return Figures(clock.seconds, peak, found)


class Clock:
    """The time from `begin` to `end`."""

    seconds = 0.0

    def begin(self) -> None:
        self.begun = time.perf_counter()

    def end(self) -> None:
        self.seconds = time.perf_counter() - self.begun


def their_accuracy(model: Any, test: list[dict[str, Any]], collate: Callable[..., Any]) -> float:
    import torch

    right = 0
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for start in range(0, len(test), 32):
            batch = collate(test[start : start + 32])
            right += int((model(**batch).logits.argmax(dim=-1) == batch["labels"]).sum())
    return right / len(test)


def their_loss(model: Any, test: list[dict[str, Any]]) -> float:
    import torch
    import torch.nn.functional as F

    total, count = 0.0, 0
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for example in test:
            ids, labels = torch.tensor([example["input_ids"]]), torch.tensor(example["labels"])[1:]
            total += F.cross_entropy(model(input_ids=ids).logits[0, :-1].float(), labels, reduction="sum").item()
            count += int((labels != -100).sum())
    return total / count


def compared(case: Case, turns: int) -> dict[str, Any]:
    """Both sides in turns, and the ratios."""
    contenders: dict[str, Callable[[], Figures]] = {"ours": lambda: alone(ours, case)}
    for name, settings in VARIANTS[case.name].items():
        contenders[name] = lambda settings=settings: alone(theirs, case, *settings)  # type: ignore[misc]
    runs: dict[str, list[Figures]] = {name: [] for name in contenders}
    for _ in range(turns):
        for name, contender in contenders.items():
            runs[name].append(found := contender())
            what = f"{found.seconds:7.1f} s  {found.peak_bytes / 1e6:6,.0f} MB  {found.result:.4f}"
            print(f"{case.name:<9} {name:<20} {what}", file=sys.stderr)
    examples = json.loads((case.folder / "train.json").read_text(encoding="utf-8"))
    texts, tokens = (case.epochs * n for n in (len(examples), sum(len(example["input_ids"]) for example in examples)))
    middle = {name: median(run.seconds for run in found) for name, found in runs.items()}
    best = min((name for name in runs if name != "ours"), key=lambda name: middle[name])
    peaks = {name: median(run.peak_bytes for run in found) for name, found in runs.items()}
    return {
        "speed_ratio": middle[best] / middle["ours"],
        "memory_ratio": peaks["ours"] / peaks[best],
        "their_best": best,
        "texts_per_second": {name: texts / seconds for name, seconds in middle.items()},
        "tokens_per_second": {name: tokens / seconds for name, seconds in middle.items()},
        "peak_bytes": peaks,
        "loss" if case.name == "instruct" else "accuracy": {
            name: [run.result for run in found] for name, found in runs.items()
        },
        "runs": {name: [asdict(run) for run in found] for name, found in runs.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["full", "lora", "instruct"], choices=["full", "lora", "instruct"])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--train", type=int, default=1000, help="sentences")
    parser.add_argument("--test", type=int, default=1066, help="sentences that are held out")
    parser.add_argument("--epochs", type=float, default=2.0, help="over the sentences")
    parser.add_argument("--conversations", type=int, default=200, help="learnt once, 8 at a time")
    parser.add_argument("--held-out-conversations", type=int, default=50)
    parser.add_argument("--conversation-file", type=Path, default=DATA / "instruct" / "alpaca_en_demo.json")
    parser.add_argument("--threads", type=int, default=cpu_cores())
    asked = parser.parse_args()
    result = {}
    with TemporaryDirectory() as temporary:
        for name in asked.cases:
            folder = Path(temporary) / name
            folder.mkdir()
            settings: dict[str, Any] = {"name": name, "folder": folder, "threads": asked.threads}
            if name == "instruct":
                alone(prepare_conversations, folder, asked.conversations, asked.held_out_conversations, asked.conversation_file)
                case = Case(epochs=1.0, batch=8, rate=2e-4, **settings)
            else:
                alone(prepare_sentences, folder, asked.train, asked.test)
                case = Case(epochs=asked.epochs, batch=32, rate=1e-4 if name == "full" else 1e-3, **settings)
            result[name] = compared(case, asked.turns)
    print(json.dumps({"threads": asked.threads, "cases": result}))


if __name__ == "__main__":
    main()
