"""One candidate: a job in, a report out. Called by the executors, in whatever process they run."""
