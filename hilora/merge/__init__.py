"""Many adapters made into one: sequence-independent baselines, then served like any adapter."""
