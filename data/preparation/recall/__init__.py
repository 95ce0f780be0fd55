"""Text in which things are to be recalled: stretches of the user's documents with facts, passages
and chains hidden in them, and at the end what is asked for, answered. A hybrid learns from few
tokens of it to look back, which plain text asks of it too seldom. The wording is not that of the
needles and tasks that measure recall (needles.py, ruler/): what is measured is not what was trained.
"""
