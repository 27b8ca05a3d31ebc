"""Growth: models that change their architecture while they train, by the rules in their blueprints."""
