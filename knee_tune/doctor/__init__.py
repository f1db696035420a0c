"""What a machine and a set-up are missing: ``knee-tune doctor``.

Every check answers; none raises or creates anything.
"""

from pathlib import Path

from knee_tune.doctor import machine, places, software
from knee_tune.doctor.check import Check

__all__ = ["Check", "examine"]


def examine(
    *, home: Path, data_dir: Path, storage_url: str, tracking_uri: str
) -> tuple[Check, ...]:
    """Look at the interpreter, the libraries, the devices, the places and the servers."""
    return (
        software.check_python(),
        *software.check_libraries(),
        software.check_fairseq_extensions(),
        *machine.check_devices(),
        machine.check_cpu(),
        machine.check_start_method(),
        software.check_bytecode(),
        software.check_code(),
        *places.check_home(home),
        places.check_storage(storage_url),
        places.check_tracking(tracking_uri),
        places.check_data(data_dir),
    )
