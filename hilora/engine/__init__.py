"""A plan at work in a model. What is there for speed is here, and nowhere else."""
