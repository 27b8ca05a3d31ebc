"""Models of other frameworks: read, written and merged."""
