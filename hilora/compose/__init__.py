"""Token level: from a plan to what a site adds to the base model's output."""
