"""`hilora bench`: how fast hilora is on this machine, beside the base model and PEFT, in the same run."""
