"""Training: what every rank does. Naming it costs the driver no torch."""

ENTRY = "knee_tune.training.worker:run_job"
"""What a group runner is given to call on every rank."""
