"""One loop, its losses, and the recovery of a shortened model by distillation."""
