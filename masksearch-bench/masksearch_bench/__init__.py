"""Tables that `masksearch.bench.load` finds, and the decoders that they were judged on."""
