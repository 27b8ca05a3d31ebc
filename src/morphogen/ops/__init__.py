"""The maths, with no configuration in it, and the slow loops it is tested against. Called by the parts' modules."""
