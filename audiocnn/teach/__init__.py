"""A classifier for a user's own sounds: a linear head on the features of a frozen backbone."""
