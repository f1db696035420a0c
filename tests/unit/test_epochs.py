"""Where in its epochs a run goes on."""

from itertools import islice

import pytest

from knee_tune.tasks.seeding import epochs_after


@pytest.mark.parametrize(
    ("start_step", "first"),
    [(0, (0, range(3))), (2, (0, range(2, 3))), (3, (1, range(3))), (7, (2, range(1, 3)))],
)
def test_only_the_first_epoch_has_begun(start_step: int, first: tuple[int, range]) -> None:
    epoch, _ = first
    epochs = list(islice(epochs_after(start_step, 3), 3))
    assert epochs == [first, (epoch + 1, range(3)), (epoch + 2, range(3))]
