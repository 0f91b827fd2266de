"""One HTML page that shows an output: `build` makes it of facts (aggregates), samples, pictures and charts."""
