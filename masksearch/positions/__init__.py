"""Which positions of the attention matrix matter: maps, learned scales, gradients, drops."""
