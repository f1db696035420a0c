"""Training runs as the driver sees them: trained once, answered from their records ever after."""
