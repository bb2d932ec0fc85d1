"""Locks on the side of whoever holds them: acquiring, renewing, and what programs are told of them."""
