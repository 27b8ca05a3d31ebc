"""Who breeds, who stays: numbers alone, no torch. Called by the search."""
