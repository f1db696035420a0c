"""What a machine and a set-up are missing: ``knee-tune doctor``.

Every check answers; none raises or creates anything.
"""

from pathlib import Path

from knee_tune.doctor.check import Check
from knee_tune.doctor.machine import check_cpu, check_devices, check_start_method
from knee_tune.doctor.places import check_data, check_home, check_storage, check_tracking
from knee_tune.doctor.software import (
    check_bytecode,
    check_code,
    check_fairseq_extensions,
    check_libraries,
    check_python,
)

__all__ = ["Check", "examine"]


def examine(
    *, home: Path, data_dir: Path, storage_url: str, tracking_uri: str
) -> tuple[Check, ...]:
    """Look at the interpreter, the libraries, the devices, the places and the servers."""
    return (
        check_python(),
        *check_libraries(),
        check_fairseq_extensions(),
        *check_devices(),
        check_cpu(),
        check_start_method(),
        check_bytecode(),
        check_code(),
        *check_home(home),
        check_storage(storage_url),
        check_tracking(tracking_uri),
        check_data(data_dir),
    )
