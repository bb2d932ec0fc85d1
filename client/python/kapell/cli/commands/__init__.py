"""One module a group of commands; see `kapell.cli.main` for the table that names them."""
