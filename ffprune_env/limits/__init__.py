"""The other way round: what may be lost is given, and the smallest model that loses no more is found."""
