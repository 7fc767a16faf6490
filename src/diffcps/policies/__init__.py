"""What methods with the same kind of policy share: networks put to use, with what they draw as an argument."""
