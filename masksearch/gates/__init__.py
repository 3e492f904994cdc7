"""DAM, the differentiable attention mask: trainable gates on attention's edges."""
