"""What a pool's routing statistics promise, and what they keep of it."""
