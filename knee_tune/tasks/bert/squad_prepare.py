"""``knee-tune data prepare squad``: questions in three splits, with a manifest and a vocabulary.

``<data>/<name>/{train.json, valid.json, test.json, vocab.txt, manifest.json}``, the first three in
SQuAD v1.1's own form. What is published as its development set is what the literature tests on, so
it is the test split here; the valid split is cut from the training set, by article.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from knee_tune.errors import UserError
from knee_tune.tasks import prepared_folder
from knee_tune.tasks.bert.squad_demo import demo_articles
from knee_tune.tasks.bert.squad_recipe import DEMO
from knee_tune.tasks.bert.squad_text import (
    Article,
    Question,
    in_v1_form,
    questions_of,
    read_articles,
    split_by_article,
)
from knee_tune.tasks.bert.wordpiece import VOCABULARY, learn_vocabulary, write_vocabulary
from knee_tune.tasks.prepared_folder import (
    PreparedSet,
    SetManifest,
    check_files,
    new_folder,
    prepare_once,
    record_files,
    set_folder,
    write_manifest,
)

TRAIN, DEV = "train-v1.1.json", "dev-v1.1.json"

VALID_OF_TRAIN = {"valid": 0.05}
"""Where there is a test set: 4,400 of SQuAD's 87,599 training questions."""

VALID_AND_TEST = {"valid": 0.1, "test": 0.1}
"""Of a single file."""

VOCABULARY_SIZE = 4_000
"""Tokens, at most, for an encoder that starts at random; a pre-trained one brings its own."""

_AGAIN = (
    "run 'knee-tune data prepare squad ... --force', or remove the folder to have the generated "
    "questions prepared anew"
)


class SquadManifest(SetManifest):
    """Contents and origin of prepared questions."""

    questions: dict[str, int]
    """By split."""
    articles: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class PreparedQuestions(PreparedSet):
    """A preparation of questions."""

    questions: dict[str, int]
    """By split."""
    articles: dict[str, int]

    def contents(self) -> str:
        """Sizes of the set, in a few words."""
        return ", ".join(
            f"{count:,} {split} questions on {self.articles[split]:,} articles"
            for split, count in self.questions.items()
        )


def prepare(
    *,
    data_root: Path,
    from_path: Path | None = None,
    name: str | None = None,
    force: bool = False,
    progress: Callable[[str, float], None] = lambda text, share: None,
) -> PreparedQuestions:
    """Prepare the set ``<data_root>/<name>`` of a file, or of a folder with SQuAD's two files.

    A file is split into training, validation and test by article; of a folder the training file
    into training and validation. Without ``from_path`` of generated questions. ``name`` is by
    default "squad" for a folder, else that of the file. A set that is there already stays, unless
    ``force``; other questions need it, or another name. UserError for everything wrong with the
    input; nothing is half-written.
    """
    began = time.monotonic()
    folder = set_folder(data_root, name or _usual_name(from_path))
    origin = "generated" if from_path is None else str(from_path.resolve())

    def prepared(manifest: SquadManifest, *, reused: bool) -> PreparedQuestions:
        return PreparedQuestions(
            folder=folder,
            name=folder.name,
            questions=manifest.questions,
            articles=manifest.articles,
            fingerprint=manifest.fingerprint,
            seconds=time.monotonic() - began,
            reused=reused,
        )

    progress("read questions", 0.0)
    splits = _splits(from_path)
    texts = {f"{split}.json": in_v1_form(articles) for split, articles in splits.items()}
    if folder.exists() and not force:
        known = read_manifest(folder, verify=True)
        if all(
            sha256(text).hexdigest() == known.files[name].sha256 for name, text in texts.items()
        ):
            return prepared(known, reused=True)
        raise UserError(
            f"{folder} was prepared from other questions ({known.origin}): choose another `name`, "
            "or replace it with `force`"
        )
    progress("learn vocabulary", 0.5)
    with new_folder(folder) as partial:
        for file, text in texts.items():
            (partial / file).write_bytes(text)
        write_vocabulary(_vocabulary(splits["train"]), partial / VOCABULARY)
        files, fingerprint = record_files(partial)
        manifest = SquadManifest(
            name=folder.name,
            origin=origin,
            questions={
                split: sum(article.questions for article in articles)
                for split, articles in splits.items()
            },
            articles={split: len(articles) for split, articles in splits.items()},
            files=files,
            fingerprint=fingerprint,
        )
        write_manifest(partial, manifest)
    progress("learn vocabulary", 1.0)
    return prepared(manifest, reused=False)


def find_prepared(data_dir: Path, name: str) -> tuple[Path, SquadManifest]:
    """Folder and manifest of the prepared set ``name``; prepares the generated one if missing.

    The questions themselves are not looked at. UserError if there is no such set.
    """
    folder = data_dir / name
    if name == DEMO:
        prepare_once(folder, lambda: prepare(data_root=data_dir))
    return folder, read_manifest(folder)


def read_manifest(folder: Path, *, verify: bool = False) -> SquadManifest:
    """The manifest of the questions in ``folder``; UserError if there is no finished one.

    ``verify`` looks at the questions too: UserError if they are not as they were prepared.
    """
    missing = (
        f"recipe.data={folder.name}: no prepared questions in {folder}; run 'knee-tune data "
        f"prepare squad --from FILE|DIR --name {folder.name}', or use recipe.data={DEMO}, which "
        "needs none"
    )
    manifest = prepared_folder.read_manifest(folder, SquadManifest, missing=missing, again=_AGAIN)
    if verify:
        check_files(folder, manifest.files, again=_AGAIN)
    return manifest


def read_questions(folder: Path, split: str) -> list[Question]:
    """The questions of a split of a prepared set, in the order of its file."""
    return list(questions_of(read_articles(folder / f"{split}.json")))


def _vocabulary(articles: Sequence[Article]) -> list[str]:
    paragraphs = [paragraph for article in articles for paragraph in article.paragraphs]
    asked = [each.question for paragraph in paragraphs for each in paragraph.qas]
    texts = [*(paragraph.context for paragraph in paragraphs), *asked]
    return learn_vocabulary(texts, size=VOCABULARY_SIZE)


def _usual_name(path: Path | None) -> str:
    if path is None:
        return DEMO
    if path.is_dir():
        return "squad"
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.resolve().stem).strip(".-_")[:64] or "questions"


def _splits(path: Path | None) -> Mapping[str, Sequence[Article]]:
    if path is None:
        return split_by_article(demo_articles(), VALID_AND_TEST)
    if path.is_dir():
        train, dev = path / TRAIN, path / DEV
        for file in (train, dev):
            if not file.is_file():
                raise UserError(
                    f"`from_path` {path}: no {file.name} in it; give a folder with {TRAIN} and "
                    f"{DEV}, or one file"
                )
        return split_by_article(read_articles(train), VALID_OF_TRAIN) | {
            "test": list(read_articles(dev))
        }
    if path.is_file():
        return split_by_article(read_articles(path), VALID_AND_TEST)
    raise UserError(f"`from_path` {path}: no such file or folder")
