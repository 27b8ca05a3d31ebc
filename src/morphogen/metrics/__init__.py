"""Figures that are measured of a trained model, a file a figure or family. Called when a candidate is measured."""
