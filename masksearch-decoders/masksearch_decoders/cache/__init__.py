"""What a decoder's cache of keys and values holds under a mask, and how many bytes."""
