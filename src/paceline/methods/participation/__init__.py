"""Methods for partial and unequal client participation."""
