"""The catalogue of benchmark tasks: each fact once."""
