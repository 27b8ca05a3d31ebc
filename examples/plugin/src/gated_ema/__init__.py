"""A package that adds to morphogen; its pyproject.toml says what."""
