"""Tasks: what is to be done, from its creation to its end. Rules as pure functions over State."""
