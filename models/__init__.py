"""What becomes a plan: the compiler, the network zoo."""
