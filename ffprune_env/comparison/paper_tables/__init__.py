"""The four tables of the paper: what is in them, what the paper prints, what they cost, and how they are drawn."""
