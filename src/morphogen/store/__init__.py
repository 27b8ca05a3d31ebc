"""Files: the ledger, the exports, and the one atomic writer. Called by everything that writes."""
