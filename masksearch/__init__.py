"""Search attention masks of Transformers."""
