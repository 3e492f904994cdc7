"""What decoders are judged by: running text, planted recall, tasks of long context."""
