"""What the paper shows: its toy problems and its theory."""
