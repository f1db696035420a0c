"""A small GPT-2 that learns to add, by transformers' Trainer: a plain script that can be tuned."""

from sums import Sums, network
from transformers import Trainer, TrainingArguments

import knee_tune.hf

arguments = TrainingArguments(
    output_dir="trained",
    max_steps=200,
    per_device_train_batch_size=16,
    per_device_eval_batch_size=100,
    learning_rate=3e-3,
    warmup_steps=10,
    eval_strategy="steps",
    eval_steps=20,
    logging_steps=20,
    save_strategy="no",
    report_to="none",
    use_cpu=True,
)
trainer = Trainer(network(), arguments, train_dataset=Sums(0, 2000), eval_dataset=Sums(2000, 2200))
knee_tune.hf.attach(trainer, serve="serve:load")
trainer.train()
