"""The architecture as data: reading, writing and comparing it. Called by everything above the parts."""
