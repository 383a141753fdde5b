"""What has to be trained: adapters themselves. Routing needs no training."""
