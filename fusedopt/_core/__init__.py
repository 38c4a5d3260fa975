"""What the optimizers share: one step, its options, its checkpoints."""
