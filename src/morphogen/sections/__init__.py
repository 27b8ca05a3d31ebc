"""The longer sections of an experiment's file, one each; `experiment.py` joins them."""
