"""EM and F1 of a thousand answers, ours beside others'.

    python -m benchmarks.squad [--squad-script FILE] [--from FILE]

The answers are made of the true ones: cut short, longer, with other punctuation, articles, case or
spaces, of another question, empty, missing. ``--squad-script`` is the official evaluate-v1.1.py,
which is run as it is; torchmetrics, which has a version of its own, is asked where it is installed.
``--from`` is a file of SQuAD v1.1 to take questions from; without it they are the generated ones.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

from knee_tune.tasks.bert.squad_demo import demo_articles
from knee_tune.tasks.bert.squad_metric import exact_match, f1
from knee_tune.tasks.bert.squad_text import (
    Article,
    Question,
    in_v1_form,
    questions_of,
    read_articles,
)

ANSWERS = 1000
SEED = 1
ALIKE = 1e-9
"""How far numbers may be apart, in percent: they are added up in another order."""


def answers_to(questions: Sequence[Question]) -> dict[str, str]:
    """An answer to each question but every 50th, by its id; always the same."""
    draw = random.Random(SEED)
    answers = {}
    for number, asked in enumerate(questions):
        words = asked.answers[0].text.split()
        around = asked.context.split()
        at = draw.randrange(len(around))
        answers[asked.id] = draw.choice(
            (
                " ".join(words),
                f"the {' '.join(words)}.",
                f"  {'  '.join(words).upper()} ",
                "-".join(words),
                " ".join(words[: draw.randrange(len(words) + 1)]),
                " ".join([*words, *around[at : at + 3]]),
                " ".join([*words, *words]),
                " ".join(reversed(["a", *words])),
                " ".join(around[at : at + 4]),
                questions[draw.randrange(len(questions))].answers[0].text,
                draw.choice(("", "the", "A.", "“" + " ".join(words) + "”")),
            )
        )
        if number % 50 == 49:
            del answers[asked.id]
    return answers


def score(questions: Sequence[Question], answers: Mapping[str, str]) -> tuple[float, float]:
    """EM and F1 in percent, as the task counts them; a missing answer is an empty one."""
    pairs = [
        (answers.get(asked.id, ""), [gold.text for gold in asked.answers]) for asked in questions
    ]
    return fmean(exact_match(*pair) for pair in pairs), fmean(f1(*pair) for pair in pairs)


def official(
    script: Path, articles: Sequence[Article], answers: Mapping[str, str]
) -> tuple[float, float]:
    """What the official script prints."""
    with tempfile.TemporaryDirectory() as folder:
        data, given = Path(folder) / "data.json", Path(folder) / "answers.json"
        data.write_bytes(in_v1_form(articles))
        given.write_text(json.dumps(answers))
        done = subprocess.run(
            [sys.executable, script, data, given], capture_output=True, text=True, check=True
        )
    found = json.loads(done.stdout)
    return found["exact_match"], found["f1"]


def torchmetrics(questions: Sequence[Question], answers: Mapping[str, str]) -> tuple[float, float]:
    """What torchmetrics computes."""
    from torchmetrics.functional.text import squad

    given = [{"id": each.id, "prediction_text": answers.get(each.id, "")} for each in questions]
    golds: list[Any] = [
        {
            "id": each.id,
            "answers": {
                "text": [gold.text for gold in each.answers],
                "answer_start": [gold.answer_start for gold in each.answers],
            },
        }
        for each in questions
    ]
    found = squad(given, golds)
    return float(found["exact_match"]), float(found["f1"])


def main() -> None:
    """Print the lines; exit code 1 if the official script counts otherwise."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--squad-script", type=Path)
    parser.add_argument("--from", dest="file", type=Path)
    options = parser.parse_args()
    articles = read_articles(options.file) if options.file else demo_articles()
    questions = list(questions_of(articles))[:ANSWERS]
    answers = answers_to(questions)
    ours = score(questions, answers)
    print(f"{len(questions)} answers        EM         F1")
    print(f"knee-tune       {ours[0]:10.6f} {ours[1]:10.6f}")
    if find_spec("torchmetrics"):
        print("torchmetrics    {:10.6f} {:10.6f}".format(*torchmetrics(questions, answers)))
    if options.squad_script:
        kept = {each.id for each in questions}
        whole = [_only(article, kept) for article in articles]
        theirs = official(options.squad_script, whole, answers)
        print("official script {:10.6f} {:10.6f}".format(*theirs))
        if max(abs(one - other) for one, other in zip(ours, theirs, strict=True)) > ALIKE:
            sys.exit("they differ")


def _only(article: Article, kept: set[str]) -> Article:
    """The article with no other questions than those."""
    paragraphs = tuple(
        each.model_copy(update={"qas": tuple(asked for asked in each.qas if asked.id in kept)})
        for each in article.paragraphs
    )
    return article.model_copy(update={"paragraphs": paragraphs})


if __name__ == "__main__":
    main()
