"""The maths, with no configuration in it, and the slow loops it is tested against. For parts' modules and `network`."""
