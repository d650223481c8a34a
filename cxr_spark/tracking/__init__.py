"""A finished run folder to MLflow: a run for the experiment, one under it for every head."""
