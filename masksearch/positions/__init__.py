"""Which positions of the attention matrix matter: maps, gradients, drops."""
