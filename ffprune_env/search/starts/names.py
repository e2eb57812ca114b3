"""What ``--init`` calls the starts; the only other thing that it takes is the folder of a run."""

EQUAL = "none"
FFN_ONLY = "ffn-only"
FISHER = "fisher"
FISHER_ITERATED = "fisher-iterated"

#: Starts that no damage curves are made for.
NO_CURVES = (EQUAL, FFN_ONLY)
#: Starts from damage curves.
FROM_CURVES = (FISHER, FISHER_ITERATED)
NAMES = (*NO_CURVES, *FROM_CURVES)
#: Starts that are taken as they are; the other one, and the policy of a run, are improved step by step.
NOT_IMPROVED = (*NO_CURVES, FISHER)
