"""Worker groups: how a plan reaches its ranks, and how their end reaches the driver."""
