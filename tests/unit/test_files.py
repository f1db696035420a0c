"""A file or folder has its name when it is whole, and never before."""

from pathlib import Path

import pytest

from knee_tune.files import drafts, link_or_copy, whole, write_whole


@pytest.mark.parametrize("durable", [False, True])
def test_it_gets_its_name_at_the_end(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "note.json"
    path.write_text("before")
    with whole(path, durable=durable) as draft:
        draft.write_text("after")
        assert path.read_text() == "before"
        assert drafts(tmp_path) == [draft]
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


def test_of_what_fails_nothing_is_left(tmp_path: Path) -> None:
    def killed() -> None:
        with whole(tmp_path / "step-1") as draft:
            draft.mkdir()
            (draft / "state").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_stays(tmp_path: Path) -> None:
    for content in ("first", "second"):
        try:
            with whole(tmp_path / "step-1", durable=True) as draft:
                draft.mkdir()
                (draft / "state").write_text(content)
        except OSError:
            assert content == "second"
    assert (tmp_path / "step-1" / "state").read_text() == "first"
    assert list(tmp_path.iterdir()) == [tmp_path / "step-1"]


def test_a_link_of_the_file_itself_leaves_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_text("weights")
    with whole(path) as draft:
        link_or_copy(path, draft)
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_was_deleted_is_not_made_anew(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "home" / "note.json", "text")
    assert list(tmp_path.iterdir()) == []
