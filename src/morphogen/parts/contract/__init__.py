"""What a part is: its data, tensors and inheritance, the registries, and the modules that kinds are made of."""
