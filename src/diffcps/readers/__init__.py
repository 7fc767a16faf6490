"""One reader for each file format: each returns `RawRows`, unchecked. No format's library is imported elsewhere."""
