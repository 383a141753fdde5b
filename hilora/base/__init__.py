"""The two models that everything stands on, as they come: the base model (its linear modules, prompts, answers) and
the embedder."""
