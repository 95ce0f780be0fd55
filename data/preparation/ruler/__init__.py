"""Long-context tasks in the form of RULER (Hsieh et al. 2024, arXiv:2404.06654): needles, variable
tracking, word counts, questions about documents, at any length. The thirteen tasks, their settings
and their scores are RULER's; all text is our own or the user's, so scores are near to, not the same
as, those of RULER's own prompts. The two question tasks ask about invented people and towns, where
RULER takes SQuAD and HotpotQA."""
