"""The ledger of usage: one algebra of tokens, prices, records and their sums."""
