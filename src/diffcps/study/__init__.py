"""Comparisons of methods: what is compared, its runs, its results, its statistics and its report."""
