"""A small GPT-2 that learns sums of digits, by transformers' Trainer: knee-tune can tune it."""

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import knee_tune.hf

SYMBOLS = "0123456789+="


class Sums(Dataset[dict[str, Tensor]]):
    """``27+58=85``, as symbols; the sums from ``start`` on of a fixed order of all."""

    def __init__(self, start: int, end: int) -> None:
        order = torch.randperm(10_000, generator=torch.Generator().manual_seed(0))
        self.pairs = [divmod(int(pair), 100) for pair in order[start:end]]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        a, b = self.pairs[index]
        text = f"{a:02}+{b:02}={a + b:03}"
        symbols = torch.tensor([SYMBOLS.index(symbol) for symbol in text])
        labels = symbols.where(torch.arange(len(text)) > text.index("="), -100)
        return {"input_ids": symbols, "labels": labels}


model = GPT2LMHeadModel(
    GPT2Config(
        vocab_size=len(SYMBOLS),
        n_positions=16,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=None,
        eos_token_id=None,
    )
)
arguments = TrainingArguments(
    output_dir="trained",
    max_steps=200,
    per_device_train_batch_size=16,
    learning_rate=3e-3,
    warmup_steps=10,
    eval_strategy="steps",
    eval_steps=20,
    logging_steps=20,
    save_strategy="no",
    report_to="none",
    use_cpu=True,
)
trainer = Trainer(model, arguments, train_dataset=Sums(0, 2000), eval_dataset=Sums(2000, 2200))
knee_tune.hf.attach(trainer)
trainer.train()
