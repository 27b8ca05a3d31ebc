"""Text, tokens, batches and probes. Called by `run.settle`, which makes them ready, by training and metrics."""
