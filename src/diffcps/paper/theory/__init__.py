"""The paper's theory, checked with numbers (DiffCPS, arXiv:2310.05333, section 3 and appendix A).

One file a theorem: `duality` (3.7), `iteration` (3.11), `surrogate` (proposition 3.8), on the decision processes of
`tabular`. `checks` runs them all and writes what they come to. What is shown, and what is not: docs/theory.md.
"""
