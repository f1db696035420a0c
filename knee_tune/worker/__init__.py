"""What a worker group runs. Naming it costs the driver no torch."""

ENTRY = "knee_tune.worker.job:run_job"
"""What a group runner is given to call on every rank."""
