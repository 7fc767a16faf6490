"""Does this data fit this simulator? Stored steps are taken again and compared."""
