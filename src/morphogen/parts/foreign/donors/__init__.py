"""Other trained models that layers are taken from: their files, their names, and how a layer of them is run."""
