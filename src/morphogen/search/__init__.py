"""The search as a state machine that executes nothing. Called by a run's session, replayed by who reads a ledger."""
