"""Pages, HTTP API, command line, accounts and the schedule."""
