"""Making datasets without downloads."""
