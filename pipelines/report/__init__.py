"""Build an HTML page that shows an output, from facts (aggregates), samples, pictures and charts."""
