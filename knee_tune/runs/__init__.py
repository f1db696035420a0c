"""Training runs as the driver sees them: trained once, and cached ever after."""
