"""Labels of a batch: the token that is to be predicted, or none."""

NO_LOSS = -100
"""A token that is not learnt; transformers' losses leave it out."""
