"""Which layers or heads of a decoder keep full attention; masks in the form that engines serve.

Its public names are those of masksearch: `masksearch.allocate`, `masksearch.to_native` and others.
"""
