"""Templates: parameters, the language of prompts, versions and steps."""
