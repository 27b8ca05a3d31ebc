"""Files of the older system (transformer-evolution-llm) as files of ours, with an account of every field."""
